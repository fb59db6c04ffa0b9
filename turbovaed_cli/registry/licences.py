"""Licences as model cards on the hub state them: an id of the hub's list, or `other` with a name and a link."""

import re
from dataclasses import dataclass

from turbovaed_cli.registry.weight_files import is_known

_MOST_LETTERS = 96  # of a `license_name`


@dataclass(frozen=True)
class HubLicence:
    """The licence in the header of a card: `license`, and for a licence that is not in the hub's list its name and link."""

    id: str
    name: str | None = None
    link: str | None = None


# By the names in the registry's rows. Names and links are as in copies of the publishers' cards; the names of Stability's
# and of the mixed LTX-Video licence, and the link of CogVideoX 1.5, are unverified.
_KNOWN = {
    "Apache-2.0": HubLicence("apache-2.0"),
    "MIT": HubLicence("mit"),
    "BSD-3-Clause": HubLicence("bsd-3-clause"),
    "CC-BY-4.0": HubLicence("cc-by-4.0"),
    "CC-BY-NC-4.0": HubLicence("cc-by-nc-4.0"),
    "CreativeML Open RAIL++-M": HubLicence("openrail++"),
    "CogVideoX License": HubLicence(
        "other", "cogvideox-license", "https://huggingface.co/zai-org/CogVideoX1.5-5B/blob/main/LICENSE"
    ),
    "Tencent Hunyuan Community License": HubLicence(
        "other", "tencent-hunyuan-community", "https://huggingface.co/tencent/HunyuanVideo/blob/main/LICENSE"
    ),
    "LTX-Video Open Weights License 0.X": HubLicence(
        "other",
        "ltx-video-open-weights-license-0.x",
        "https://huggingface.co/Lightricks/LTX-Video/blob/main/LTX-Video-Open-Weights-License-0.X.txt",
    ),
    "OpenRAIL-M (0.9.5), LTX-Video Open Weights License 0.X (0.9.7 and 0.9.8)": HubLicence(
        "other", "ltx-video-of-each-version", "https://huggingface.co/Lightricks/LTX-Video/tree/main"
    ),
    "LTX-2 Community License Agreement": HubLicence(
        "other", "ltx-2-community-license-agreement", "https://github.com/Lightricks/LTX-2/blob/main/LICENSE"
    ),
    "NVIDIA Open Model License": HubLicence(
        "other",
        "nvidia-open-model-license",
        "https://www.nvidia.com/en-us/agreements/enterprise-software/nvidia-open-model-license",
    ),
    "Stability AI Community License": HubLicence(
        "other", "stabilityai-ai-community", "https://stability.ai/community-license-agreement"
    ),
}
_BY_LOWER_NAME = {name.lower(): found for name, found in _KNOWN.items()}


def hub_licence(licence: str) -> HubLicence:
    """Return a licence as the hub names it: "unknown" for one that is not stated, and a name without a link for other texts."""
    if not is_known(licence):
        return HubLicence("unknown")
    if (found := _BY_LOWER_NAME.get(licence.lower())) is not None:
        return found
    return HubLicence("other", re.sub(r"[^a-z0-9.]+", "-", licence.lower()).strip("-.")[:_MOST_LETTERS] or "see-the-card")

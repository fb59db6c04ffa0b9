"""A Swift package that measures a Core ML student on a phone, with its inputs and the expected output."""

import json
import shutil
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from torch import Tensor

_SOURCES = {
    "Package.swift": "Package.swift",
    "DecoderBenchmark.swift": "Sources/TurboVAEDBench/DecoderBenchmark.swift",
    "DecoderBenchmarkTests.swift": "Tests/TurboVAEDBenchTests/DecoderBenchmarkTests.swift",
}


def write_project(folder: Path, package: Path, latents: Tensor, video: Tensor, case: Mapping[str, Any]) -> None:
    """Write the Swift package into the empty `folder`.

    `package` is an .mlpackage; `latents` are (1, C, t, h, w), and `video` (1, 3, T, H, W) is the fp32 student's decode of them.
    """
    for name, place in _SOURCES.items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_text(_template(name), encoding="utf-8")
    shape = "x".join(map(str, latents.shape))
    readme = Template(_template("README.md")).substitute(
        precision=case["precision"], shape=f"latents {shape}", model=case["model"]
    )
    (folder / "README.md").write_text(readme, encoding="utf-8")
    resources = folder / "Sources" / "TurboVAEDBench" / "Resources"
    resources.mkdir()
    shutil.copytree(package, resources / "student.mlpackage")
    for tensor, name in ((latents, "latents.bin"), (video, "expected.bin")):
        (resources / name).write_bytes(tensor.detach().float().contiguous().numpy().astype("<f4").tobytes())
    about = {**case, "latents": list(latents.shape), "video": list(video.shape)}
    (resources / "case.json").write_text(json.dumps(about, indent=1), encoding="utf-8")


def _template(name: str) -> str:
    return files(__package__).joinpath("ios", name).read_text(encoding="utf-8")

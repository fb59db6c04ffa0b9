"""`models pull`: weights of a registry row, of a repository on the hub, or of a metric, into the caches."""

from dataclasses import dataclass
from pathlib import Path

from turbovaed_cli.errors import MissingWeightsError, UnknownModelError
from turbovaed_cli.files.places import check_place
from turbovaed_cli.files.whole import room_for, sha256_of
from turbovaed_cli.registry.backbones import TRUNKS, trunk_path
from turbovaed_cli.registry.download import (
    I3D_FILE,
    Consent,
    PulledFile,
    RemoteFile,
    agrees,
    checked,
    fetch,
    student_by_hand,
    student_files,
    student_weights,
    teacher_by_hand,
    teacher_files,
)
from turbovaed_cli.registry.find import find_model, is_model_name
from turbovaed_cli.registry.hub import hub_files, parse_hub_id
from turbovaed_cli.registry.rows import MODELS
from turbovaed_cli.registry.specs import ASSETS
from turbovaed_cli.registry.st_lpips import pull_st_lpips
from turbovaed_cli.registry.weight_files import WEIGHTS_FILE
from turbovaed_cli.reporting import Reporter, quiet

METRIC_WEIGHTS = ("lpips-vgg", "lpips-alex", "st-lpips", "i3d")  # names besides those of the registry


@dataclass(frozen=True)
class PullResult:
    """The result of `models pull`."""

    name: str
    files: list[PulledFile]


def pull(name: str, consent: Consent, report: Reporter = quiet) -> PullResult:
    """Download weights into the cache, after consent: of a registry row (teacher and published student), or of a metric.

    `st-lpips` is a package of PyPI, installed without its dependencies into the running environment.
    A hub id `user/name` or `user/name@revision` brings the newest files of that repository; see `hub_files`.
    Every file is checked against the sha256 that its server or its name states. Raises MissingWeightsError without consent
    or network, CorruptFileError if a sha256 differs, UnknownModelError for other names.
    """
    again = f"turbovaed models pull {name} --yes"
    if name.startswith("lpips-"):
        return PullResult(name, [_pull_trunk(name, consent)])
    if name == "st-lpips":
        return PullResult(name, pull_st_lpips(consent))
    if name == "i3d":
        return PullResult(
            name,
            [
                checked(path, again)
                for path in fetch(name, [I3D_FILE], consent, _offer(again, I3D_FILE), "turbovaed eval --i3d FILE takes one")
            ],
        )
    if not is_model_name(name) and not Path(name).exists() and (place := parse_hub_id(name)) is not None:
        return PullResult(name, [checked(path, again) for path in hub_files(place, consent)])
    spec = find_model(name)
    if spec.teacher_name not in MODELS:
        raise UnknownModelError(
            f"{name} is a local folder: there is nothing to pull", f"known: {', '.join((*MODELS, *METRIC_WEIGHTS))}"
        )
    if spec.embedded:
        report.note(f"{name} comes with the package")
        paths = [ASSETS / spec.teacher_name / "teacher" / WEIGHTS_FILE, student_weights(spec) / WEIGHTS_FILE]
    else:
        files = teacher_files(spec) + student_files(spec)
        by_hand = teacher_by_hand(spec)
        if spec.student.published is not None:
            by_hand += f"; or the student alone: {student_by_hand(spec)}"
        paths = fetch(spec.name, files, consent, _offer(again, files[0]), by_hand)
    return PullResult(name, [checked(path, again) for path in paths])


def _offer(again: str, file: RemoteFile) -> str:
    return f"{again} downloads them ({file.licence})"


def _pull_trunk(name: str, consent: Consent) -> PulledFile:
    """Download a backbone of LPIPS into torch's cache; its file name contains the beginning of its sha256."""
    from http.client import HTTPException

    import torch

    kind = name.removeprefix("lpips-")
    if kind not in TRUNKS:
        raise UnknownModelError(f"no LPIPS backbone is called {kind!r}", "lpips-vgg or lpips-alex")
    trunk = TRUNKS[kind]
    path = trunk_path(kind)
    if path is None:
        file = RemoteFile(
            f"backbone of {name}", trunk.url.rpartition("/")[0], trunk.file_name, trunk.num_bytes, "BSD-3-Clause (torchvision)"
        )
        if not agrees(consent, [file], trunk.num_bytes):
            raise MissingWeightsError(
                f"{trunk.file_name} is not on this machine ({trunk.num_bytes / 1e6:,.0f} MB)",
                f"turbovaed models pull {name} --yes",
            )
        path = Path(torch.hub.get_dir()) / "checkpoints" / trunk.file_name
        check_place(path, "TORCH_HOME")
        path.parent.mkdir(parents=True, exist_ok=True)
        prefix = trunk.file_name.rpartition("-")[2].partition(".")[0]
        try:
            with room_for(path):
                torch.hub.download_url_to_file(trunk.url, str(path), hash_prefix=prefix, progress=False)
        except (OSError, RuntimeError, HTTPException) as error:
            raise MissingWeightsError(
                f"downloading {trunk.file_name} failed: {error}", f"check the network, then: turbovaed models pull {name} --yes"
            ) from error
    return PulledFile(path, path.stat().st_size, sha256_of(path))

"""The sources of weights: the package, a local folder, the hub's cache, or a download that the user agreed to.

Nothing here touches the network before consent. huggingface_hub and torch.hub download into their own caches (HF_HOME,
HF_HUB_OFFLINE, HF_TOKEN and TORCH_HOME are respected); a file is complete or absent. The hub's downloads are resumed after a
cut within the same process; a new process starts the file again.
"""

import logging
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from turbovaed_cli.errors import (
    CorruptFileError,
    DiskFullError,
    MissingWeightsError,
    UnknownModelError,
    UnwritableError,
)
from turbovaed_cli.files.places import check_place
from turbovaed_cli.files.whole import room_for, sha256_of
from turbovaed_cli.registry.backbones import TRUNKS, trunk_path
from turbovaed_cli.registry.find import find_model
from turbovaed_cli.registry.rows import MODELS
from turbovaed_cli.registry.specs import ASSETS, ModelSpec
from turbovaed_cli.registry.weight_files import WEIGHTS_FILE
from turbovaed_cli.reporting import Reporter, quiet

_SHA256_DIGITS = 64
_CONFIG_BYTES = 2_000
_ANSWER_S = 10.0  # for the hub to accept a connection


@dataclass(frozen=True)
class RemoteFile:
    """A file that may have to be downloaded; `num_bytes` is its size as last seen."""

    label: str
    repo: str
    filename: str
    num_bytes: int
    licence: str


# The detector of rFVD: StyleGAN-V's TorchScript of DeepMind's I3D, mirrored on the hub; its size is approximate.
I3D_FILE = RemoteFile(
    "I3D detector (TorchScript: code)",
    "flateon/FVD-I3D-torchscript",
    "i3d_torchscript.pt",
    51_000_000,
    "Apache-2.0 (the I3D weights)",
)

# Whether to download; a function is asked with the files and their total size in bytes, and the download starts only on True.
Consent = bool | Callable[[Sequence[RemoteFile], int], bool]


def no_consent(files: Sequence[RemoteFile], total_bytes: int) -> bool:
    """Refuse every download: the default of library calls."""
    return False


def _agrees(consent: Consent, files: Sequence[RemoteFile], total_bytes: int) -> bool:
    return consent if isinstance(consent, bool) else consent(files, total_bytes)


@dataclass(frozen=True)
class PulledFile:
    """A file in the cache, or one of the package."""

    path: Path
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class PullResult:
    """The result of `models pull`."""

    name: str
    files: list[PulledFile]


def teacher_folder(spec: ModelSpec, consent: Consent = no_consent) -> Path:
    """Return the folder with a teacher's weights (and its config.json, if its class has one): local, cached, or downloaded now.

    Raises MissingWeightsError without consent or network.
    """
    if spec.teacher.path is not None:
        return spec.teacher.path
    offer = f"turbovaed models pull {spec.name} --yes downloads them ({spec.teacher.licence})"
    folder = _fetch(spec.name, _teacher_files(spec), consent, offer, _teacher_by_hand(spec))[0].parent
    return folder.parent if spec.teacher.beside else folder


def student_weights(spec: ModelSpec, consent: Consent = no_consent) -> Path:
    """Return the published weight file of a student, or the folder of the embedded one.

    Raises MissingWeightsError without a published student, consent or network.
    """
    if spec.embedded:
        return ASSETS / spec.name / "student"
    if spec.student.published is None:
        raise MissingWeightsError(
            f"no student of {spec.name} was published", "distil one: turbovaed distill --teacher DIR --data DIR"
        )
    files, published = _student_files(spec), spec.student.published
    offer = f"`consent=True` downloads these {published.num_bytes / 1e6:,.0f} MB ({published.licence})"
    return _fetch(spec.name, files, consent, offer, _student_by_hand(spec))[0]


def _teacher_by_hand(spec: ModelSpec) -> str:
    """Return the command that brings a teacher to a machine without network."""
    names = " ".join(file.filename for file in _teacher_files(spec))
    folder = f"DIR/{spec.teacher.folder}" if spec.teacher.folder and not spec.teacher.beside else "DIR"
    return f"on a machine with network: hf download {spec.teacher.repo} {names} --local-dir DIR; then here: --teacher {folder}"


def _student_by_hand(spec: ModelSpec) -> str:
    """Return the command that brings a student to a machine without network; the registry finds its config by the file name."""
    published = spec.student.published
    assert published is not None
    return f"on a machine with network: hf download {published.repo} {published.filename} --local-dir DIR; then here: --model DIR/{published.filename}"


def pull(name: str, consent: Consent, report: Reporter = quiet) -> PullResult:
    """Download the weights of a registry row (teacher and published student), of LPIPS or of rFVD into the cache, after consent.

    Every file is checked against the sha256 that its server or its name states. Raises MissingWeightsError without consent
    or network, CorruptFileError if a sha256 differs, UnknownModelError for other names.
    """
    again = f"turbovaed models pull {name} --yes"
    if name.startswith("lpips-"):
        return PullResult(name, [_pull_trunk(name, consent)])
    if name == "i3d":
        return PullResult(
            name,
            [
                _checked(path, again)
                for path in _fetch(name, [I3D_FILE], consent, _offer(again, I3D_FILE), "turbovaed eval --i3d FILE takes one")
            ],
        )
    spec = find_model(name)
    if spec.name not in MODELS:
        raise UnknownModelError(
            f"{name} is a local folder: there is nothing to pull", f"known: {', '.join(MODELS)}, lpips-vgg, lpips-alex, i3d"
        )
    if spec.embedded:
        report.note(f"{name} comes with the package")
        paths = [ASSETS / spec.name / part / WEIGHTS_FILE for part in ("teacher", "student")]
    else:
        files = _teacher_files(spec) + _student_files(spec)
        by_hand = f"{_teacher_by_hand(spec)}; or the student alone: {_student_by_hand(spec)}"
        paths = _fetch(spec.name, files, consent, _offer(again, files[0]), by_hand)
    return PullResult(name, [_checked(path, again) for path in paths])


def _offer(again: str, file: RemoteFile) -> str:
    return f"{again} downloads them ({file.licence})"


def _teacher_files(spec: ModelSpec) -> list[RemoteFile]:
    teacher = spec.teacher
    assert teacher.repo is not None and teacher.num_bytes is not None
    label, prefix = f"teacher of {spec.name}", f"{teacher.folder}/" if teacher.folder else ""
    num_bytes = teacher.num_bytes - sum(teacher.beside.values())
    files = [RemoteFile(label, teacher.repo, prefix + teacher.weights_file, num_bytes, teacher.licence)]
    if teacher.folder:  # a diffusers VAE folder; Video DC-AE's file is alone in its repository
        files.append(RemoteFile(label, teacher.repo, f"{prefix}config.json", _CONFIG_BYTES, teacher.licence))
    for folder, size in teacher.beside.items():
        files.append(RemoteFile(label, teacher.repo, f"{folder}/{teacher.weights_file}", size, teacher.licence))
        files.append(RemoteFile(label, teacher.repo, f"{folder}/config.json", _CONFIG_BYTES, teacher.licence))
    return files


def _student_files(spec: ModelSpec) -> list[RemoteFile]:
    published = spec.student.published
    if published is None:
        return []
    return [RemoteFile(f"student of {spec.name}", published.repo, published.filename, published.num_bytes, published.licence)]


def missing_bytes(spec: ModelSpec) -> int:
    """Return the bytes that would have to be downloaded to use a teacher."""
    if spec.teacher.path is not None:
        return 0
    return sum(file.num_bytes for file in _teacher_files(spec) if cached_file(file) is None)


def _fetch(name: str, files: Sequence[RemoteFile], consent: Consent, offer: str, by_hand: str) -> list[Path]:
    """Return the paths of `files` in the hub cache; missing ones are downloaded after consent.

    Hints contain `offer`, the command that downloads them, and `by_hand`, the way without it.
    """
    missing = [file for file in files if cached_file(file) is None]
    if missing:
        total = sum(file.num_bytes for file in missing)
        if not _agrees(consent, missing, total):
            what = (
                ", ".join(f"{file.repo} {file.filename}" for file in missing if file.num_bytes > _CONFIG_BYTES)
                or missing[0].filename
            )
            raise MissingWeightsError(
                f"{name}: weights not on this machine ({what}; {total / 1e6:,.0f} MB)",
                f"{offer}; or {by_hand}",
            )
        from huggingface_hub import constants

        check_place(Path(constants.HF_HUB_CACHE), "HF_HOME", folder=True)
        for file in missing:
            _download(file, f"turbovaed models pull {name} --yes", by_hand)
    return [path for path in (cached_file(file) for file in files) if path is not None]


def cached_file(file: RemoteFile) -> Path | None:
    """Return the path of a file in the hub's cache; None if it is not there. Never touches the network."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(file.repo, file.filename)
    return Path(found) if isinstance(found, str) else None


def _check_reachable(endpoint: str) -> None:
    """Raise OSError at once if the hub's address does not answer: its own client would try five times, for half a minute."""
    place = urlsplit(endpoint)
    by_proxy = {place.scheme, "all"} & getproxies().keys()
    if place.hostname is None or (by_proxy and not proxy_bypass(place.hostname)):  # the proxy resolves the name
        return
    socket.create_connection((place.hostname, place.port or (443 if place.scheme == "https" else 80)), timeout=_ANSWER_S).close()


@contextmanager
def _without_retry_log() -> Iterator[None]:
    """Keep the hub's client from printing every failed request: our error reports the failure once."""
    log = logging.getLogger("huggingface_hub.utils._http")
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(before)


def _download(file: RemoteFile, again: str, by_hand: str) -> Path:
    """Download a file into the hub's cache and check it there.

    Hints contain `again`, the command that repeats it, and `by_hand`, the way without network.
    """
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    where = f"{file.repo} {file.filename}"
    unreachable = f"{where} is not in the cache and the hub cannot be reached"
    hint_offline = f"check the network and HF_HUB_OFFLINE, then: {again}; or {by_hand}"
    if not constants.HF_HUB_OFFLINE:
        try:
            _check_reachable(constants.ENDPOINT)
        except OSError as error:
            reason = error.strerror or str(error) or type(error).__name__
            raise MissingWeightsError(f"{unreachable} ({reason})", hint_offline) from error
    try:
        with room_for(Path(constants.HF_HUB_CACHE)), _without_retry_log():
            path = Path(hf_hub_download(file.repo, file.filename))
    except GatedRepoError as error:
        raise MissingWeightsError(
            f"{where} is gated", f"accept its licence at https://huggingface.co/{file.repo}, set HF_TOKEN, then: {again}"
        ) from error
    except RepositoryNotFoundError as error:
        raise MissingWeightsError(
            f"{file.repo} is not on the hub, or private", f"set HF_TOKEN if it is yours, then: {again}"
        ) from error
    except (OfflineModeIsEnabled, LocalEntryNotFoundError) as error:
        raise MissingWeightsError(unreachable, hint_offline) from error
    except EntryNotFoundError as error:
        raise MissingWeightsError(
            f"{file.repo} holds no {file.filename}", "it was moved; give a local folder as `teacher`"
        ) from error
    except (DiskFullError, UnwritableError):
        raise
    except Exception as error:  # the hub's client and its HTTP client have many kinds
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise MissingWeightsError(
            f"downloading {where} failed: {reason}", f"complete files stay, this one starts again: {again}"
        ) from error
    return _checked(path, again).path


def _checked(path: Path, again: str) -> PulledFile:
    """Return a file of the hub's cache with its sha256, by which the cache names large files.

    A large file with another sha256 is removed, and CorruptFileError is raised.
    """
    digest, blob = sha256_of(path), path.resolve()
    if len(blob.name) == _SHA256_DIGITS and blob.name != digest:
        for name in (path, blob):
            name.unlink(missing_ok=True)
        raise CorruptFileError(f"{path.name} is not what the hub holds (sha256 differs), and was removed", again)
    return PulledFile(path, path.stat().st_size, digest)


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
        if not _agrees(consent, [file], trunk.num_bytes):
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

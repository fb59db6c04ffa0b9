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
    MissingWeightsError,
    TurboVaedError,
)
from turbovaed_cli.files.places import check_place
from turbovaed_cli.files.whole import room_for, sha256_of
from turbovaed_cli.registry.specs import ASSETS, ModelSpec

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
    revision: str | None = None  # a branch, tag or commit; None: the branch "main"


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


def agrees(consent: Consent, files: Sequence[RemoteFile], total_bytes: int) -> bool:
    """Return whether a download is agreed to."""
    return consent if isinstance(consent, bool) else consent(files, total_bytes)


@dataclass(frozen=True)
class PulledFile:
    """A file in the cache, or one of the package."""

    path: Path
    num_bytes: int
    sha256: str


def teacher_folder(spec: ModelSpec, consent: Consent = no_consent) -> Path:
    """Return the folder with a teacher's weights (and its config.json, if its class has one): local, cached, or downloaded now.

    Raises MissingWeightsError without consent or network.
    """
    if spec.teacher.path is not None:
        return spec.teacher.path
    offer = f"turbovaed models pull {spec.name} --yes downloads them ({spec.teacher.licence})"
    folder = fetch(spec.name, teacher_files(spec), consent, offer, teacher_by_hand(spec))[0].parent
    return folder.parent if spec.teacher.beside else folder


def student_weights(spec: ModelSpec, consent: Consent = no_consent) -> Path:
    """Return the published weight file of a student, or the folder of an embedded one.

    Raises MissingWeightsError without a published student, consent or network.
    """
    if spec.embedded and (folder := embedded_student(spec)).is_dir():
        return folder
    if spec.student.published is None:
        if spec.member == "full":
            raise MissingWeightsError(
                f"no student of {spec.name} was published", "distil one: turbovaed distill --teacher DIR --data DIR"
            )
        raise MissingWeightsError(f"no weights of {spec.name} were published", how_to_distil(spec))
    files, published = student_files(spec), spec.student.published
    offer = f"`consent=True` downloads these {published.num_bytes / 1e6:,.0f} MB ({published.licence})"
    return fetch(spec.name, files, consent, offer, student_by_hand(spec))[0]


def embedded_student(spec: ModelSpec) -> Path:
    """Return the folder of a student of the embedded teacher, which is there only if its weights come with the package."""
    return ASSETS / spec.teacher_name / ("student" if spec.member == "full" else spec.member)


def how_to_distil(spec: ModelSpec) -> str:
    """Return the command that makes a member of a teacher's family of students."""
    return f"distil one: turbovaed distill --teacher {spec.teacher_name} --student {spec.member} --data DIR"


def teacher_by_hand(spec: ModelSpec) -> str:
    """Return the command that brings a teacher to a machine without network."""
    names = " ".join(file.filename for file in teacher_files(spec))
    folder = f"DIR/{spec.teacher.folder}" if spec.teacher.folder and not spec.teacher.beside else "DIR"
    return f"on a machine with network: hf download {spec.teacher.repo} {names} --local-dir DIR; then here: --teacher {folder}"


def student_by_hand(spec: ModelSpec) -> str:
    """Return the command that brings a student to a machine without network; the registry finds its config by the file name."""
    published = spec.student.published
    assert published is not None
    return f"on a machine with network: hf download {published.repo} {published.filename} --local-dir DIR; then here: --model DIR/{published.filename}"


def teacher_files(spec: ModelSpec) -> list[RemoteFile]:
    """Return the files of a registry row's teacher."""
    teacher = spec.teacher
    assert teacher.repo is not None and teacher.num_bytes is not None
    label, prefix = f"teacher of {spec.teacher_name}", f"{teacher.folder}/" if teacher.folder else ""
    num_bytes = teacher.num_bytes - sum(teacher.beside.values())
    files = [RemoteFile(label, teacher.repo, prefix + teacher.weights_file, num_bytes, teacher.licence)]
    if teacher.folder:  # a diffusers VAE folder; Video DC-AE's file is alone in its repository
        files.append(RemoteFile(label, teacher.repo, f"{prefix}config.json", _CONFIG_BYTES, teacher.licence))
    for folder, size in teacher.beside.items():
        files.append(RemoteFile(label, teacher.repo, f"{folder}/{teacher.weights_file}", size, teacher.licence))
        files.append(RemoteFile(label, teacher.repo, f"{folder}/config.json", _CONFIG_BYTES, teacher.licence))
    return files


def student_files(spec: ModelSpec) -> list[RemoteFile]:
    """Return the published student of a registry row, as one file; none if none was published."""
    published = spec.student.published
    if published is None:
        return []
    return [RemoteFile(f"student of {spec.name}", published.repo, published.filename, published.num_bytes, published.licence)]


def missing_bytes(spec: ModelSpec) -> int:
    """Return the bytes that would have to be downloaded to use a teacher."""
    if spec.teacher.path is not None:
        return 0
    return sum(file.num_bytes for file in teacher_files(spec) if cached_file(file) is None)


def fetch(name: str, files: Sequence[RemoteFile], consent: Consent, offer: str, by_hand: str) -> list[Path]:
    """Return the paths of `files` in the hub cache; missing ones are downloaded after consent.

    Hints contain `offer`, the command that downloads them, and `by_hand`, the way without it.
    """
    missing = [file for file in files if cached_file(file) is None]
    if missing:
        ask_for(name, missing, consent, offer, by_hand)
        for file in missing:
            download(file, f"turbovaed models pull {name} --yes", by_hand)
    return [path for path in (cached_file(file) for file in files) if path is not None]


def ask_for(name: str, missing: Sequence[RemoteFile], consent: Consent, offer: str, by_hand: str) -> None:
    """Ask for consent to download files, and check that the cache can be written.

    Raises MissingWeightsError without consent; its hint contains `offer` and `by_hand`, as for `fetch`.
    """
    total = sum(file.num_bytes for file in missing)
    if not agrees(consent, missing, total):
        what = (
            ", ".join(f"{file.repo} {file.filename}" for file in missing if file.num_bytes > _CONFIG_BYTES) or missing[0].filename
        )
        raise MissingWeightsError(
            f"{name}: weights not on this machine ({what}; {total / 1e6:,.0f} MB)", f"{offer}; or {by_hand}"
        )
    from huggingface_hub import constants

    check_place(Path(constants.HF_HUB_CACHE), "HF_HOME", folder=True)


def cached_file(file: RemoteFile) -> Path | None:
    """Return the path of a file in the hub's cache; None if it is not there. Never touches the network."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(file.repo, file.filename, revision=file.revision)
    return Path(found) if isinstance(found, str) else None


def check_reachable(endpoint: str) -> None:
    """Raise OSError at once if the hub's address does not answer: its own client would try five times, for half a minute."""
    place = urlsplit(endpoint)
    by_proxy = {place.scheme, "all"} & getproxies().keys()
    if place.hostname is None or (by_proxy and not proxy_bypass(place.hostname)):  # the proxy resolves the name
        return
    socket.create_connection((place.hostname, place.port or (443 if place.scheme == "https" else 80)), timeout=_ANSWER_S).close()


@contextmanager
def without_retry_log() -> Iterator[None]:
    """Keep the hub's client from printing every failed request: our error reports the failure once."""
    log = logging.getLogger("huggingface_hub.utils._http")
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(before)


@contextmanager
def hub_errors(where: str, repo: str, again: str, by_hand: str) -> Iterator[None]:
    """Turn the errors of a request for `where` (a repository, or a file of it) into MissingWeightsError, with a hint.

    Hints contain `again`, the command that repeats it, and `by_hand`, the way without network. A hub that does not answer is
    found out at once, before the request.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    unreachable = f"{where} is not in the cache and the hub cannot be reached"
    hint_offline = f"check the network and HF_HUB_OFFLINE, then: {again}; or {by_hand}"
    if not constants.HF_HUB_OFFLINE:
        try:
            check_reachable(constants.ENDPOINT)
        except OSError as error:
            reason = error.strerror or str(error) or type(error).__name__
            raise MissingWeightsError(f"{unreachable} ({reason})", hint_offline) from error
    try:
        with room_for(Path(constants.HF_HUB_CACHE)), without_retry_log():
            yield
    except GatedRepoError as error:
        raise MissingWeightsError(
            f"{where} is gated", f"accept its licence at https://huggingface.co/{repo}, set HF_TOKEN, then: {again}"
        ) from error
    except RepositoryNotFoundError as error:
        raise MissingWeightsError(
            f"{repo} is not on the hub, or private", f"set HF_TOKEN if it is yours, then: {again}"
        ) from error
    except RevisionNotFoundError as error:
        raise MissingWeightsError(f"{repo} has no such revision: {where}", "give a branch, a tag or a commit") from error
    except (OfflineModeIsEnabled, LocalEntryNotFoundError) as error:
        raise MissingWeightsError(unreachable, hint_offline) from error
    except EntryNotFoundError as error:
        name = where.removeprefix(repo).strip()
        raise MissingWeightsError(f"{repo} holds no {name}", "it was moved; give a local folder as `teacher`") from error
    except TurboVaedError:
        raise
    except Exception as error:  # the hub's client and its HTTP client have many kinds
        raise MissingWeightsError(
            f"downloading {where} failed: {reason_of(error)}", f"complete files stay, this one starts again: {again}"
        ) from error


def reason_of(error: Exception) -> str:
    """Return the first line of an error, or its kind if it has no text."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def download(file: RemoteFile, again: str, by_hand: str) -> Path:
    """Download a file into the hub's cache and check it there; hints and errors are those of `hub_errors`."""
    from huggingface_hub import hf_hub_download

    with hub_errors(f"{file.repo} {file.filename}", file.repo, again, by_hand):
        path = Path(hf_hub_download(file.repo, file.filename, revision=file.revision))
    return checked(path, again).path


def checked(path: Path, again: str) -> PulledFile:
    """Return a file of the hub's cache with its sha256, by which the cache names large files.

    A large file with another sha256 is removed, and CorruptFileError is raised.
    """
    digest, blob = sha256_of(path), path.resolve()
    if len(blob.name) == _SHA256_DIGITS and blob.name != digest:
        for name in (path, blob):
            name.unlink(missing_ok=True)
        raise CorruptFileError(f"{path.name} is not what the hub holds (sha256 differs), and was removed", again)
    return PulledFile(path, path.stat().st_size, digest)

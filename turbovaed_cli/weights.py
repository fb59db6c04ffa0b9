"""Where weights come from: the package, a local folder, the hub's cache, or a download that somebody agreed to.

Nothing here touches the network before consent. Downloads are huggingface_hub's and torch.hub's own: resumed, complete or
absent, in their own caches (HF_HOME, HF_HUB_OFFLINE, HF_TOKEN and TORCH_HOME are respected).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from turbovaed_cli.errors import CorruptFileError, MissingWeightsError, UnknownModelError
from turbovaed_cli.registry import ASSETS, MODELS, WEIGHTS_FILE, ModelSpec, find_model
from turbovaed_cli.reporting import Reporter, quiet
from turbovaed_cli.rundir import sha256_of

_SHA256_DIGITS = 64
_CONFIG_BYTES = 2_000


@dataclass(frozen=True)
class RemoteFile:
    """A file that may have to be downloaded; `num_bytes` is its size as last seen."""

    label: str
    repo: str
    filename: str
    num_bytes: int
    licence: str


# The detector of rFVD: StyleGAN-V's TorchScript of DeepMind's I3D, mirrored on the hub; about that size.
I3D_FILE = RemoteFile(
    "I3D detector (TorchScript: code)",
    "flateon/FVD-I3D-torchscript",
    "i3d_torchscript.pt",
    51_000_000,
    "Apache-2.0 (the I3D weights)",
)

# Asked with the files and their total size in bytes; the download starts only on True.
Consent = Callable[[Sequence[RemoteFile], int], bool]


def no_consent(files: Sequence[RemoteFile], total_bytes: int) -> bool:
    """Never download: what library calls do unless told otherwise."""
    return False


@dataclass(frozen=True)
class PulledFile:
    """A file in the cache."""

    path: Path
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class PullResult:
    """What `models pull` came to."""

    name: str
    files: list[PulledFile]


def teacher_folder(spec: ModelSpec, consent: Consent = no_consent) -> Path:
    """The folder with a teacher's weights (and config.json, where its class has one): local, cached, or downloaded now.

    Raises MissingWeightsError, in two lines what is missing and what mends it.
    """
    if spec.teacher.path is not None:
        return spec.teacher.path
    return _fetch(spec.name, _teacher_files(spec), consent)[0].parent


def student_weights(spec: ModelSpec, consent: Consent = no_consent) -> Path:
    """The published weight file of a student, or the folder of the embedded one. Raises MissingWeightsError."""
    if spec.embedded:
        return ASSETS / spec.name / "student"
    if spec.student.published is None:
        raise MissingWeightsError(
            f"no student of {spec.name} was published", "distil one: turbovaed distill --teacher DIR --data DIR"
        )
    return _fetch(spec.name, _student_files(spec), consent)[0]


def pull(name: str, consent: Consent, report: Reporter = quiet) -> PullResult:
    """Bring the weights of a registry row (teacher and published student), of LPIPS or of rFVD into the cache, after consent.

    Every file is checked against the sha256 its server or its name states. Raises MissingWeightsError without consent or
    network, CorruptFileError where a sha256 differs, UnknownModelError for other names.
    """
    if name.startswith("lpips-"):
        return PullResult(name, [_pull_trunk(name, consent)])
    if name == "i3d":
        return PullResult(name, [_checked(path) for path in _fetch(name, [I3D_FILE], consent, "eval takes one as --i3d FILE")])
    spec = find_model(name)
    if spec.name not in MODELS:
        raise UnknownModelError(
            f"{name} is a local folder: there is nothing to pull", f"known: {', '.join(MODELS)}, lpips-vgg, lpips-alex, i3d"
        )
    if spec.embedded:
        report.note(f"{name} comes with the package")
        paths = [ASSETS / spec.name / part / WEIGHTS_FILE for part in ("teacher", "student")]
    else:
        paths = _fetch(spec.name, _teacher_files(spec) + _student_files(spec), consent)
    return PullResult(name, [_checked(path) for path in paths])


def _teacher_files(spec: ModelSpec) -> list[RemoteFile]:
    teacher = spec.teacher
    assert teacher.repo is not None
    label, prefix = f"teacher of {spec.name}", f"{teacher.folder}/" if teacher.folder else ""
    files = [RemoteFile(label, teacher.repo, prefix + teacher.weights_file, teacher.num_bytes, teacher.licence)]
    if teacher.folder:  # a diffusers VAE folder; Video DC-AE's file lies alone in its repository
        files.append(RemoteFile(label, teacher.repo, f"{prefix}config.json", _CONFIG_BYTES, teacher.licence))
    return files


def _student_files(spec: ModelSpec) -> list[RemoteFile]:
    published = spec.student.published
    if published is None:
        return []
    return [RemoteFile(f"student of {spec.name}", published.repo, published.filename, published.num_bytes, published.licence)]


def missing_bytes(spec: ModelSpec) -> int:
    """What would have to be downloaded to use a teacher."""
    if spec.teacher.path is not None:
        return 0
    return sum(file.num_bytes for file in _teacher_files(spec) if cached_file(file) is None)


def _fetch(
    name: str, files: Sequence[RemoteFile], consent: Consent, instead: str = "give --teacher DIR, a local VAE folder"
) -> list[Path]:
    """Paths of `files` in the hub cache; those missing are downloaded after consent."""
    missing = [file for file in files if cached_file(file) is None]
    if missing:
        total = sum(file.num_bytes for file in missing)
        if not consent(missing, total):
            what = (
                ", ".join(f"{file.repo} {file.filename}" for file in missing if file.num_bytes > _CONFIG_BYTES)
                or missing[0].filename
            )
            raise MissingWeightsError(
                f"{name}: weights not on this machine ({what}; {total / 1e6:,.0f} MB)",
                f"turbovaed models pull {name} --yes downloads them ({missing[0].licence}), or {instead}",
            )
        for file in missing:
            _download(file)
    return [path for path in (cached_file(file) for file in files) if path is not None]


def cached_file(file: RemoteFile) -> Path | None:
    """Where a file lies in the hub's cache; None where it does not. Never touches the network."""
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415 - a third of a second that most calls do not need

    found = try_to_load_from_cache(file.repo, file.filename)
    return Path(found) if isinstance(found, str) else None


def _download(file: RemoteFile) -> Path:
    from huggingface_hub import hf_hub_download  # noqa: PLC0415
    from huggingface_hub.errors import (  # noqa: PLC0415
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    where = f"{file.repo} {file.filename}"
    try:
        return Path(hf_hub_download(file.repo, file.filename))
    except GatedRepoError as error:
        raise MissingWeightsError(
            f"{where} is gated", f"accept its licence at https://huggingface.co/{file.repo}, then set HF_TOKEN"
        ) from error
    except RepositoryNotFoundError as error:
        raise MissingWeightsError(f"{file.repo} is not on the hub, or private", "set HF_TOKEN if it is yours") from error
    except (OfflineModeIsEnabled, LocalEntryNotFoundError) as error:
        raise MissingWeightsError(
            f"{where} is not in the cache and the hub cannot be reached", "check the network and HF_HUB_OFFLINE, then repeat"
        ) from error
    except EntryNotFoundError as error:
        raise MissingWeightsError(
            f"{file.repo} holds no {file.filename}", "it was moved; give a local folder as --teacher"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise MissingWeightsError(f"downloading {where} failed: {reason}", "the same command goes on where it stopped") from error


def _checked(path: Path) -> PulledFile:
    """Hash a file; the hub's cache names large files by the sha256 they should have."""
    digest, stated = sha256_of(path), path.resolve().name
    if len(stated) == _SHA256_DIGITS and stated != digest:
        raise CorruptFileError(
            f"{path.name} is not what the hub holds (sha256 differs)", f"remove {path.resolve()} and pull again"
        )
    return PulledFile(path, path.stat().st_size, digest)


def _pull_trunk(name: str, consent: Consent) -> PulledFile:
    """The backbone of LPIPS, into torch's own cache; its file name carries the beginning of its sha256."""
    import torch  # noqa: PLC0415

    from turbovaed_cli.metrics import TRUNKS, trunk_path  # noqa: PLC0415

    kind = name.removeprefix("lpips-")
    if kind not in TRUNKS:
        raise UnknownModelError(f"no LPIPS backbone is called {kind!r}", "lpips-vgg or lpips-alex")
    trunk = TRUNKS[kind]
    path = trunk_path(kind)
    if path is None:
        file = RemoteFile(
            f"backbone of {name}", trunk.url.rpartition("/")[0], trunk.file_name, trunk.num_bytes, "BSD-3-Clause (torchvision)"
        )
        if not consent([file], trunk.num_bytes):
            raise MissingWeightsError(
                f"{trunk.file_name} is not on this machine ({trunk.num_bytes / 1e6:,.0f} MB)",
                f"turbovaed models pull {name} --yes",
            )
        path = Path(torch.hub.get_dir()) / "checkpoints" / trunk.file_name
        path.parent.mkdir(parents=True, exist_ok=True)
        prefix = trunk.file_name.rpartition("-")[2].partition(".")[0]
        try:
            torch.hub.download_url_to_file(trunk.url, str(path), hash_prefix=prefix, progress=False)
        except (OSError, RuntimeError) as error:
            raise MissingWeightsError(
                f"downloading {trunk.file_name} failed: {error}", "check the network, then repeat"
            ) from error
    return PulledFile(path, path.stat().st_size, sha256_of(path))

"""ST-LPIPS's weights: the files of a PyPI package that is installed without its dependencies, and never imported."""

import importlib
import importlib.util
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from turbovaed_cli.errors import CorruptFileError, MissingWeightsError
from turbovaed_cli.files.whole import sha256_of
from turbovaed_cli.registry.download import Consent, PulledFile, RemoteFile, agrees

PACKAGE, VERSION = "stlpips-pytorch", "0.0.2"
INSTALL = ("install", "--no-deps", f"{PACKAGE}=={VERSION}")  # with its dependencies it would bring torchvision
_WHEEL = RemoteFile("weights of ST-LPIPS", "PyPI", f"{PACKAGE} {VERSION}", 63_807_084, "BSD-2-Clause")
_PULL = "turbovaed models pull st-lpips"


@dataclass(frozen=True)
class PackagedFile:
    """A file of an installed package: its path there, and its sha256."""

    path: str
    sha256: str


ST_LPIPS_FILES = {
    "alex": PackagedFile(
        "stlpips_pytorch/weights/vST0.0/alex_shift_tolerant.pth",
        "b356b382f96010f77d085ee8343ecd9fd322d0a56e8de2b2d0549fafcad8b9ee",
    ),
    "vgg": PackagedFile(
        "stlpips_pytorch/weights/vST0.0/vgg_shift_tolerant.pth",
        "44597da68f49c1837c100ff52299050f274d102eb102e5837178c79be6f0e250",
    ),
}


def st_lpips_path(name: str) -> Path:
    """Return the path of the network "alex" or "vgg" in the installed package, whose code is not run.

    Raises MissingWeightsError without the package or the file, CorruptFileError if the file's sha256 is not the known one.
    """
    file = ST_LPIPS_FILES[name]
    try:
        path = Path(str(metadata.distribution(PACKAGE).locate_file(file.path)))
    except metadata.PackageNotFoundError:
        raise MissingWeightsError(f"ST-LPIPS needs the package {PACKAGE}, which is not installed", _PULL) from None
    if not path.is_file():
        raise MissingWeightsError(f"ST-LPIPS needs {path.name}, which the package {PACKAGE} here lacks", _PULL)
    if sha256_of(path) != file.sha256:
        raise CorruptFileError(
            f"{path} is not the file of {PACKAGE} {VERSION} (sha256 differs)", f"{_PULL} --yes installs it again"
        )
    return path


def pull_st_lpips(consent: Consent) -> list[PulledFile]:
    """Install the package into the running environment, after consent, unless both files are there; return the files.

    Raises MissingWeightsError without consent, pip or network, CorruptFileError if the files there are others and stay.
    """
    try:
        return _files()
    except (CorruptFileError, MissingWeightsError) as error:
        wrong = error
        options = ("--force-reinstall",) if _is_installed() else ()
    if not agrees(consent, [_WHEEL], _WHEEL.num_bytes):
        if isinstance(wrong, CorruptFileError):
            raise wrong
        raise MissingWeightsError(
            f"{PACKAGE} {VERSION} is not installed ({_WHEEL.num_bytes / 1e6:,.0f} MB, {_WHEEL.licence})", f"{_PULL} --yes"
        )
    if importlib.util.find_spec("pip") is None:
        raise MissingWeightsError(
            f"this Python environment has no pip to install {PACKAGE} with", f"uv pip {' '.join(INSTALL)}, or another installer"
        )
    _install(*options)
    return _files()


def _files() -> list[PulledFile]:
    paths = {name: st_lpips_path(name) for name in ST_LPIPS_FILES}
    return [PulledFile(path, path.stat().st_size, ST_LPIPS_FILES[name].sha256) for name, path in paths.items()]


def _is_installed() -> bool:
    try:
        metadata.distribution(PACKAGE)
    except metadata.PackageNotFoundError:
        return False
    return True


def _install(*options: str) -> None:
    command = [sys.executable, "-m", "pip", *INSTALL, *options, "--quiet", "--no-input", "--disable-pip-version-check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.lower().startswith("error:")] or lines or ["pip gave no reason"]
        reason = errors[0].removeprefix("ERROR: ").removeprefix("error: ")
        raise MissingWeightsError(f"installing {PACKAGE} {VERSION} failed: {reason}", f"check the network, then: {_PULL} --yes")
    importlib.invalidate_caches()  # so that the package is found in this process

"""Build sdist and wheel, install the wheel into an empty environment, and decode a video with it, away from the repository.

    python tools/check_package.py [--keep FOLDER]

The environment borrows the installed dependencies of this Python, so that torch is not installed a second time; the package itself comes from
the wheel alone. Ends with 1 if a file is missing, too much, or too large, or if a command fails.
"""

import argparse
import importlib.metadata
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
MOST_BYTES = 25_000_000
WEIGHTS = "turbovaed_cli/assets/tiny/{}/diffusion_pytorch_model.safetensors"
NEEDED = (*map(WEIGHTS.format, ("teacher", "student", "lite", "causal")), "turbovaed_cli/py.typed")
UNWANTED = re.compile(r"(^|/)(tests|benchmarks|tools|build|site|demo-out|\.venv)/|\.pyc$|(^|/)Makefile$")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, help="leave sdist and wheel in this folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        dist = options.keep or Path(temporary) / "dist"
        run([sys.executable, "-m", "build", "--no-isolation", "-o", dist, ROOT])
        (sdist,), (wheel,) = dist.glob("*.tar.gz"), dist.glob("*.whl")
        faults = [*check(sdist, names_of_sdist(sdist)), *check(wheel, zipfile.ZipFile(wheel).namelist())]
        if not faults:
            decode_with(wheel, Path(temporary))
    print(f"installed with all it needs: {' '.join(size_with_dependencies())}")
    print(*faults, sep="\n", end="\n" if faults else "")
    return int(bool(faults))


def run(words: Iterable[str | Path], **options: object) -> None:
    """Run a program to its end; its failure is ours."""
    subprocess.run([*map(str, words)], check=True, **options)  # type: ignore[call-overload]


def names_of_sdist(path: Path) -> list[str]:
    """Return the files of an sdist, without its leading folder."""
    with tarfile.open(path) as archive:
        return [name.partition("/")[2] for name in archive.getnames()]


def check(path: Path, names: list[str]) -> list[str]:
    """Return what is wrong with the contents of sdist or wheel."""
    size = path.stat().st_size
    print(f"{path.name}: {len(names)} files, {size / 1e6:.1f} MB")
    faults = [f"{path.name} has no {name}" for name in NEEDED if name not in names]
    faults += [f"{path.name} has {name}" for name in names if UNWANTED.search(name)]
    return faults + ([f"{path.name} has {size:,} bytes, more than {MOST_BYTES:,}"] if size > MOST_BYTES else [])


def decode_with(wheel: Path, folder: Path) -> None:
    """Install the wheel into an environment of its own and run commands of it in an empty folder."""
    home, work = folder / "venv", folder / "work"
    venv.create(home, with_pip=True)
    work.mkdir()
    programs = home / ("Scripts" if os.name == "nt" else "bin")
    packages = Path(
        subprocess.check_output(
            [programs / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
        ).strip()
    )
    run([programs / "python", "-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel])
    # One line of path: .pth files in the borrowed folder, such as that of an editable install of this package, are not read.
    (packages / "borrowed.pth").write_text(f"{importlib.metadata.distribution('torch').locate_file('')}\n", encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    from imageio_ffmpeg import get_ffmpeg_exe  # noqa: PLC0415 - only here

    run([get_ffmpeg_exe(), "-v", "error", "-f", "lavfi", "-i", "testsrc2=size=64x64:rate=24", "-frames:v", "9", work / "in.mp4"])
    where = subprocess.check_output(
        [programs / "python", "-c", "import turbovaed_cli; print(turbovaed_cli.__file__)"], text=True, cwd=work, env=environment
    )
    assert Path(where.strip()).is_relative_to(home), where
    for command in (["version"], ["models"], ["reconstruct", "in.mp4", "--out", "out.mp4"]):
        run([programs / "turbovaed", *command], cwd=work, env=environment)
    assert (work / "out.mp4").stat().st_size > 0


def size_with_dependencies() -> tuple[str, str]:
    """Return how many packages an installation has and how large they are here, as text."""
    sizes: dict[str, int] = {}

    def add(name: str, extras: Iterable[str] = ()) -> None:
        key = re.sub(r"[-_.]+", "-", name).lower()
        if key in sizes:
            return
        found = importlib.metadata.distribution(name)
        paths = [Path(str(file.locate())) for file in found.files or []]
        sizes[key] = sum(path.stat().st_size for path in paths if path.is_file())
        for requirement in map(Requirement, found.requires or []):
            if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in (*extras, "")):
                add(requirement.name, requirement.extras)

    add("turbovaed")
    return f"{len(sizes)} packages,", f"{sum(sizes.values()) / 1e9:.1f} GB"


if __name__ == "__main__":
    sys.exit(main())

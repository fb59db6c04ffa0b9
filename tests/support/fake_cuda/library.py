"""The shared library that makes a CPU build of torch believe in an accelerator; built here, and loaded before torch is imported."""

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

SOURCE = Path(__file__).with_name("guard.cpp")
COMPILERS = ("c++", "g++", "clang++")


def compiler() -> str | None:
    """The C++ compiler at hand; None without one."""
    return next(filter(None, map(shutil.which, filter(None, (os.environ.get("CXX"), *COMPILERS)))), None)


def build() -> Path:
    """The library for the installed torch: compiled once (in about three seconds), then found in the temporary folder."""
    made_of = f"{metadata.version('torch')} {compiler()} {SOURCE.read_text(encoding='utf-8')}"
    folder = Path(tempfile.gettempdir()) / f"turbovaed-fake-device-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    assert folder.stat().st_uid == os.getuid(), f"{folder} is not ours: what is in it would be run"
    library = folder / f"{hashlib.sha256(made_of.encode()).hexdigest()[:16]}.so"
    if not library.exists():
        torch = _torch_folder()
        headers = [f"-I{torch / 'include'}", f"-I{torch / 'include/torch/csrc/api/include'}"]
        with tempfile.TemporaryDirectory(dir=folder) as unfinished:
            made = Path(unfinished) / library.name
            command = [str(compiler()), "-O0", "-shared", "-fPIC", "-std=c++20", *headers, str(SOURCE), "-o", str(made)]
            subprocess.run([*command, f"-L{torch / 'lib'}", "-lc10", "-ltorch_cpu"], check=True)
            made.replace(library)  # whole or not at all: several files of tests may build it at once
    return library


def load(library: Path) -> None:
    """Load it into this process, which must not have imported torch yet."""
    for name in ("libc10.so", "libtorch_cpu.so"):
        ctypes.CDLL(str(_torch_folder() / "lib" / name), ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(library))


def _torch_folder() -> Path:
    spec = find_spec("torch")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent

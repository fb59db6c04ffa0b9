"""Write files and folders whole or not at all."""

import ctypes
import errno
import fnmatch
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from turbovaed_cli.errors import DiskFullError, OutputExistsError
from turbovaed_cli.files.places import hidden_name, unwritable
from turbovaed_cli.files.system import is_windows


def sha256_of(path: Path) -> str:
    """Return the hex sha256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync_folder(folder: Path) -> None:
    """Make renames in `folder` survive a power cut; does nothing on Windows."""
    if is_windows():
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _fsync_file(path: Path) -> None:
    with path.open("r+b" if is_windows() else "rb") as file:  # Windows flushes only what may be written
        os.fsync(file.fileno())


DISK_IS_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
_RANDOM_BYTES = 8  # that tempfile puts between a prefix and a suffix
_MOST_SUFFIX_BYTES = 32  # of a suffix that a temporary file shares with its final name, as some writers look at it


@contextmanager
def room_for(path: Path) -> Iterator[None]:
    """Raise DiskFullError naming `path` for any error about a full disk, UnwritableError for one about an unwritable place."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and _is_at(path, error) and (found := unwritable(path, error)) is not None:
            raise found from error
        # safetensors raises its own type of error, whose text ends in the system's number.
        is_full = isinstance(error, OSError) and error.errno in DISK_IS_FULL
        is_full = is_full or any(f"(os error {number})" in str(error) for number in DISK_IS_FULL)
        if not is_full:
            raise
        raise DiskFullError(
            f"no room for {path}", "free some space and repeat the command; what was there before is untouched"
        ) from error


def _is_at(path: Path, error: OSError) -> bool:
    """Whether an error is about a file written at or next to `path`, not about a file that is read meanwhile."""
    return not isinstance(error.filename, str) or Path(error.filename).absolute().is_relative_to(path.parent.absolute())


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file next to `path`, then fsync and rename it to `path`: whole or not at all.

    Raises DiskFullError or UnwritableError.
    """
    with room_for(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        suffix = path.suffix if len(os.fsencode(path.suffix)) <= _MOST_SUFFIX_BYTES else ""
        prefix = hidden_name(path, more=_RANDOM_BYTES + len(os.fsencode(suffix)))
        handle, name = tempfile.mkstemp(prefix=prefix, suffix=suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            write(temporary)
            temporary.chmod(0o644)
            _fsync_file(temporary)
            temporary.replace(path)
            fsync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def whole_files(folder: Path, pattern: str) -> list[Path]:
    """Return the complete files in `folder` that match `pattern`, sorted by name.

    Unfinished files of `write_whole` match the same patterns, but begin with a dot; they are left out.
    """
    names = os.listdir(folder) if folder.is_dir() else []  # noqa: PTH208 - a Path for each of very many files would take seconds
    return [folder / name for name in sorted(fnmatch.filter(names, pattern)) if not name.startswith(".")]


@contextmanager
def whole_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder next to `path` to fill; on a clean exit fsync its files and rename it to `path`.

    Raises OutputExistsError if `path` exists and `overwrite` is False, and DiskFullError or UnwritableError.
    """
    if path.exists() and not overwrite:
        raise OutputExistsError(f"{path} is there already", "add `overwrite` to replace it")
    with room_for(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=hidden_name(path, more=_RANDOM_BYTES), dir=path.parent))
    temporary.chmod(0o755)
    try:
        with room_for(path):
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    _fsync_file(file)
                else:
                    fsync_folder(file)
            fsync_folder(temporary)
            _swap_in(temporary, path)
            fsync_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _swap_in(temporary: Path, path: Path) -> None:
    """Rename `temporary` to `path`, and remove the old `path` only after that.

    On Linux the two change places in one step. Elsewhere there is a moment with neither in place; if the process dies then,
    `clean_leftovers` puts the old one back.
    """
    if not path.exists():
        temporary.rename(path)
    elif not _exchange(temporary, path):
        old = path.with_name(hidden_name(path, "swapped"))
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
        temporary.rename(path)
        shutil.rmtree(old)


def _exchange(a: Path, b: Path) -> bool:
    """Let two names change places in one step; False if the system or the file system cannot."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename is not None and bool(rename(here, os.fsencode(a), here, os.fsencode(b), exchange) == 0)


def write_json(path: Path, value: object) -> None:
    """Write JSON whole or not at all, for people: indented, keys in the order given."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def remove_folder(path: Path) -> None:
    """Remove a folder; it is renamed first, so that a kill half-way leaves nothing that looks complete."""
    doomed = path.with_name(f".{path.name}.old")
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)
    shutil.rmtree(doomed)

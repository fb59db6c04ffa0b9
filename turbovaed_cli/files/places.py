"""Places for outputs: whether a file can be written there, and the names of unfinished files next to it."""

import errno
import os
import tempfile
from pathlib import Path

from turbovaed_cli.errors import UnwritableError

# The reasons why a place cannot be written. A name that is too long is one of them: another place mends it too.
UNWRITABLE = {
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "not permitted",
    errno.ENOTDIR: "a part of its path is a file",
    errno.EEXIST: "a part of its path is a file",  # raised by mkdir
    errno.EISDIR: "it is a folder",
    errno.ENAMETOOLONG: "its name is too long",
    errno.ELOOP: "its links lead in a circle",
}
_MOST_NAME_BYTES = 255  # of a file's name, if the system does not report its own limit


def unwritable(path: Path, error: OSError, option: str = "") -> UnwritableError | None:
    """Return the error for an output that the system refuses to write at `path`; None if `error` is about something else."""
    if error.errno not in UNWRITABLE:
        return None
    what = "a shorter name" if error.errno == errno.ENAMETOOLONG else "another place"
    return UnwritableError(f"cannot write {path}: {UNWRITABLE[error.errno]}", f"give {what}{option and f' with {option}'}")


def check_place(path: Path, option: str = "`out`", *, folder: bool | None = False, longest_suffix: str = "") -> None:
    """Raise UnwritableError unless a file can be written at `path`; with `folder`, unless files can be written in it.

    `folder` is None for a path that may be either. Creates a file without a name there, as permissions alone do not show
    that a disk is read-only. `longest_suffix` is the longest ending of files written next to it; those names have to fit too.
    """
    place = path.absolute()
    try:
        folder = place.is_dir() if folder is None else folder
        if folder and place.exists() and not place.is_dir():
            raise UnwritableError(f"cannot write {path}: it is a file, and {option} is a folder", f"give a folder with {option}")
        if not folder and place.is_dir():
            raise UnwritableError(f"cannot write {path}: it is a folder", f"give a file with {option}, such as {path / 'NAME'}")
        if not folder and place.exists() and not place.is_file():  # a device, which a rename would replace
            raise UnwritableError(f"cannot write {path}: it is no regular file", f"give another place with {option}")
        there = next(above for above in (place, *place.parents) if above.exists())
        if there == place and not folder:
            there = place.parent
        elif not there.is_dir():
            raise UnwritableError(f"cannot write {path}: {there} is a file", f"give another place with {option}")
        most = _most_name_bytes(there)
        for name in (*place.parts[len(there.parts) :], f"{place.name}{longest_suffix}"):
            if (length := len(os.fsencode(name))) > most:
                raise UnwritableError(
                    f"cannot write {name}: its name has {length} bytes, and the file system takes {most}",
                    f"give a shorter name with {option}",
                )
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        if (found := unwritable(path, error, option)) is not None:
            raise found from error
        if isinstance(error, FileNotFoundError):  # /proc and the like, in which no file can be made
            raise UnwritableError(
                f"cannot write {path}: no file can be made there", f"give another place with {option}"
            ) from error
        raise


def _most_name_bytes(folder: Path) -> int:
    try:
        return os.pathconf(folder, "PC_NAME_MAX")
    except (AttributeError, OSError, ValueError):
        return _MOST_NAME_BYTES


def hidden_name(path: Path, ending: str = "", more: int = 0) -> str:
    """Return a name for something incomplete next to `path`: a dot, the beginning of the name of `path`, a dot and `ending`.

    It is short enough that the file system accepts it with `more` bytes added.
    """
    place = path.parent
    room = _most_name_bytes(place if place.exists() else Path()) - len(os.fsencode(f"..{ending}")) - more
    name = path.name
    while name and len(os.fsencode(name)) > room:
        name = name[:-1]
    return f".{name}.{ending}"

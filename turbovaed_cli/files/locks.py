"""Lock files that the system drops when their process ends."""

import os
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from turbovaed_cli.errors import UnavailableError
from turbovaed_cli.files.system import check_system, is_windows
from turbovaed_cli.files.whole import room_for


@contextmanager
def hold_lock(path: Path) -> Iterator[str | None]:
    """Hold a lock file while the context lasts and yield None; if another process holds it, yield that process and since when.

    The system drops the lock when the process ends, however it ends. Raises UnavailableError on Windows, and if the file
    system has no locks.
    """
    check_system("locking a folder")
    with room_for(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        opened = path.open("a+", encoding="utf-8")
    with opened as file:
        if not _try_lock(file.fileno(), path):
            file.seek(0)
            yield file.read().strip() or "another process"
            return
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        file.flush()
        try:
            yield None
        finally:
            file.truncate(0)


def lock_holder(path: Path) -> str | None:
    """Return the process that holds a lock file, None if it is free; changes nothing."""
    if is_windows():  # nothing that locks runs there
        return None
    try:
        if path.exists() and not path.is_file():
            return None
        with path.open(encoding="utf-8", errors="replace") as file:
            return None if _try_lock(file.fileno(), path, shared=True) else file.read().strip() or "another process"
    except FileNotFoundError:
        return None


_TEMPORARY = ".turbovaed-"  # how the names of temporary files begin


@contextmanager
def temporary_file(folder: Path, suffix: str) -> Iterator[Path]:
    """Yield an empty hidden file in `folder`, which is removed at the end unless it was renamed.

    Its process holds a lock on it. So the next call with this folder removes what killed processes left there.
    """
    _remove_leftovers(folder)
    handle, name = tempfile.mkstemp(prefix=_TEMPORARY, suffix=suffix, dir=folder)
    path = Path(name)
    try:
        if not is_windows():
            with suppress(UnavailableError):  # where nothing can be locked, nothing is taken for a leftover either
                _lock_once(handle, path, shared=False)
        yield path
    finally:
        os.close(handle)
        path.unlink(missing_ok=True)


def _remove_leftovers(folder: Path) -> None:
    for path in [] if is_windows() else folder.glob(f"{_TEMPORARY}*"):
        with suppress(OSError, UnavailableError), path.open("rb") as file:
            if _lock_once(file.fileno(), path, shared=False):
                path.unlink()


def _try_lock(descriptor: int, path: Path, *, shared: bool = False) -> bool:
    """Take a lock that the system drops when the file is closed or the process ends; False if another process holds it.

    `lock_holder` takes a shared lock for an instant, so an exclusive one is tried several times.
    """
    for _ in range(0 if shared else 3):
        if _lock_once(descriptor, path, shared=False):
            return True
        time.sleep(0.02)
    return _lock_once(descriptor, path, shared=shared)


def _lock_once(descriptor: int, path: Path, *, shared: bool) -> bool:
    import fcntl  # noqa: PLC0415 - Windows has none, and nothing calls this there

    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:  # some network file systems
        raise UnavailableError(
            f"{path} cannot be locked here ({(error.strerror or str(error)).lower()})",
            "give a folder on a file system with locks, such as a local disk or NFS 4",
        ) from error
    return True

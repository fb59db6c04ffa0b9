"""Places of videos, latents and runs: a local folder, or an fsspec URL such as s3://bucket/videos.

All other code reads and writes local files only. Files at a URL are downloaded when they are needed, and files written
for it are uploaded once they are complete.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from turbovaed_cli.errors import MissingError, SettingsError, TurboVaedError
from turbovaed_cli.files.whole import write_whole


def is_url(place: str | Path) -> bool:
    """Whether a place is a URL for fsspec, not a local path."""
    return "://" in str(place)


class RemoteFolder:
    """A folder at a URL; everything that goes wrong there raises TurboVaedError with the URL in its text."""

    def __init__(self, url: str) -> None:
        import fsspec  # noqa: PLC0415 - for URLs alone

        self.url = url.rstrip("/")
        try:
            self._system, self._root = fsspec.core.url_to_fs(self.url)
        except ImportError as error:
            raise MissingError(
                f"{url} cannot be reached: {error}", "install that package, such as pip install 'turbovaed[s3]'"
            ) from error
        except ValueError as error:
            raise SettingsError(
                f"{url} cannot be reached: {error}", "use s3://, gs://, http:// or another scheme that fsspec supports"
            ) from error

    def shown(self, name: str) -> str:
        """Return the URL of a file in the folder."""
        return f"{self.url}/{name}"

    def listing(self) -> dict[str, dict[str, Any]]:
        """Return the facts that the storage has about every file under the folder, by relative name; empty if there is none."""
        with self._errors_at(self.url):
            self._system.invalidate_cache()
            try:
                found = self._system.find(self._root, detail=True)
            except FileNotFoundError:
                return {}
        prefix = self._root.rstrip("/") + "/"
        listing = {path.removeprefix(prefix): facts for path, facts in found.items() if path.startswith(prefix)}
        for name in listing:
            if "\\" in name or not all(part not in ("", ".", "..") for part in name.split("/")):
                raise TurboVaedError(f"{self.url} holds {name!r}, a name that leads out of it", "rename or remove it there")
        return listing

    def get(self, name: str, path: Path) -> None:
        """Download a file to `path`, whole or not at all."""
        with self._errors_at(self.shown(name)):
            write_whole(path, lambda temporary: self._system.get_file(f"{self._root}/{name}", str(temporary)))

    def put(self, path: Path, name: str) -> None:
        """Upload a file as `name`; object stores show it whole or not at all."""
        with self._errors_at(self.shown(name)):
            self._system.makedirs(f"{self._root}/{name}".rpartition("/")[0], exist_ok=True)
            self._system.put_file(str(path), f"{self._root}/{name}")

    def remove(self, name: str) -> None:
        """Remove a file from the storage."""
        with self._errors_at(self.shown(name)):
            self._system.rm_file(f"{self._root}/{name}")

    @contextmanager
    def _errors_at(self, where: str) -> Iterator[None]:
        try:
            yield
        except (TurboVaedError, KeyboardInterrupt):
            raise
        except Exception as error:  # every fsspec package has its own errors
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise TurboVaedError(
                f"{where}: {lines[0]}", "check the URL, the network and the credentials; the same command goes on"
            ) from error


class Mirror:
    """A local mirror of a remote folder; the remote copy wins at start-up."""

    def __init__(self, url: str, local: Path) -> None:
        self.remote, self.local = RemoteFolder(url), local
        self._there: dict[str, tuple[int, int]] = {}  # files copied to or from there: size and time of change here

    def fetch(self, wanted: Callable[[str], bool]) -> None:
        """Download every file whose name is wanted."""
        for name in filter(wanted, self.remote.listing()):
            self.remote.get(name, self.local / name)
            self._there[name] = _mark(self.local / name)

    def push(self, *, remove: bool = False) -> None:
        """Upload the files that changed here since the last copy, .json files last: a manifest makes other files valid.

        With `remove`, also remove remote files that are gone here, .json files first.
        """
        here = {path.relative_to(self.local).as_posix(): path for path in self.local.rglob("*") if path.is_file()}
        here = {name: path for name, path in here.items() if is_for_others(name)}
        for name in sorted(here, key=lambda name: (name.endswith(".json"), name)):
            if self._there.get(name) != (mark := _mark(here[name])):
                self.remote.put(here[name], name)
                self._there[name] = mark
        gone = [name for name in self._there if name not in here] if remove else []  # once its successor is there
        for name in sorted(gone, key=lambda name: (not name.endswith(".json"), name)):
            self.remote.remove(name)
            del self._there[name]


def is_for_others(name: str) -> bool:
    """Whether a file should be copied to other machines: not a lock, which means nothing there, and not half-written."""
    return not any(part.startswith(".") or part == "lock" or part.endswith(".lock") for part in name.split("/"))


def _mark(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def free_disk_bytes(path: Path) -> int:
    """Return the free bytes on the disk that a path is on, or will be."""
    return shutil.disk_usage(next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())).free


def cache_home() -> Path:
    """Return the folder for copies of downloaded shards: $TURBOVAED_CACHE, or turbovaed in the user's cache folder.

    Raises SettingsError for a user without a home folder.
    """
    if chosen := os.environ.get("TURBOVAED_CACHE"):
        return Path(chosen)
    if chosen := os.environ.get("XDG_CACHE_HOME"):
        return Path(chosen) / "turbovaed"
    home = os.path.expanduser("~")  # noqa: PTH111 - Path.home() fails for a user without one
    if home == "~":
        raise SettingsError("this user has no home folder to keep copies in", "set TURBOVAED_CACHE to a folder, or HOME")
    return Path(home) / ".cache" / "turbovaed"

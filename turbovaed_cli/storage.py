"""Where videos, latents and runs lie: a local folder, or an fsspec URL such as s3://bucket/videos.

Everything that reads or writes files of ours works on local ones. What lies behind a URL is copied here when it is needed,
and what is written for it is copied there once it is whole.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from turbovaed_cli.errors import MissingError, SettingsError, TurboVaedError, VideoError
from turbovaed_cli.reporting import Reporter, quiet
from turbovaed_cli.rundir import read_json, write_json, write_whole
from turbovaed_cli.video import VIDEO_SUFFIXES, as_text, list_videos, names_of_videos, stamp_of


def is_url(place: str | Path) -> bool:
    """Whether a place is meant for fsspec."""
    return "://" in str(place)


class Videos(Protocol):
    """Videos under a place, by name: relative to it, with slashes, in the order of names."""

    names: list[str]

    def shown(self, name: str) -> str:
        """The whole name, for people."""
        ...

    def stamp(self, name: str) -> str:
        """Differs when the video does; costs no reading."""
        ...

    def fetch(self, name: str) -> Path:
        """A local file with the video in it; from any thread. VideoError where it cannot be had."""
        ...

    def drop(self, name: str) -> None:
        """What `fetch` gave is not needed any more."""
        ...


class LocalVideos:
    """The videos of a folder, or the one file given."""

    def __init__(self, data: Path, report: Reporter = quiet) -> None:
        self._root = data if data.is_dir() else data.parent
        self.names = names_of_videos(data, report) if data.is_dir() else [path.name for path in list_videos(data)]

    def shown(self, name: str) -> str:
        return as_text(f"{self._root}/{name}" if str(self._root) != "." else name)

    def stamp(self, name: str) -> str:
        try:
            return stamp_of(f"{self._root}/{name}")
        except OSError as error:
            raise VideoError(f"{self._root / name} cannot be opened: {(error.strerror or str(error)).lower()}") from error

    def fetch(self, name: str) -> Path:
        return self._root / name

    def drop(self, name: str) -> None:
        pass


class RemoteVideos:
    """The videos behind a URL, each copied into `room` while it is needed."""

    def __init__(self, url: str, room: Path) -> None:
        self.files = RemoteFolder(url)
        self._room = room
        self._facts = {
            name: facts
            for name, facts in self.files.listing().items()
            if name.lower().endswith(VIDEO_SUFFIXES) and not any(part.startswith(".") for part in name.split("/"))
        }
        self.names = sorted(self._facts, key=lambda name: name.split("/"))
        if not self.names:
            raise SettingsError(f"no video under {url}", f"videos end in {', '.join(VIDEO_SUFFIXES)}")

    def shown(self, name: str) -> str:
        return self.files.shown(name)

    def stamp(self, name: str) -> str:
        facts = self._facts[name]
        mark = next((facts[key] for key in ("ETag", "etag", "md5Hash", "LastModified", "mtime", "created") if facts.get(key)), "")
        return f"{facts.get('size')} bytes, {mark}"

    def fetch(self, name: str) -> Path:
        path = self._place(name)
        if not path.exists():
            try:
                self.files.get(name, path)
            except TurboVaedError as error:
                if not isinstance(error.__cause__, FileNotFoundError):
                    raise  # a network that is gone makes no video unreadable
                raise VideoError(f"{self.shown(name)} is not there any more") from error
        return path

    def drop(self, name: str) -> None:
        self._place(name).unlink(missing_ok=True)

    def _place(self, name: str) -> Path:
        return self._room / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}{Path(name).suffix}"


@contextmanager
def open_videos(data: str | Path, report: Reporter = quiet) -> Iterator[Videos]:
    """The videos of a folder, a file or a URL. Raises SettingsError where there is none."""
    if not is_url(data):
        yield LocalVideos(Path(data), report)
        return
    with tempfile.TemporaryDirectory(prefix="turbovaed-", ignore_cleanup_errors=True) as room:
        yield RemoteVideos(str(data), Path(room))


class RemoteFolder:
    """A folder behind a URL; what goes wrong there is one error that names the URL."""

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
                f"{url} cannot be reached: {error}", "s3://, gs://, http:// or another scheme that fsspec knows"
            ) from error

    def shown(self, name: str) -> str:
        """The URL of a file in it."""
        return f"{self.url}/{name}"

    def listing(self) -> dict[str, dict[str, Any]]:
        """What the storage tells of every file under it, by relative name; empty where there is nothing."""
        with self._told(self.url):
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
        """Copy a file here, whole or not at all."""
        with self._told(self.shown(name)):
            write_whole(path, lambda temporary: self._system.get_file(f"{self._root}/{name}", str(temporary)))

    def put(self, path: Path, name: str) -> None:
        """Copy a file there; object stores show it whole or not at all."""
        with self._told(self.shown(name)):
            self._system.makedirs(f"{self._root}/{name}".rpartition("/")[0], exist_ok=True)
            self._system.put_file(str(path), f"{self._root}/{name}")

    def remove(self, name: str) -> None:
        """Remove a file there."""
        with self._told(self.shown(name)):
            self._system.rm_file(f"{self._root}/{name}")

    @contextmanager
    def _told(self, where: str) -> Iterator[None]:
        try:
            yield
        except (TurboVaedError, KeyboardInterrupt):
            raise
        except Exception as error:  # every fsspec package has its own
            said = str(error).strip().splitlines() or [type(error).__name__]
            raise TurboVaedError(
                f"{where}: {said[0]}", "check the URL, the network and the credentials; the same command goes on"
            ) from error


class Mirror:
    """A local folder that stands for one behind a URL, which is the truth when the work begins."""

    def __init__(self, url: str, local: Path) -> None:
        self.remote, self.local = RemoteFolder(url), local
        self._there: dict[str, tuple[int, int]] = {}  # what was copied to or from there: size and time of change here

    def fetch(self, wanted: Callable[[str], bool]) -> None:
        """Copy here every file there whose name is wanted."""
        for name in filter(wanted, self.remote.listing()):
            self.remote.get(name, self.local / name)
            self._there[name] = _mark(self.local / name)

    def push(self, *, remove: bool = False) -> None:
        """Copy there what changed here since, .json behind all others: a manifest makes other files count.

        With `remove`, remove there what is gone here; a .json first.
        """
        here = {path.relative_to(self.local).as_posix(): path for path in self.local.rglob("*") if path.is_file()}
        here = {name: path for name, path in here.items() if _is_for_others(name)}
        for name in sorted(here, key=lambda name: (name.endswith(".json"), name)):
            if self._there.get(name) != (mark := _mark(here[name])):
                self.remote.put(here[name], name)
                self._there[name] = mark
        gone = [name for name in self._there if name not in here] if remove else []  # once its successor is there
        for name in sorted(gone, key=lambda name: (not name.endswith(".json"), name)):
            self.remote.remove(name)
            del self._there[name]


def _is_for_others(name: str) -> bool:
    """Neither a lock, which means nothing on another machine, nor half-written."""
    return not any(part.startswith(".") or part == "lock" or part.endswith(".lock") for part in name.split("/"))


def _mark(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@contextmanager
def open_cache(out: str | Path) -> Iterator[tuple[Path, Callable[[Path], None]]]:
    """(the local folder to write a latent cache in, what to do with each shard that is complete).

    Behind a URL a shard is copied there and removed here; the rest, which is small, follows in the end.
    """
    if not is_url(out):
        yield Path(out), lambda _: None
        return
    with tempfile.TemporaryDirectory(prefix="turbovaed-", ignore_cleanup_errors=True) as room:
        mirror = Mirror(str(out), Path(room))
        mirror.fetch(lambda name: name.endswith(".json"))

        def pushed(shard: Path) -> None:
            mirror.push()
            shard.unlink()

        try:
            yield mirror.local, pushed
        finally:
            mirror.push()


@contextmanager
def open_run(run: str | Path, *, checkpoints: bool = True) -> Iterator[tuple[Path, Callable[[], None]]]:
    """(the local folder of a run, what to do whenever something in it is complete).

    A run behind a URL is brought here as it is there, `checkpoints` or not, and what changes is copied back. There is no
    lock behind a URL: two processes that train the same run would overwrite each other's checkpoints.
    """
    if not is_url(run):
        yield Path(run), lambda: None
        return
    with tempfile.TemporaryDirectory(prefix="turbovaed-", ignore_cleanup_errors=True) as room:
        mirror = Mirror(str(run), Path(room))
        mirror.fetch(lambda name: _is_for_others(name) and (checkpoints or not name.startswith("checkpoints/")))
        try:
            yield mirror.local, lambda: mirror.push(remove=True)
        finally:
            mirror.push(remove=True)


@contextmanager
def look_at_run(run: str | Path) -> Iterator[Path]:
    """The local folder of a run, to look at: behind a URL its documents alone are brought here, and nothing goes back."""
    if not is_url(run):
        yield Path(run)
        return
    with tempfile.TemporaryDirectory(prefix="turbovaed-", ignore_cleanup_errors=True) as room:
        Mirror(str(run), Path(room)).fetch(lambda name: _is_for_others(name) and name.endswith(".json"))
        yield Path(room)


def local_videos(data: str | Path, report: Reporter = quiet, *, first: int | None = None) -> Path:
    """The folder or file itself, or what lies behind a URL, copied to `cache_home()` and kept: training reads videos again and again.

    With `first`, no more than so many are copied.
    """
    if not is_url(data):
        return Path(data)
    folder = cache_home() / f"videos-{hashlib.sha256(str(data).rstrip('/').encode()).hexdigest()[:16]}"
    remote = RemoteVideos(str(data), folder)
    stamps = folder / ".stamps.json"
    known = read_json(stamps) if stamps.is_file() else {}
    if first is None:
        for path in folder.rglob("*"):
            if path.is_file() and not path.name.startswith(".") and path.relative_to(folder).as_posix() not in remote.names:
                path.unlink(missing_ok=True)
    for name in report.track(remote.names[:first], f"copying videos to {folder}"):
        if not (folder / name).is_file() or known.get(name) != remote.stamp(name):
            remote.files.get(name, folder / name)
            known[name] = remote.stamp(name)
    write_json(stamps, {name: known[name] for name in sorted(known) if name in remote.names})
    return folder


def free_bytes(path: Path) -> int:
    """Room on the disk that a path is on, or will be."""
    return shutil.disk_usage(next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())).free


def cache_home() -> Path:
    """Where copies of shards from behind URLs are kept: $TURBOVAED_CACHE, or turbovaed in the user's cache folder."""
    if chosen := os.environ.get("TURBOVAED_CACHE"):
        return Path(chosen)
    if chosen := os.environ.get("XDG_CACHE_HOME"):
        return Path(chosen) / "turbovaed"
    home = os.path.expanduser("~")  # noqa: PTH111 - which does not fail for a user without one
    if home == "~":
        raise SettingsError("this user has no home folder to keep copies in", "set TURBOVAED_CACHE to a folder, or HOME")
    return Path(home) / ".cache" / "turbovaed"

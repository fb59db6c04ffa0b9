"""Find the videos of a folder, a file or a URL. A folder of numbered pictures is one video too."""

import hashlib
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from turbovaed_cli.errors import SettingsError, TurboVaedError, VideoError
from turbovaed_cli.files.remote import RemoteFolder, cache_home, is_url
from turbovaed_cli.files.sealed import read_json
from turbovaed_cli.files.whole import sha256_of, write_json
from turbovaed_cli.reporting import Reporter, quiet
from turbovaed_cli.units import counted

VIDEO_SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mts", ".m2ts", ".3gp", ".3g2", ".mpg", ".mpeg", ".flv", ".wmv", ".asf",
    ".ogv", ".ogg", ".gif", ".webp", ".y4m",
)  # fmt: skip

_FRAME = re.compile(r"(.*?)(\d+)\.(png|jpg|jpeg)", re.IGNORECASE | re.DOTALL)


def as_text(path: Path | str) -> str:
    r"""Return a path as text that any file or page can hold: bytes of a name that are no UTF-8 become \xff."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def list_videos(data: Path, report: Reporter = quiet, *, suffixes: tuple[str, ...] = VIDEO_SUFFIXES) -> list[Path]:
    """Return every video under a folder, sorted, or the one file given.

    Hidden files and folders are left out; other files are counted in a note. Raises SettingsError if there is no video.
    """
    if data.is_dir():
        return [data / name for name in names_of_videos(data, report, suffixes=suffixes)]
    if not data.exists():
        raise SettingsError(f"{data} is not there", "give a folder of videos, or one video")
    return [data]


def names_of_videos(folder: Path, report: Reporter = quiet, *, suffixes: tuple[str, ...] = VIDEO_SUFFIXES) -> list[str]:
    """Return the videos under a folder as `list_videos` does, but as relative names with slashes.

    For a hundred thousand files, Path objects would take seconds.
    """
    names = []
    unknown: Counter[str] = Counter()
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        within = os.path.relpath(place, folder).replace(os.sep, "/")
        frames = set(frame_names(files))
        if frames:
            names.append(within)
        for name in (*files, *folders):
            if name.startswith(".") or name in frames:
                continue
            if name.lower().endswith(suffixes):
                names.append(name if within == "." else f"{within}/{name}")
            elif name in files:
                unknown[Path(name).suffix.lower() or "no suffix"] += 1
    if unknown:
        report.note(
            f"left out, no videos: {counted(unknown.total(), 'file')} ({', '.join(kind for kind, _ in unknown.most_common(5))})"
        )
    if not names:
        raise SettingsError(
            f"no video under {folder}",
            f"videos end in {', '.join(VIDEO_SUFFIXES)}, or are folders of numbered .png or .jpg files",
        )
    return sorted(names, key=lambda name: name.split("/"))


def frame_names(names: Sequence[str]) -> list[str]:
    """Return the names of numbered pictures in a folder, sorted by number, if they are the frames of one video; else none.

    Only the number may differ: 00000.jpg, 00001.jpg, ... (as in DAVIS), or frame1.png, frame2.png, ...
    """
    found = [(match[1], match[3].lower(), int(match[2]), name) for name in names if (match := _FRAME.fullmatch(name))]
    if len(found) < 2 or len({(prefix, suffix) for prefix, suffix, _, _ in found}) > 1:
        return []
    return [name for *_, name in sorted(found, key=lambda one: one[2:])]


def frames_in(folder: Path) -> tuple[Path, ...]:
    """Return the files of a folder of frames, in order; none if it is another kind of folder."""
    with os.scandir(folder) as entries:
        return tuple(folder / name for name in frame_names([entry.name for entry in entries if not entry.name.startswith(".")]))


def stamp_of(path: str) -> str:
    """Return a text that changes when a video does, without reading the video. Raises OSError if it does not exist."""
    status = os.stat(path)  # noqa: PTH116 - a Path for each of very many files would take seconds
    if not os.path.isdir(path):  # noqa: PTH112
        return f"{status.st_size} bytes, {status.st_mtime_ns} ns"
    parts = [os.stat(frame) for frame in frames_in(Path(path))]  # noqa: PTH116
    newest = max((part.st_mtime_ns for part in parts), default=0)
    return f"{len(parts)} frames, {sum(part.st_size for part in parts)} bytes, {newest} ns"


def sha256_of_video(path: Path) -> str:
    """Return the hex sha256 of a file; for a folder of frames, that of the names and digests of all of them."""
    if not path.is_dir():
        return sha256_of(path)
    digest = hashlib.sha256()
    for frame in frames_in(path):
        digest.update(f"{frame.name} {sha256_of(frame)}\n".encode())
    return digest.hexdigest()


class Videos(Protocol):
    """Videos under a place, by name: relative to it, with slashes, in the order of names."""

    names: list[str]

    def shown(self, name: str) -> str:
        """Return the whole path or URL of a video, for people."""
        ...

    def stamp(self, name: str) -> str:
        """Return a text that changes when the video does, without reading the video."""
        ...

    def fetch(self, name: str) -> Path:
        """Return a local file of the video, from any thread; raises VideoError if there is none."""
        ...

    def drop(self, name: str) -> None:
        """Remove a copy that `fetch` made, as it is not needed any more."""
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
    """The videos at a URL, each downloaded into `room` while it is needed."""

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
                    raise  # the network failed, which is no fault of the video
                raise VideoError(f"{self.shown(name)} is not there any more") from error
        return path

    def drop(self, name: str) -> None:
        self._place(name).unlink(missing_ok=True)

    def _place(self, name: str) -> Path:
        return self._room / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}{Path(name).suffix}"


@contextmanager
def open_videos(data: str | Path, report: Reporter = quiet) -> Iterator[Videos]:
    """Yield the videos of a folder, a file or a URL. Raises SettingsError if there are none."""
    if not is_url(data):
        yield LocalVideos(Path(data), report)
        return
    with tempfile.TemporaryDirectory(prefix="turbovaed-", ignore_cleanup_errors=True) as room:
        yield RemoteVideos(str(data), Path(room))


def local_videos(data: str | Path, report: Reporter = quiet, *, first: int | None = None) -> Path:
    """Return a local folder or file as it is; for a URL, download its videos to `cache_home()`, keep them, return that folder.

    Training reads videos many times. `first` limits the number of videos that are downloaded.
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

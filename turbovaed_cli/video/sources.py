"""Which files are videos, and which of them a folder holds. A folder of numbered pictures is one video too."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from turbovaed_cli.errors import SettingsError
from turbovaed_cli.reporting import Reporter, quiet
from turbovaed_cli.rundir import sha256_of

VIDEO_SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mts", ".m2ts", ".3gp", ".3g2", ".mpg", ".mpeg", ".flv", ".wmv", ".asf",
    ".ogv", ".ogg", ".gif", ".webp", ".y4m",
)  # fmt: skip
_FRAME = re.compile(r"(.*?)(\d+)\.(png|jpg|jpeg)", re.IGNORECASE | re.DOTALL)


def as_text(path: Path | str) -> str:
    r"""A path as text that any file or page can hold: bytes of a name that are no UTF-8 become \xff."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def list_videos(data: Path, report: Reporter = quiet, *, suffixes: tuple[str, ...] = VIDEO_SUFFIXES) -> list[Path]:
    """Every video under a folder, sorted, or the one given; hidden files and folders are left out, other files counted in a note.

    Raises SettingsError if there is none.
    """
    if data.is_dir():
        return [data / name for name in names_of_videos(data, report, suffixes=suffixes)]
    if not data.exists():
        raise SettingsError(f"{data} is not there", "give a folder of videos, or one video")
    return [data]


def names_of_videos(folder: Path, report: Reporter = quiet, *, suffixes: tuple[str, ...] = VIDEO_SUFFIXES) -> list[str]:
    """The same as names relative to the folder, with slashes: paths of a hundred thousand would take seconds."""
    names = []
    others: Counter[str] = Counter()
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
                others[Path(name).suffix.lower() or "no suffix"] += 1
    if others:
        report.note(
            f"left out: {others.total()} files that are no videos ({', '.join(kind for kind, _ in others.most_common(5))})"
        )
    if not names:
        raise SettingsError(
            f"no video under {folder}",
            f"videos end in {', '.join(VIDEO_SUFFIXES)}, or are folders of numbered .png or .jpg files",
        )
    return sorted(names, key=lambda name: name.split("/"))


def frame_names(names: Sequence[str]) -> list[str]:
    """Of the names in a folder, those that are the frames of one video: numbered pictures, by number; none if they are several videos.

    All must be alike but for the number: 00000.jpg, 00001.jpg, ... (as in DAVIS), or frame1.png, frame2.png, ...
    """
    found = [(match[1], match[3].lower(), int(match[2]), name) for name in names if (match := _FRAME.fullmatch(name))]
    if len(found) < 2 or len({(prefix, suffix) for prefix, suffix, _, _ in found}) > 1:
        return []
    return [name for *_, name in sorted(found, key=lambda one: one[2:])]


def frames_in(folder: Path) -> tuple[Path, ...]:
    """The files of a folder of frames, in order; none if it is something else."""
    with os.scandir(folder) as entries:
        return tuple(folder / name for name in frame_names([entry.name for entry in entries if not entry.name.startswith(".")]))


def stamp_of(path: str) -> str:
    """Differs when a video does; costs no reading. Raises OSError if it is not there."""
    status = os.stat(path)  # noqa: PTH116 - a path for each of very many would take seconds
    if not os.path.isdir(path):  # noqa: PTH112
        return f"{status.st_size} bytes, {status.st_mtime_ns} ns"
    parts = [os.stat(frame) for frame in frames_in(Path(path))]  # noqa: PTH116
    newest = max((part.st_mtime_ns for part in parts), default=0)
    return f"{len(parts)} frames, {sum(part.st_size for part in parts)} bytes, {newest} ns"


def sha256_of_video(path: Path) -> str:
    """Of a file its sha256; of a folder of frames, of the names and digests of all of them."""
    if not path.is_dir():
        return sha256_of(path)
    digest = hashlib.sha256()
    for frame in frames_in(path):
        digest.update(f"{frame.name} {sha256_of(frame)}\n".encode())
    return digest.hexdigest()

"""Which files are videos, and which of them a folder holds."""

import os
from pathlib import Path

from turbovaed_cli.errors import SettingsError

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts")


def as_text(path: Path | str) -> str:
    r"""A path as text that any file or page can hold: bytes of a name that are no UTF-8 become \xff."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def list_videos(data: Path) -> list[Path]:
    """Every video under a folder, sorted, or the one file given; hidden files and folders are left out.

    Raises SettingsError where there is none.
    """
    if data.is_dir():
        return [data / name for name in names_of_videos(data)]
    if not data.exists():
        raise SettingsError(f"{data} is not there", "give a folder of videos, or one video")
    return [data]


def names_of_videos(folder: Path) -> list[str]:
    """The same as names relative to the folder, with slashes: paths of a hundred thousand would take seconds."""
    names = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        within = os.path.relpath(place, folder).replace(os.sep, "/")
        for name in (*files, *folders):
            if name.lower().endswith(VIDEO_SUFFIXES) and not name.startswith("."):
                names.append(name if within == "." else f"{within}/{name}")
    if not names:
        raise SettingsError(f"no video under {folder}", f"videos end in {', '.join(VIDEO_SUFFIXES)}")
    return sorted(names, key=lambda name: name.split("/"))

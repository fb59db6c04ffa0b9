"""Find what should not be published in the files of a folder: local paths, the name of the user, tokens."""

import getpass
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

_LONGEST_HEADER = 100_000_000  # bytes, of a safetensors file
_PATHS = (
    re.compile(r"(?<![\w:/.<\\)\]}*-])(?:~|file://)?(?!/(?:proc|sys|dev)/)(?:/[\w.@+~-]+){2,}"),  # /home/me/x; no link, no and/or
    re.compile(r"(?<!\w)[A-Za-z]:(?:\\{1,2}|/)[\w.@+~-]+(?:(?:\\{1,2}|/)[\w.@+~ -]+)*"),  # C:\Users\me, C:\\Users\\me in JSON
    re.compile(r"\\\\[\w.-]+\\+[\w.$-]+"),  # \\server\share
    re.compile(r"(?<![\w/])~[\w.-]*/[\w.-]+"),
)
_TOKEN = re.compile(r"(?<!\w)hf_[A-Za-z0-9]{20,}")
_SHARED_NAMES = frozenset(
    ("root", "user", "admin", "ubuntu", "debian", "runner", "docker", "jovyan", "home", "work", "video", "data")
)  # of many machines
_SHORTEST_NAME = 3
_SHOWN = 60  # letters of a finding


@dataclass(frozen=True)
class Finding:
    """A text in a file that looks private."""

    file: str
    text: str
    what: str


def private_texts(folder: Path, public: str = "", allowed: tuple[str, ...] = ()) -> list[Finding]:
    """Return the local paths, names of the user and tokens in all files below `folder`, and in their names.

    The user's name may occur in `public`, such as the id of the repository. Texts in `allowed` are left out.
    """
    names = [name for name in _names_of_user() if name.lower() not in re.split(r"\W+", public.lower())]
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            inside = path.relative_to(folder).as_posix()
            people = [] if path.suffix == ".py" else names  # the package's own code
            text = f"{inside}\n{_text_of(path)}"
            found += [Finding(inside, one, what) for one, what in _private_in(text, people) if one not in allowed]
    return found


def _private_in(text: str, names: list[str]) -> Iterator[tuple[str, str]]:
    seen = set()
    for pattern in (*_PATHS, _TOKEN):
        what = "a token" if pattern is _TOKEN else "a local path"
        for match in pattern.finditer(text):
            one = match[0] if pattern is not _TOKEN else f"{match[0][:6]}..."
            if one not in seen:
                seen.add(one)
                yield one[:_SHOWN], what
    for name in names:
        if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text):
            yield name, "the name of the user here"


def _names_of_user() -> list[str]:
    """Return the login name and the name of the home folder, unless they are those of many machines, or too short to differ from words."""
    found = [Path.home().name]
    with suppress(OSError, KeyError):  # no such user on this system
        found.append(getpass.getuser())
    return [name for name in dict.fromkeys(found) if len(name) >= _SHORTEST_NAME and name.lower() not in _SHARED_NAMES]


def _text_of(path: Path) -> str:
    """Return what a file says in text: all of it, the header of a safetensors file, or the notes in a picture."""
    if path.suffix == ".safetensors":
        with path.open("rb") as file:
            length = min(int.from_bytes(file.read(8), "little"), _LONGEST_HEADER)
            return file.read(length).decode("utf-8", "replace")
    if path.suffix == ".png":
        with Image.open(path) as picture:
            picture.load()
            notes = [f"{name} {value}" for name, value in picture.info.items() if isinstance(value, str)]
            return "\n".join([*notes, *map(str, picture.getexif().values())])
    return path.read_text(encoding="utf-8", errors="replace")

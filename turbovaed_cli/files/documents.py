"""Text and JSON that anybody may have written: read within bounds, and checked field by field before it is believed."""

import json
import math
import re
import types
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Union, get_args, get_origin

from turbovaed_cli.errors import CorruptFileError

MOST_BYTES = 256_000_000  # of a document; the largest of ours, an evaluation of many clips, has some
_MOST = 2**53  # whole numbers up to which a float is exact
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
# The folders of an absolute path inside of a text.
_FOLDERS = re.compile(r"(?<![\w:/.~])(?:~|[A-Za-z]:)?[/\\](?:[^\s/\\'\",;:()]+[/\\])+")
_RESTORE = "it was changed or damaged; restore it, or remove it if you can do without"


def parse_json(text: str) -> Any:
    """What a JSON text holds; ValueError for everything that is none, is nested too deeply, or holds half a character."""
    try:
        value = json.loads(text)
        if _SURROGATE.search(text):  # halves that no file can be written with
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return value


def read_text(path: Path) -> str:
    """A regular file's text; ValueError where it is too large or not UTF-8, OSError where it cannot be read."""
    if path.exists() and not path.is_file():
        raise ValueError("not a regular file")
    if (size := path.stat().st_size) > MOST_BYTES:
        raise ValueError(f"{size / 1e6:,.0f} MB are more than any document has")
    return path.read_text(encoding="utf-8")


def plain_name(name: object) -> bool:
    """Whether it names a file of the folder at hand, and nothing above, below or beside it."""
    return isinstance(name, str) and name not in ("", ".", "..") and not any(letter in name for letter in "/\\\0")


@cache
def _taken_apart(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    return get_origin(hint), get_args(hint)


def fits(value: object, hint: Any) -> bool:  # noqa: PLR0911 - one rule a line
    """Whether a value from JSON or TOML is what a type hint says; numbers are finite, and whole ones below 2**53."""
    if hint is str:  # most of what there is
        return isinstance(value, str)
    if hint is Any:
        return True
    origin, arguments = _taken_apart(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, one) for one in arguments)
    if hint is bool or hint is type(None):
        return isinstance(value, hint)
    if hint is int or hint is float:
        if isinstance(value, bool) or not isinstance(value, int if hint is int else int | float):
            return False
        return math.isfinite(value) if isinstance(value, float) else abs(value) < _MOST
    if origin is tuple and arguments[-1] is not Ellipsis:
        return isinstance(value, list | tuple) and len(value) == len(arguments) and all(map(fits, value, arguments))
    if origin in (list, tuple, Sequence):
        return isinstance(value, list | tuple) and all(fits(item, arguments[0]) for item in value)
    if origin in (dict, Mapping):
        return isinstance(value, Mapping) and all(
            isinstance(key, str) and fits(item, arguments[1]) for key, item in value.items()
        )
    raise AssertionError(f"no rule for {hint}")


def check_fields(document: object, wanted: Mapping[str, Any], where: Path, before: str = "") -> None:
    """Raise CorruptFileError naming the first field of `wanted` (name -> type hint, or fields within) that is not as it says."""
    if not isinstance(document, Mapping):
        raise CorruptFileError(f"{where}: {before.rstrip('.') or 'it'} is {shown(document)}, not an object", _RESTORE)
    for name, hint in wanted.items():
        if isinstance(hint, Mapping):
            check_fields(document.get(name), hint, where, f"{before}{name}.")
        elif not fits(document.get(name), hint):
            raise CorruptFileError(f"{where}: {before}{name} is {shown(document.get(name))}, not {_in_words(hint)}", _RESTORE)


def _in_words(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint).replace("typing.", "")


def shown(value: object) -> str:
    """A value in an error message: short, whatever it is."""
    if value is None:
        return "missing"
    if isinstance(value, int) and abs(value) >= _MOST:
        return "a number too large"
    if isinstance(value, str | int | float):
        text = repr(value)
        return text if len(text) <= 60 else f"{text[:57]}..."
    return f"a {type(value).__name__}"


def names_only(value: Any) -> Any:
    """`value` with names in place of absolute paths, within texts too: a page is shared, its maker's folders are not."""
    if isinstance(value, Mapping):
        return {name: names_only(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [names_only(item) for item in value]
    if isinstance(value, Path):
        return names_only(str(value))
    if not isinstance(value, str):
        return value
    whole = PureWindowsPath(value) if re.match(r"[A-Za-z]:[/\\]", value) else PurePosixPath(value)
    if "\n" not in value and (whole.is_absolute() or value.startswith("~/")):
        return whole.name
    return _FOLDERS.sub("", value.replace(f"{Path.home()}/", "~/"))

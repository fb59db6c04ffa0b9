"""Text and JSON from any source: read within bounds, and checked field by field before use."""

import json
import math
import re
import types
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Union, get_args, get_origin

from turbovaed_cli.errors import CorruptFileError

MOST_BYTES = 256_000_000  # of a document; our largest are evaluations of many clips
_MOST = 2**53  # whole numbers up to which a float is exact
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
# The folders of an absolute path inside of a text.
_FOLDERS = re.compile(r"(?<![\w:/.~])(?:~|[A-Za-z]:)?[/\\](?:[^\s/\\'\",;:()]+[/\\])+")
_RESTORE = "it was changed or damaged; restore it, or remove it if you can do without"


def parse_json(text: str) -> Any:
    """Return the value of a JSON text.

    Raises ValueError if it is not JSON, is nested too deeply, or holds half a surrogate pair.
    """
    try:
        value = json.loads(text)
        if _SURROGATE.search(text):  # half a pair cannot be written to a file
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return value


def read_text(path: Path) -> str:
    """Return the text of a regular file.

    Raises ValueError if it is not a regular file, too large or not UTF-8, and OSError if it cannot be read.
    """
    if path.exists() and not path.is_file():
        raise ValueError("not a regular file")
    if (size := path.stat().st_size) > MOST_BYTES:
        raise ValueError(f"{size / 1e6:,.0f} MB are more than any document has")
    return path.read_text(encoding="utf-8")


def plain_name(name: object) -> bool:
    """Whether `name` is a plain file name: no separators, not "." or "..", so that it cannot lead out of its folder."""
    return isinstance(name, str) and name not in ("", ".", "..") and not any(letter in name for letter in "/\\\0")


@cache
def _taken_apart(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    return get_origin(hint), get_args(hint)


def fits(value: object, hint: Any) -> bool:  # noqa: PLR0911 - one rule a line
    """Whether a value from JSON or TOML fits a type hint; floats have to be finite, and integers below 2**53."""
    if hint is str:  # the most frequent hint
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
    """Raise CorruptFileError naming the first field that does not fit `wanted` (name -> type hint, or a table of fields)."""
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
    """Return a value as an error message shows it: always short."""
    if value is None:
        return "missing"
    if isinstance(value, int) and abs(value) >= _MOST:
        return "a number too large"
    if isinstance(value, str | int | float):
        text = repr(value)
        return text if len(text) <= 60 else f"{text[:57]}..."
    return f"a {type(value).__name__}"


def names_only(value: Any) -> Any:
    """Return `value` with absolute paths cut to their last name, within texts too.

    Reports are shared, and should not show the folders of the person who made them.
    """
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

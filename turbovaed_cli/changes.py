"""Differences between two documents of settings, as people write them: arguments in backticks, and sizes as WIDTHxHEIGHT."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Change:
    """A field that two documents have with other values; its name has a dot per level, and the number of a list's item."""

    name: str
    before: object
    now: object

    @property
    def field(self) -> str:
        """The last part of the name."""
        return self.name.rpartition(".")[2]


def differences(before: object, now: object, name: str = "") -> Iterator[Change]:
    """Yield every change between two JSON values; lists of equally many objects are compared object by object."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            if key not in before and not now[key]:
                continue  # off or 0, and unknown to the version that wrote the first document
            yield from differences(before.get(key), now.get(key), f"{name}.{key}".lstrip("."))
    elif (
        isinstance(before, list)
        and isinstance(now, list)
        and len(before) == len(now)
        and isinstance(before[:1] and before[0], dict)
    ):
        for index, (old, new) in enumerate(zip(before, now, strict=True)):
            yield from differences(old, new, f"{name}.{index + 1}")
    elif before != now:
        yield Change(name, before, now)


def arrow(what: str, before: object, now: object, field: str = "") -> str:
    """A change as one item of a list: "`size` 128x128 -> 256x256", "recipe: fast -> quick"."""
    return f"{what}{' ' if what.startswith(('`', '--')) else ': '}{in_words(before, field)} -> {in_words(now, field)}"


def option_of(field: str) -> str:
    """The argument that sets a field, in backticks; the command line prints it as its option."""
    return f"`{field}`"


def in_words(value: object, field: str = "") -> str:
    """A value from JSON as people write it; sizes are (height, width) in documents."""
    if field in ("size", "crop") and isinstance(value, list) and len(value) == 2:
        return f"{value[1]}x{value[0]}"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "on", False: "off"}[value]
    if isinstance(value, list):
        return ",".join(map(in_words, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{name} {in_words(item, name)}" for name, item in value.items()) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def shortened(items: Sequence[str], most: int) -> str:
    """The first `most` items, and how many more there are."""
    more = f"; and {len(items) - most} more (-v lists them)" if len(items) > most else ""
    return "; ".join(items[:most]) + more

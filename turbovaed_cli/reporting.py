"""How long-running library functions speak to whoever called them, without printing anything themselves."""

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

Item = TypeVar("Item")


class Reporter(Protocol):
    """Receives progress and notes. `console.py` draws them; `quiet` drops them; a notebook may bring its own."""

    def track(self, items: Iterable[Item], label: str, total: int | None = None, start: int = 0) -> Iterator[Item]:
        """Yield `items` unchanged while showing how many of `total` are done; `start` were done before."""
        ...

    def note(self, text: str = "", **values: object) -> None:
        """Say one thing: a sentence, figures by name (shown beside the progress of the moment), or both."""
        ...


class _Quiet:
    def track(self, items: Iterable[Item], label: str, total: int | None = None, start: int = 0) -> Iterator[Item]:
        yield from items

    def note(self, text: str = "", **values: object) -> None:
        pass


quiet: Reporter = _Quiet()

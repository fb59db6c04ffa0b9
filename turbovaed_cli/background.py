"""Work that goes on in a thread of its own."""

import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Background(Generic[Item]):
    """Calls `work` on items in a thread of its own, in order, with few of them waiting.

    A context manager that gives the function to call with each item. Its clean exit finishes what was given, and so does
    one by an exception unless `drops_on_error`; what `work` raised is raised by the next call or the exit, and nothing is
    worked on behind it.
    """

    def __init__(self, work: Callable[[Item], None], most_waiting: int = 2, *, drops_on_error: bool = False) -> None:
        self._work, self._drops_on_error = work, drops_on_error
        self._drops = False
        self._waiting: queue.Queue[Item | None] = queue.Queue(most_waiting)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)  # a second Ctrl-C waits for nothing

    def _run(self) -> None:
        while (item := self._waiting.get()) is not None:
            if self._error is None and not self._drops:  # else only make room, so that nobody waits for ever
                try:
                    self._work(item)
                except BaseException as error:  # it belongs to whoever gave the item
                    self._error = error

    def __call__(self, item: Item) -> None:
        """Give one more item; waits while there are too many."""
        self._raise()
        self._waiting.put(item)

    def __enter__(self) -> "Background[Item]":
        self._thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._drops = kind is not None and self._drops_on_error
        self._waiting.put(None)
        self._thread.join()
        if kind is None:
            self._raise()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

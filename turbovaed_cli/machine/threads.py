"""Work that goes on in a thread of its own."""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


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


class Waited(Iterator[Item]):
    """An iterator that counts the seconds its consumer waited for the next item."""

    def __init__(self, items: Iterator[Item]) -> None:
        self._items = items
        self.seconds = 0.0

    def __next__(self) -> Item:
        began = time.perf_counter()
        try:
            return next(self._items)
        finally:
            self.seconds += time.perf_counter() - began


def read_ahead(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int,
    *,
    is_quick: Callable[[Item], bool] = lambda _: False,
    patience_s: float | None = None,
    stalled: Callable[[Item, float], None] = lambda _item, _seconds: None,
) -> Generator[tuple[Item, Result], None, None]:
    """Yield (item, work(item)) in order, with up to `workers` items worked on in threads ahead of the consumer.

    Of items that are quick, the work is done here: a thread would cost more. Calls `stalled` with the item and the seconds
    waited for it, every `patience_s` that it does not come.
    """
    with ThreadPoolExecutor(max(workers, 1)) as pool:
        waiting: deque[tuple[Item, Future[Result] | None]] = deque()
        slow, most = 0, 8 * max(workers, 1)  # quick ones behind a slow one are not gathered without end

        def first() -> tuple[Item, Result]:
            item, future = waiting.popleft()
            if future is None:
                return item, work(item)
            began = time.monotonic()
            while wait([future], patience_s).not_done:
                stalled(item, time.monotonic() - began)
            return item, future.result()

        try:
            for item in items:
                waiting.append((item, None if is_quick(item) else pool.submit(work, item)))
                slow += waiting[-1][1] is not None
                while waiting and (waiting[0][1] is None or slow > workers or len(waiting) > most):
                    slow -= waiting[0][1] is not None
                    yield first()
            while waiting:
                yield first()
        finally:
            for _, future in waiting:
                if future is not None:
                    future.cancel()

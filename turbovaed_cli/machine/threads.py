"""Work in background threads: read ahead, and write while the caller goes on."""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Generic, TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


class Background(Generic[Item]):
    """Calls `work` on items in a background thread, in order, with at most `most_waiting` items waiting.

    A context manager; call its value with each item. The exit works on all items that were given; after an exception in the
    body it drops them if `drops_on_error`. An error of `work` is raised by the next call or the exit, and no later item is
    worked on.
    """

    def __init__(self, work: Callable[[Item], None], most_waiting: int = 2, *, drops_on_error: bool = False) -> None:
        self._work, self._drops_on_error = work, drops_on_error
        self._drops = False
        self._waiting: queue.Queue[Item | None] = queue.Queue(most_waiting)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)  # a second Ctrl-C waits for nothing

    def _run(self) -> None:
        while (item := self._waiting.get()) is not None:
            if self._error is None and not self._drops:  # else only make room, so that no caller waits forever
                try:
                    self._work(item)
                except BaseException as error:  # the caller that gave the item raises it
                    self._error = error

    def __call__(self, item: Item) -> None:
        """Add one item; waits while `most_waiting` items are waiting already."""
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

    Quick items are worked on in the caller's thread: another thread would cost more. While the next item is not ready,
    `stalled` is called every `patience_s` with the item and the seconds waited for it.
    """
    with ThreadPoolExecutor(max(workers, 1)) as pool:
        waiting: deque[tuple[Item, Future[Result] | None]] = deque()
        slow, most = 0, 8 * max(workers, 1)  # quick items after a slow one are gathered up to this limit

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


def beside(
    work: Callable[[Item], Result], items: Iterable[Item], *, share_threads: bool, in_turns: bool = False
) -> Iterator[tuple[Item, Result]]:
    """Yield (item, work(item)) in order, each worked on in a thread while the caller's makes the next: two items live at once.

    `share_threads` halves torch's threads between the two; where there is only one, or `in_turns`, they work one after the other.
    """
    threads = torch.get_num_threads()
    if in_turns or (share_threads and threads == 1):
        yield from ((item, work(item)) for item in items)
        return

    def worked(item: Item) -> Result:
        if share_threads:
            torch.set_num_threads((threads + 1) // 2)  # of this thread alone
        return work(item)

    try:
        if share_threads:
            torch.set_num_threads(threads // 2)
        yield from read_ahead(worked, items, 1)
    finally:
        torch.set_num_threads(threads)

"""Work in other threads: read ahead, write while the caller goes on, and spread work over torch's threads."""

import ctypes
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from functools import cache, partial
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
            torch.get_num_threads()  # as in `_single_threads`
            torch.set_num_threads((threads + 1) // 2)  # of this thread alone
        return work(item)

    try:
        if share_threads:
            torch.set_num_threads(threads // 2)
        yield from read_ahead(worked, items, 1)
    finally:
        torch.set_num_threads(threads)


def spread(work: Callable[[Item, int], None], items: Sequence[Item], workers: int) -> None:
    """Call `work` with each item and the number of its worker, 0 to `workers` - 1, in as many threads with one of torch's each.

    Work of one worker is never at the same time as other work of it. Without gradients. All work is done in this thread while
    torch's operations are watched or have no data, as in a dry run, and where there are fewer cores than workers. Raises what
    `work` raises; then no more work begins.
    """
    cores = _cores()
    if workers == 1 or 0 < len(cores) < workers or torch._C._len_torch_dispatch_stack():
        with torch.no_grad():
            for number, item in enumerate(items):
                work(item, number % workers)
        return
    _end_waiting()()
    waiting, inference = iter(items), torch.is_inference_mode_enabled()

    def run(worker: int) -> None:
        with torch.inference_mode(inference), torch.no_grad():
            for item in waiting:
                work(item, worker)

    pool, started = _single_threads(max(workers, torch.get_num_threads()), cores), []
    try:
        for worker in range(workers):
            started.append(pool.submit(run, worker))
        wait(started, return_when=FIRST_EXCEPTION)
    finally:
        for _ in waiting:
            pass  # after an error or Ctrl-C
        wait(started)
    for one in started:
        one.result()


class _Pools(threading.local):
    """Threads for work that one thread spreads, by their number; they end with that thread."""

    def __init__(self) -> None:
        self.by_number: dict[int, ThreadPoolExecutor] = {}

    def clear(self) -> None:
        """Forget them, as a fork has no other threads."""
        self.by_number.clear()


_pools = _Pools()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pools.clear)


def _cores() -> list[int]:
    """Return the cores that this thread may use; none where the system does not say so."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def _single_threads(number: int, cores: Sequence[int]) -> ThreadPoolExecutor:
    """Return threads in which torch's operations take one thread each, on a core of its own if there is just one for each."""
    if number in _pools.by_number:
        return _pools.by_number[number]
    pool, ready, threads = ThreadPoolExecutor(number, "worker"), threading.Barrier(number + 1), torch.get_num_threads()

    def begin(worker: int) -> None:
        try:
            torch.get_num_threads()  # else the first operation of this thread would take the number that others have
            torch.set_num_threads(1)
            if len(cores) == number:  # Linux may leave two that take turns with Python's lock on one core for long
                with suppress(OSError):
                    os.sched_setaffinity(0, {cores[worker]})
        finally:
            ready.wait()

    try:
        for worker in range(number):
            pool.submit(begin, worker)
        ready.wait()
    except BaseException:
        ready.abort()
        pool.shutdown(wait=False)
        raise
    finally:
        torch.set_num_threads(threads)  # what later threads take, which each of them changed
    _pools.by_number[number] = pool
    return pool


@cache
def _end_waiting() -> Callable[[], object]:
    """Return what ends the threads of OpenMP that wait for this thread's next operation, which starts others in 50 microseconds.

    They would else spin on a core for milliseconds, which the workers need. Where OpenMP has no such call, nothing is done.
    """
    try:
        pause = ctypes.CDLL(torch._C.__file__).omp_pause_resource_all  # torch's own OpenMP, version 5.0 or later
    except (AttributeError, OSError):
        return lambda: None
    return partial(pause, 1)  # omp_pause_soft

"""Temporary handlers of SIGINT and SIGTERM."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SAME_REQUEST_S = 2.0  # a cluster signals every process at once, and torchrun passes the signal on to the same processes
Handler = Callable[[int, FrameType | None], Any]


@contextmanager
def signals_handled_by(handler: Handler) -> Iterator[dict[int, Any]]:
    """Handle SIGINT and SIGTERM by `handler` inside, and yield the handlers from before, by number. Main thread only."""
    before: dict[int, Any] = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield before
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """Yield a list to which the first SIGINT or SIGTERM appends its number, so that the current step can end first.

    A second signal, more than SAME_REQUEST_S later, ends the process at once.
    """
    received: list[int] = []
    first = 0.0
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if not received:
            received.append(number)
            first = time.monotonic()
        elif time.monotonic() - first > SAME_REQUEST_S:
            if callable(handler := before[number]):  # it sets the exit code
                handler(number, frame)
            raise KeyboardInterrupt

    with signals_handled_by(handle) as before:
        yield received

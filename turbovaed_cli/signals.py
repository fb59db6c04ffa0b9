"""Who answers SIGINT and SIGTERM for a while."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], Any]


@contextmanager
def signals_handled_by(handler: Handler) -> Iterator[dict[int, Any]]:
    """Let `handler` answer both, and yield who did before, by number; they do again afterwards. In the main thread alone."""
    before: dict[int, Any] = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield before
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)

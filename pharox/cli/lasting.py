"""What commands need that go on until somebody ends them: signals, and warnings meanwhile."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .showing import say

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class TellOnce(logging.Handler):
    """Prints a warning of the reader, but not again for the next attempt in vain.

    Somebody has to hear that a command makes no progress, and not once a second.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._last: object = None

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record, unless the last one was about the same event or error."""
        subject = record.msg, (record.args or ())[:2]  # type: ignore[index] # a tuple here
        if subject != self._last:
            say(record.getMessage())
        self._last = subject


@contextmanager
def telling() -> Iterator[None]:
    """Print what the reader warns of: that the database is away, or nobody reads."""
    handler, logger = TellOnce(), logging.getLogger("pharox")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _Stop(threading.Event):
    """Set by a signal, which it remembers."""

    signal: int | None = None

    def on_signal(self, number: int, _: Any) -> None:
        """Ask for the end; another signal has its default effect, as one may be in a hurry."""
        self.signal = number
        self.set()
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_DFL)


@contextmanager
def stopping() -> Iterator[_Stop]:
    """Yield what the first SIGINT or SIGTERM sets."""
    stop = _Stop()
    before = {number: signal.signal(number, stop.on_signal) for number in _SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

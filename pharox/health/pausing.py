"""Pause a sweep while the rate of acquisitions is high."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from ..errors import InvalidInputError


class AcquisitionRate:
    """Counts acquisitions of the last second; pass :meth:`is_high` as ``pause_when`` of a sweep.

    Register :meth:`note` as an acquire callback of a manager, or pass it to
    ``manager.subscribe(on_acquire=...)`` to count the acquisitions of every process.

    Parameters
    ----------
    per_second:
        The rate is high above this number per second, hits and misses together.
    clock:
        A monotonic clock, in seconds.

    Examples
    --------
    >>> rate = AcquisitionRate(per_second=50)
    >>> manager.register_acquire_callback(rate.note)
    >>> HealthCheckOrchestrator(manager=manager, pause_when=rate.is_high)
    """

    def __init__(self, per_second: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        if isinstance(per_second, bool) or not isinstance(per_second, int) or per_second < 1:
            raise InvalidInputError("per_second must be a whole number of at least 1")
        self._clock = clock
        self._lock = threading.Lock()
        # More timestamps are not needed for the answer.
        self._moments: deque[float] = deque(maxlen=per_second + 1)

    def note(self, _: object = None) -> None:
        """Count one acquisition."""
        with self._lock:
            self._moments.append(self._clock())

    def is_high(self) -> bool:
        """Return whether there were more than ``per_second`` within the last second."""
        with self._lock:
            full = len(self._moments) == self._moments.maxlen
            return full and self._clock() - self._moments[0] < 1

"""Tell a sweep that acquisitions are many just now."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from ..errors import InvalidInputError


class AcquisitionRate:
    """Counts acquisitions of the last second; :meth:`is_high` is a ``pause_when`` of a sweep.

    Register :meth:`note` as an acquire callback of a manager, or hand it to
    ``manager.subscribe(on_acquire=...)`` to count those of every process.

    Parameters
    ----------
    per_second:
        More than so many in a second, hits and misses together, are many.
    clock:
        Returns seconds that never go back.

    Examples
    --------
    >>> rate = AcquisitionRate(per_second=50)
    >>> manager.register_acquire_callback(rate.note)
    >>> HealthCheckOrchestrator(manager=manager, pause_when=rate.is_high)
    """

    def __init__(self, per_second: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        if isinstance(per_second, bool) or not isinstance(per_second, int) or per_second < 1:
            raise InvalidInputError("per_second must be a whole number from 1 on")
        self._clock = clock
        self._lock = threading.Lock()
        # More than these need not be known to tell.
        self._moments: deque[float] = deque(maxlen=per_second + 1)

    def note(self, _: object = None) -> None:
        """Count one acquisition."""
        with self._lock:
            self._moments.append(self._clock())

    def is_high(self) -> bool:
        """Tell whether there were more than ``per_second`` within the last second."""
        with self._lock:
            full = len(self._moments) == self._moments.maxlen
            return full and self._clock() - self._moments[0] < 1

"""Bound how often somebody may try something: actions, and tokens that are guessed."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Hashable

from starlette.exceptions import HTTPException

_KNOWN = 1_000


class Pacer:
    """Lets each key do ``times`` things in any ``seconds``, in this process.

    Parameters
    ----------
    times:
        How many.
    seconds:
        In how long.
    what:
        What is done too often, for the sentence of the error.
    """

    def __init__(self, times: int, seconds: float, what: str) -> None:
        self._times, self._seconds, self._what = times, seconds, what
        self._done: dict[Hashable, deque[float]] = {}

    def check(self, key: Hashable) -> None:
        """Count one, or raise as :meth:`look` does."""
        self.look(key)
        self.add(key)

    def add(self, key: Hashable) -> None:
        """Count one."""
        # The one that was seen last is the last, so what is forgotten was seen longest ago.
        done = self._done.pop(key, deque())
        self._done[key] = done
        while len(self._done) > _KNOWN:
            del self._done[next(iter(self._done))]
        done.append(time.monotonic())

    def look(self, key: Hashable) -> None:
        """Raise 429 if there were too many; the header says when to come back."""
        now = time.monotonic()
        done = self._done.get(key, deque())
        while done and done[0] <= now - self._seconds:
            done.popleft()
        if len(done) >= self._times:
            wait = max(1, round(done[0] + self._seconds - now))
            raise HTTPException(
                429,
                f"Too many {self._what} in a short time: try again in {wait} s.",
                headers={"Retry-After": str(wait)},
            )

"""For how long a proxy was free while somebody waited, by the log alone."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from pharox.events import (
    AcquireMissed,
    Event,
    LeaseAcquired,
    LeaseEnd,
    LeaseExpired,
    ProxyRegistered,
)


class _Span(NamedTuple):
    begun: datetime
    ended: datetime

    def shared_s(self, other: _Span) -> float:
        """Return for how many seconds both lasted; not more than 0 if they did not meet."""
        return (min(self.ended, other.ended) - max(self.begun, other.begun)).total_seconds()


def longest_free_s(events: Iterable[Event], pool_id: UUID) -> float:
    """Return the longest time in seconds that a caller waited while a proxy was free for it.

    Of a pool of exclusive proxies, whose callers take any of them. A caller who was killed while
    it waited has no event and does not count.
    """
    free, waits = _spans([event for event in events if event.pool_id == pool_id])
    longest = 0.0
    for span in sorted(free, key=lambda span: span.shared_s(span), reverse=True):
        if span.shared_s(span) <= longest:
            break
        longest = max([longest, *(wait.shared_s(span) for wait in waits)])
    return longest


def _spans(events: list[Event]) -> tuple[list[_Span], list[_Span]]:
    """Return when proxies were free, and when somebody who was told the outcome waited."""
    free_since: dict[UUID, datetime] = {}
    free: list[_Span] = []
    waits: list[_Span] = []
    for event in sorted(events, key=lambda event: event.position):
        if isinstance(event, ProxyRegistered):
            free_since[event.proxy_id] = event.recorded_at
        elif isinstance(event, LeaseEnd):
            free_since[event.proxy_id] = _free_at(event)
        elif isinstance(event, LeaseAcquired):
            free.append(_Span(free_since.pop(event.proxy_id), event.recorded_at))
        if isinstance(event, LeaseAcquired | AcquireMissed) and event.waited_ms is not None:
            waited = timedelta(milliseconds=event.waited_ms)
            waits.append(_Span(event.recorded_at - waited, event.recorded_at))
    last = max(event.recorded_at for event in events)
    return [*free, *(_Span(since, last) for since in free_since.values())], waits


def _free_at(end: LeaseEnd) -> datetime:
    return end.expires_at if isinstance(end, LeaseExpired) else end.recorded_at

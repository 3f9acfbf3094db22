"""Count the events of a stretch of the log by pool, slot and kind: in Python, and in SQL."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime
from typing import Any
from uuid import UUID

from pharox.log import Extract
from projections.pool_stats import counts_of

from ...events import AcquireMissed, Event, OutcomeReported
from ...history.sealed_log import last_seq
from .activity import SLOT_S, Counted, slot_of

_KEY = tuple[UUID, int, str, str | None, bool]

COUNT = """
SELECT pool_id, slot, type, detail, waited, sum(number)::bigint, sum(available)::bigint,
       sum(leases)::bigint
FROM stretch
GROUP BY pool_id, slot, type, detail, waited
"""

COLUMNS = """
    e.pool_id,
    floor(extract(epoch FROM e.recorded_at) / %(slot_s)s::float8)::bigint AS slot,
    e.type,
    CASE e.type WHEN 'AcquireMissed' THEN e.data ->> 'reason'
                WHEN 'OutcomeReported' THEN e.data ->> 'outcome' END AS detail,
    e.type IN ('LeaseAcquired', 'AcquireMissed') AND e.data ->> 'waited_ms' IS NOT NULL AS waited,
    CASE WHEN e.type = 'OutcomeReported'
         THEN coalesce((e.data ->> 'count')::bigint, 1) ELSE 1 END AS number,
    (coalesce(e.status_after = 'active' AND (e.max_concurrency_after IS NULL
        OR e.leases_after < e.max_concurrency_after), false))::integer
    - (coalesce(e.status_before = 'active' AND (e.max_concurrency_before IS NULL
        OR e.leases_before < e.max_concurrency_before), false))::integer AS available,
    coalesce(e.leases_after, 0) - coalesce(e.leases_before, 0) AS leases
"""


class PlainLog:
    """Counts the events of any storage."""

    def __init__(self, storage: Any) -> None:
        self._storage = storage

    def last_seq(self) -> int:
        """Return the last seq."""
        return last_seq(self._storage)

    def seq_near(self, moment: datetime, last_seq: int) -> int:
        """Return the seq of the last event that was recorded at or before a moment."""
        return min(last_seq, int(self._storage.seq_at(moment)))

    def number(self, after: int, upto: int, pool_id: UUID | None) -> int:
        """Return how many events a stretch has, of one pool or of all."""
        return sum(1 for _ in self._storage.history(Extract(after, upto, pool_id=pool_id)))

    def count(
        self, after: int, upto: int, *, slot_s: float = SLOT_S, pool_id: UUID | None = None
    ) -> Iterator[Counted]:
        """Count the events of a stretch, of one pool or of all, by pool, slot and kind."""
        sums: dict[_KEY, list[int]] = defaultdict(lambda: [0, 0, 0])
        for event in self._storage.history(Extract(after, upto, pool_id=pool_id)):
            found = sums[_key(event, slot_s)]
            found[0] += event.count if isinstance(event, OutcomeReported) else 1
            if event.touches_proxy:
                was, becomes = counts_of(event.before), counts_of(event.after)
                found[1] += becomes[2] - was[2]
                found[2] += becomes[4] - was[4]
        for key, (number, available, leases) in sums.items():
            yield Counted(*key, number, available, leases)


def _key(event: Event, slot_s: float) -> _KEY:
    detail = None
    if isinstance(event, AcquireMissed):
        detail = event.reason.value
    elif isinstance(event, OutcomeReported):
        detail = event.outcome.value
    waited = getattr(event, "waited_ms", None) is not None
    return event.pool_id, slot_of(event.recorded_at, slot_s), event.type, detail, waited

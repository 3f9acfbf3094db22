"""The in-memory index of pairs of proxy and target: which rest, were reported lately, succeed."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any
from uuid import UUID

from sortedcontainers import SortedList

from projections import TargetOutcomesRow

from ...models import success_score

_Site = tuple[UUID, str]


class TargetIndex:
    """The pairs of each pool and target, by the end of their rest and by their last report."""

    def __init__(self) -> None:
        self._rests: dict[_Site, Any] = {}
        self._ends: dict[tuple[UUID, UUID, str], datetime] = {}
        self._reported: dict[_Site, dict[UUID, datetime | None]] = {}
        self._best: dict[_Site, Any] = {}
        self._scores: dict[tuple[UUID, UUID, str], float] = {}
        self._targets: dict[tuple[UUID, UUID], set[str]] = {}

    def place(self, row: TargetOutcomesRow) -> None:
        """Move a pair to its current place."""
        site, pair = (row.pool_id, row.target), (row.pool_id, row.proxy_id, row.target)
        self._targets.setdefault((row.pool_id, row.proxy_id), set()).add(row.target)
        rests = self._rests.setdefault(site, SortedList())
        old = self._ends.pop(pair, None)
        if old is not None:
            rests.remove((old, row.proxy_id.int))
        if row.cools_until is not None:
            self._ends[pair] = row.cools_until
            rests.add((row.cools_until, row.proxy_id.int))
        reported = self._reported.setdefault(site, {})
        if row.proxy_id not in reported or reported[row.proxy_id] != row.reported_at:
            reported.pop(row.proxy_id, None)
            reported[row.proxy_id] = row.reported_at
        best, score = self._best.setdefault(site, SortedList()), self._scores.get(pair)
        if score is not None:
            best.remove((-score, row.proxy_id.int))
        self._scores[pair] = score = success_score(row.successes, row.failures)
        best.add((-score, row.proxy_id.int))

    def of_proxy(
        self, rows: dict[Any, TargetOutcomesRow], pool_id: UUID, proxy_id: UUID
    ) -> Iterator[TargetOutcomesRow]:
        """Yield the records of a proxy, of those in ``rows``."""
        for target in self._targets.get((pool_id, proxy_id), ()):
            if (row := rows.get((pool_id, proxy_id, target))) is not None:
                yield row

    def best(self, pool_id: UUID, target: str) -> Iterator[UUID]:
        """Yield the proxies that have a record at a target, the most successful first.

        Some of the records may have been pruned since.
        """
        return (UUID(int=number) for _, number in self._best.get((pool_id, target), ()))

    def next_end(self, pool_id: UUID, target: str, now: datetime) -> datetime | None:
        """Return when the next rest for a target is over, or None if no proxy rests for it."""
        rests = self._rests.get((pool_id, target), ())
        place = rests.bisect_right((now, 1 << 128)) if rests else 0
        return rests[place][0] if place < len(rests) else None

    def latest(self, pool_id: UUID, target: str) -> Iterator[UUID]:
        """Yield the proxies that were reported at a target, the latest first."""
        return reversed(self._reported.get((pool_id, target), {}))

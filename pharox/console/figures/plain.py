"""The figures of any storage, in Python: what they mean."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from typing import Any
from uuid import UUID

from projections.rotations import RotationRow

from ...history.past.plain import PlainPast
from ...history.sealed_log import last_seq
from ...models import PoolMove, Proxy, ProxyStatus, SourceStatus, utc_now
from ..shares import Share
from .logs import PlainLog
from .shapes import PoolFigures, SubscriptionFigures

_STATUSES = {ProxyStatus.BANNED: Share.BANNED, ProxyStatus.INACTIVE: Share.DOWN}
_LEASES = 1_000_000


class PlainFigures:
    """The figures of a storage that keeps everything in memory, or of somebody's own."""

    def __init__(self, storage: Any) -> None:
        self._storage = storage
        self.log = PlainLog(storage)
        self.past = PlainPast(storage)

    def now(self) -> datetime:
        """Return the time by the ledger's clock."""
        stats = [self._storage.get_pool_stats(pool.name) for pool in self._storage.list_pools()[:1]]
        return stats[0].collected_at if stats and stats[0] else utc_now()

    def pools(self) -> list[PoolFigures]:
        """Return all pools as they are now, by name."""
        queues = {queue.pool_name: queue for queue in self._storage.queue_stats()}
        now = self.now()
        found = []
        for pool in self._storage.list_pools():
            proxies = self._storage.list_proxies(str(pool.id))
            shares = Counter(share_of(proxy, now) for proxy in proxies)
            held = self._storage.list_held_leases(pool.name, limit=_LEASES)
            stats = self._storage.get_pool_stats(pool.name)
            queue = queues.get(pool.name)
            found.append(
                PoolFigures(
                    pool.id,
                    pool.name,
                    {share: shares[share] for share in Share},
                    len(held),
                    stats.active_proxies,
                    stats.available_proxies,
                    queue.waiting if queue else 0,
                    queue.longest_wait_seconds if queue else 0.0,
                    max(((now - each.acquired_at).total_seconds() for each in held), default=0.0),
                    sum(each.expires_at < now for each in held),
                )
            )
        return found

    def proxies(self, pool_id: UUID, after: UUID, limit: int) -> list[Proxy]:
        """Return the next proxies of a pool by id, without credentials."""
        proxies: list[Proxy] = self._storage.list_proxies(str(pool_id))
        later = [proxy for proxy in proxies if proxy.id > after][:limit]
        return [proxy.model_copy(update={"credentials": None}) for proxy in later]

    def rotation(self, proxy: Proxy) -> RotationRow | None:
        """Return the record of a proxy's rotations; None if it has none."""
        rows = self._storage.state_at(last_seq(self._storage))["rotations"]
        row: RotationRow | None = rows.get((proxy.id, proxy.pool_id))
        return row

    def subscriptions(self) -> list[SubscriptionFigures]:
        """Return none: only a ledger in PostgreSQL has them."""
        return []

    def sources(self) -> list[SourceStatus]:
        """Return the sources, by name."""
        found: list[SourceStatus] = self._storage.list_sources()
        return found

    def moves(self) -> list[PoolMove]:
        """Return the moves of pools that have not ended, the last one first."""
        return [move for move in self._storage.list_pool_moves() if move.stage.is_under_way]


def share_of(proxy: Proxy, now: datetime) -> Share:
    """Return what a proxy is to somebody who asks for one."""
    if (share := _STATUSES.get(proxy.status)) is not None:
        return share
    if proxy.max_concurrency is not None and proxy.current_leases >= proxy.max_concurrency:
        return Share.LEASED
    if proxy.rests_until is not None and proxy.rests_until > now:
        return Share.RESTING
    return Share.SLOW if proxy.status is ProxyStatus.SLOW else Share.FREE

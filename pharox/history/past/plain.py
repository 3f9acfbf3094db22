"""A pool's past in any storage, from its states: what it means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from pharox.log import Extract
from projections import State, TargetOutcomesRow

from ...events import LeaseRenewed, ProxyDescribed
from ..addresses import address_of
from .shapes import (
    LeaseDetails,
    LeaseThen,
    PoolThen,
    ProxyThen,
    Records,
    SessionThen,
    Step,
)


def pool_in(states: Mapping[str, State], pool_id: UUID, seq: int) -> PoolThen:
    """Return a pool's state among the read models after the event ``seq``."""
    return PoolThen(
        seq,
        {
            row.proxy_id: ProxyThen(row.status, row.current_leases, row.max_concurrency)
            for row in states["available_proxies"].values()
            if row.pool_id == pool_id
        },
        {
            row.id: LeaseThen(row.proxy_id, row.consumer_name, row.acquired_at)
            for row in states["leases"].values()
            if row.pool_id == pool_id and row.status == "active"
        },
    )


def records_in(
    states: Mapping[str, State], pool_id: UUID, proxy_ids: Sequence[UUID], at: datetime, limit: int
) -> Records:
    """Return what the read models have of a pool and some proxies, with so many sessions."""
    ids = set(proxy_ids)
    living = (
        SessionThen(row.key, row.proxy_id, row.target, row.expires_at)
        for row in states["sessions"].values()
        if row.pool_id == pool_id and row.expires_at > at
    )
    pairs: dict[UUID, list[TargetOutcomesRow]] = {}
    for row in states["target_outcomes"].values():
        if row.pool_id == pool_id and row.proxy_id in ids:
            pairs.setdefault(row.proxy_id, []).append(row)
    return Records(
        {
            row.proxy_id: row.rests_until
            for row in states["available_proxies"].values()
            if row.pool_id == pool_id and row.rests_until is not None and row.rests_until > at
        },
        {
            row.proxy_id: row
            for row in states["proxy_health"].values()
            if row.pool_id == pool_id and row.proxy_id in ids
        },
        pairs,
        sorted(living, key=lambda each: each.key)[:limit],
    )


class PlainPast:
    """Reads a pool's past by folding all of it: with a storage, or an archive."""

    def __init__(self, storage: Any) -> None:
        self._storage = storage

    def now(self, pool_id: UUID, seq: int) -> PoolThen:
        """Return the state at ``seq``."""
        return pool_in(self._storage.state_at(seq), pool_id, seq)

    def last_stored(self, seq: int) -> int | None:
        """Return None: nothing is stored."""
        return None

    def stored(self, pool_id: UUID, seq: int) -> PoolThen | None:
        """Return None: nothing is stored."""
        return None

    def step(self, pool_id: UUID, begin: int, end: int) -> Step:
        """Return the difference from one seq to another, which may be before it."""
        was, becomes = self.now(pool_id, begin), self.now(pool_id, end)
        return Step(
            {**dict.fromkeys(was.proxies), **becomes.proxies},
            {**dict.fromkeys(was.leases), **becomes.leases},
        )

    def details(
        self, pool_id: UUID, lease_ids: list[UUID], seq: int
    ) -> Mapping[UUID, LeaseDetails]:
        """Return what was recorded up to ``seq`` of the leases that were active then."""
        found = {}
        leases = {row.id: row for row in self._storage.state_at(seq)["leases"].values()}
        for lease_id in lease_ids:
            row = leases.get(lease_id)
            if row is None:  # It was granted since, or has ended.
                continue
            extract = Extract(upto=seq, lease_id=lease_id, types=("LeaseRenewed",))
            renewals = sum(
                isinstance(event, LeaseRenewed) and not event.is_redated
                for event in self._storage.history(extract)
            )
            found[lease_id] = LeaseDetails(row.expires_at, renewals, row.target, row.fencing_token)
        return found

    def addresses(self, pool_id: UUID, proxy_ids: list[UUID], seq: int) -> Mapping[UUID, str]:
        """Return the URLs of proxies, without credentials, as they were at ``seq``."""
        wanted, found = set(proxy_ids), dict[UUID, str]()
        types = ("ProxyRegistered", "ProxyChanged", "ProxyRemoved")
        for event in self._storage.history(Extract(upto=seq, types=types, pool_id=pool_id)):
            if event.proxy_id in wanted and isinstance(event, ProxyDescribed):
                found[event.proxy_id] = address_of(event)
        return found

    def records(
        self, pool_id: UUID, proxy_ids: Sequence[UUID], seq: int, at: datetime, *, sessions: int
    ) -> Records:
        """Return what the read models had at ``seq``."""
        return records_in(self._storage.state_at(seq), pool_id, proxy_ids, at, sessions)

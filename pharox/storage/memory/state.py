"""The in-memory log, its read models and its indexes. Only this module appends events.

The log is a list. The read models are the projections' Python folds, updated
with each event. The indexes are those that PostgreSQL would have, so that no command
scans a pool or the log.

A state does no locking itself: callers must hold its ``lock``.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import UUID

import projections
from projections import Availability, LeaseRow, PoolCounts, PoolRow, ProxyRow

from ...events import (
    CoolDownSet,
    Event,
    EventBase,
    OutcomeReported,
    ProxyState,
    SessionBound,
)
from ...events.attribution import current_attribution
from ...models import (
    Lease,
    LeasedProxy,
    LeaseStatus,
    PoolStatsSnapshot,
    Proxy,
    ProxyCredentials,
    ProxyProtocol,
    ProxyStatus,
)
from ...models.building import built
from ..list_import import Account
from .pool_index import PoolIndex
from .session_index import SessionIndex
from .target_index import TargetIndex
from .waiting import Queues

E = TypeVar("E", bound=EventBase)
Fold = Callable[[EventBase], None]

_PROXY_FIELDS = tuple(f.name for f in fields(ProxyRow) if f.name != "credential_id")
_LEASE_STATUSES = {status.value: status for status in LeaseStatus}
_PROTOCOLS = {protocol.value: protocol for protocol in ProxyProtocol}
_PROXY_STATUSES = {status.value: status for status in ProxyStatus}


class State:
    """The data of an in-memory ledger, with a method that appends events.

    Parameters
    ----------
    clock:
        Returns the time, with a time zone.
    """

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self.clock = clock
        self.lock = threading.RLock()
        self.log: list[Event] = []
        self.rows: dict[str, dict[Any, Any]] = {p.name: {} for p in projections.registered()}
        self.pools: dict[UUID, PoolIndex] = {}
        self.pool_ids: dict[str, UUID] = {}
        self.pool_of_proxy: dict[UUID, UUID] = {}
        self.pool_of_lease: dict[UUID, UUID] = {}
        self.pruned_ids: set[UUID] = set()
        self.consumer_ids: set[UUID] = set()
        self.credentials: dict[UUID, ProxyCredentials] = {}
        self.accounts: dict[tuple[UUID, Account], dict[str, set[UUID]]] = {}
        self.fingerprint_key = os.urandom(32)
        self.checks: dict[UUID, list[int]] = {}
        self.targets = TargetIndex()
        self.sessions = SessionIndex(self.rows["sessions"])
        self.queues = Queues()
        self.drained: list[UUID] = []
        self.latest = datetime.min.replace(tzinfo=UTC)
        """The latest time of an event since leases were last re-dated."""
        self._folds = _folds_of(self.rows)

    def append(
        self, kind: type[E], at: datetime | None = None, *, is_valid: bool = False, **fields: Any
    ) -> E:
        """Append an event of this type and fold it into the read models.

        Parameters
        ----------
        kind:
            The event's class.
        at:
            The time of recording; now if None.
        is_valid:
            Whether the fields are known to be valid and of their types.
        fields:
            The event's fields, without its position, time and attribution.
        """
        fields["seq"] = fields["position"] = len(self.log) + 1
        fields["recorded_at"] = now = at or self.clock()
        fields["actor"], fields["correlation_id"] = current_attribution()
        event = built(kind, fields) if is_valid else kind(**fields)
        # The folds come first: if one raises, the log does not have the event.
        for part in event.parts():
            self._fold(part)
        self.log.append(event)  # type: ignore[arg-type]
        self.latest = max(self.latest, now)
        return event

    def _fold(self, event: EventBase) -> None:
        for fold in self._folds.get(event.type, ()):  # type: ignore[attr-defined]
            fold(event)
        if event.touches_proxy:
            key = (event.proxy_id, event.pool_id)
            self.pools[event.pool_id].place(event.proxy_id, self.rows["available_proxies"].get(key))  # type: ignore[arg-type]
        elif isinstance(event, OutcomeReported | CoolDownSet) and event.target is not None:
            pair = (event.pool_id, event.proxy_id, event.target)
            self.targets.place(self.rows["target_outcomes"][pair])
        elif isinstance(event, SessionBound):
            self.sessions.place(self.rows["sessions"][event.pool_id, event.key])

    # Reading the read models

    def pool_name(self, pool_id: UUID) -> str:
        """Return the name of a pool."""
        row: PoolRow = self.rows["pools"][(pool_id,)]
        return row.name

    def pool_default(self, pool_name: str, field: str) -> Any:
        """Return what a pool gives who does not say it; None if there is no such pool either."""
        pool_id = self.pool_ids.get(pool_name)
        return None if pool_id is None else getattr(self.rows["pools"][(pool_id,)], field)

    def proxy_row(self, proxy_id: UUID) -> ProxyRow:
        """Return the description of a proxy."""
        row: ProxyRow = self.rows["proxies"][proxy_id, self.pool_of_proxy[proxy_id]]
        return row

    def availability(self, pool_id: UUID, proxy_id: UUID) -> Availability:
        """Return the row on which lease decisions about a proxy are based."""
        row: Availability = self.rows["available_proxies"][proxy_id, pool_id]
        return row

    def current_state(self, pool_id: UUID, proxy_id: UUID) -> ProxyState:
        """Return the state of a proxy, as events record it."""
        row = self.availability(pool_id, proxy_id)
        return ProxyState(_PROXY_STATUSES[row.status], row.current_leases, row.max_concurrency)

    def proxy(self, proxy_id: UUID) -> Proxy:
        """Return a proxy with its description and current state."""
        row = self.proxy_row(proxy_id)
        availability = self.availability(row.pool_id, proxy_id)
        pool = self.pools[row.pool_id]
        return Proxy(
            **{name: getattr(row, name) for name in _PROXY_FIELDS},
            credentials=self.credentials.get(proxy_id),
            status=_PROXY_STATUSES[availability.status],
            checked_at=availability.checked_at,
            max_concurrency=availability.max_concurrency,
            current_leases=availability.current_leases,
            draining=bool(availability.drains),
            rests_until=pool.rests_until(proxy_id, self.clock()) if pool.may_rest else None,
            banned_until=availability.banned_until,
        )

    def lease_row(self, lease_id: UUID) -> LeaseRow:
        """Return the row of a lease."""
        row: LeaseRow = self.rows["leases"][lease_id, self.pool_of_lease[lease_id]]
        return row

    def lease(self, lease_id: UUID) -> Lease:
        """Return a lease."""
        return lease_from_row(self.lease_row(lease_id))

    def leased_proxy(self, pool_id: UUID, proxy_id: UUID) -> LeasedProxy | None:
        """Return what the holder of a proxy needs, or None if the proxy was removed."""
        row: ProxyRow | None = self.rows["proxies"].get((proxy_id, pool_id))
        if row is None:
            return None
        return LeasedProxy(
            _PROTOCOLS[row.protocol], row.host, row.port, self.credentials.get(proxy_id)
        )

    def held_rows(self, pool_id: UUID, proxy_id: UUID) -> list[LeaseRow]:
        """Return the active leases of a proxy, oldest first."""
        held = [self.lease_row(lease_id) for lease_id in self.pools[pool_id].held(proxy_id)]
        return sorted(held, key=lambda row: row.fencing_token)

    def stats(self, pool_id: UUID, at: datetime | None = None) -> PoolStatsSnapshot:
        """Return a pool's statistics, dated ``at`` or now."""
        row: PoolCounts = self.rows["pool_stats"][(pool_id,)]
        return built(
            PoolStatsSnapshot,
            {
                "pool_name": self.pool_name(pool_id),
                "total_proxies": row.total_proxies,
                "active_proxies": row.active_proxies,
                "available_proxies": row.available_proxies,
                "leased_proxies": row.leased_proxies,
                "total_leases": row.total_leases,
                "collected_at": at or self.clock(),
            },
        )


def lease_from_row(row: LeaseRow) -> Lease:
    """Return the lease in a row."""
    return built(
        Lease,
        {
            "id": row.id,
            "proxy_id": row.proxy_id,
            "consumer_id": row.consumer_id,
            "pool_id": row.pool_id,
            "pool_name": row.pool_name,
            "consumer_name": row.consumer_name,
            "status": _LEASE_STATUSES[row.status],
            "acquired_at": row.acquired_at,
            "expires_at": row.expires_at,
            "released_at": row.released_at,
            "fencing_token": row.fencing_token,
            "renewed_at": row.renewed_at,
            "revoke_reason": row.revoke_reason,
            "target": row.target,
        },
    )


def _folds_of(rows: dict[str, dict[Any, Any]]) -> dict[str, tuple[Fold, ...]]:
    """Return the functions that fold each event type into these rows."""
    folds: dict[str, tuple[Fold, ...]] = {}
    for projection in projections.registered():
        fold = _fold_into(rows[projection.name], projection)
        for type_ in projection.types():
            folds[type_] = (*folds.get(type_, ()), fold)
    return folds


def _fold_into(rows: dict[Any, Any], projection: projections.Projection) -> Fold:
    apply = projection.apply
    return lambda event: apply(rows, event)

"""The in-memory log, its read models and its indexes. Only this module appends events.

The log is a list. The read models are the projections' Python folds, updated
with each event. The indexes are those that PostgreSQL would have, so that no command
scans a pool or the log.

A state does no locking itself: callers must hold its ``lock``.
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import fields
from datetime import UTC, datetime
from operator import attrgetter
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

from pydantic import SecretStr

import projections
from pharox.log.tree import Tree
from projections import (
    Availability,
    LeaseRow,
    LeaseStartRow,
    PoolCounts,
    PoolRow,
    ProxyRow,
    SessionRow,
    TargetOutcomesRow,
)
from projections.carrying import rows_of

from ...events import (
    CoolDownSet,
    Event,
    EventBase,
    OutcomeReported,
    PoolStateCarried,
    ProxyState,
    SessionBound,
)
from ...events.attribution import current_attribution
from ...models import (
    GatewayExit,
    Lease,
    LeasedProxy,
    LeaseStatus,
    PoolStatsSnapshot,
    Proxy,
    ProxyCredentials,
    ProxyProtocol,
    ProxySource,
    ProxyStatus,
)
from ...models.building import built
from ...models.proxy import recorded_template
from ..list_import import Account
from .limit_index import LimitIndex
from .pool_index import PoolIndex
from .session_index import SessionIndex
from .source_turns import SourceTurn
from .target_index import TargetIndex
from .waiting import Queues

E = TypeVar("E", bound=EventBase)
Fold = Callable[[EventBase], None]

_PROXY_FIELDS = tuple(
    f.name for f in fields(ProxyRow) if f.name not in ("credential_id", "placeholders", "rotate_id")
)
_LEASE_STATUSES = {status.value: status for status in LeaseStatus}
_PROTOCOLS = {protocol.value: protocol for protocol in ProxyProtocol}
_PROXY_STATUSES = {status.value: status for status in ProxyStatus}


_CARRIED = {projection.name: projection for projection in projections.ALL}


class DepartedSecrets(NamedTuple):
    """The secrets of a pool that has left for another ledger, and may not be there yet."""

    credentials: dict[UUID, ProxyCredentials]
    links: dict[UUID, SecretStr]
    sources: dict[UUID, ProxySource]


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
        self.tree = Tree()
        """Over the events that somebody has asked for proofs of."""
        self.skipped = 0
        """How many positions were left out, so that they go on after those of another ledger."""
        self.departed: dict[UUID, DepartedSecrets] = {}
        self.rows: dict[str, dict[Any, Any]] = {p.name: {} for p in projections.registered()}
        self.pools: dict[UUID, PoolIndex] = {}
        self.pool_ids: dict[str, UUID] = {}
        self.pool_of_proxy: dict[UUID, UUID] = {}
        self.pool_of_lease: dict[UUID, UUID] = {}
        self.pruned_ids: set[UUID] = set()
        self.consumer_ids: set[UUID] = set()
        self.credentials: dict[UUID, ProxyCredentials] = {}
        self.links: dict[UUID, SecretStr] = {}
        self.accounts: dict[tuple[UUID, Account], dict[str, set[UUID]]] = {}
        self.fingerprint_key = os.urandom(32)
        self.checks: dict[UUID, list[int]] = {}
        self.targets = TargetIndex()
        self.sessions = SessionIndex(self.rows["sessions"])
        self.limits = LimitIndex(self.rows["lease_starts"])
        self.queues = Queues()
        self.drained: list[UUID] = []
        self.source_secrets: dict[UUID, ProxySource] = {}
        self.source_turns: dict[UUID, SourceTurn] = {}
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
        fields["seq"] = seq = len(self.log) + 1
        fields["position"] = seq + self.skipped
        fields["recorded_at"] = now = at or self.clock()
        fields["actor"], fields["correlation_id"] = current_attribution()
        event = built(kind, fields) if is_valid else kind(**fields)
        # The folds come first: if one raises, the log does not have the event.
        for part in event.parts():
            self._fold(part)
        self.log.append(event)  # type: ignore[arg-type]
        self.latest = max(self.latest, now)
        return event

    def event_at(self, position: int) -> Event:
        """Return the event that has a position."""
        return self.log[bisect_left(self.log, position, key=attrgetter("position"))]

    def _fold(self, event: EventBase) -> None:
        for fold in self._folds.get(event.type, ()):  # type: ignore[attr-defined]
            fold(event)
        self.limits.place(event)
        if event.touches_proxy:
            key = (event.proxy_id, event.pool_id)
            self.pools[event.pool_id].place(event.proxy_id, self.rows["available_proxies"].get(key))  # type: ignore[arg-type]
        elif isinstance(event, OutcomeReported | CoolDownSet) and event.target is not None:
            pair = (event.pool_id, event.proxy_id, event.target)
            self.targets.place(self.rows["target_outcomes"][pair])
        elif isinstance(event, SessionBound):
            self.sessions.place(self.rows["sessions"][event.pool_id, event.key])
        elif isinstance(event, PoolStateCarried) and event.arrived:
            self._place_rows(event)

    def _place_rows(self, event: PoolStateCarried) -> None:
        """Put rows that a pool brought along into the indexes."""
        projection = _CARRIED.get(event.read_model)
        for row in rows_of(projection, event.rows) if projection is not None else ():
            match row:
                case Availability():
                    kept = self.availability(row.pool_id, row.proxy_id)
                    self.pools[row.pool_id].place(row.proxy_id, kept)
                case TargetOutcomesRow():
                    self.targets.place(row)
                case SessionRow():
                    self.sessions.place(row)
                case LeaseStartRow():
                    self.limits.carry(row)

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
        credentials = self.credentials.get(proxy_id)
        return Proxy(
            **{name: getattr(row, name) for name in _PROXY_FIELDS},
            credentials=credentials,
            template=recorded_template(credentials, row.placeholders),
            status=_PROXY_STATUSES[availability.status],
            checked_at=availability.checked_at,
            max_concurrency=availability.max_concurrency,
            current_leases=availability.current_leases,
            draining=bool(availability.drains),
            rests_until=pool.rests_until(proxy_id, self.clock()) if pool.may_rest else None,
            banned_until=availability.banned_until,
            rotates=row.rotate_id is not None,
        )

    def lease_row(self, lease_id: UUID) -> LeaseRow:
        """Return the row of a lease."""
        row: LeaseRow = self.rows["leases"][lease_id, self.pool_of_lease[lease_id]]
        return row

    def lease(self, lease_id: UUID) -> Lease:
        """Return a lease."""
        return lease_from_row(self.lease_row(lease_id))

    def leased_proxy(self, lease: Lease, pool_id: UUID) -> LeasedProxy | None:
        """Return what the holder of a lease needs, or None if the proxy was removed."""
        row: ProxyRow | None = self.rows["proxies"].get((lease.proxy_id, pool_id))
        if row is None:
            return None
        return LeasedProxy(
            _PROTOCOLS[row.protocol],
            row.host,
            row.port,
            self.credentials.get(lease.proxy_id),
            None if row.placeholders is None else lease.exit,
            rotates=row.rotate_id is not None
            and self.rows["pools"][(pool_id,)].rotation is not None,
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
            "exit": None if row.exit is None else GatewayExit(**row.exit),
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

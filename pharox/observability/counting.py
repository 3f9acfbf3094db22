"""Count the events of the whole fleet from the log, exactly once across restarts and crashes.

A subscription delivers each event in the transaction that moves its checkpoint. The
counts are stored in the same transaction, with the last counted seq. So a count
matches the log through crashes, a second server and a checkpoint that was reset.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Double, Text, cast, column, extract, func, select
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.dialects.postgresql import insert as upsert

from projections.leases import leases
from projections.pool_moves import pool_moves
from projections.pools import pools
from projections.sessions import sessions
from projections.target_outcomes import target_outcomes

from .. import events
from ..ledger.subscriptions import Delivery, Subscription
from ..log import fleet_counts
from ..models import MissReason
from ..scraping.bounded_label import OTHER, BoundedLabel
from ..storage.postgres import PostgresStorage
from ..storage.postgres.driver import Session
from ..storage.postgres.moves import under_way
from ..storage.postgres.sql import by_schema, now, parameter, text_literal
from .metrics import (
    CHECKED,
    DEFAULT_LATENCY_BUCKETS,
    DEFAULT_LEASE_BUCKETS,
    DEFAULT_WAIT_BUCKETS,
    FELL_BACK,
    WAITED,
)

Count = tuple[str, tuple[str, ...]]
"""A metric's name and the values of its labels."""

NAME = "pharox-metrics"
"""The name reserved for the counting subscription."""

COUNTED_SEQ = "counted_seq"

LABELS = {
    "events": ("type",),
    "leases_acquired": ("pool", "consumer", "selector"),
    "acquire_misses": ("pool", "consumer", "selector", "reason"),
    "fallbacks": FELL_BACK,
    "health_checks": (*CHECKED, "status", "failure"),
    "outcomes": ("pool", "outcome"),
    "bytes": ("pool",),
    "money": ("pool",),
    "cool_downs": ("pool", "cause"),
    "troubled_targets": ("pool",),
    "sessions_bound": ("pool", "how"),
    "rotations": ("pool", "outcome"),
}
"""The counters and their labels."""

HISTOGRAMS: Mapping[str, tuple[tuple[str, ...], Sequence[float]]] = {
    "lease_duration_seconds": (("pool", "ended"), DEFAULT_LEASE_BUCKETS),
    "health_check_duration_seconds": (CHECKED, DEFAULT_LATENCY_BUCKETS),
    "wait_seconds": (WAITED, DEFAULT_WAIT_BUCKETS),
}
"""The histograms, their labels and their buckets. A bucket is stored without the counts of
smaller ones."""

_ALL_LABELS = LABELS | {
    f"{name}_{part}": labels if part == "sum" else (*labels, "le")
    for name, (labels, _) in HISTOGRAMS.items()
    for part in ("bucket", "sum")
}


class FleetCounter:
    """Counts the events of a ledger, for as long as its subscription is read.

    Parameters
    ----------
    storage:
        The storage of the ledger.
    name:
        Name of the subscription. Of several servers with one name, one counts and all
        show the same.
    max_consumers, max_pools, max_sources:
        How many consumers, pools and sources of proxies to distinguish.
    """

    def __init__(
        self,
        storage: PostgresStorage,
        *,
        name: str = NAME,
        max_consumers: int = 100,
        max_pools: int = 1000,
        max_sources: int = 100,
    ) -> None:
        self._storage = storage
        self._name = name
        self._limits = {"pool": max_pools, "consumer": max_consumers, "source": max_sources}
        self._epoch: int | None = None
        self._tell_apart(())
        self._pools: dict[UUID, str] = {}

    def subscription(self) -> Subscription:
        """Return the counting subscription, to be run.

        A new subscription with a name that has counted before continues after its last
        counted seq, as earlier events may have been archived.
        """
        with self._storage.session() as session:
            counted = self._counted(session)
        return Subscription(
            self._name,
            self._count,
            start=int(counted) + 1 if counted else "beginning",
            batch_size=2000,
            whole_batches=True,
            in_transaction=True,
            attempts=None,
            poll_s=0.5,
        )

    def counts(self) -> dict[Count, float]:
        """Return all counts so far."""
        with self._storage.session() as session:
            return self._counts(session)

    def _counts(self, session: Session) -> dict[Count, float]:
        rows = session.rows(counts_statement(self._storage.schema), subscription=self._name)
        counts = {(row["name"], tuple(row["labels"])): row["value"] for row in rows}
        counts.pop((COUNTED_SEQ, ()), None)
        return counts

    def _counted(self, session: Session) -> float:
        found = session.rows(counted_statement(self._storage.schema), subscription=self._name)
        return found[0]["value"] if found else 0

    def _take_over(self, session: Session, epoch: int) -> None:
        """Distinguish the same names as the previous counter did."""
        self._tell_apart(
            [dict(zip(_ALL_LABELS[n], labels, strict=True)) for n, labels in self._counts(session)]
        )
        self._pools = {pool.id: pool.name for pool in self._storage.list_pools()}
        self._epoch = epoch

    def _tell_apart(self, known: Sequence[Mapping[str, str]]) -> None:
        self._pool, self._consumer, self._source = (
            BoundedLabel(self._limits[label], _distinct(label, known))
            for label in ("pool", "consumer", "source")
        )

    def _count(self, deliveries: list[Delivery]) -> None:
        session = Session(deliveries[0].connection)
        if deliveries[0].epoch != self._epoch:
            self._take_over(session, deliveries[0].epoch)
        counted = self._counted(session)
        new = [delivery.event for delivery in deliveries if delivery.seq > counted]
        if not new:
            return
        added: defaultdict[Count, float] = defaultdict(float)
        for event in new:
            self._add(event, added)
        added[COUNTED_SEQ, ()] = new[-1].seq - counted
        rows = [{"name": n, "labels": labels, "value": v} for (n, labels), v in added.items()]
        session.run(
            add_statement(self._storage.schema), subscription=self._name, rows=json.dumps(rows)
        )

    def _add(  # noqa: PLR0912 - a type each
        self, event: events.Event, added: dict[Count, float]
    ) -> None:
        added["events", (event.type,)] += 1
        match event:
            case events.PoolRegistered() | events.PoolChanged():
                self._pools[event.pool_id] = event.name
            case events.LeaseAcquired():
                added["leases_acquired", self._asked(event)] += 1
                self._add_fallbacks(event, added)
                self._add_cost(event, added)
                self._add_wait(event, "granted", added)
            case events.AcquireMissed():
                added["acquire_misses", (*self._asked(event), event.reason.value)] += 1
                self._add_wait(event, "missed", added)
            case events.LeaseReleased():
                self._add_lease(event, "released", added)
            case events.LeaseExpired():
                self._add_lease(event, "expired", added)
            case events.LeaseRevoked():
                self._add_lease(event, "revoked", added)
            case events.OutcomeReported():
                pool = self._pool(event.pool_name)
                added["outcomes", (pool, event.outcome.value)] += event.count
                if event.bytes:
                    added["bytes", (pool,)] += event.bytes
                if event.begins_rest:
                    added["cool_downs", (pool, event.outcome.value)] += 1
                self._add_cost(event, added)
            case events.CoolDownSet(cools_until=until) if until is not None:
                pool = self._pool(self._pools.get(event.pool_id))
                added["cool_downs", (pool, "asked")] += 1
            case events.TargetTroubled():
                added["troubled_targets", (self._pool(event.pool_name),)] += 1
            case events.SessionBound():
                moved = "bound" if event.replaced is None else "moved"
                how = moved if event.inherited_from is None else "inherited"
                added["sessions_bound", (self._pool(event.pool_name), how)] += 1
            case events.RotationAnswered():
                outcome = event.failure.value if event.failure else "rotated"
                added["rotations", (self._pool(event.pool_name), outcome)] += 1
            case events.HealthChecked():
                self._add_check(event, added)
            case events.ProxiesChecked():
                for check in event.checks():
                    self._add_check(check, added)

    def _add_fallbacks(self, event: events.LeaseAcquired, added: dict[Count, float]) -> None:
        for missed in event.fallback_from:
            pools = self._pool(event.pool_name), self._pool(missed.pool_name)
            added["fallbacks", (*pools, missed.reason.value)] += 1

    def _add_cost(
        self, event: events.LeaseAcquired | events.OutcomeReported, added: dict[Count, float]
    ) -> None:
        """Add what something cost. Metrics are floats; exact sums are those of ``usage``."""
        if event.cost is not None:
            added["money", (self._pool(event.pool_name),)] += float(event.cost)

    def _add_wait(
        self,
        event: events.LeaseAcquired | events.AcquireMissed,
        outcome: str,
        added: dict[Count, float],
    ) -> None:
        if event.waited_ms is not None:
            labels = (self._pool(event.pool_name), outcome)
            _add_duration("wait_seconds", labels, event.waited_ms / 1000, added)

    def _add_lease(
        self,
        event: events.LeaseEnd,
        ended: str,
        added: dict[Count, float],
    ) -> None:
        seconds = (event.recorded_at - event.acquired_at).total_seconds()
        labels = (self._pool(event.pool_name), ended)
        _add_duration("lease_duration_seconds", labels, seconds, added)

    def _add_check(self, event: events.HealthChecked, added: dict[Count, float]) -> None:
        pool = self._pool(self._pools.get(event.pool_id))
        checked = (pool, event.protocol.value, self._source.or_none(event.source))
        failure = event.failure.value if event.failure else ""
        added["health_checks", (*checked, event.status.value, failure)] += 1
        if event.latency_ms is not None:
            seconds = event.latency_ms / 1000
            _add_duration("health_check_duration_seconds", checked, seconds, added)

    def _asked(self, event: events.LeaseAcquired | events.AcquireMissed) -> tuple[str, str, str]:
        selector = event.selector.value if event.selector else OTHER
        is_misspelled = (
            isinstance(event, events.AcquireMissed) and event.reason is MissReason.UNKNOWN_POOL
        )
        pool = self._pool(None if is_misspelled else event.pool_name)
        return pool, self._consumer(event.consumer), selector


def _add_duration(
    name: str, labels: tuple[str, ...], seconds: float, added: dict[Count, float]
) -> None:
    _, buckets = HISTOGRAMS[name]
    within = next((bound_label(bound) for bound in buckets if seconds <= bound), "+Inf")
    added[f"{name}_bucket", (*labels, within)] += 1
    added[f"{name}_sum", labels] += max(0.0, seconds)


def bound_label(bound: float) -> str:
    """Return the label ``le`` of a bucket."""
    return str(float(bound))


def _distinct(label: str, known: Sequence[Mapping[str, str]]) -> tuple[str, ...]:
    names = (labels[label] for labels in known if label in labels)
    return tuple(dict.fromkeys(name for name in names if name not in (OTHER, "")))


_f = fleet_counts
_NAME = parameter("subscription")


@by_schema
def counts_statement() -> Any:
    """Select the counts of a subscription."""
    return (
        select(_f.c.name, _f.c.labels, _f.c.value)
        .where(_f.c.subscription == _NAME)
        .order_by(_f.c.name.collate("C"), _f.c.labels)
    )


@by_schema
def counted_statement() -> Any:
    """Select the last seq that a subscription has counted."""
    return select(_f.c.value).where(
        _f.c.subscription == _NAME, _f.c.name == text_literal(COUNTED_SEQ)
    )


@by_schema
def add_statement() -> Any:
    """Upsert increments of the counts."""
    given = (
        func.jsonb_to_recordset(parameter("rows", JSONB))
        .table_valued(column("name", Text), column("labels", ARRAY(Text)), column("value", Double))
        .render_derived(with_types=True)
    )
    rows = select(_NAME, given.c.name, given.c.labels, given.c.value)
    added = upsert(_f).from_select(["subscription", "name", "labels", "value"], rows)
    return added.on_conflict_do_update(
        index_elements=["subscription", "name", "labels"],
        set_={"value": _f.c.value + added.excluded.value},
    )


@by_schema
def held_statement() -> Any:
    """Select, for each pool with leases, the age of the oldest and how many are overdue."""
    overdue = func.count().filter(leases.c.expires_at < now)
    oldest = cast(extract("epoch", now - func.min(leases.c.acquired_at)), Double)
    return (
        select(leases.c.pool_name, oldest.label("oldest_s"), overdue.label("overdue"))
        .where(leases.c.status == text_literal("active"))
        .group_by(leases.c.pool_name)
        .order_by(leases.c.pool_name.collate("C"))
    )


@by_schema
def moves_statement() -> Any:
    """Select, for each stage of a move that has not ended, how long ago the first came to it."""
    moved = pool_moves.c
    oldest = cast(extract("epoch", now - func.min(moved.changed_at)), Double)
    return (
        select(moved.stage, oldest.label("oldest_s"))
        .where(under_way())
        .group_by(moved.stage)
        .order_by(moved.stage.collate("C"))
    )


@by_schema
def cooling_statement() -> Any:
    """Select, for each pool, how many pairs of proxy and target rest."""
    cooling = (
        select(target_outcomes.c.pool_id, func.count().label("cooling"))
        .where(target_outcomes.c.cools_until > now)
        .group_by(target_outcomes.c.pool_id)
        .subquery()
    )
    return (
        select(pools.c.name, func.coalesce(cooling.c.cooling, 0).label("cooling"))
        .outerjoin(cooling, cooling.c.pool_id == pools.c.id)
        .order_by(pools.c.name.collate("C"))
    )


@by_schema
def sessions_statement() -> Any:
    """Select, for each pool, how many keys of sticky sessions are bound."""
    bound = (
        select(sessions.c.pool_id, func.count().label("bound"))
        .where(sessions.c.expires_at > now)
        .group_by(sessions.c.pool_id)
        .subquery()
    )
    return (
        select(pools.c.name, func.coalesce(bound.c.bound, 0).label("bound"))
        .outerjoin(bound, bound.c.pool_id == pools.c.id)
        .order_by(pools.c.name.collate("C"))
    )

"""Count the log: what the whole fleet did, exactly once, whoever restarts or dies.

A subscription hands over each event in the transaction that moves its
checkpoint, and the counts are kept in the same transaction, with the seq up to
which they are counted. So a count is what the log says, through crashes, a
second server and a checkpoint that somebody has set back.
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

from ..events import (
    AcquireMissed,
    Event,
    HealthChecked,
    LeaseAcquired,
    LeaseExpired,
    LeaseReleased,
    PoolChanged,
    PoolRegistered,
)
from ..ledger.subscriptions import Delivery, Subscription
from ..log import fleet_counts
from ..models import MissReason
from ..storage.postgres import PostgresStorage
from ..storage.postgres.driver import Session
from ..storage.postgres.sql import by_schema, now, parameter, word
from .labels import OTHER, BoundedLabel
from .metrics import DEFAULT_LEASE_BUCKETS

Count = tuple[str, tuple[str, ...]]
"""A metric's name and the values of its labels."""

NAME = "pharox-metrics"
"""The subscription's name, which no other one should have."""

COUNTED_SEQ = "counted_seq"

LABELS = {
    "events": ("type",),
    "leases_acquired": ("pool", "consumer", "selector"),
    "acquire_misses": ("pool", "consumer", "selector", "reason"),
    "lease_duration_seconds_bucket": ("pool", "ended", "le"),
    "lease_duration_seconds_sum": ("pool", "ended"),
    "health_checks": ("pool", "protocol", "status"),
}
"""What is counted, and the labels of it. Each bucket counts only what is in no smaller one."""


class FleetCounter:
    """Counts the events of a ledger, for as long as its subscription is read.

    Parameters
    ----------
    storage:
        Where the ledger is.
    name:
        The subscription's. Of several servers with one name one counts, and the
        others show the same.
    max_consumers, max_pools:
        How many consumers and pools are told apart.
    """

    def __init__(
        self,
        storage: PostgresStorage,
        *,
        name: str = NAME,
        max_consumers: int = 100,
        max_pools: int = 1000,
    ) -> None:
        self._storage = storage
        self._name = name
        self._limits = max_pools, max_consumers
        self._epoch: int | None = None
        self._pool, self._consumer = BoundedLabel(max_pools), BoundedLabel(max_consumers)
        self._pools: dict[UUID, str] = {}

    def subscription(self) -> Subscription:
        """Return the subscription that counts, to be run.

        If it is a new one under a name that has counted before, it goes on from there:
        what lies before may have been archived.
        """
        with self._storage._driver.session() as session:
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
        """Return all that has been counted so far."""
        with self._storage._driver.session() as session:
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
        """Tell apart the names that were told apart before, by whoever counted then."""
        known = [dict(zip(LABELS[n], labels, strict=True)) for n, labels in self._counts(session)]
        max_pools, max_consumers = self._limits
        self._pool = BoundedLabel(max_pools, _distinct("pool", known))
        self._consumer = BoundedLabel(max_consumers, _distinct("consumer", known))
        self._pools = {pool.id: pool.name for pool in self._storage.list_pools()}
        self._epoch = epoch

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

    def _add(self, event: Event, added: dict[Count, float]) -> None:
        added["events", (event.type,)] += 1
        match event:
            case PoolRegistered() | PoolChanged():
                self._pools[event.pool_id] = event.name
            case LeaseAcquired():
                added["leases_acquired", self._asked(event)] += 1
            case AcquireMissed():
                added["acquire_misses", (*self._asked(event), event.reason.value)] += 1
            case LeaseReleased():
                self._add_lease(event, "released", added)
            case LeaseExpired():
                self._add_lease(event, "expired", added)
            case HealthChecked():
                pool = self._pool(self._pools.get(event.pool_id))
                labels = (pool, event.protocol.value, event.status.value)
                added["health_checks", labels] += 1

    def _add_lease(
        self, event: LeaseReleased | LeaseExpired, ended: str, added: dict[Count, float]
    ) -> None:
        pool = self._pool(event.pool_name)
        seconds = max(0.0, (event.recorded_at - event.acquired_at).total_seconds())
        bounds = (f"{bound:.1f}" for bound in DEFAULT_LEASE_BUCKETS if seconds <= bound)
        within = next(bounds, "+Inf")
        added["lease_duration_seconds_bucket", (pool, ended, within)] += 1
        added["lease_duration_seconds_sum", (pool, ended)] += seconds

    def _asked(self, event: LeaseAcquired | AcquireMissed) -> tuple[str, str, str]:
        selector = event.selector.value if event.selector else OTHER
        is_misspelled = isinstance(event, AcquireMissed) and event.reason is MissReason.UNKNOWN_POOL
        pool = self._pool(None if is_misspelled else event.pool_name)
        return pool, self._consumer(event.consumer), selector


def _distinct(label: str, known: Sequence[Mapping[str, str]]) -> tuple[str, ...]:
    names = (labels[label] for labels in known if label in labels)
    return tuple(dict.fromkeys(name for name in names if name != OTHER))


_f = fleet_counts
_NAME = parameter("subscription")


@by_schema
def counts_statement() -> Any:
    """Query what a subscription has counted."""
    return (
        select(_f.c.name, _f.c.labels, _f.c.value)
        .where(_f.c.subscription == _NAME)
        .order_by(_f.c.name.collate("C"), _f.c.labels)
    )


@by_schema
def counted_statement() -> Any:
    """Query up to which seq a subscription has counted."""
    return select(_f.c.value).where(_f.c.subscription == _NAME, _f.c.name == word(COUNTED_SEQ))


@by_schema
def add_statement() -> Any:
    """Add to what has been counted."""
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
    """Query, of each pool with leases, how old the oldest is and how many are overdue."""
    overdue = func.count().filter(leases.c.expires_at < now)
    oldest = cast(extract("epoch", now - func.min(leases.c.acquired_at)), Double)
    return (
        select(leases.c.pool_name, oldest.label("oldest_s"), overdue.label("overdue"))
        .where(leases.c.status == word("active"))
        .group_by(leases.c.pool_name)
        .order_by(leases.c.pool_name.collate("C"))
    )

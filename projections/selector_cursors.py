"""selector_cursors: the last proxy that round-robin selected in each pool.

Callers that lease round-robin from a pool lock its row, so they select proxies one
after the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import (
    Column,
    PrimaryKeyConstraint,
    Table,
    Text,
    Uuid,
    and_,
    delete,
    insert,
    literal_column,
    select,
    update,
)
from sqlalchemy.sql.dml import UpdateBase

from pharox.events import (
    CursorMoved,
    EventBase,
    LeaseAcquired,
    PoolRegistered,
    PoolRemoved,
    PoolStateCarried,
)

from .base import HOT, Events, Fold, Projection, metadata, of_type
from .carrying import carry, carry_fold

ROUND_ROBIN = "round_robin"


@dataclass(slots=True)
class CursorRow:
    """The cursor of one pool."""

    pool_id: UUID
    selector: str
    proxy_id: UUID | None


selector_cursors = Table(
    "selector_cursors",
    metadata,
    Column("pool_id", Uuid, nullable=False),
    Column("selector", Text, nullable=False),
    Column("proxy_id", Uuid),
    PrimaryKeyConstraint("pool_id", "selector"),
    postgresql_with={"fillfactor": 50, **HOT},
)


class SelectorCursors(Projection):
    """Keeps the last proxy that round-robin offered or leased."""

    name = "selector_cursors"
    table = selector_cursors
    row: ClassVar[type] = CursorRow
    key = ("pool_id", "selector")

    def apply(self, state: dict[Any, CursorRow], event: EventBase) -> None:
        match event:
            case PoolStateCarried():
                carry(self, state, event)
            case LeaseAcquired() | CursorMoved() if event.selector == ROUND_ROBIN:
                state[event.pool_id, ROUND_ROBIN].proxy_id = event.proxy_id
            case PoolRegistered():
                row = CursorRow(event.pool_id, ROUND_ROBIN, None)
                state[event.pool_id, ROUND_ROBIN] = row
            case PoolRemoved():
                del state[event.pool_id, ROUND_ROBIN]

    def folds(self) -> tuple[Fold, ...]:
        return (
            Fold(frozenset({"PoolRegistered"}), _register),
            carry_fold(self),
            Fold(frozenset({"LeaseAcquired", "CursorMoved"}), _move),
            Fold(frozenset({"PoolRemoved"}), _remove),
        )


def _register(events: Events) -> UpdateBase:
    return insert(selector_cursors).from_select(
        ["pool_id", "selector"],
        select(events.c.pool_id, literal_column(f"'{ROUND_ROBIN}'", Text)).where(
            of_type(events, "PoolRegistered")
        ),
    )


def _move(events: Events) -> UpdateBase:
    selector = literal_column(f"'{ROUND_ROBIN}'", Text)
    turns = and_(of_type(events, "LeaseAcquired", "CursorMoved"), events.c.selector == selector)
    return (
        update(selector_cursors)
        .values(proxy_id=events.c.proxy_id)
        .where(
            selector_cursors.c.pool_id == events.c.pool_id,
            selector_cursors.c.selector == selector,
            events.is_latest(turns, events.c.pool_id),
        )
    )


def _remove(events: Events) -> UpdateBase:
    return delete(selector_cursors).where(
        selector_cursors.c.pool_id == events.c.pool_id, of_type(events, "PoolRemoved")
    )


SELECTOR_CURSORS = SelectorCursors()

"""Find the pool of a name or an id in the whole log, removed pools included.

A name belongs to one pool at a time, but pools are renamed and removed, and
another pool can then take the name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from pharox.log import Extract
from projections import POOLS, PoolRow

from ..errors import PoolNotFoundError
from ..events import AcquireMissed, PoolChanged, PoolRegistered, PoolRemoved
from ..models.ids import NIL
from ..storage.validation import id_from_text
from .sealed_log import Beginning, SealedLog, beginning

_TYPES = ("PoolRegistered", "PoolChanged", "PoolRemoved")
_FEW = 5


class Mark(NamedTuple):
    """An event's place in the log."""

    seq: int
    recorded_at: datetime


@dataclass(slots=True)
class PoolLife:
    """A pool from its registration to its removal; ``name`` is its last name.

    ``registered`` is None if that event is in an archived part of the log.
    """

    id: UUID
    name: str
    registered: Mark | None = None
    removed: Mark | None = None


@dataclass(frozen=True, slots=True)
class FoundPool:
    """The pool that was found, and earlier pools of the same name, oldest first."""

    pool: PoolLife
    namesakes: Sequence[PoolLife] = ()


def find_pool(log: SealedLog, pool: str | UUID) -> FoundPool:
    """Return the pool of an id, or the last pool that had a name.

    Raises
    ------
    PoolNotFoundError
        If there never was one.
    """
    begin = beginning(log)
    lives = {row.id: PoolLife(row.id, row.name) for row in begin.rows("pools").values()}
    bearers = {life.id: life for life in lives.values() if life.name == pool}
    for event in log.history(Extract(begin.seq, types=_TYPES)):
        mark = Mark(event.seq, event.recorded_at)
        match event:
            case PoolRegistered() | PoolChanged():
                new = PoolLife(event.pool_id, event.name, mark)
                life = lives.setdefault(event.pool_id, new)
                life.name = event.name
                if isinstance(event, PoolRegistered):
                    life.removed = None  # It moved to another ledger, and back.
                if event.name == pool:
                    bearers.pop(life.id, None)
                    bearers[life.id] = life
            case PoolRemoved():
                lives[event.pool_id].removed = mark
    uuid = id_from_text(pool)
    if uuid in lives:
        return FoundPool(lives[uuid])
    if not bearers:
        raise _never_was(log, begin, str(pool))
    *namesakes, found = bearers.values()
    return FoundPool(found, tuple(namesakes))


def _missed_by(log: SealedLog, begin: Beginning, name: str) -> list[str]:
    """Return the consumers that asked for a pool when none had this name, each once."""
    misses = log.history(Extract(begin.seq, types=("AcquireMissed",), pool_id=NIL))
    named = (miss for miss in misses if isinstance(miss, AcquireMissed) and miss.pool_name == name)
    return list(dict.fromkeys(miss.consumer for miss in named))


def _never_was(log: SealedLog, begin: Beginning, pool: str) -> PoolNotFoundError:
    consumers = _missed_by(log, begin, pool)
    explanation = f"there never was a pool {pool!r}"
    if consumers:
        some = ", ".join(consumers[:_FEW]) + (", ..." if consumers[_FEW:] else "")
        number = "1 consumer" if len(consumers) == 1 else f"{len(consumers)} consumers"
        explanation = f"{explanation}; {number} asked for it: {some}"
    return PoolNotFoundError(explanation, pool=pool, asked_by=tuple(consumers))


def pools_then(
    log: SealedLog, begin: Beginning, seq: int, pool_id: UUID | None = None
) -> dict[UUID, PoolRow]:
    """Return the pools as they were after an event, or one of them; removed ones are left out."""
    state = {
        key: replace(row) for key, row in begin.rows("pools").items() if pool_id in (None, row.id)
    }
    for event in log.history(Extract(begin.seq, seq, types=_TYPES, pool_id=pool_id)):
        POOLS.apply(state, event)
    return {row.id: row for row in state.values()}


def pool_names(log: SealedLog, begin: Beginning) -> dict[UUID, str]:
    """Return the last name of every pool since the beginning of the log."""
    names = {row.id: row.name for row in begin.rows("pools").values()}
    for event in log.history(Extract(begin.seq, types=_TYPES)):
        names[event.pool_id] = event.name  # type: ignore[union-attr]
    return names

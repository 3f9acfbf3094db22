"""The steps of a pool's move, and what a pool is while it is in no ledger.

    source:  BeginMove ──> DrainMove ... ──> DepartPool ──────────────────────────> FinishMove
                                                 └──> ReadCargo ──┐
    target:  CheckArrival                                         └──> ReceivePool

Each step is one order to one storage and one commit, and is carried out once: asked again, it says
how far the move is. So whoever goes on after a crash, or beside another mover, gives all orders
again. A cargo is read from the log of the source as often as it is asked for; ``CancelMove`` has
the source receive its own pool again, once the target has refused it (``RefusePool``) for good.

Everything that may be leased or changed is decided in the source under the locks with which a pool
is deleted, so nothing of the pool is changed between what the cargo says and its removal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from shlex import quote
from typing import Any, NamedTuple
from uuid import UUID

from pydantic import SecretStr

import projections
from projections import Projection
from projections.carrying import recorded_row

from ..errors import ConflictError, PoolMovedError
from ..models import (
    MAX_NAME_LENGTH,
    CarriedBan,
    MoveStage,
    PoolMove,
    ProxyCredentials,
    ProxySource,
)

MOST_ROWS = 500
"""How many rows one event carries."""

MAX_POSITION = 2**53
"""The highest position after which a ledger may have to go on."""

REGISTERED = ("pools", "proxies", "available_proxies")
"""The read models by which a pool and its proxies are registered again."""

CARRIED: tuple[Projection, ...] = (
    projections.POOLS,
    projections.PROXIES,
    projections.AVAILABLE_PROXIES,
    projections.SELECTOR_CURSORS,
    projections.PROXY_HEALTH,
    projections.TARGET_OUTCOMES,
    projections.TROUBLED_TARGETS,
    projections.SESSIONS,
    projections.LEASE_STARTS,
    projections.SPENDING,
    projections.SOURCES,
    projections.ROTATIONS,
)
"""The read models of which a pool takes its rows along. Beside them go the names of the consumers
that ``lease_starts`` counts. What stays: ended leases and the ids that callers chose for them,
which are history, and the counters, which the proxies come to again."""

CONSUMERS = "consumers"

BANS = "bans"
"""What a pool takes along that is in no read model: who banned its proxies, when and why, as the
log of the ledger that it leaves has it. A row has the fields of :class:`.CarriedBan`."""

STUCK_S = {MoveStage.BEGAN: 3600.0, MoveStage.DEPARTED: 300.0}
"""After how many seconds at a stage somebody has to look: leases that end may take long, but a pool
that has left is in no ledger. The alerts have the same figures."""

LEAVING = {MoveStage.BEGAN: "began to leave", MoveStage.DEPARTED: "left"}
"""What a pool did last whose move has come to a stage at which it may be stuck."""


@dataclass(frozen=True)
class InspectPool:
    """Ask for what is to be known before a move: a :class:`PoolToMove`, or None."""

    pool_name: str


class PoolToMove(NamedTuple):
    """A pool that is here, and whether it has secrets that the target has to encrypt."""

    pool_id: UUID
    has_secrets: bool


@dataclass(frozen=True)
class CheckArrival:
    """Fail if the target could not take a pool now: its name is taken, or a key is missing."""

    pool_name: str
    pool: PoolToMove


@dataclass(frozen=True)
class BeginMove:
    """Begin to move a pool to the ledger of this name, or go on with it. Returns the move."""

    pool_name: str
    to: str
    move_id: UUID


@dataclass(frozen=True)
class DrainMove:
    """Take back what has run out, and answer who waits. Returns how many leases are left.

    With a ``revoke_reason`` all that are left are revoked.
    """

    move: PoolMove
    revoke_reason: str | None = None


@dataclass(frozen=True)
class DepartPool:
    """Remove the pool and keep its cargo, unless leases are left. Returns the move."""

    move: PoolMove


@dataclass(frozen=True)
class ReadCargo:
    """Return the cargo of a pool that has departed; None if the move has ended meanwhile."""

    move: PoolMove


@dataclass(frozen=True)
class ReceivePool:
    """Register a pool as its cargo says, unless it has come or is refused. Returns the move."""

    cargo: PoolCargo
    came_from: str


@dataclass(frozen=True)
class RefusePool:
    """Never take the pool of this move, unless it has come. Returns the move."""

    move: PoolMove
    came_from: str


@dataclass(frozen=True)
class FinishMove:
    """Delete the secrets that a pool left behind, now that the target has it. Returns the move."""

    move: PoolMove


@dataclass(frozen=True)
class CancelMove:
    """Have the pool stay. One that has departed must be refused by the target. Returns the move."""

    move: PoolMove


MoveOrder = (
    InspectPool
    | CheckArrival
    | BeginMove
    | DrainMove
    | DepartPool
    | ReadCargo
    | ReceivePool
    | RefusePool
    | FinishMove
    | CancelMove
)
"""What a mover may have a storage do."""


@dataclass(frozen=True)
class PoolCargo:
    """A pool between two ledgers: rows of read models as events record them, and the secrets.

    Secrets are plain here and in no event: whoever receives them encrypts them with its own key.
    ``credentials`` and ``links`` are by the ids that descriptions refer to, ``sources`` by their
    ``source_id``.
    """

    move: PoolMove
    rows: Mapping[str, Sequence[Mapping[str, Any]]]
    credentials: Mapping[UUID, ProxyCredentials] = field(default_factory=dict, repr=False)
    links: Mapping[UUID, SecretStr] = field(default_factory=dict, repr=False)
    sources: Mapping[UUID, ProxySource] = field(default_factory=dict, repr=False)

    def of(self, read_model: str) -> Sequence[Mapping[str, Any]]:
        """Return the rows of a read model."""
        return self.rows.get(read_model, ())

    @property
    def last_position(self) -> int:
        """The highest position that the pool had in the ledger it left: fencing tokens go on there.

        Raises
        ------
        ConflictError
            If it is higher than any ledger may go.
        """
        last = max(self.move.last_position or 0, self.move.position)
        if last > MAX_POSITION:
            raise ConflictError(
                f"pool {self.move.pool_name!r} cannot come: its position {last} is beyond 2^53, "
                "to which no ledger gets by itself",
                pool_name=self.move.pool_name,
            )
        return last

    @property
    def consumers(self) -> dict[str, str]:
        """The names of the consumers that rows refer to, by their ids in the source."""
        return {row["id"]: row["name"] for row in self.of(CONSUMERS)}


class Fact(NamedTuple):
    """An event to append: its type, the proxy that it registers, and its own fields as JSON."""

    type: str
    data: dict[str, Any]
    proxy_id: str | None = None
    status: str | None = None
    max_concurrency: int | None = None


def hidden_name(pool_name: str, ledger: str) -> str:
    """Return the name of a pool while it moves."""
    suffix = f" (moving to {ledger[:100]})"
    return pool_name[: MAX_NAME_LENGTH - len(suffix)] + suffix


def begun_before(order: BeginMove, last: PoolMove | None) -> PoolMove | None:
    """Return the move under way that an order goes on with; None if there is none.

    Parameters
    ----------
    last:
        The last move of the pool.

    Raises
    ------
    ConflictError
        If it moves to another ledger.
    """
    if last is None or not last.stage.is_under_way:
        return None
    if last.ledger != order.to:
        raise ConflictError(
            f"pool {order.pool_name!r} is moving to {last.ledger!r} already: let that end, or "
            "cancel it",
            pool_name=order.pool_name,
            ledger=last.ledger,
        )
    return last


def move_command(pool_name: str, ledger: str) -> str:
    """Return the command for a shell that goes on with a move."""
    return f"pharox fleet move {quote(pool_name)} --to {quote(ledger)}"


def moved_away(move: PoolMove) -> PoolMovedError:
    """Return the error for a pool that is asked for where it was before."""
    is_there = move.stage is MoveStage.MOVED
    how = "has moved" if is_there else "is moving"
    return PoolMovedError(
        f"pool {move.pool_name!r} {how} to ledger {move.ledger!r}: ask there"
        + ("" if is_there else ", or wait until it is cancelled"),
        pool_name=move.pool_name,
        pool_id=move.pool_id,
        ledger=move.ledger,
        stage=move.stage,
    )


def recorded(rows: Mapping[str, Sequence[Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return rows of read models as events record them."""
    return {name: [recorded_row(row) for row in of_model] for name, of_model in rows.items()}


def ban_row(
    proxy_id: UUID,
    recorded_at: datetime,
    actor: str | None,
    correlation_id: str | None,
    reason: str | None,
) -> dict[str, Any]:
    """Return who banned a proxy, as an event records it."""
    ban = CarriedBan(
        proxy_id=proxy_id,
        recorded_at=recorded_at,
        actor=actor,
        correlation_id=correlation_id,
        reason=reason,
    )
    return ban.model_dump(mode="json", exclude_none=True)


def carried_facts(
    move: PoolMove, rows: Mapping[str, Sequence[Mapping[str, Any]]], *, arrived: bool
) -> list[Fact]:
    """Return the events that carry rows of read models."""
    about = _about(move, move.ledger)
    return [
        Fact(
            "PoolStateCarried",
            {**about, "read_model": name, "rows": page, "arrived": arrived},
        )
        for name, of_model in rows.items()
        for page in _pages(of_model)
    ]


def departed_fact(
    move: PoolMove,
    *,
    last_seq: int,
    root: str | None,
    first_position: int,
    last_position: int,
    carried: int,
) -> Fact:
    """Return the event with which a pool has left."""
    head = {"last_seq": last_seq, "last_position": last_position, "root": root}
    own = {"first_position": first_position, "carried": carried}
    return Fact("PoolDeparted", {**_about(move, move.ledger), **head, **own})


def moved_fact(move: PoolMove) -> Fact:
    """Return the event with which the source knows that the pool is in the target."""
    return Fact("PoolMoved", {**_about(move, move.ledger), **_head(move)})


def began_fact(move_id: UUID, ledger: str) -> Fact:
    """Return the event with which a move begins."""
    return Fact("PoolMoveBegan", {"move_id": str(move_id), "ledger": ledger})


def cancelled_fact(move: PoolMove, other: str) -> Fact:
    """Return the event with which a move is cancelled, in the ledger whose other one is named."""
    return Fact("PoolMoveCancelled", _about(move, other))


def arrival_facts(
    cargo: PoolCargo, came_from: str, consumer_ids: Mapping[str, UUID]
) -> Iterator[Fact]:
    """Yield the events with which a ledger receives a pool.

    Parameters
    ----------
    consumer_ids:
        The ids that consumers have there, by their names.
    """
    yield Fact("PoolArrived", {**_about(cargo.move, came_from), **_head(cargo.move)})
    yield from _registered(cargo, came_from, consumer_ids)


def return_facts(cargo: PoolCargo) -> Iterator[Fact]:
    """Yield the events with which a ledger takes back a pool that had departed."""
    yield cancelled_fact(cargo.move, cargo.move.ledger)
    own = {row["name"]: UUID(row["id"]) for row in cargo.of(CONSUMERS)}
    yield from _registered(cargo, cargo.move.ledger, own)


def _registered(cargo: PoolCargo, other: str, consumer_ids: Mapping[str, UUID]) -> Iterator[Fact]:
    (pool,) = cargo.of("pools")
    yield Fact("PoolRegistered", {**_priced(pool, "id"), "name": cargo.move.pool_name})
    states = {row["proxy_id"]: row for row in cargo.of("available_proxies")}
    for row in cargo.of("proxies"):
        state = states[row["id"]]
        described = {**_priced(row, "id", "pool_id", "exit_ip"), "checked_at": state["checked_at"]}
        yield Fact(
            "ProxyRegistered", described, row["id"], state["status"], state.get("max_concurrency")
        )
    rows = {name: of_model for name, of_model in cargo.rows.items() if name not in _NOT_FOLDED}
    rows["lease_starts"] = [
        {**row, "consumer_id": str(consumer_ids[cargo.consumers[row["consumer_id"]]])}
        for row in cargo.of("lease_starts")
    ]
    told = cargo.move.model_copy(update={"ledger": other})
    yield from carried_facts(told, rows, arrived=True)


_NOT_FOLDED = ("pools", CONSUMERS)


def _about(move: PoolMove, other: str) -> dict[str, Any]:
    return {"move_id": str(move.move_id), "ledger": other}


def _head(move: PoolMove) -> dict[str, Any]:
    return {"last_seq": move.last_seq, "last_position": move.last_position, "root": move.root}


def _priced(row: Mapping[str, Any], *without: str) -> dict[str, Any]:
    """Return a row's facts, with prices as the numbers that events have."""
    return {
        name: _number(value) if name in ("cost_per_gb", "cost_per_lease") else value
        for name, value in row.items()
        if name not in without
    }


def _number(price: str) -> float | int:
    """Return a recorded price as a number that is printed as it was."""
    number = float(price)
    return int(number) if number.is_integer() else number


def _pages(rows: Sequence[Mapping[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    for start in range(0, len(rows), MOST_ROWS):
        yield [dict(row) for row in rows[start : start + MOST_ROWS]]

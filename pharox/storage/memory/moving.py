"""Carry out the steps of a pool's move, which :mod:`pharox.storage.moving` states."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import projections
from pharox import events

from ...errors import ConflictError, PoolNotFoundError
from ...events import EventBase, ProxyState
from ...models import MoveStage, PoolMove, ProxyPool, ProxyStatus
from ..moving import (
    BANS,
    CARRIED,
    CONSUMERS,
    BeginMove,
    CancelMove,
    CheckArrival,
    DepartPool,
    DrainMove,
    Fact,
    FinishMove,
    InspectPool,
    MoveOrder,
    PoolCargo,
    PoolToMove,
    ReadCargo,
    ReceivePool,
    RefusePool,
    arrival_facts,
    ban_row,
    began_fact,
    begun_before,
    cancelled_fact,
    carried_facts,
    departed_fact,
    hidden_name,
    moved_away,
    moved_fact,
    recorded,
    return_facts,
)
from ..requests import RevokeRequest
from .acquire import end_wait
from .batch import serve_all
from .identities import remember_identity
from .moves import last_move, move_of
from .pool_index import PoolIndex
from .registry import consumer_id, end_bans, pool_by_name, remove, remove_drained, rename_pool
from .release import expire, revoke
from .state import DepartedSecrets, State
from .waiting import Told


def carry_out(state: State, order: MoveOrder) -> Any:
    """Carry out one step. The caller holds the lock."""
    return _STEPS[type(order)](state, order)


def _inspect(state: State, order: InspectPool) -> PoolToMove | None:
    pool = pool_by_name(state, order.pool_name)
    if pool is None:
        return None
    members = state.pools[pool.id].members
    own = any(each in state.credentials or each in state.links for each in members)
    return PoolToMove(pool.id, own or bool(_sources_of(state, pool.id)))


def _check_arrival(state: State, order: CheckArrival) -> None:
    _check_place(state, order.pool_name, order.pool.pool_id)


def _check_place(state: State, pool_name: str, pool_id: UUID) -> None:
    if pool_name in state.pool_ids or pool_id in state.pools:
        raise ConflictError(
            f"the ledger has a pool {pool_name!r} already", name=pool_name, pool_id=pool_id
        )


def _begin(state: State, order: BeginMove) -> PoolMove:
    pool, last = pool_by_name(state, order.pool_name), last_move(state, order.pool_name)
    if pool is None:
        if (begun := begun_before(order, last)) is not None:
            return begun
        if last is not None and last.goes_to is not None:
            raise moved_away(last)
        raise PoolNotFoundError(f"Pool {order.pool_name!r} not found.", pool_name=order.pool_name)
    _append(state, pool.id, order.pool_name, began_fact(order.move_id, order.to))
    rename_pool(state, pool, hidden_name(pool.name, order.to))
    return _known(state, order.move_id)


def _drain(state: State, order: DrainMove) -> int:
    pool_id = order.move.pool_id
    pool, now = state.pools.get(pool_id), state.clock()
    if pool is None:
        return 0
    end_bans(state, [pool_id], now)
    expire(state, [pool_id], now, with_stats=False)
    held = [lease_id for each in pool.held_proxies() for lease_id in pool.held(each)]
    if held and order.revoke_reason is not None:
        revoke(state, RevokeRequest(tuple(sorted(held)), order.revoke_reason))
    remove_drained(state)
    queue = state.queues.of(pool_id)
    for ticket in [] if queue is None else list(queue.tickets):
        ticket.told.set_result(Told(end_wait(state, ticket, now).outcome, 0))
    serve_all(state)
    return sum(len(pool.held(each)) for each in pool.held_proxies())


def _depart(state: State, order: DepartPool) -> PoolMove:
    move = order.move
    known = _known(state, move.move_id)
    pool = state.pools.get(move.pool_id)
    if known.stage is not MoveStage.BEGAN:
        return known
    if pool is None:
        raise PoolNotFoundError(f"Pool {move.pool_id} was removed.", pool_id=move.pool_id)
    if any(True for _ in pool.held_proxies()):
        return known
    last_seq, members = len(state.log), sorted(pool.members)
    facts = carried_facts(known, _rows(state, move.pool_id), arrived=False)
    append = partial(_append, state, move.pool_id, move.pool_name)
    first = last_seq + state.skipped + 1
    for fact in facts:
        append(fact)
    sources = {each: state.source_secrets.pop(each) for each in _sources_of(state, move.pool_id)}
    for source_id in sources:
        state.source_turns.pop(source_id, None)
    state.departed[move.move_id] = DepartedSecrets(
        {each: state.credentials[each] for each in members if each in state.credentials},
        {each: state.links[each] for each in members if each in state.links},
        sources,
    )
    for proxy_id in members:
        remove(state, move.pool_id, proxy_id)
    name = state.pool_name(move.pool_id)
    state.append(events.PoolRemoved, pool_id=move.pool_id, name=name)
    del state.pools[move.pool_id], state.pool_ids[name]
    head = {"last_seq": last_seq, "root": None, "last_position": state.log[-1].position}
    append(departed_fact(known, first_position=first, carried=len(facts), **head))  # type: ignore[arg-type]
    return _known(state, move.move_id)


def _rows(state: State, pool_id: UUID) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of a pool that it takes along."""
    rows: dict[str, list[Any]] = {}
    for projection in CARRIED:
        own = "id" if projection is projections.POOLS else "pool_id"
        every = state.rows[projection.name].items()
        rows[projection.name] = [row for _, row in sorted(every) if getattr(row, own) == pool_id]
    asked = {row.consumer_id for row in rows[projections.LEASE_STARTS.name]}
    rows[CONSUMERS] = [row for row in state.rows[CONSUMERS].values() if row.id in asked]
    banned = {
        row.proxy_id
        for row in rows[projections.AVAILABLE_PROXIES.name]
        if row.status == ProxyStatus.BANNED
    }
    return {**recorded(rows), BANS: _bans(state, pool_id, banned)}


def _bans(state: State, pool_id: UUID, banned: set[UUID]) -> list[dict[str, Any]]:
    """Return who banned proxies, as far as the pool's last stay here or what it brought says it.

    The log is read backwards to the oldest of these bans, or to where the stay began.
    """
    found: dict[UUID, dict[str, Any]] = {}
    sought = set(banned)
    for event in reversed(state.log) if sought else ():
        match event:
            case events.ProxyChanged() if event.proxy_id in sought and event.pool_id == pool_id:
                if event.before.status is event.after.status:
                    continue
                sought.remove(event.proxy_id)
                if event.after.status is ProxyStatus.BANNED:
                    found[event.proxy_id] = ban_row(
                        event.proxy_id,
                        event.recorded_at,
                        event.actor,
                        event.correlation_id,
                        event.reason,
                    )
            case events.PoolStateCarried(arrived=True) if event.pool_id == pool_id:
                if event.read_model != BANS:
                    continue
                brought = {UUID(row["proxy_id"]): row for row in event.rows}
                found |= {each: brought[each] for each in sought & brought.keys()}
                sought -= brought.keys()
            case events.PoolRegistered() if event.pool_id == pool_id:
                break
        if not sought:
            break
    return [found[proxy_id] for proxy_id in sorted(found)]


def _cargo(state: State, move: PoolMove) -> PoolCargo | None:
    known = _known(state, move.move_id)
    if known.stage is not MoveStage.DEPARTED:
        return None
    departed = state.event_at(known.position)
    assert isinstance(departed, events.PoolDeparted)  # noqa: S101 - its stage says so
    rows: dict[str, list[dict[str, Any]]] = {}
    for position in range(departed.first_position, departed.first_position + departed.carried):
        carried = state.event_at(position)
        assert isinstance(carried, events.PoolStateCarried)  # noqa: S101 - they were appended so
        rows.setdefault(carried.read_model, []).extend(carried.rows)
    secrets = state.departed[move.move_id]
    proxies = rows.get("proxies", ())
    return PoolCargo(
        known,
        rows,
        {
            UUID(row["credential_id"]): secrets.credentials[UUID(row["id"])]
            for row in proxies
            if "credential_id" in row
        },
        {
            UUID(row["rotate_id"]): secrets.links[UUID(row["id"])]
            for row in proxies
            if "rotate_id" in row
        },
        secrets.sources,
    )


def _receive(state: State, order: ReceivePool) -> PoolMove:
    cargo, came_from = order.cargo, order.came_from
    move = cargo.move
    if (known := move_of(state, move.move_id)) is not None:
        return known
    _check_place(state, move.pool_name, move.pool_id)
    _check_members(state, cargo)
    own = {
        name: consumer_id(state, name, _free_id(state, id_))
        for id_, name in cargo.consumers.items()
    }
    state.skipped = max(state.skipped, cargo.last_position - len(state.log))
    _register(state, cargo, arrival_facts(cargo, came_from, own))
    return _known(state, move.move_id)


def _free_id(state: State, consumer: str) -> UUID:
    """Return the id that a consumer had elsewhere, unless another one has it here."""
    wanted = UUID(consumer)
    return uuid4() if wanted in state.consumer_ids else wanted


def _check_members(state: State, cargo: PoolCargo) -> None:
    for row in cargo.of("proxies"):
        if UUID(row["id"]) in state.pool_of_proxy:
            raise ConflictError(
                f"proxy {row['id']} is registered in another pool of the ledger; remove it there "
                "first",
                proxy_id=UUID(row["id"]),
            )
    names = {row.name for row in state.rows["sources"].values()}
    for row in cargo.of("sources"):
        if row["name"] in names:
            raise ConflictError(
                f"the ledger has a source {row['name']!r} already", name=row["name"]
            )


def _register(state: State, cargo: PoolCargo, facts: Iterable[Fact]) -> None:
    move = cargo.move
    state.pools[move.pool_id] = PoolIndex(move.pool_id)
    for fact in facts:
        _append(state, move.pool_id, move.pool_name, fact)
        if fact.type == "PoolRegistered":
            state.pool_ids[move.pool_name] = move.pool_id
            state.pools[move.pool_id].lease_slow = bool(fact.data.get("lease_slow"))
    for row in cargo.of("proxies"):
        proxy_id = UUID(row["id"])
        state.pool_of_proxy[proxy_id] = move.pool_id
        if "credential_id" in row:
            state.credentials[proxy_id] = cargo.credentials[UUID(row["credential_id"])]
        if "rotate_id" in row:
            state.links[proxy_id] = cargo.links[UUID(row["rotate_id"])]
        remember_identity(state, state.proxy(proxy_id))
    state.source_secrets.update(cargo.sources)


def _refuse(state: State, order: RefusePool) -> PoolMove:
    move = order.move
    if move_of(state, move.move_id) is None:
        _append(state, move.pool_id, move.pool_name, cancelled_fact(move, order.came_from))
    return _known(state, move.move_id)


def _finish(state: State, order: FinishMove) -> PoolMove:
    known = _known(state, order.move.move_id)
    if known.stage is MoveStage.DEPARTED:
        _append(state, known.pool_id, known.pool_name, moved_fact(known))
        state.departed.pop(known.move_id, None)
    return _known(state, known.move_id)


def _cancel(state: State, order: CancelMove) -> PoolMove:
    known = _known(state, order.move.move_id)
    if known.stage is MoveStage.BEGAN:
        _append(state, known.pool_id, known.pool_name, cancelled_fact(known, known.ledger))
        row = state.rows["pools"].get((known.pool_id,))
        if row is not None:
            pool = ProxyPool(**{name: getattr(row, name) for name in row.__slots__})
            rename_pool(state, pool, known.pool_name)
    elif known.stage is MoveStage.DEPARTED:
        cargo = _cargo(state, known)
        assert cargo is not None  # noqa: S101 - it has departed
        _register(state, cargo, return_facts(cargo))
        state.departed.pop(known.move_id, None)
    return _known(state, known.move_id)


def _append(state: State, pool_id: UUID, pool_name: str, fact: Fact) -> EventBase:
    """Append what a step decided."""
    kind: type[EventBase] = getattr(events, fact.type)
    fields: dict[str, Any] = dict(fact.data)
    if "pool_name" in kind.model_fields:
        fields["pool_name"] = pool_name
    if fact.proxy_id is not None:
        fields["proxy_id"] = fact.proxy_id
        fields["after"] = ProxyState(ProxyStatus(fact.status or ""), 0, fact.max_concurrency)
    return state.append(kind, pool_id=pool_id, **fields)


def _sources_of(state: State, pool_id: UUID) -> list[UUID]:
    return [row.id for row in state.rows["sources"].values() if row.pool_id == pool_id]


def _known(state: State, move_id: UUID) -> PoolMove:
    move = move_of(state, move_id)
    if move is None:
        raise PoolNotFoundError(f"There is no move {move_id} of a pool here.", move_id=move_id)
    return move


_STEPS: dict[type, Callable[[State, Any], Any]] = {
    InspectPool: _inspect,
    CheckArrival: _check_arrival,
    BeginMove: _begin,
    DrainMove: _drain,
    DepartPool: _depart,
    ReadCargo: lambda state, order: _cargo(state, order.move),
    ReceivePool: _receive,
    RefusePool: _refuse,
    FinishMove: _finish,
    CancelMove: _cancel,
}

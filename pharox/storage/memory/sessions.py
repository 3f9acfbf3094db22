"""Keep one proxy for a key: choose it, forget it, hand it on, and list what is bound."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Literal, NamedTuple
from uuid import UUID

from projections import ProxyRow, SessionRow

from ...events import SessionBound, SessionForgotten
from ...models import GatewayExit, MissReason, ProxyStatus, SelectorStrategy, Sticky, StickySession
from ...models.gateway import wished_country
from ...models.text import url_of
from ..requests import AcquireRequest, AcquireSetRequest
from ..validation import SessionPage, session_taken, session_unknown
from .candidates import candidates, is_free, without_kept
from .exits import fits, is_template_with_sessions
from .exits import living_binding as living
from .outcomes import is_troubled, pair_row
from .pool_index import PoolIndex
from .state import State

Because = Literal["removed", "banned", "inactive"]

_GONE: dict[str, Because] = {
    ProxyStatus.BANNED.value: "banned",
    ProxyStatus.INACTIVE.value: "inactive",
}


class Choice(NamedTuple):
    """The proxies that a request gets. ``binding`` are the fields of the event that binds its key.

    With ``is_own`` it is the proxy that the key is bound to, which no selector chose.
    """

    proxy_ids: list[UUID]
    binding: dict[str, Any] | None = None
    is_own: bool = False


def choose(
    state: State,
    request: AcquireRequest,
    sticky: Sticky,
    selector: SelectorStrategy,
    now: datetime,
) -> Choice:
    """Return the proxy for a key: the one that it is bound to, or another."""
    pool_id = state.pool_ids.get(request.pool_name)
    if pool_id is None:
        return Choice([])
    pool, row = state.pools[pool_id], living(state, pool_id, sticky.key, now)
    because = None if row is None else _replaced_because(state, row)
    until = now + timedelta(seconds=sticky.seconds)
    if row is not None and because is None:
        if fits(row, wished_country(request.filters)) and _is_free(
            state, pool, row.proxy_id, request
        ):
            slides = sticky.sliding and until > row.expires_at
            binding = _binding(state, row.proxy_id, row, until) if slides else None
            return Choice([row.proxy_id], binding, is_own=True)
        if sticky.policy == "require":
            return Choice([])
        return Choice(_others(state, pool, request, sticky, selector, now))
    found: list[UUID] = []
    for name in ("exit_ip", "country"):  # One like that which is replaced comes first.
        if not found and row is not None and getattr(row, name) is not None:
            alike = (name, getattr(row, name))
            found = _others(state, pool, request, sticky, selector, now, alike)
    found = found or _others(state, pool, request, sticky, selector, now)
    if not found:
        return Choice([])
    made = SessionRow(
        pool_id, sticky.key, found[0], request.target, sticky.shared, None, None, now, until, None
    )
    replaced = {} if row is None else {"replaced": row.proxy_id, "because": because}
    return Choice(found, {**_binding(state, found[0], made, until), **replaced})


def lend(
    state: State,
    request: AcquireRequest,
    sticky: Sticky,
    selector: SelectorStrategy,
    now: datetime,
) -> Choice:
    """Return a proxy for a key that is bound in another pool, and is not bound in this one."""
    pool = state.pools[state.pool_ids[request.pool_name]]
    return Choice(_others(state, pool, request, sticky, selector, now))


def bound_proxy(state: State, pool_id: UUID, key: str, now: datetime) -> UUID | None:
    """Return the proxy that a key is bound to, unless it has to be replaced."""
    row = living(state, pool_id, key, now)
    return row.proxy_id if row is not None and _replaced_because(state, row) is None else None


def required_proxy(
    state: State, pool_id: UUID, request: AcquireRequest | AcquireSetRequest, now: datetime
) -> UUID | None:
    """Return the only proxy that will do for a request, if its session requires one."""
    sticky = request.sticky if isinstance(request, AcquireRequest) else None
    if sticky is None or sticky.policy != "require":
        return None
    return bound_proxy(state, pool_id, sticky.key, now)


def reason(
    state: State, request: AcquireRequest, sticky: Sticky, now: datetime
) -> MissReason | None:
    """Return why a key's request got nothing, if that is due to sessions."""
    pool = state.pools[state.pool_ids[request.pool_name]]
    proxy_id = bound_proxy(state, pool.pool_id, sticky.key, now)
    filters, target = request.filters, request.target
    if proxy_id is not None and sticky.policy == "require":
        row = state.rows["sessions"][pool.pool_id, sticky.key]
        is_elsewhere = not fits(row, wished_country(filters))
        if is_elsewhere or not (filters is None or filters.matches(state.proxy(proxy_id))):
            return MissReason.NO_MATCH
        if (
            target is not None
            and is_free(state, pool, proxy_id, filters, is_unpaced=True)
            and is_troubled(state, pool.pool_id, target)
        ):
            return MissReason.TARGET_TROUBLED
        is_paced = is_free(state, pool, proxy_id, filters, target, is_unpaced=True) and not is_free(
            state, pool, proxy_id, filters, target
        )
        return MissReason.LIMIT_REACHED if is_paced else MissReason.SESSION_BUSY
    order = SelectorStrategy.FIRST_AVAILABLE
    if next(candidates(state, pool, order, filters, target, distinct=True), None) is None:
        return None
    return (
        None
        if _others(state, pool, request, sticky, order, now, of_all=True)
        else MissReason.ALL_BOUND
    )


def changes(
    state: State, pool_id: UUID, target: str | None, key: str, now: datetime
) -> list[datetime | None]:
    """Return when the proxy that a key is bound to may be free. Empty if it is not bound."""
    proxy_id = bound_proxy(state, pool_id, key, now)
    if proxy_id is None:
        return []
    held = [row.expires_at for row in state.held_rows(pool_id, proxy_id)]
    pair = None if target is None else pair_row(state, pool_id, proxy_id, target)
    cools_until = None if pair is None else pair.cools_until
    return [
        min(held, default=None),
        state.pools[pool_id].rests_until(proxy_id, now),
        cools_until if cools_until is not None and cools_until > now else None,
    ]


def next_end(state: State, pool_id: UUID, now: datetime) -> datetime | None:
    """Return when the next binding of a pool ends."""
    rows = (row for row in state.rows["sessions"].values() if row.pool_id == pool_id)
    return min((row.expires_at for row in rows if row.expires_at > now), default=None)


def forget(state: State, pool_name: str, key: str) -> UUID | None:
    """End a key's binding. Return the proxy that it was to, or None if there was none."""
    now, pool_id = state.clock(), state.pool_ids.get(pool_name)
    row = None if pool_id is None else living(state, pool_id, key, now)
    if row is None:
        return None
    _forget(state, row, now)
    return row.proxy_id


def inherit(state: State, pool_name: str, old: str, new: str) -> None:
    """Have one key take over the binding of another."""
    now, pool_id = state.clock(), state.pool_ids.get(pool_name)
    row = None if pool_id is None else living(state, pool_id, old, now)
    if row is None:
        raise session_unknown(pool_name, old)
    if living(state, row.pool_id, new, now) is not None:
        raise session_taken(pool_name, new)
    _forget(state, row, now, inherited_by=new)
    binding = {
        **_binding(state, row.proxy_id, row, row.expires_at),
        "key": new,
        "country": row.country,
        "exit_ip": row.exit_ip,
        "exit": row.exit,
        "inherited_from": old,
    }
    state.append(SessionBound, now, **binding)


def list_sessions(state: State, page: SessionPage) -> list[StickySession]:
    """Return a page of living bindings, ordered by the pool's id and key."""
    now = state.clock()
    rows = [
        row
        for place, row in state.rows["sessions"].items()
        if place > page.after
        and row.expires_at > now
        and page.pool_name in (None, state.pool_name(row.pool_id))
    ]
    rows.sort(key=lambda row: (row.pool_id, row.key))
    return [_listed(state, row, now) for row in rows[: page.limit]]


def _forget(state: State, row: SessionRow, now: datetime, **why: Any) -> None:
    state.append(
        SessionForgotten,
        now,
        pool_id=row.pool_id,
        pool_name=state.pool_name(row.pool_id),
        key=row.key,
        proxy_id=row.proxy_id,
        **why,
    )


def _listed(state: State, row: SessionRow, now: datetime) -> StickySession:
    proxy: ProxyRow | None = state.rows["proxies"].get((row.proxy_id, row.pool_id))
    return StickySession(
        pool_id=row.pool_id,
        pool_name=state.pool_name(row.pool_id),
        key=row.key,
        proxy_id=row.proxy_id,
        address=proxy and url_of(proxy.protocol, proxy.host, proxy.port),
        target=row.target,
        shared=row.shared,
        bound_at=row.bound_at,
        expires_at=row.expires_at,
        remaining_seconds=(row.expires_at - now).total_seconds(),
        exit=None if row.exit is None else GatewayExit(**row.exit),
    )


def _binding(state: State, proxy_id: UUID, row: SessionRow, until: datetime) -> dict[str, Any]:
    """Return the fields of the event that binds a key, without those of a lease."""
    description: ProxyRow | None = state.rows["proxies"].get((proxy_id, row.pool_id))
    return {
        "pool_id": row.pool_id,
        "pool_name": state.pool_name(row.pool_id),
        "key": row.key,
        "proxy_id": proxy_id,
        "expires_at": until,
        "target": row.target,
        "shared": row.shared,
        "country": description and description.country,
        "exit_ip": description and description.exit_ip,
    }


def _replaced_because(state: State, row: SessionRow) -> Because | None:
    """Return why a binding's proxy has to be replaced; None if it need not."""
    known = state.rows["available_proxies"].get((row.proxy_id, row.pool_id))
    return "removed" if known is None else _GONE.get(known.status)


def _is_free(state: State, pool: PoolIndex, proxy_id: UUID, request: AcquireRequest) -> bool:
    """Return whether a request can have one proxy that is not kept for who waits before it."""
    if not is_free(state, pool, proxy_id, request.filters, request.target):
        return False
    queue = state.queues.of(pool.pool_id)
    if queue is None or not queue.kept:
        return True
    offered = without_kept(state, pool, iter([proxy_id]), queue.kept, distinct=True)
    return next(offered, None) is not None


def _others(
    state: State,
    pool: PoolIndex,
    request: AcquireRequest,
    sticky: Sticky,
    selector: SelectorStrategy,
    now: datetime,
    alike: tuple[str, str] | None = None,
    *,
    of_all: bool = False,
) -> list[UUID]:
    """Return a free proxy that no other key is bound to, with this fact if one is given."""
    is_unbound = _unbound(state, pool.pool_id, request, sticky, now)
    found = candidates(
        state,
        pool,
        selector,
        request.filters,
        request.target,
        distinct=True,
        now=now,
        also=lambda each: (
            is_unbound(each)
            and (alike is None or getattr(state.proxy_row(each), alike[0]) == alike[1])
        ),
    )
    queue = state.queues.of(pool.pool_id)
    if queue is not None and queue.kept and not of_all:
        found = without_kept(state, pool, found, queue.kept, distinct=True)
    first = next(found, None)
    return [] if first is None else [first]


def _unbound(
    state: State, pool_id: UUID, request: AcquireRequest, sticky: Sticky, now: datetime
) -> Callable[[UUID], bool]:
    """Return the function that says whether no other living key excludes a binding to a proxy."""

    def is_unbound(proxy_id: UUID) -> bool:
        return is_template_with_sessions(state, pool_id, proxy_id) or not any(
            row.key != sticky.key
            and row.expires_at > now
            and not (row.shared and sticky.shared)
            and (None in (row.target, request.target) or row.target == request.target)
            for row in state.sessions.of(pool_id, proxy_id)
        )

    return is_unbound

"""Keep pools, proxies and consumers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from projections import ConsumerRow

from ...errors import ConflictError, PoolNotFoundError, ProxyNotFoundError
from ...events import (
    BAN_OVER,
    ConsumerRegistered,
    PoolChanged,
    PoolRegistered,
    PoolRemoved,
    ProxyChanged,
    ProxyRegistered,
    ProxyRemoved,
    ProxyState,
)
from ...models import Proxy, ProxyPool, ProxyStatus, check_name
from ...models.gateway import GATEWAY_CONCURRENCY
from ..list_import import account_of
from ..validation import (
    check_ban,
    check_kind,
    check_one_pool_each,
    check_reason,
    check_status,
    checked_model,
    checked_pool,
    id_from_text,
)
from .identities import forget_identity, remember_identity
from .moves import check_not_moved
from .pool_index import PoolIndex
from .release import release_held
from .state import State

_DESCRIBED = frozenset(ProxyRegistered.model_fields)
_NOT_COMPARED = {
    *("current_leases", "draining", "rests_until", "banned_until", "exit_ip"),
    *("template", "rotate_url", "rotates"),
}
"""What the ledger keeps of a proxy, and whether it is said to be a template, beside what it is."""

# Consumers


def consumer_id(
    state: State, name: str, wanted: UUID | None = None, *, now: datetime | None = None
) -> UUID:
    """Return a consumer's id. A new name is registered, with the wanted id if given."""
    row: ConsumerRow | None = state.rows["consumers"].get((name,))
    if row is not None:
        return row.id
    if wanted in state.consumer_ids:
        raise ConflictError(f"consumer id {wanted} belongs to another name", name=name)
    uuid = wanted or uuid4()
    state.append(ConsumerRegistered, now, consumer=name, consumer_id=uuid)
    state.consumer_ids.add(uuid)
    return uuid


# Pools


def save_pool(state: State, given: ProxyPool) -> None:
    """Register a pool, or change the one with this id."""
    pool = checked_pool(given)
    if state.pool_ids.get(pool.name, pool.id) != pool.id:
        raise ConflictError(f"another pool is named {pool.name!r}", name=pool.name)
    check_not_moved(state, pool.name, pool.id)
    known = state.rows["pools"].get((pool.id,))
    fields = pool.model_dump(exclude={"id"})
    if known is None:
        state.pools[pool.id] = PoolIndex(pool.id)
        state.append(PoolRegistered, pool_id=pool.id, **fields)
    elif ProxyPool(**asdict(known)) != pool:
        del state.pool_ids[known.name]
        state.append(PoolChanged, pool_id=pool.id, **fields)
    state.pool_ids[pool.name] = pool.id
    state.pools[pool.id].lease_slow = pool.lease_slow


def rename_pool(state: State, pool: ProxyPool, name: str) -> None:
    """Give a pool another name, as when it moves."""
    fields = {**pool.model_dump(exclude={"id"}), "name": name}
    if name in state.pool_ids:
        raise ConflictError(f"another pool is named {name!r}", name=name)
    del state.pool_ids[pool.name]
    state.append(PoolChanged, pool_id=pool.id, **fields)
    state.pool_ids[name] = pool.id


def ensure_pool(state: State, pool: ProxyPool) -> UUID:
    """Register a pool and return its id, or the id of the pool with the same name."""
    check_kind(pool, ProxyPool)
    known = pool_by_name(state, pool.name)
    if known is None:
        save_pool(state, pool)
    return (known or pool).id


def pool_of_id(state: State, pool_id: str | UUID) -> ProxyPool:
    """Return a pool, else raise :class:`PoolNotFoundError`."""
    row = state.rows["pools"].get((id_from_text(pool_id),))
    if row is None:
        raise PoolNotFoundError(f"Pool {pool_id!r} not found.", pool_id=pool_id)
    return ProxyPool(**asdict(row))


def pool_by_name(state: State, name: str) -> ProxyPool | None:
    """Return the pool with this name, or None."""
    check_name(name, "pool")
    pool_id = state.pool_ids.get(name)
    return None if pool_id is None else pool_of_id(state, pool_id)


def pools_by_name(state: State) -> list[ProxyPool]:
    """Return all pools, ordered by name."""
    return [pool_of_id(state, state.pool_ids[name]) for name in sorted(state.pool_ids)]


def delete_pool(state: State, pool_id: str) -> None:
    """Remove a pool, its proxies and their leases."""
    pool = pool_of_id(state, pool_id)
    proxy_ids = sorted(state.pools[pool.id].members)
    for proxy_id in proxy_ids:
        release_held(state, pool.id, proxy_id, "pool removed")
    for proxy_id in proxy_ids:
        remove(state, pool.id, proxy_id)
    state.append(PoolRemoved, pool_id=pool.id, name=pool.name)
    del state.pools[pool.id], state.pool_ids[pool.name]


# Proxies


def save_proxies(state: State, given: Sequence[Proxy], *, change: bool) -> int:
    """Register proxies atomically, and ``change`` known ones. Return how many are new."""
    proxies = [checked_model(proxy, Proxy) for proxy in given]
    for proxy in check_one_pool_each(proxies):
        _check_pool(state, proxy)
    last_given = {proxy.id: _limited(state, proxy) for proxy in proxies}
    return sum(_save_proxy(state, proxy, change=change) for proxy in last_given.values())


def change_proxy(state: State, proxy: Proxy) -> None:
    """Change a known proxy, except its status, which somebody else may be changing."""
    now = proxy_of_id(state, proxy.id)
    own = {"status": now.status, "checked_at": now.checked_at}
    save_proxies(state, [proxy.model_copy(update=own)], change=True)


def set_status(
    state: State,
    proxy_id: UUID,
    status: ProxyStatus | str,
    reason: str | None,
    for_seconds: float | None = None,
) -> Proxy:
    """Set a proxy's status: for so many seconds if it is a ban with an end."""
    check_reason(reason)
    wanted = check_status(status)
    check_ban(wanted, for_seconds)
    proxy = proxy_of_id(state, proxy_id)
    row, now = state.availability(proxy.pool_id, proxy.id), state.clock()
    end: dict[str, Any] = {}
    if for_seconds is not None:
        is_banned = proxy.status is ProxyStatus.BANNED
        before_it = row.returns_to or ProxyStatus.ACTIVE if is_banned else proxy.status
        until = now + timedelta(seconds=for_seconds)
        end = {"until": until, "returns_to": ProxyStatus(before_it)}
    if wanted is not proxy.status or row.banned_until != end.get("until"):
        changed = proxy.model_copy(update={"status": wanted})
        _change(state, changed, proxy, now, reason=reason, **end)
    return state.proxy(proxy.id)


def end_bans(state: State, pool_ids: Iterable[UUID], now: datetime) -> None:
    """End the bans of some pools that are over, as ``sql/0005/bans.sql`` does."""
    for pool_id in sorted(pool_ids):
        for proxy_id in state.pools[pool_id].bans_over(now):
            proxy = state.proxy(proxy_id)
            status = ProxyStatus(
                state.availability(pool_id, proxy_id).returns_to or ProxyStatus.ACTIVE
            )
            changed = proxy.model_copy(update={"status": status})
            _change(state, changed, proxy, now, reason=BAN_OVER)


def drain(state: State, proxy_id: UUID, reason: str | None) -> Proxy | None:
    """Ban a proxy, and remove it when its last lease ends; return it unless it is removed."""
    check_reason(reason)
    proxy = proxy_of_id(state, proxy_id)
    if not state.availability(proxy.pool_id, proxy.id).drains:
        wanted = proxy.model_copy(update={"status": ProxyStatus.BANNED})
        _change(state, wanted, proxy, reason=reason, drains=True)
    if not proxy.current_leases:
        remove(state, proxy.pool_id, proxy.id)
        return None
    return state.proxy(proxy.id)


def remove_drained(state: State) -> None:
    """Remove the drained proxies whose last leases have ended."""
    while state.drained:
        proxy_id = state.drained.pop(0)
        if proxy_id in state.pool_of_proxy:
            remove(state, state.pool_of_proxy[proxy_id], proxy_id)


def proxy_if_known(state: State, proxy_id: str | UUID) -> Proxy | None:
    """Return a proxy, or None."""
    uuid = id_from_text(proxy_id)
    return state.proxy(uuid) if uuid is not None and uuid in state.pool_of_proxy else None


def proxy_of_id(state: State, proxy_id: str | UUID) -> Proxy:
    """Return a proxy, else raise :class:`ProxyNotFoundError`."""
    proxy = proxy_if_known(state, proxy_id)
    if proxy is None:
        raise ProxyNotFoundError(f"Proxy {str(proxy_id)!r} not found.", proxy_id=proxy_id)
    return proxy


def proxies_of(state: State, pool_id: str) -> list[Proxy]:
    """Return a pool's proxies, ordered by id."""
    pool = pool_of_id(state, pool_id)
    return [state.proxy(proxy_id) for proxy_id in sorted(state.pools[pool.id].members)]


def delete_proxy(state: State, proxy_id: str) -> None:
    """Remove a proxy and release its leases."""
    proxy = proxy_of_id(state, proxy_id)
    release_held(state, proxy.pool_id, proxy.id, "proxy removed")
    remove(state, proxy.pool_id, proxy.id)


def remove(state: State, pool_id: UUID, proxy_id: UUID) -> None:
    """Remove a proxy that is not leased."""
    before = state.current_state(pool_id, proxy_id)
    forget_identity(state, state.proxy(proxy_id))
    state.append(ProxyRemoved, pool_id=pool_id, proxy_id=proxy_id, before=before)
    del state.pool_of_proxy[proxy_id]
    state.credentials.pop(proxy_id, None)
    state.links.pop(proxy_id, None)


def _limited(state: State, proxy: Proxy) -> Proxy:
    """Return a proxy with the ``max_concurrency`` of its pool if it does not say one."""
    if "max_concurrency" in proxy.model_fields_set:
        return proxy
    limit = state.rows["pools"][(proxy.pool_id,)].max_concurrency
    if limit is None and proxy.placeholders:
        limit = GATEWAY_CONCURRENCY
    return proxy.model_copy(update={"max_concurrency": limit})


def _check_pool(state: State, proxy: Proxy) -> None:
    """Check that a proxy's pool exists, and that no other pool has the proxy."""
    if proxy.pool_id not in state.pools:
        raise PoolNotFoundError(f"Pool {proxy.pool_id} not found.", pool_id=proxy.pool_id)
    elsewhere = state.pool_of_proxy.get(proxy.id, proxy.pool_id)
    if elsewhere != proxy.pool_id:
        raise ConflictError(
            f"proxy {proxy.id} is registered in another pool; remove it there first",
            proxy_id=proxy.id,
            pool_id=elsewhere,
        )


def _save_proxy(state: State, proxy: Proxy, *, change: bool) -> bool:
    """Register or change one proxy; return whether it is new."""
    earlier = proxy_if_known(state, proxy.id)
    if earlier is None:
        fields = _described(state, proxy, None)
        after = ProxyState(proxy.status, 0, proxy.max_concurrency)
        state.append(
            ProxyRegistered, pool_id=proxy.pool_id, proxy_id=proxy.id, after=after, **fields
        )
        return True
    if change and (not _is_same(proxy, earlier) or _has_new_link(state, proxy)):
        row = state.availability(proxy.pool_id, proxy.id)
        end: dict[str, Any] = {}
        if row.banned_until is not None and proxy.status is ProxyStatus.BANNED:
            returns_to = ProxyStatus(row.returns_to or ProxyStatus.ACTIVE)
            end = {"until": row.banned_until, "returns_to": returns_to}
        _change(state, proxy, earlier, **end)
    return False


def _change(
    state: State, proxy: Proxy, earlier: Proxy, now: datetime | None = None, **why: Any
) -> None:
    """Append ``ProxyChanged``, with ``why`` among its fields."""
    before = state.current_state(proxy.pool_id, proxy.id)
    state.append(
        ProxyChanged,
        now,
        pool_id=proxy.pool_id,
        proxy_id=proxy.id,
        before=before,
        after=ProxyState(proxy.status, before.leases, proxy.max_concurrency),
        **_described(state, proxy, earlier),
        **why,
    )


def _described(state: State, proxy: Proxy, earlier: Proxy | None) -> dict[str, Any]:
    """Return the fields that describe a proxy in an event. Its secrets are kept beside it."""
    known = proxy.model_dump(exclude={"id", "pool_id", "credentials"}).items()
    fields = {**{name: x for name, x in known if name in _DESCRIBED}, "host": str(proxy.host)}
    fields["placeholders"] = proxy.recorded_placeholders
    if proxy.credentials is not None:
        fields["credential_id"] = _credential_id(state, proxy, earlier)
    fields["rotate_id"] = _rotate_id(state, proxy, earlier)
    _keep_secrets(state, proxy, earlier)
    return fields


def _rotate_id(state: State, proxy: Proxy, earlier: Proxy | None) -> UUID | None:
    """Return the id of a proxy's link: the known one unless another link, or none, is given."""
    known = None if earlier is None else state.proxy_row(proxy.id).rotate_id
    if proxy.rotate_url is None or not _has_new_link(state, proxy):
        return known
    return uuid4() if proxy.rotate_url.get_secret_value() else None


def _has_new_link(state: State, proxy: Proxy) -> bool:
    """Return whether a proxy is given another link than it has; an empty one removes it."""
    if proxy.rotate_url is None:
        return False
    known = state.links.get(proxy.id)
    return proxy.rotate_url.get_secret_value() != (known.get_secret_value() if known else "")


def _credential_id(state: State, proxy: Proxy, earlier: Proxy | None) -> UUID:
    """Return the id of a proxy's credentials, a new one if account or password changed."""
    known = None if earlier is None else state.proxy_row(proxy.id).credential_id
    same = earlier is not None and (
        account_of(proxy) == account_of(earlier) and proxy.credentials == earlier.credentials
    )
    return known if known and same else uuid4()


def _keep_secrets(state: State, proxy: Proxy, earlier: Proxy | None) -> None:
    """Store a proxy's credentials and identity, which are not in any event."""
    if earlier is not None:
        forget_identity(state, earlier)
    remember_identity(state, proxy)
    if proxy.credentials is None:
        state.credentials.pop(proxy.id, None)
    else:
        state.credentials[proxy.id] = proxy.credentials.model_copy()
    if proxy.rotate_url is not None:
        state.links.pop(proxy.id, None)
        if proxy.rotate_url.get_secret_value():
            state.links[proxy.id] = proxy.rotate_url
    state.pool_of_proxy[proxy.id] = proxy.pool_id


def _is_same(proxy: Proxy, known: Proxy) -> bool:
    return proxy.placeholders == known.placeholders and proxy.model_dump(
        exclude=_NOT_COMPARED
    ) == known.model_dump(exclude=_NOT_COMPARED)

"""The steps of importing a list, which :mod:`pharox.storage.list_import` calls."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from ...models import Proxy
from ..list_import import ChangedProxy, Match
from .identities import match, unused_id
from .registry import pool_of_id, remove, save_proxies
from .state import State


def match_listed(state: State, pool_id: UUID, proxies: Sequence[Proxy]) -> list[Match]:
    """Return a match for each proxy of a list."""
    pool = pool_of_id(state, pool_id)
    return [match(state, pool.id, proxy) for proxy in proxies]


def register_listed(
    state: State, pool_id: UUID, proxies: Sequence[Proxy]
) -> tuple[list[UUID], int]:
    """Register proxies of a list with derived ids. Return the ids, and how many are new."""
    ids = [
        match(state, pool_id, proxy).known or unused_id(state, pool_id, proxy) for proxy in proxies
    ]
    named = [
        proxy.model_copy(update={"id": uuid, "pool_id": pool_id})
        for proxy, uuid in zip(proxies, ids, strict=True)
    ]
    return ids, save_proxies(state, named, change=False)


def replace_credentials(state: State, changes: Sequence[ChangedProxy]) -> int:
    """Set the credentials of known proxies from the list. Return how many still exist."""
    known = [each for each in changes if each.proxy_id in state.pool_of_proxy]
    for proxy_id, listed in known:
        update = {"credentials": listed.credentials, "template": listed.template}
        save_proxies(state, [state.proxy(proxy_id).model_copy(update=update)], change=True)
    return len(known)


def of_source(state: State, pool_id: UUID, source: str | None) -> list[UUID]:
    """Return the ids of a pool's proxies with this source."""
    members = sorted(state.pools[pool_id].members) if pool_id in state.pools else []
    return [each for each in members if state.proxy_row(each).source == source]


def remove_idle(state: State, pool_id: UUID, proxy_ids: Sequence[UUID]) -> list[UUID]:
    """Remove those of the given proxies that are not leased. Return their ids."""
    members = state.pools[pool_id].members if pool_id in state.pools else ()
    idle = [
        proxy_id
        for proxy_id in sorted(proxy_ids)
        if proxy_id in members and not state.current_state(pool_id, proxy_id).leases
    ]
    for proxy_id in idle:
        remove(state, pool_id, proxy_id)
    return idle

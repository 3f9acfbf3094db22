"""Identify the proxies of a list by account and password."""

from __future__ import annotations

from hashlib import blake2b
from itertools import chain, islice
from uuid import UUID, uuid4

from ...models import Proxy
from ...models.ids import derived_id, imported_proxy_id
from ..list_import import Match, account_of, password_of
from .state import State


def match(state: State, pool_id: UUID, proxy: Proxy) -> Match:
    """Return the proxies of a pool that match a proxy of a list."""
    by_password = state.accounts.get((pool_id, account_of(proxy)), {})
    if same := by_password.get(password_of(proxy)):
        return Match(min(same))
    return Match(None, tuple(islice(chain.from_iterable(by_password.values()), 2)))


def unused_id(state: State, pool_id: UUID, proxy: Proxy) -> UUID:
    """Return the derived id of a listed proxy, or a random one if the derived id is taken."""
    account = account_of(proxy)
    if proxy.credentials is None:
        derived = imported_proxy_id(pool_id, *account[:3])
    else:  # The hash has a key, because an id is public and must not reveal a password.
        identity = "\x00".join(map(str, (pool_id, *account, password_of(proxy))))
        digest = blake2b(identity.encode(), digest_size=16, key=state.fingerprint_key)
        derived = derived_id(digest.digest())
    return uuid4() if derived in state.pool_of_proxy else derived


def remember_identity(state: State, proxy: Proxy) -> None:
    """Add a proxy's account and password to the index."""
    by_password = state.accounts.setdefault((proxy.pool_id, account_of(proxy)), {})
    by_password.setdefault(password_of(proxy), set()).add(proxy.id)


def forget_identity(state: State, proxy: Proxy) -> None:
    """Remove a proxy's account and password from the index."""
    account, password = (proxy.pool_id, account_of(proxy)), password_of(proxy)
    by_password = state.accounts[account]
    by_password[password].discard(proxy.id)
    if not by_password[password]:
        del by_password[password]
    if not by_password:
        del state.accounts[account]

"""An acquisition returns the proxy with the lease: its URL is what an HTTP library takes."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from pydantic import SecretStr

from pharox import (
    InMemoryStorage,
    Lease,
    LeasedProxy,
    Proxy,
    ProxyCredentials,
    ProxyManager,
    ProxyNotFoundError,
    ProxyProtocol,
    SecretKeyError,
    new_lease_id,
)
from pharox.storage.interface import IStorage
from pharox.storage.postgres import PostgresStorage
from tests.conftest import AnyStorage, fill, ledger

SECRET = "p@ss/word"
LOGIN: dict[str, Any] = {"credentials": ProxyCredentials(user="us er", password=SecretStr(SECRET))}


def filled(storage: AnyStorage, count: int = 1, **fields: Any) -> Proxy:
    """Fill a pool with proxies that have the fields; return the first."""
    _, proxies = fill(storage, count, **fields)
    return proxies[0]


def leased(storage: AnyStorage, **options: Any) -> Lease:
    """Lease a proxy."""
    lease = ProxyManager(storage).acquire_proxy("pool", "w", **options)
    assert lease is not None
    return lease


@pytest.mark.parametrize("fields", [{}, LOGIN], ids=["plain", "login"])
def test_a_lease_has_its_proxys_url(any_storage: AnyStorage, fields: dict[str, Any]) -> None:
    """It is the URL of the proxy as the storage has it, with its credentials."""
    proxy = filled(any_storage, **fields)
    lease = leased(any_storage)
    assert isinstance(lease.proxy, LeasedProxy)
    assert lease.proxy.url == any_storage.get_proxy(str(proxy.id)).url
    assert ("us%20er:p%40ss%2Fword@" in lease.proxy.url) is bool(fields)
    assert lease.proxy.credentials == fields.get("credentials")
    assert (lease.proxy.protocol, lease.proxy.port) == (proxy.protocol, proxy.port)


def test_every_way_to_lease_returns_it(any_storage: AnyStorage) -> None:
    """A set, a filter, round-robin, an id of the caller's, asked again, exactly this proxy."""
    proxy = filled(any_storage, 6, **LOGIN)
    manager, mine = ProxyManager(any_storage), new_lease_id()
    leases = [
        *manager.acquire_proxies("pool", 2),
        leased(any_storage, selector="round_robin"),
        leased(any_storage, lease_id=mine),
        leased(any_storage, lease_id=mine),
    ]
    taken = {lease.proxy_id for lease in leases}
    free = next(p for p in any_storage.list_proxies(str(proxy.pool_id)) if p.id not in taken)
    leases.append(any_storage.create_lease(free, "w", 60))
    for lease in leases:
        assert lease.proxy.url == any_storage.get_proxy(str(lease.proxy_id)).url


def test_secrets_are_in_no_dump_repr_or_comparison(any_storage: AnyStorage) -> None:
    """A lease with its proxy equals the one that the storage returns, and shows no password."""
    filled(any_storage, **LOGIN)
    lease = leased(any_storage)
    shown = [lease.model_dump_json(), repr(lease), repr(lease.proxy), str(lease), f"{vars(lease)}"]
    assert lease.proxy.credentials is not None
    assert all(SECRET not in text and "us er" not in text for text in shown)
    assert "_proxy" not in lease.model_dump()
    assert any_storage.get_lease(str(lease.id)) == lease
    assert lease.model_copy().proxy.url == lease.proxy.url


def test_a_pickled_lease_takes_its_proxy_along(any_storage: AnyStorage) -> None:
    """Another process can use it, and gets no key of ours."""
    filled(any_storage, **LOGIN)
    lease = leased(any_storage)
    pickled = pickle.dumps(lease)
    found = pickle.loads(pickled)
    assert found == lease
    assert found.proxy.url == lease.proxy.url
    assert b"Vault" not in pickled


def test_a_lease_that_was_read_has_none(any_storage: AnyStorage) -> None:
    """It says where to get it."""
    filled(any_storage)
    lease = leased(any_storage)
    found = any_storage.get_lease(str(lease.id))
    assert found is not None
    with pytest.raises(ProxyNotFoundError, match=r"storage.get_proxy\(str\(lease.proxy_id\)\)"):
        _ = found.proxy


def test_leasing_needs_no_key_but_reading_does(
    postgres: PostgresStorage, database_url: str
) -> None:
    """A worker without PHAROX_SECRET_KEY leases, as ever; the URL says what it lacks."""
    filled(postgres, **LOGIN)
    with ledger(database_url) as other:
        other._commands.vault = type(other._commands.vault)(())
        lease = leased(other)
        assert lease.proxy.port > 0
        with pytest.raises(SecretKeyError, match="PHAROX_SECRET_KEY"):
            _ = lease.proxy.url


def test_a_proxy_that_is_registered_meanwhile_comes_too(postgres: PostgresStorage) -> None:
    """The statement may lease a proxy that was committed after it began."""
    filled(postgres, **LOGIN)
    with postgres.session(snapshot=False) as session:
        row = session.connection.execute(
            "SELECT provolatile FROM pg_proc WHERE proname = 'leased_proxy_v1'"
        ).fetchone()
    assert row == ("v",), "a volatile function sees it; a stable one would not"


def test_an_adapter_of_0_11_0_returns_it_as_well() -> None:
    """The default of acquire_lease found the proxy before it leased it."""

    class Older(InMemoryStorage):
        acquire_lease = IStorage.acquire_lease

    storage = Older()
    proxy = filled(storage, **LOGIN)
    assert leased(storage).proxy.url == storage.get_proxy(str(proxy.id)).url


def test_credentials_are_decrypted_once() -> None:
    """Decrypting happens when it is first read."""
    calls: list[int] = []

    def decrypt() -> ProxyCredentials:
        calls.append(1)
        found: ProxyCredentials = LOGIN["credentials"]
        return found

    proxy = LeasedProxy(ProxyProtocol.HTTP, "192.0.2.1", 8080, decrypt)
    assert calls == []
    assert proxy.url == proxy.url == "http://us%20er:p%40ss%2Fword@192.0.2.1:8080"
    assert calls == [1]
    assert repr(proxy) == "LeasedProxy('http://192.0.2.1:8080')"

"""HTTP clients through leased proxies of every protocol, blocking and awaited."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from pharox import (
    AsyncInMemoryStorage,
    AsyncLeasedClient,
    AsyncProxyManager,
    DatabaseUnavailableError,
    InMemoryStorage,
    InvalidInputError,
    LeasedClient,
    LeaseEndedError,
    LeaseStatus,
    Proxy,
    ProxyManager,
    ProxyPool,
    ProxyStatus,
    ProxyUnavailableError,
    RetryConfig,
)
from pharox.manager import clients
from pharox.testing import Awaited
from tests.conftest import fill, types_of
from tests.health.zoo import REAL, Zoo


class Ours:
    """A storage with one proxy, and clients of both kinds through it, used in the same way."""

    def __init__(self, proxy: Proxy) -> None:
        self.storage = AsyncInMemoryStorage()
        self.blocking = self.storage.memory
        self.blocking.save_pool(ProxyPool(id=proxy.pool_id, name="pool"))
        ready = {"status": ProxyStatus.ACTIVE, "max_concurrency": 1}
        self.blocking.save_proxy(proxy.model_copy(update=ready))

    def get(self, url: str, *, is_async: bool, **options: Any) -> httpx.Response:
        """Fetch a page through the proxy with a client made for it."""
        if not is_async:
            with ProxyManager(self.blocking).client("pool", client_options=options) as client:
                return client.get(url)

        async def main() -> httpx.Response:
            manager = AsyncProxyManager(self.storage)
            async with manager.client("pool", client_options=options) as client:
                return await client.get(url)

        return asyncio.run(main())

    @property
    def active(self) -> int:
        """How many leases there are."""
        leases = self.blocking.list_leases()
        return len([lease for lease in leases if lease.status is LeaseStatus.ACTIVE])


both = pytest.mark.parametrize("is_async", [False, True])


@both
@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize(("name", "protocol", "user"), REAL)
def test_a_client_goes_through_its_proxy(
    zoo: Zoo, name: str, protocol: str, user: str, *, tls: bool, is_async: bool
) -> None:
    """Whatever the proxy speaks, with and without a password, to sites with and without TLS."""
    ours = Ours(zoo.proxy(name, protocol, user))
    url = zoo.tls_target("/ok") if tls else zoo.target("/ok")
    answer = ours.get(url, is_async=is_async, verify=zoo.ssl_context())
    assert (answer.status_code, answer.text) == (200, "ok")
    assert ours.active == 0
    assert types_of(ours.blocking)[-3:] == ["LeaseAcquired", "OutcomeReported", "LeaseReleased"]


@both
def test_the_environment_does_not_choose_the_way(
    zoo: Zoo, monkeypatch: pytest.MonkeyPatch, *, is_async: bool
) -> None:
    """Neither another proxy nor NO_PROXY of the environment leads past the leased one."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "*")
    ours = Ours(zoo.proxy("http-503", "http"))
    answer = ours.get(zoo.target("/ok"), is_async=is_async)
    assert answer.status_code == 503
    assert ours.active == 0


@both
def test_options_are_those_of_httpx(zoo: Zoo, *, is_async: bool) -> None:
    """What else httpx takes is handed on; what would choose the way is refused."""
    ours = Ours(zoo.proxy("pproxy-http", "http"))
    answer = ours.get(
        "/redirect-once",
        is_async=is_async,
        base_url=zoo.target(""),
        follow_redirects=True,
        limits=httpx.Limits(max_connections=1),
        http1=True,
        headers={"x-job": "nightly"},
    )
    assert answer.status_code == 200
    assert answer.request.headers["x-job"] == "nightly"
    for name in ("proxy", "transport", "mounts"):
        with pytest.raises(InvalidInputError, match=name):
            ours.get(zoo.target("/ok"), is_async=is_async, **{name: None})
    with pytest.raises(TypeError):
        ours.get(zoo.target("/ok"), is_async=is_async, no_such_option=1)
    assert ours.active == 0


@both
@pytest.mark.parametrize(
    ("name", "protocol", "error", "timeout_s"),
    [
        ("socks5-silent-after-greeting", "socks5", httpx.ConnectTimeout, 0.3),
        ("socks5-error-2", "socks5", httpx.ProxyError, 20),
        ("socks4-refuses", "socks4", httpx.ProxyError, 20),
        ("http-silent", "http", httpx.ReadTimeout, 0.3),
    ],
)
def test_what_fails_is_an_error_of_httpx(
    zoo: Zoo, name: str, protocol: str, error: type[Exception], timeout_s: float, *, is_async: bool
) -> None:
    """Also where another library speaks SOCKS; and the lease is given back."""
    ours = Ours(zoo.proxy(name, protocol))
    with pytest.raises(error) as raised:
        ours.get(zoo.target("/ok"), is_async=is_async, timeout=timeout_s)
    assert isinstance(raised.value, httpx.TransportError)
    lease = ours.blocking.list_leases()[0]
    assert raised.value.__notes__ == [f"through proxy {lease.proxy_id}, lease {lease.id}"]
    assert ours.active == 0


@both
def test_no_proxy_free_is_told_with_the_reason(*, is_async: bool) -> None:
    """A client without a proxy would be useless, so a miss is an error here."""
    storage = AsyncInMemoryStorage()
    fill(storage.memory)
    retry = RetryConfig(max_attempts=2, backoff_seconds=0)
    held = ProxyManager(storage.memory).acquire_proxy("pool")
    assert held is not None

    def lease_client() -> None:
        if not is_async:
            ProxyManager(storage.memory).client("pool", retry_config=retry)
        with Awaited(storage) as loop:
            loop.run(AsyncProxyManager(storage).client("pool", retry_config=retry))

    with pytest.raises(ProxyUnavailableError, match="at_capacity") as missed:
        lease_client()
    assert missed.value.data["miss_reason"] == "at_capacity"
    assert types_of(storage.memory).count("AcquireMissed") == 2


@both
def test_a_client_sends_nothing_after_its_lease(zoo: Zoo, *, is_async: bool) -> None:
    """When the lease has run out somebody else may hold the proxy."""
    ours = Ours(zoo.proxy("pproxy-http", "http"))
    url = zoo.target("/ok")

    async def main() -> None:
        async with AsyncProxyManager(ours.storage).client(
            "pool", duration_seconds=3, keep_alive=False
        ) as client:
            assert (await client.get(url)).status_code == 200
            time.sleep(3)
            await client.get(url)

    def block() -> None:
        with ProxyManager(ours.blocking).client(
            "pool", duration_seconds=3, keep_alive=False
        ) as client:
            assert client.get(url).status_code == 200
            time.sleep(3)
            client.get(url)

    run: Callable[[], None] = (lambda: asyncio.run(main())) if is_async else block
    with pytest.raises(LeaseEndedError) as ended:
        run()
    assert ended.value.data["lease_id"] == ours.blocking.list_leases()[0].id


def test_closing_twice_gives_back_once(zoo: Zoo) -> None:
    """``close`` and the end of a block may both come; a closed client is refused by httpx."""
    ours = Ours(zoo.proxy("pproxy-http", "http"))
    manager = ProxyManager(ours.blocking)
    told: list[Any] = []
    manager.register_release_callback(told.append)
    client = manager.client("pool", "crawler", 60)
    assert isinstance(client, LeasedClient)
    assert client.lease.consumer_name == "crawler"
    assert ours.active == 1
    client.close()
    client.close()
    assert ours.active == 0
    assert len(told) == 1
    with pytest.raises(RuntimeError, match="closed"):
        client.get(zoo.target("/ok"))

    async def main() -> None:
        client = await AsyncProxyManager(ours.storage).client("pool")
        assert isinstance(client, AsyncLeasedClient)
        assert ours.active == 1
        await client.aclose()
        await client.aclose()

    asyncio.run(main())
    assert ours.active == 0


@both
def test_the_exception_of_a_block_comes_through(zoo: Zoo, *, is_async: bool) -> None:
    """A release callback that fails does not replace it."""
    ours = Ours(zoo.proxy("pproxy-http", "http"))

    def fail(payload: Any) -> None:
        raise RuntimeError("listener")

    async def main() -> None:
        manager = AsyncProxyManager(ours.storage)
        manager.register_release_callback(fail)
        async with manager.client("pool"):
            raise ZeroDivisionError

    def block() -> None:
        manager = ProxyManager(ours.blocking)
        manager.register_release_callback(fail)
        with manager.client("pool"):
            raise ZeroDivisionError

    run: Callable[[], None] = (lambda: asyncio.run(main())) if is_async else block
    with pytest.raises(ZeroDivisionError) as raised:
        run()
    assert "listener" in raised.value.__notes__[0]
    assert ours.active == 0


def test_a_client_reads_nothing_after_the_acquisition(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy came with the lease."""
    storage = InMemoryStorage()
    fill(storage)
    monkeypatch.delattr(InMemoryStorage, "get_proxy")
    with ProxyManager(storage).client("pool") as client:
        assert client.lease.proxy.host == "10.0.0.0"


def test_a_client_is_opened_once() -> None:
    """To await it again, or to enter it afterwards, is an error and leases nothing."""
    storage = AsyncInMemoryStorage()
    fill(storage.memory)

    async def main() -> None:
        opening = AsyncProxyManager(storage).client("pool")
        async with opening as client:
            assert client.lease.status is LeaseStatus.ACTIVE
            with pytest.raises(InvalidInputError, match="opened only once"):
                await opening
        with pytest.raises(InvalidInputError, match="opened only once"):
            await opening

    asyncio.run(main())
    assert types_of(storage.memory).count("LeaseAcquired") == 1


def test_a_close_whose_release_failed_can_be_repeated() -> None:
    """The lease is not forgotten."""
    storage = InMemoryStorage()
    fill(storage)
    manager = ProxyManager(storage)
    client = manager.client("pool")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "return_lease", _unavailable)
        with pytest.raises(DatabaseUnavailableError):
            client.close()
    client.close()
    assert [lease.status for lease in storage.list_leases()] == [LeaseStatus.RELEASED]


def _unavailable(*_: Any, **__: Any) -> None:
    raise DatabaseUnavailableError("away")


def test_a_lease_counts_from_when_it_was_asked_for() -> None:
    """A slow callback takes from the time in which the client may send."""
    storage = InMemoryStorage()
    fill(storage)
    manager = ProxyManager(storage)
    manager.register_acquire_callback(lambda payload: time.sleep(1.1))
    with manager.client("pool", duration_seconds=1) as client, pytest.raises(LeaseEndedError):
        client.get("http://127.0.0.1:1/")


def test_a_client_sends_nothing_after_its_lease_was_released() -> None:
    """Released by hand with the client's own lease, the proxy may be somebody else's."""
    storage = InMemoryStorage()
    fill(storage)
    manager = ProxyManager(storage)
    with manager.client("pool") as client:
        manager.release_proxy(client.lease)
        with pytest.raises(LeaseEndedError, match="released"):
            client.get("http://127.0.0.1:1/")


def test_clients_share_a_tls_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes longer to make than a lease; who asks for something else gets another one."""
    made: list[dict[str, Any]] = []
    original = httpx.create_ssl_context

    def counting(**options: Any) -> Any:
        made.append(options)
        return original(**options)

    clients._usual_ssl_context.cache_clear()
    monkeypatch.setattr(httpx, "create_ssl_context", counting)
    storage = InMemoryStorage()
    fill(storage)
    manager = ProxyManager(storage)
    for options in ({}, {"timeout": 3}, {"follow_redirects": True}, {"verify": False}):
        manager.client("pool", client_options=options).close()
    assert [each.get("verify") for each in made] == [None, False]


def test_there_is_no_such_pool() -> None:
    """The error for a misspelled pool says that there is no such pool."""
    with pytest.raises(ProxyUnavailableError, match="There is no pool 'nowhere'"):
        ProxyManager(InMemoryStorage()).client("nowhere")

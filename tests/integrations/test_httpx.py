"""Clients of httpx with a proxy a request."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from pharox import (
    AsyncProxyManager,
    LeaseLostError,
    ProxyUnavailableError,
    SelectorStrategy,
)
from pharox.integrations import httpx as integration
from pharox.integrations.httpx import AsyncPharoxTransport, PharoxTransport
from pharox.integrations.testing import Behaviour, ProxyLab, proxy_lab
from tests.aio.test_clients import both
from tests.conftest import AnyStorage, for_tasks
from tests.integrations.common import in_thread, kinds, only, told, until
from tests.integrations.conftest import AUTHORITY, GOOD

TRUST = {"verify": ssl.create_default_context(cadata=AUTHORITY.cert_pem.bytes().decode())}


@pytest.fixture
def three() -> Iterator[ProxyLab]:
    """Run three good proxies of different kinds."""
    behaviours = {
        "one": Behaviour(),
        "two": Behaviour(user="a", password="b"),
        "socks": Behaviour(protocol="socks5"),
    }
    with proxy_lab(behaviours, authority=AUTHORITY) as lab:
        yield lab


def fetched(
    lab: ProxyLab, options: Any, *urls: str, is_async: bool, of_client: Any = None
) -> list[httpx.Response]:
    """Fetch pages one after another by a client whose requests lease a proxy each."""
    found: Any = {"transport_options": TRUST, **options}
    asked = {"timeout": 10, **(of_client or {})}
    if not is_async:
        with httpx.Client(transport=PharoxTransport(lab.manager, "lab", **found), **asked) as one:
            return [one.get(url) for url in urls]

    async def main() -> list[httpx.Response]:
        manager = lab.async_manager
        transport = AsyncPharoxTransport(manager, "lab", **found)
        try:
            async with httpx.AsyncClient(transport=transport, **asked) as client:
                return [await client.get(url) for url in urls]
        finally:
            await manager.flush_reports()

    return asyncio.run(main())


@both
@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("name", GOOD)
def test_a_request_goes_through_a_proxy(
    lab: ProxyLab, name: str, *, tls: bool, is_async: bool
) -> None:
    """Its connection waits for the next lease of the proxy."""
    urls = [lab.url(path, tls=tls) for path in ("/1", "/2", "/3")]
    answers = fetched(lab, only(lab, name), *urls, is_async=is_async)
    assert [answer.text.split(" ")[0] for answer in answers] == [name] * 3
    assert len({each.connection for each in lab.seen}) == 1
    assert set(told(lab)) == {(name, "ok", "shop.example")}
    assert lab.held == []


@both
@pytest.mark.parametrize("tls", [False, True])
def test_no_connection_is_used_for_another_proxy(
    three: ProxyLab, *, tls: bool, is_async: bool
) -> None:
    """Each request has the proxy that was leased longest ago, and its own connection to it."""
    options = {"selector": SelectorStrategy.LEAST_RECENTLY_USED}
    urls = [three.url(f"/{n}", tls=tls) for n in range(9)]
    fetched(three, options, *urls, is_async=is_async)
    ways = {(each.proxy, each.connection) for each in three.seen}
    assert {proxy for proxy, _ in ways} == {"one", "two", "socks"}
    assert len({connection for _, connection in ways}) == len(ways) == 3


@both
def test_each_request_is_for_its_host(lab: ProxyLab, *, is_async: bool) -> None:
    """Who is refused at one host goes on at others, as the lease is for the host of a request."""
    refused = only(lab, "refusing", wait_seconds=None)
    with pytest.raises(ProxyUnavailableError) as missed:
        fetched(lab, refused, lab.url(), lab.url(), is_async=is_async)
    assert missed.value.reason == "cooling_down"
    fetched(lab, refused, lab.url(host="news.example"), is_async=is_async)
    assert [each.url for each in lab.seen] == [lab.url(), lab.url(host="news.example")]
    fetched(lab, {**refused, "target": None}, lab.url(), is_async=is_async)
    assert {each.kind.value for each in lab.outcomes} == {"blocked"}
    assert lab.held == []


@both
def test_redirects_lease_a_proxy_each(three: ProxyLab, *, is_async: bool) -> None:
    url = three.url("/redirect/status/404")
    (answer,) = fetched(three, {}, url, of_client={"follow_redirects": True}, is_async=is_async)
    assert answer.status_code == 404
    assert [each.status for each in three.outcomes] == [302, 404]
    assert three.held == []


@both
@pytest.mark.parametrize(
    ("name", "expected"),
    [("dying", ["ok", "unclear"]), ("slow", ["unclear"]), ("down", ["proxy_failed"])],
)
def test_who_is_to_blame(lab: ProxyLab, name: str, expected: list[str], *, is_async: bool) -> None:
    with pytest.raises(httpx.TransportError):
        fetched(lab, only(lab, name), lab.url(), of_client={"timeout": 0.5}, is_async=is_async)
    assert kinds(lab) == expected
    assert lab.held == []


@both
def test_reporting_can_be_switched_off(lab: ProxyLab, *, is_async: bool) -> None:
    fetched(lab, only(lab, "refusing", report=False), lab.url(), is_async=is_async)
    assert kinds(lab) == []


def test_a_response_holds_the_lease_until_it_is_closed(lab: ProxyLab) -> None:
    """Also where the block that reads it raises, and where the client is closed before it."""
    transport = PharoxTransport(lab.manager, "lab", **only(lab, "good"))
    client = httpx.Client(transport=transport)
    with client.stream("GET", lab.url()):
        assert [lab.name_of(lease) for lease in lab.held] == ["good"]
    assert lab.held == []

    def work() -> None:
        with client.stream("GET", lab.url()):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert lab.held == []
    response = client.send(client.build_request("GET", lab.url()), stream=True)
    assert len(lab.held) == 1
    client.close()
    assert lab.held == []
    response.close()


def test_two_requests_at_once_have_two_proxies(three: ProxyLab) -> None:
    client = httpx.Client(transport=PharoxTransport(three.manager, "lab"))
    with client, client.stream("GET", three.url()), client.stream("GET", three.url()):
        assert len({lease.proxy_id for lease in three.held}) == 2
    assert three.held == []


def test_few_connections_wait(three: ProxyLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many proxies the connections longest idle are closed."""
    monkeypatch.setattr(integration, "MOST_IDLE", 1)
    options = {"selector": SelectorStrategy.LEAST_RECENTLY_USED}
    fetched(three, options, *[three.url()] * 6, is_async=False)
    assert len({each.connection for each in three.seen}) == 6


def test_a_cancelled_task_gives_the_lease_back(lab: ProxyLab) -> None:
    """In the middle of a request, of which nothing is reported."""

    async def main() -> None:
        transport = AsyncPharoxTransport(lab.async_manager, "lab", **only(lab, "slow"))
        async with httpx.AsyncClient(transport=transport) as client:
            task = asyncio.create_task(client.get(lab.url()))
            while not lab.seen:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert lab.held == []

    asyncio.run(main())
    assert kinds(lab) == []


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("name", ["slow", "stalling"])
def test_a_lost_lease_ends_its_request(
    lab: ProxyLab, caplog: pytest.LogCaptureFixture, name: str, *, tls: bool
) -> None:
    """The reason is in the log, and the next request leases again."""
    transport = PharoxTransport(
        lab.manager, "lab", transport_options=TRUST, **only(lab, name, "good")
    )
    wanted = lab.proxies["good"].id
    with httpx.Client(transport=transport, timeout=25) as client:
        held = lab.manager.pool("lab", **only(lab, "good"))
        with held.lease(), in_thread(lambda: client.get(lab.url(tls=tls))) as ended:
            until(lambda: lab.seen)
            (lost,) = (lease for lease in lab.held if lease.proxy_id != wanted)
            lab.manager.revoke_lease(lost.id, "it hung")
        assert isinstance(ended[0], LeaseLostError), ended
    assert lab.held == []
    assert "unclear" not in kinds(lab)
    assert "pharox.lease.lost" in caplog.text


@pytest.mark.parametrize("name", ["slow", "stalling"])
def test_a_lost_lease_ends_what_is_awaited(lab: ProxyLab, name: str) -> None:
    async def main() -> None:
        manager = lab.async_manager
        transport = AsyncPharoxTransport(manager, "lab", **only(lab, name))
        async with httpx.AsyncClient(transport=transport, timeout=25) as client:
            task = asyncio.create_task(client.get(lab.url()))
            while not lab.seen:
                await asyncio.sleep(0.01)
            await manager.revoke_lease(lab.held[0].id, "it hung")
            with pytest.raises(LeaseLostError):
                await asyncio.wait_for(task, 5)

    asyncio.run(main())
    assert lab.held == []
    assert "unclear" not in kinds(lab)


@both
def test_the_environment_does_not_choose_the_way(
    lab: ProxyLab, monkeypatch: pytest.MonkeyPatch, *, is_async: bool
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    (answer,) = fetched(lab, only(lab, "password"), lab.url(), is_async=is_async)
    assert answer.text.startswith("password ")


def test_options_are_those_of_a_transport(lab: ProxyLab) -> None:
    with pytest.raises(TypeError, match="transport_options cannot have nonsense"):
        fetched(lab, {"transport_options": {"nonsense": 1}}, lab.url(), is_async=False)
    with pytest.raises(TypeError, match="no option 'nonsense'"):
        fetched(lab, {"nonsense": 1}, lab.url(), is_async=False)
    assert lab.held == []


def test_any_ledger_will_do(any_storage: AnyStorage) -> None:
    async def main(lab: ProxyLab) -> None:
        storage = for_tasks(any_storage)
        transport = AsyncPharoxTransport(AsyncProxyManager(storage), "lab")
        try:
            async with httpx.AsyncClient(transport=transport) as client:
                assert (await client.get(lab.url())).status_code == 200
        finally:
            await storage.close()

    with proxy_lab({"good": Behaviour(user="a", password="ü€")}, storage=any_storage) as lab:
        fetched(lab, {"consumer": "crawler-7", "keep_alive": False}, lab.url(), is_async=False)
        asyncio.run(main(lab))
        assert (kinds(lab), lab.held) == (["ok", "ok"], [])

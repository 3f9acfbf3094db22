"""Clients of httpx2 with a proxy a request: what the transports hand on, and hand back."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx2
import pytest

from pharox import LeaseLostError, ProxyUnavailableError
from pharox.integrations.httpx2 import AsyncPharoxTransport, PharoxTransport
from pharox.integrations.testing import ProxyLab
from tests.aio.test_clients import both
from tests.integrations.common import kinds, only, told
from tests.integrations.conftest import AUTHORITY, GOOD

TRUST = {"verify": ssl.create_default_context(cadata=AUTHORITY.cert_pem.bytes().decode())}


def asked(
    lab: ProxyLab, options: Any, *requests: dict[str, Any], is_async: bool, timeout: float = 10
) -> list[httpx2.Response]:
    """Send requests one after another by a client whose requests lease a proxy each."""
    found: Any = {"transport_options": TRUST, **options}
    if not is_async:
        transport = PharoxTransport(lab.manager, "lab", **found)
        with httpx2.Client(transport=transport, timeout=timeout) as client:
            return [client.request(**request) for request in requests]

    async def main() -> list[httpx2.Response]:
        manager = lab.async_manager
        transport = AsyncPharoxTransport(manager, "lab", **found)
        try:
            async with httpx2.AsyncClient(transport=transport, timeout=timeout) as client:
                return [await client.request(**request) for request in requests]
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
    urls = [lab.url(path, tls=tls) for path in ("/1", "/2?a=%2F&b=ü", "/3")]
    requests = [{"method": "GET", "url": url} for url in urls]
    answers = asked(lab, only(lab, name), *requests, is_async=is_async)
    assert [answer.text.split(" ")[0] for answer in answers] == [name] * 3
    assert len({each.connection for each in lab.seen}) == 1
    assert set(told(lab)) == {(name, "ok", "shop.example")}
    assert lab.held == []


@both
def test_a_body_is_sent_whole(lab: ProxyLab, *, is_async: bool) -> None:
    """One of known length, and one that comes in parts."""

    def parts() -> Iterator[bytes]:
        yield from (b"a" * 10, b"b" * 10)

    async def async_parts() -> AsyncIterator[bytes]:
        for part in parts():
            yield part

    streamed = async_parts() if is_async else parts()
    requests: list[dict[str, Any]] = [
        {"method": "POST", "url": lab.url("/1"), "content": b"x" * 20},
        {"method": "POST", "url": lab.url("/2"), "content": streamed},
    ]
    answers = asked(lab, only(lab, "good"), *requests, is_async=is_async)
    assert [answer.status_code for answer in answers] == [200, 200]
    assert lab.held == []


@both
@pytest.mark.parametrize(
    ("name", "error", "expected"),
    [
        ("dying", httpx2.RemoteProtocolError, ["ok", "unclear"]),
        ("slow", httpx2.ReadTimeout, ["unclear"]),
        ("down", httpx2.ConnectError, ["proxy_failed"]),
    ],
)
def test_errors_are_those_of_httpx2(
    lab: ProxyLab, name: str, error: type[Exception], expected: list[str], *, is_async: bool
) -> None:
    request = {"method": "GET", "url": lab.url()}
    with pytest.raises(error) as raised:
        asked(lab, only(lab, name), request, is_async=is_async, timeout=0.5)
    assert isinstance(raised.value, httpx2.TransportError)
    assert str(raised.value.request.url) == lab.url()
    assert kinds(lab) == expected
    assert lab.held == []


@both
def test_errors_of_ours_stay_ours(lab: ProxyLab, *, is_async: bool) -> None:
    """Who is refused is not lent to the next request for the host."""
    refused = only(lab, "refusing", wait_seconds=None)
    request: dict[str, Any] = {"method": "GET", "url": lab.url()}
    with pytest.raises(ProxyUnavailableError) as missed:
        asked(lab, refused, request, request, is_async=is_async)
    assert missed.value.reason == "cooling_down"
    assert lab.held == []


def test_a_lost_lease_ends_what_is_awaited(lab: ProxyLab) -> None:
    async def main() -> None:
        manager = lab.async_manager
        transport = AsyncPharoxTransport(manager, "lab", **only(lab, "stalling"))
        async with httpx2.AsyncClient(transport=transport, timeout=25) as client:
            task = asyncio.create_task(client.get(lab.url()))
            while not lab.seen:
                await asyncio.sleep(0.01)
            await manager.revoke_lease(lab.held[0].id, "it hung")
            with pytest.raises(LeaseLostError):
                await asyncio.wait_for(task, 5)

    asyncio.run(main())
    assert lab.held == []


def test_a_cancelled_task_gives_the_lease_back(lab: ProxyLab) -> None:
    """In the middle of a request, of which nothing is reported."""

    async def main() -> None:
        transport = AsyncPharoxTransport(lab.async_manager, "lab", **only(lab, "slow"))
        async with httpx2.AsyncClient(transport=transport) as client:
            task = asyncio.create_task(client.get(lab.url()))
            while not lab.seen:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert lab.held == []

    asyncio.run(main())
    assert kinds(lab) == []

"""Clients report by themselves what became of their requests, blocking and awaited."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import suppress
from typing import Any

import httpx
import pytest

from pharox import (
    AsyncProxyManager,
    DatabaseUnavailableError,
    LeaseEndedError,
    Outcome,
    OutcomeKind,
    ProxyManager,
)
from pharox.errors import OutOfResourcesError
from pharox.manager.tally import known_tally
from tests.aio.test_clients import Ours, both
from tests.health.zoo import HOST, Zoo
from tests.leasing.test_reporting import reports

PROXY_FAILED, UNCLEAR, OK = OutcomeKind.PROXY_FAILED, OutcomeKind.UNCLEAR, OutcomeKind.OK
BLOCKED, TARGET_FAILED = OutcomeKind.BLOCKED, OutcomeKind.TARGET_FAILED


def tried(ours: Ours, url: str, *, is_async: bool, **options: Any) -> None:
    """Fetch a page through the proxy, whatever comes of it."""
    with suppress(httpx.TransportError):
        ours.get(url, is_async=is_async, timeout=0.5, **options)


@both
@pytest.mark.parametrize(
    ("name", "protocol", "page", "kind", "status"),
    [
        ("pproxy-http", "http", "/ok", OK, 200),
        ("pproxy-http", "http", "/status/403", BLOCKED, 403),
        ("pproxy-http", "http", "/status/404", OK, 404),
        ("pproxy-http", "http", "/status/429", BLOCKED, 429),
        ("pproxy-http", "http", "/status/503", TARGET_FAILED, 503),
        ("pproxy-http", "http", "tls:/ok", OK, 200),
        ("pproxy-http", "http", "tls:/status/407", BLOCKED, 407),
        ("pproxy-socks5", "socks5", "tls:/status/429", BLOCKED, 429),
        ("http-407", "http", "/ok", PROXY_FAILED, 407),
        ("http-407", "http", "tls:/ok", PROXY_FAILED, 407),
        ("http-503", "http", "tls:/ok", UNCLEAR, None),
        ("http-silent", "http", "/ok", UNCLEAR, None),
        ("http-silent", "http", "tls:/ok", UNCLEAR, None),
        ("http-closes", "http", "/ok", UNCLEAR, None),
        ("http-garbage", "http", "/ok", UNCLEAR, None),
        ("tunnel-silent", "http", "tls:/ok", UNCLEAR, None),
        ("tunnel-closes", "http", "tls:/ok", UNCLEAR, None),
        ("tunnel-garbage", "http", "tls:/ok", UNCLEAR, None),
        ("silent", "https", "/ok", PROXY_FAILED, None),
        ("closes", "https", "/ok", PROXY_FAILED, None),
        ("speaks-http", "https", "tls:/ok", PROXY_FAILED, None),
        ("socks5-silent-after-greeting", "socks5", "/ok", UNCLEAR, None),
        ("socks5-closes-in-tunnel", "socks5", "/ok", UNCLEAR, None),
        ("socks5-error-4", "socks5", "/ok", UNCLEAR, None),
        ("socks5-wrong-version", "socks5", "/ok", PROXY_FAILED, None),
        ("socks5-no-method", "socks5", "/ok", PROXY_FAILED, None),
        ("socks4-refuses", "socks4", "/ok", UNCLEAR, None),
        ("socks4-refuses-user", "socks4", "/ok", PROXY_FAILED, None),
    ],
)
def test_who_is_to_blame(
    zoo: Zoo,
    name: str,
    protocol: str,
    page: str,
    kind: OutcomeKind,
    status: int | None,
    *,
    is_async: bool,
) -> None:
    """Only what certainly did not get through the proxy is its fault."""
    ours = Ours(zoo.proxy(name, protocol))
    url = zoo.tls_target(page[4:]) if page.startswith("tls:") else zoo.target(page)
    tried(ours, url, is_async=is_async, verify=zoo.ssl_context())
    (report,) = reports(ours.blocking)
    assert (report.outcome, report.status, report.target) == (kind, status, HOST)
    assert "sesame" not in (report.note or "")
    assert ours.active == 0


@both
@pytest.mark.parametrize("protocol", ["http", "https", "socks4", "socks5"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_is_not_there_has_failed(
    zoo: Zoo, protocol: str, scheme: str, *, is_async: bool
) -> None:
    proxy = zoo.proxy("silent", protocol).model_copy(update={"port": 1})
    ours = Ours(proxy)
    tried(ours, f"{scheme}://Shop.Example/page?key=secret", is_async=is_async)
    (report,) = reports(ours.blocking)
    assert (report.outcome, report.target) == (PROXY_FAILED, "shop.example")
    assert report.note == "the proxy's port refused the connection"


@both
def test_each_hop_counts(zoo: Zoo, *, is_async: bool) -> None:
    """A redirect and its page are two requests; the length of each body is known."""
    ours = Ours(zoo.proxy("pproxy-http", "http"))
    ours.get(zoo.target("/redirect-once"), is_async=is_async, follow_redirects=True)
    assert [(each.status, each.bytes) for each in reports(ours.blocking)] == [(301, 2), (200, 2)]


@both
def test_an_answer_that_breaks_off_is_also_unclear(zoo: Zoo, *, is_async: bool) -> None:
    """Its head was an answer."""
    ours = Ours(zoo.proxy("pproxy-http", "http"))
    tried(ours, zoo.target("/close-midway"), is_async=is_async)
    assert [each.outcome for each in reports(ours.blocking)] == [OK, UNCLEAR]


@both
def test_mistakes_of_the_caller_are_not_reported(zoo: Zoo, *, is_async: bool) -> None:
    """Nor is what this machine lacks."""
    ours = Ours(zoo.proxy("pproxy-http", "http"))
    for url in ("ftp://shop.example/", f"http://{'x' * 64}.example/"):
        tried(ours, url, is_async=is_async)
    assert reports(ours.blocking) == []


@both
def test_reporting_can_be_switched_off(zoo: Zoo, *, is_async: bool) -> None:
    ours = Ours(zoo.proxy("pproxy-http", "http"))

    async def main() -> None:
        pool = AsyncProxyManager(ours.storage).pool("pool")
        async with pool.client(report=False) as client:
            assert (await client.get(zoo.target("/status/403"))).status_code == 403

    if is_async:
        asyncio.run(main())
    else:
        with ProxyManager(ours.blocking).pool("pool").client(report=False) as client:
            assert client.get(zoo.target("/status/403")).status_code == 403
    assert reports(ours.blocking) == []


@both
def test_a_request_waits_for_no_report_and_fails_because_of_none(
    zoo: Zoo, monkeypatch: pytest.MonkeyPatch, *, is_async: bool
) -> None:
    """The database may be slow, or away."""
    ours = Ours(zoo.proxy("pproxy-http", "http"))

    def fail(_: object) -> Any:
        time.sleep(0.05)
        raise DatabaseUnavailableError("down")

    monkeypatch.setattr(ours.blocking, "report_outcomes", fail)
    answer = ours.get(zoo.target("/status/429"), is_async=is_async)
    assert answer.status_code == 429
    assert ours.active == 0
    monkeypatch.undo()
    storage = ours.storage if is_async else ours.blocking
    assert len(known_tally(storage) or ()) == 1, "it is tried again"


@both
def test_an_outcome_that_cannot_be_told_is_logged(
    zoo: Zoo,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    *,
    is_async: bool,
) -> None:
    """A mistake of ours is none of the holder's."""

    def fail(*_: Any, **__: Any) -> Any:
        raise OutOfResourcesError("bug")

    monkeypatch.setattr(Outcome, "from_response", fail)
    ours = Ours(zoo.proxy("pproxy-http", "http"))
    assert ours.get(zoo.target("/ok"), is_async=is_async).status_code == 200
    assert "pharox.report.failed" in caplog.text
    assert reports(ours.blocking) == []


def test_a_refusal_is_written_while_the_client_goes_on(zoo: Zoo) -> None:
    """Others who lease for the target see it at once."""
    ours = Ours(zoo.proxy("pproxy-http", "http"))
    with ProxyManager(ours.blocking).client("pool") as client:
        client.get(zoo.target("/ok"))
        client.get(zoo.target("/status/429"))
        deadline = time.monotonic() + 5
        while len(reports(ours.blocking)) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert [each.outcome for each in reports(ours.blocking)] == [OK, BLOCKED]
        assert reports(ours.blocking)[-1].cools_until is not None


def test_a_task_s_refusal_is_written_while_the_client_goes_on(zoo: Zoo) -> None:
    """The same in an event loop."""
    ours = Ours(zoo.proxy("pproxy-http", "http"))

    async def main() -> None:
        async with AsyncProxyManager(ours.storage).client("pool") as client:
            await client.get(zoo.target("/ok"))
            await client.get(zoo.target("/status/429"))
            async with asyncio.timeout(5):
                while len(reports(ours.blocking)) < 2:
                    await asyncio.sleep(0.01)

    asyncio.run(main())
    assert [each.outcome for each in reports(ours.blocking)] == [OK, BLOCKED]


def test_requests_ended_by_a_lost_lease_are_not_reported(zoo: Zoo) -> None:
    """They say nothing of the proxy."""
    ours = Ours(zoo.proxy("http-silent", "http"))
    manager = ProxyManager(ours.blocking)
    with manager.client("pool", client_options={"timeout": 10}) as client:
        lease_id = client.lease.id
        timer = threading.Timer(0.2, lambda: manager.revoke_lease(lease_id, "maintenance"))
        timer.start()
        with pytest.raises(LeaseEndedError):
            client.get(zoo.target("/ok"))
        timer.join()
    assert reports(ours.blocking) == []

"""Sessions of aiohttp through leased proxies."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from pharox import (
    AsyncProxyManager,
    InvalidInputError,
    LeaseEndedError,
    LeaseLostError,
    ProxyProtocol,
    ProxyUnavailableError,
)
from pharox.integrations.aiohttp import pharox_session
from pharox.integrations.testing import Behaviour, ProxyLab, proxy_lab
from tests.aio.test_clients import Ours
from tests.conftest import AnyStorage, for_tasks, types_of
from tests.health.zoo import Zoo
from tests.integrations.common import kinds, only, told
from tests.integrations.conftest import AUTHORITY, GOOD

TRUST = ssl.create_default_context(cadata=AUTHORITY.cert_pem.bytes().decode())
SOON = aiohttp.ClientTimeout(total=10)


@asynccontextmanager
async def opened(
    lab: ProxyLab, *names: str, session_options: Any = None, **options: Any
) -> AsyncIterator[aiohttp.ClientSession]:
    """Open a session through one of the proxies of these names, and write what it reports."""
    manager = lab.async_manager
    chosen = {"timeout": SOON, **(session_options or {})}
    trust = {"ssl": TRUST}
    found = only(lab, *names, **options)
    try:
        async with pharox_session(
            manager, "lab", session_options=chosen, connector_options=trust, **found
        ) as session:
            yield session
    finally:
        await manager.flush_reports()


async def status_of(session: aiohttp.ClientSession, url: str) -> int:
    """Ask for a page, read it, and return its status."""
    async with session.get(url) as answer:
        await answer.read()
        return answer.status


def run(work: Callable[[], Awaitable[None]]) -> None:
    """Run a coroutine, and let transports close."""

    async def main() -> None:
        await work()
        await asyncio.sleep(0.05)

    asyncio.run(main())


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("name", GOOD)
def test_requests_go_through_the_proxy(lab: ProxyLab, name: str, *, tls: bool) -> None:
    """With and without a password, over HTTP and SOCKS, to a host that only the proxy knows."""

    async def main() -> None:
        async with opened(lab, name) as session:
            for path in ("/1", "/2"):
                async with session.get(lab.url(path, tls=tls)) as answer:
                    assert (await answer.text()).startswith(f"{name} ")
            assert len(lab.held) == 1

    run(main)
    assert len({each.connection for each in lab.seen}) == 1
    assert lab.held == []
    assert set(told(lab)) == {(name, "ok", "shop.example")}


@pytest.mark.parametrize("tls", [False, True])
def test_a_refusal_has_the_proxy_rest_for_the_host(lab: ProxyLab, *, tls: bool) -> None:
    async def main() -> None:
        async with opened(lab, "refusing") as session, session.get(lab.url(tls=tls)) as answer:
            assert answer.status == 403
        with pytest.raises(ProxyUnavailableError) as missed:
            async with opened(lab, "refusing", target="shop.example", wait_seconds=None):
                pass
        assert missed.value.reason == "cooling_down"

    run(main)
    assert told(lab) == [("refusing", "blocked", "shop.example")]
    assert lab.held == []


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("in_pieces", [False, True])
def test_an_answer_that_breaks_off_is_unclear(lab: ProxyLab, *, tls: bool, in_pieces: bool) -> None:
    async def main() -> None:
        async with opened(lab, "dying") as session:
            with pytest.raises(aiohttp.ClientError):
                await _get(session, lab.url(tls=tls), in_pieces=in_pieces)

    run(main)
    assert kinds(lab) == ["ok", "unclear"]
    assert lab.held == []


@pytest.mark.parametrize(
    ("name", "kind"),
    [("down", "proxy_failed"), ("socks-down", "proxy_failed"), ("slow", "unclear")],
)
def test_who_is_to_blame(name: str, kind: str) -> None:
    behaviours = {
        "down": Behaviour(is_down=True),
        "socks-down": Behaviour(protocol="socks5", is_down=True),
        "slow": Behaviour(delay_s=30),
    }

    async def main(lab: ProxyLab) -> None:
        soon = {"timeout": aiohttp.ClientTimeout(total=0.3)}
        async with opened(lab, name, session_options=soon) as session:
            with pytest.raises((TimeoutError, aiohttp.ClientConnectionError)):
                await session.get(lab.url())

    with proxy_lab(behaviours) as lab:
        run(lambda: main(lab))
        assert told(lab) == [(name, kind, "shop.example")]
        assert lab.held == []


@pytest.mark.parametrize("protocol", ["http", "socks5"])
@pytest.mark.parametrize("tls", [False, True])
def test_a_refused_login_is_the_proxys_failure(protocol: Any, *, tls: bool) -> None:
    async def main(lab: ProxyLab) -> None:
        wrong = lab.proxies["one"].model_copy(update={"credentials": None})
        lab.storage.save_proxy(wrong)
        async with opened(lab, "one") as session:
            try:
                assert await status_of(session, lab.url(tls=tls)) == 407
            except aiohttp.ClientError:
                assert tls or protocol == "socks5"

    behaviour = Behaviour(protocol=protocol, user="alice", password="right")
    with proxy_lab({"one": behaviour}, authority=AUTHORITY) as lab:
        run(lambda: main(lab))
        assert kinds(lab) == ["proxy_failed"]


def test_each_hop_counts(lab: ProxyLab) -> None:
    async def main() -> None:
        async with opened(lab, "good") as session:
            assert await status_of(session, lab.url("/redirect/status/404")) == 404
            with pytest.raises(aiohttp.TooManyRedirects):
                await session.get(lab.url("/redirect/"), max_redirects=1)

    run(main)
    assert [(each.status, each.count) for each in lab.outcomes] == [(302, 2), (404, 1)]


def test_a_status_that_raises_is_an_answer(lab: ProxyLab) -> None:
    async def main() -> None:
        async with opened(lab, "good", session_options={"raise_for_status": True}) as session:
            for status in (403, 503):
                with pytest.raises(aiohttp.ClientResponseError):
                    await status_of(session, lab.url(f"/status/{status}"))

    run(main)
    assert [(each.kind.value, each.status) for each in lab.outcomes] == [
        ("blocked", 403),
        ("target_failed", 503),
    ]


def test_an_exception_of_the_caller_gives_the_lease_back(lab: ProxyLab) -> None:
    async def main() -> None:
        async with opened(lab, "good") as session:
            await status_of(session, lab.url())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(main)
    assert lab.held == []
    assert types_of(lab.storage).count("LeaseReleased") == 1  # type: ignore[arg-type]


def test_a_cancelled_task_gives_the_lease_back(lab: ProxyLab) -> None:
    """In the middle of a request, of which nothing is reported."""

    async def main() -> None:
        async def work() -> None:
            async with opened(lab, "slow") as session:
                await session.get(lab.url())

        task = asyncio.create_task(work())
        while not lab.seen:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main)
    assert (lab.held, kinds(lab)) == ([], [])


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("name", ["slow", "slow-socks"])
def test_a_lost_lease_ends_what_is_in_flight(
    caplog: pytest.LogCaptureFixture, name: str, *, tls: bool
) -> None:
    """The reason is in the log, and nothing is said of the proxy."""
    slow = {"slow": Behaviour(delay_s=30), "slow-socks": Behaviour(protocol="socks5", delay_s=30)}

    async def main(lab: ProxyLab) -> None:
        async with opened(lab, name) as session:
            task = asyncio.create_task(_get(session, lab.url(tls=tls)))
            while not lab.seen:
                await asyncio.sleep(0.01)
            await lab.async_manager.revoke_lease(lab.held[0].id, "it hung")
            with pytest.raises(LeaseLostError):
                await asyncio.wait_for(task, 5)
            with pytest.raises(LeaseLostError):
                await session.get(lab.url())

    with proxy_lab(slow, authority=AUTHORITY) as lab:
        run(lambda: main(lab))
        assert len(lab.seen) == 1
        assert (kinds(lab), lab.held) == ([], [])
    assert "pharox.lease.lost" in caplog.text


async def _get(session: aiohttp.ClientSession, url: str, *, in_pieces: bool = False) -> str:
    async with session.get(url) as answer:
        if not in_pieces:
            return await answer.text()
        return b"".join([part async for part in answer.content.iter_any()]).decode()


@pytest.mark.parametrize("tls", [False, True])
def test_a_lost_lease_ends_a_body(lab: ProxyLab, *, tls: bool) -> None:
    """A task that waits for the rest of one is told why."""

    async def main() -> None:
        async with opened(lab, "stalling") as session:
            answer = await session.get(lab.url(tls=tls))
            task = asyncio.create_task(answer.read())
            await asyncio.sleep(0)
            await lab.async_manager.revoke_lease(lab.held[0].id, "it hung")
            with pytest.raises(LeaseLostError):
                await asyncio.wait_for(task, 5)

    run(main)
    assert (kinds(lab), lab.held) == (["ok"], [])


def test_the_way_is_not_chosen_otherwise(lab: ProxyLab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://bob:secret@127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "*")

    async def main() -> None:
        for name in ("password", "socks"):
            async with opened(lab, name) as session:
                assert await status_of(session, lab.url()) == 200
                with pytest.raises(InvalidInputError, match="leave proxy out"):
                    await session.get(lab.url(), proxy="http://127.0.0.1:1")
        for option in ("connector", "proxy", "trust_env"):
            with pytest.raises(InvalidInputError, match=option):
                async with opened(lab, "good", session_options={option: None}):
                    pass

    run(main)
    assert (kinds(lab), lab.held) == (["ok", "ok"], [])


def test_options_are_those_of_aiohttp(lab: ProxyLab) -> None:
    """What a session takes is handed on; what it does not take gives the lease back."""
    heard: list[str] = []
    trace = aiohttp.TraceConfig()

    async def hear(_session: Any, _context: Any, params: Any) -> None:
        heard.append(params.method)

    trace.on_request_start.append(hear)

    async def main() -> None:
        async with opened(lab, "good", session_options={"trace_configs": [trace]}) as session:
            await status_of(session, lab.url())
        with pytest.raises(TypeError):
            async with opened(lab, "good", session_options={"no_such_option": 1}):
                pass

    run(main)
    assert (heard, lab.held) == (["GET"], [])


def test_reporting_can_be_switched_off(lab: ProxyLab) -> None:
    async def main() -> None:
        async with opened(lab, "refusing", report=False) as session:
            await status_of(session, lab.url())

    run(main)
    assert kinds(lab) == []


def test_a_lease_that_is_not_kept_runs_out(lab: ProxyLab) -> None:
    async def main() -> None:
        async with opened(lab, "good", keep_alive=False, duration_seconds=1) as session:
            await asyncio.sleep(1.1)
            with pytest.raises(LeaseEndedError, match="has run out"):
                await session.get(lab.url())

    run(main)


def test_any_ledger_will_do(any_storage: AnyStorage) -> None:
    async def main(lab: ProxyLab) -> None:
        storage = for_tasks(any_storage)
        manager = AsyncProxyManager(storage)
        try:
            async with pharox_session(manager, "lab", consumer="crawler-7") as session:
                assert await status_of(session, lab.url()) == 200
        finally:
            await storage.close()

    with proxy_lab({"good": Behaviour(user="a", password="ü€")}, storage=any_storage) as lab:
        run(lambda: main(lab))
        assert (kinds(lab), lab.held) == (["ok"], [])


@pytest.mark.parametrize("tls", [False, True])
def test_the_way_to_the_proxy_may_be_tls(zoo: Zoo, *, tls: bool) -> None:
    ours = Ours(zoo.proxy("https-proxy", ProxyProtocol.HTTPS))

    async def main() -> None:
        manager = AsyncProxyManager(ours.storage)
        trust = {"ssl": zoo.ssl_context()}
        async with pharox_session(manager, "pool", connector_options=trust) as session:
            url = zoo.tls_target("/ok") if tls else zoo.target("/ok")
            assert await _get(session, url) == "ok"

    run(main)
    assert ours.active == 0

"""Sessions of curl_cffi through leased proxies, blocking and awaited."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from curl_cffi import requests

from pharox import (
    AsyncProxyManager,
    InvalidInputError,
    LeaseEndedError,
    LeaseLostError,
    ProxyManager,
    ProxyProtocol,
    ProxyUnavailableError,
)
from pharox.integrations.curl_cffi import async_session, session
from pharox.integrations.testing import Behaviour, ProxyLab, proxy_lab
from tests.aio.test_clients import Ours, both
from tests.conftest import AnyStorage, for_tasks, types_of
from tests.health.zoo import Zoo
from tests.integrations.common import in_thread, kinds, only, told, until
from tests.integrations.conftest import AUTHORITY, GOOD

pytestmark = pytest.mark.usefixtures("trusted")

Act = Callable[[Any, Callable[..., Any]], Any]


async def plain(answer: Any) -> Any:
    """Return what is awaited of a coroutine, or is there already."""
    return await answer if isinstance(answer, Awaitable) else answer


def fetched(
    lab: ProxyLab, name: str, *urls: str, is_async: bool, of_request: Any = None, **options: Any
) -> list[Any]:
    """Fetch pages one after another in a session through a proxy, and return the answers."""
    asked = {"timeout": 10, **(of_request or {})}
    found = only(lab, name, **options)
    if not is_async:
        with session(lab.manager, "lab", **found) as s:
            return [s.get(url, **asked) for url in urls]

    async def main() -> list[Any]:
        manager = lab.async_manager
        try:
            async with async_session(manager, "lab", **found) as s:
                return [await s.get(url, **asked) for url in urls]
        finally:
            await manager.flush_reports()

    return asyncio.run(main())


@both
@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("name", GOOD)
def test_requests_go_through_the_proxy(
    lab: ProxyLab, name: str, *, tls: bool, is_async: bool
) -> None:
    """With and without a password, over HTTP and SOCKS, to a host that only the proxy knows."""
    urls = [lab.url(path, tls=tls) for path in ("/1", "/2")]
    answers = fetched(lab, name, *urls, is_async=is_async)
    assert [answer.text.split(" ")[0] for answer in answers] == [name, name]
    assert lab.held == []
    assert set(told(lab)) == {(name, "ok", "shop.example")}


@both
def test_it_looks_like_a_browser(lab: ProxyLab, *, is_async: bool) -> None:
    """What a session takes is handed on."""
    options = {"session_options": {"impersonate": "chrome", "base_url": lab.url("/", tls=True)}}
    (answer,) = fetched(lab, "password", "a", is_async=is_async, **options)
    assert answer.text.endswith("/a\n")
    with pytest.raises(TypeError):
        fetched(lab, "good", session_options={"no_such_option": 1}, is_async=is_async)
    assert lab.held == []


@both
@pytest.mark.parametrize("tls", [False, True])
def test_a_refusal_has_the_proxy_rest_for_the_host(
    lab: ProxyLab, *, tls: bool, is_async: bool
) -> None:
    (answer,) = fetched(lab, "refusing", lab.url(tls=tls), is_async=is_async)
    assert answer.status_code == 403
    assert told(lab) == [("refusing", "blocked", "shop.example")]
    with pytest.raises(ProxyUnavailableError) as missed:
        fetched(lab, "refusing", target="shop.example", wait_seconds=None, is_async=is_async)
    assert missed.value.reason == "cooling_down"
    assert lab.held == []


@both
@pytest.mark.parametrize(
    ("name", "kind"), [("dying", "unclear"), ("slow", "unclear"), ("down", "proxy_failed")]
)
@pytest.mark.parametrize("tls", [False, True])
def test_who_is_to_blame(lab: ProxyLab, name: str, kind: str, *, tls: bool, is_async: bool) -> None:
    with pytest.raises(requests.RequestsError):
        fetched(lab, name, lab.url(tls=tls), of_request={"timeout": 0.8}, is_async=is_async)
    assert told(lab) == [(name, kind, "shop.example")]
    assert lab.held == []


@both
@pytest.mark.parametrize("protocol", ["http", "socks5"])
@pytest.mark.parametrize("tls", [False, True])
def test_a_refused_login_is_the_proxys_failure(protocol: Any, *, tls: bool, is_async: bool) -> None:
    behaviour = Behaviour(protocol=protocol, user="alice", password="right")
    with proxy_lab({"one": behaviour}, authority=AUTHORITY) as lab:
        lab.storage.save_proxy(lab.proxies["one"].model_copy(update={"credentials": None}))
        try:
            (answer,) = fetched(lab, "one", lab.url(tls=tls), is_async=is_async)
            assert answer.status_code == 407
        except requests.RequestsError:
            assert tls or protocol == "socks5"
        assert kinds(lab) == ["proxy_failed"]


@both
def test_the_last_hop_counts(lab: ProxyLab, *, is_async: bool) -> None:
    fetched(lab, "good", lab.url("/redirect/status/404"), is_async=is_async)
    assert [each.status for each in lab.outcomes] == [404]


@both
def test_a_status_that_raises_is_an_answer(lab: ProxyLab, *, is_async: bool) -> None:
    options = {"session_options": {"raise_for_status": True}}
    with pytest.raises(requests.RequestsError):
        fetched(lab, "good", lab.url("/status/503"), is_async=is_async, **options)
    assert [(each.kind.value, each.status) for each in lab.outcomes] == [("target_failed", 503)]


def test_a_stream_that_breaks_off_is_unclear(lab: ProxyLab) -> None:
    with session(lab.manager, "lab", **only(lab, "dying")) as s:
        answer = s.get(lab.url(), stream=True, timeout=10)
        with pytest.raises(requests.RequestsError):
            list(answer.iter_lines())
    assert kinds(lab) == ["ok", "unclear"]


def test_an_awaited_stream_that_breaks_off_is_unclear(lab: ProxyLab) -> None:
    async def main() -> None:
        manager = lab.async_manager
        async with async_session(manager, "lab", **only(lab, "dying")) as s:
            answer = await s.get(lab.url(), stream=True, timeout=10)
            with pytest.raises(requests.RequestsError):
                await answer.acontent()
        await manager.flush_reports()

    asyncio.run(main())
    assert kinds(lab) == ["ok", "unclear"]


def test_an_awaited_stream_is_read(lab: ProxyLab) -> None:
    async def main() -> None:
        async with async_session(lab.async_manager, "lab", **only(lab, "good")) as s:
            answer = await s.get(lab.url(), stream=True, timeout=10)
            assert (await answer.atext()).startswith("good ")
            await answer.aclose()

    asyncio.run(main())


def test_an_exception_of_the_caller_gives_the_lease_back(lab: ProxyLab) -> None:
    s = session(lab.manager, "lab", **only(lab, "good"))

    def work() -> None:
        with s:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    s.close()
    assert lab.held == []
    assert types_of(lab.storage).count("LeaseReleased") == 1  # type: ignore[arg-type]
    with pytest.raises(LeaseEndedError, match="was released"):
        s.get(lab.url())


def test_a_cancelled_task_gives_the_lease_back(lab: ProxyLab) -> None:
    """In the middle of a request, of which nothing is reported."""

    async def main() -> None:
        async def work() -> None:
            async with async_session(lab.async_manager, "lab", **only(lab, "slow")) as s:
                await s.get(lab.url())

        task = asyncio.create_task(work())
        while not lab.seen:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert (lab.held, kinds(lab)) == ([], [])


@pytest.mark.parametrize("name", ["slow", "stalling"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_lost_lease_ends_what_is_in_flight(
    lab: ProxyLab, caplog: pytest.LogCaptureFixture, name: str, *, stream: bool
) -> None:
    """The reason is in the log, and nothing is said of the proxy but what was known before."""

    def work() -> Any:
        answer = s.get(lab.url(), stream=stream, timeout=25)
        return list(answer.iter_content())

    with session(lab.manager, "lab", **only(lab, name)) as s:
        with in_thread(work) as ended:
            until(lambda: lab.seen)
            lab.manager.revoke_lease(s.lease.id, "it hung")
        assert isinstance(ended[0], LeaseLostError), ended
        with pytest.raises(LeaseLostError):
            s.get(lab.url(), timeout=10)
    assert (len(lab.seen), lab.held) == (1, [])
    assert "unclear" not in kinds(lab)
    assert "pharox.lease.lost" in caplog.text


@pytest.mark.parametrize("name", ["slow", "stalling"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_lost_lease_ends_what_is_awaited(lab: ProxyLab, name: str, *, stream: bool) -> None:
    async def main() -> None:
        manager = lab.async_manager
        async with async_session(manager, "lab", **only(lab, name)) as s:

            async def work() -> Any:
                answer = await s.get(lab.url(), stream=stream, timeout=25)
                return await answer.acontent()

            task = asyncio.create_task(work())
            while not lab.seen:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            await manager.revoke_lease(s.lease.id, "it hung")
            with pytest.raises(LeaseLostError):
                await asyncio.wait_for(task, 5)
            with pytest.raises(LeaseLostError):
                await s.get(lab.url())
        await manager.flush_reports()

    asyncio.run(main())
    assert (len(lab.seen), lab.held) == (1, [])
    assert "unclear" not in kinds(lab)


@both
def test_the_way_is_not_chosen_otherwise(
    lab: ProxyLab, monkeypatch: pytest.MonkeyPatch, *, is_async: bool
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://bob:secret@127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "*")
    for name in ("password", "socks"):
        (answer,) = fetched(lab, name, lab.url(), is_async=is_async)
        assert answer.status_code == 200
    for given in ({"proxy": "http://127.0.0.1:1"}, {"proxies": {"all": "http://127.0.0.1:1"}}):
        with pytest.raises(InvalidInputError, match="a request cannot have prox"):
            fetched(lab, "good", lab.url(), of_request=given, is_async=is_async)
        with pytest.raises(InvalidInputError, match="session_options cannot have prox"):
            fetched(lab, "good", session_options=given, is_async=is_async)
    assert (kinds(lab), lab.held) == (["ok", "ok"], [])


@both
def test_reporting_can_be_switched_off(lab: ProxyLab, *, is_async: bool) -> None:
    fetched(lab, "refusing", lab.url(), report=False, is_async=is_async)
    assert kinds(lab) == []


def test_any_ledger_will_do(any_storage: AnyStorage) -> None:
    async def main(lab: ProxyLab) -> None:
        storage = for_tasks(any_storage)
        try:
            async with async_session(AsyncProxyManager(storage), "lab") as s:
                assert (await s.get(lab.url())).status_code == 200
        finally:
            await storage.close()

    with proxy_lab({"good": Behaviour(user="a", password="ü€")}, storage=any_storage) as lab:
        with session(lab.manager, "lab", consumer="crawler-7") as s:
            assert s.get(lab.url()).status_code == 200
        asyncio.run(main(lab))
        assert (kinds(lab), lab.held) == (["ok", "ok"], [])


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.filterwarnings("ignore:Make sure you are using https over https proxy")
def test_the_way_to_the_proxy_may_be_tls(zoo: Zoo, tmp_path: Any, *, tls: bool) -> None:
    trusted = tmp_path / "zoo.pem"
    trusted.write_text(zoo.authority)
    ours = Ours(zoo.proxy("https-proxy", ProxyProtocol.HTTPS))
    with session(
        ProxyManager(ours.blocking),
        "pool",
        session_options={"verify": str(trusted), "impersonate": "chrome"},
    ) as s:
        url = zoo.tls_target("/ok") if tls else zoo.target("/ok")
        assert s.get(url, timeout=10).text == "ok"
    assert ours.active == 0

"""A crawl goes through leased proxies: one a request, back when the request has ended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import impit
import pytest
from crawlee import ConcurrencySettings, Request, service_locator
from crawlee._service_locator import ServiceLocator
from crawlee.crawlers import HttpCrawler, HttpCrawlingContext
from crawlee.errors import HttpStatusCodeError, ProxyError, SessionError, UserHandlerTimeoutError
from crawlee.proxy_configuration import ProxyConfiguration
from crawlee.sessions import SessionPool
from crawlee.storage_clients import MemoryStorageClient

from pharox import (
    InMemoryStorage,
    InvalidInputError,
    OutcomeKind,
    ProxyFilters,
    ProxyManager,
    ProxyUnavailableError,
)
from pharox.integrations._crawlee_errors import outcome_in_crawl
from pharox.integrations.crawlee import PharoxUrls, pharox_urls
from pharox.integrations.testing import FIVE, Behaviour, proxy_lab
from pharox.storage.postgres import PostgresStorage
from tests.conftest import SECRET_KEY, AnyStorage
from tests.integrations.examples import example
from tests.integrations.ledgers import Lab, lab_for_tasks
from tests.ledger.following import until

Handler = Callable[[HttpCrawlingContext], Awaitable[None]]


@pytest.fixture
def one(any_storage: AnyStorage) -> Iterator[Lab]:
    """A pool of one good proxy, on each storage."""
    with lab_for_tasks(any_storage) as lab:
        yield lab


@pytest.fixture(autouse=True)
def new_crawlee() -> None:
    """Have Crawlee forget its queue, and the loop that it knew."""
    service_locator.__dict__.update(ServiceLocator().__dict__)
    service_locator.storage_instance_manager.clear_cache()


async def look(_: HttpCrawlingContext) -> None:
    """Do nothing with a page."""


def crawl(
    one: Lab,
    urls: PharoxUrls,
    paths: list[str],
    handler: Handler = look,
    *,
    sessions: SessionPool | None = None,
    most: int = 3,
    **options: Any,
) -> HttpCrawler:
    """Crawl pages of the lab's site to the end, and close the storage in its loop."""

    async def main() -> HttpCrawler:
        crawler = HttpCrawler(
            proxy_configuration=ProxyConfiguration(new_url_function=urls),
            session_pool=sessions or urls.session_pool(),
            storage_client=MemoryStorageClient(),
            concurrency_settings=ConcurrencySettings(
                min_concurrency=most, desired_concurrency=most, max_concurrency=most
            ),
            configure_logging=False,
            **options,
        )
        crawler.router.default_handler(handler)
        try:
            await crawler.run([one.lab.url(path) for path in paths])
        finally:
            await one.close()
        return crawler

    return asyncio.run(main())


KINDS = {
    "good": [OutcomeKind.OK],
    "password": [OutcomeKind.OK],
    "socks": [OutcomeKind.OK],
    "refusing": [OutcomeKind.BLOCKED],
    "dying": [OutcomeKind.UNCLEAR],
    "down": [OutcomeKind.PROXY_FAILED],
}
ONCE: dict[str, Any] = {"max_request_retries": 0, "max_session_rotations": 0}


@pytest.mark.parametrize("name", KINDS)
def test_each_proxy_is_used_and_reported(any_storage: AnyStorage, name: str) -> None:
    behaviours = {name: FIVE.get(name, Behaviour(is_down=True))}
    with lab_for_tasks(any_storage, behaviours) as one:
        crawl(one, pharox_urls(one.manager, one.pool), ["/page"], **ONCE)
        assert one.lab.held == []
        told = one.lab.outcomes
        assert [each.kind for each in told] == KINDS[name]
        assert {each.target for each in told} == {"shop.example"}
        seen = [(each.proxy, each.url) for each in one.lab.seen]
        assert seen == ([] if name == "down" else [(name, "http://shop.example/page")])


def test_each_page_comes_once_and_the_refused_through_another_proxy(
    any_storage: AnyStorage,
) -> None:
    """Crawlee retries what was refused; the pair that refuses rests meanwhile."""
    behaviours = {"one": Behaviour(), "refusing": FIVE["refusing"], "two": Behaviour()}
    with lab_for_tasks(any_storage, behaviours) as one:
        found: list[str] = []

        async def handler(context: HttpCrawlingContext) -> None:
            body = await context.http_response.read()
            found.append(body.decode().split()[1])

        paths = [f"/{number}" for number in range(12)]
        crawl(one, pharox_urls(one.manager, one.pool), paths, handler)
        assert sorted(found) == sorted(one.lab.url(path) for path in paths)
        assert one.lab.held == []
        told = one.lab.outcomes
        assert sum(each.count for each in told if each.kind is OutcomeKind.OK) == 12
        refused = [seen for seen in one.lab.seen if seen.proxy == "refusing"]
        assert len(refused) == sum(each.kind is OutcomeKind.BLOCKED for each in told)
        assert 1 <= len(refused) <= 3


def test_a_session_is_a_sticky_session(any_storage: AnyStorage) -> None:
    """All requests of a session go through one proxy."""
    with lab_for_tasks(any_storage, {name: Behaviour() for name in "abc"}) as one:
        urls = pharox_urls(one.manager, one.pool)
        sessions = urls.session_pool(max_pool_size=2)
        crawl(one, urls, [f"/{n}" for n in range(8)], sessions=sessions, most=1)
        bound = one.lab.manager.sessions(one.pool)
        proxies = {lease.proxy_id for lease in one.lab.storage.list_leases()}
        assert len(bound) <= 2
        assert {session.proxy_id for session in bound} == proxies
        assert len(one.lab.storage.list_leases()) == 8


@pytest.mark.parametrize(
    ("act", "expected"),
    [
        (lambda session: session.retire(), OutcomeKind.BLOCKED),
        (lambda session: session.mark_bad(), OutcomeKind.UNCLEAR),
        (lambda session: session.mark_good(), OutcomeKind.OK),
    ],
)
def test_what_a_handler_says_of_its_session_is_the_outcome(
    one: Lab, act: Callable[[Any], None], expected: OutcomeKind
) -> None:
    async def handler(context: HttpCrawlingContext) -> None:
        act(context.session)

    crawl(one, pharox_urls(one.manager, one.pool), ["/"], handler)
    assert [told.kind for told in one.lab.outcomes] == [expected]


def test_an_error_of_the_handler_says_nothing_of_the_proxy(one: Lab) -> None:
    async def handler(context: HttpCrawlingContext) -> None:
        raise KeyError("price")

    crawl(one, pharox_urls(one.manager, one.pool), ["/"], handler, **ONCE)
    assert one.lab.outcomes == []
    assert one.lab.held == []


def test_other_sessions_tell_less(any_storage: AnyStorage) -> None:
    """Crawlee's own sessions leave the request to be looked at: answered, or rotated."""
    behaviours = {"one": Behaviour(blocks_after=1, blocks_for_s=0.01)}
    with lab_for_tasks(any_storage, behaviours) as one:
        urls = pharox_urls(one.manager, one.pool)
        crawl(one, urls, ["/1", "/2"], sessions=SessionPool(), most=1)
        told = [each.kind for each in one.lab.outcomes for _ in range(each.count)]
        assert set(told) == {OutcomeKind.BLOCKED, OutcomeKind.OK}
        assert told.count(OutcomeKind.OK) == 2
        assert one.lab.held == []


def test_a_cancelled_request_gives_its_lease_back(one: Lab) -> None:
    """While it has the proxy, and while it waits for it."""
    urls = pharox_urls(one.manager, one.pool)

    async def request(has_it: asyncio.Event) -> None:
        await urls("one", Request.from_url(one.lab.url()))
        has_it.set()
        await asyncio.sleep(60)

    async def main() -> None:
        has_it, never = asyncio.Event(), asyncio.Event()
        holds = asyncio.create_task(request(has_it))
        await has_it.wait()
        waits = asyncio.create_task(request(never))
        while not one.lab.storage.queue_stats(one.pool):
            await asyncio.sleep(0.01)
        for task in (waits, holds):
            task.cancel()
        await asyncio.wait([holds, waits])
        await one.close()

    asyncio.run(main())
    assert one.lab.held == []
    assert len(one.lab.storage.list_leases()) == 1


def test_a_lost_lease_is_in_the_log(one: Lab, caplog: pytest.LogCaptureFixture) -> None:
    async def loses(context: HttpCrawlingContext) -> None:
        await one.manager.revoke_lease(one.lab.held[0].id, "for maintenance")

    with caplog.at_level(logging.WARNING, "pharox"):
        crawl(one, pharox_urls(one.manager, one.pool), ["/page"], loses)
    assert "while http://shop.example/page was crawled" in caplog.text
    assert "for maintenance" in caplog.text
    assert one.lab.held == []


def test_nothing_goes_past_the_proxies_if_there_is_none(one: Lab) -> None:
    """The crawl ends instead."""
    nowhere = ProxyFilters(country="AQ")
    with pytest.raises(ValueError, match="new_url_function") as caught:
        crawl(one, pharox_urls(one.manager, one.pool, filters=nowhere), ["/"])
    assert isinstance(caught.value.__cause__, ProxyUnavailableError)
    assert one.lab.seen == []


def test_a_busy_pool_is_waited_for(
    one: Lab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """However long it takes, with a warning each time that the wait is over."""
    monkeypatch.setattr("pharox.integrations.crawlee.WAIT_S", 0.2)
    held = one.lab.manager.acquire_proxy(one.pool, "elsewhere", 600)
    assert held is not None

    def release_later() -> None:
        until(lambda: "pharox.crawl.waits" in caplog.text, 300)
        one.lab.manager.release_proxy(held)

    with caplog.at_level(logging.WARNING, "pharox"), ThreadPoolExecutor(1) as thread:
        released = thread.submit(release_later)
        crawl(one, pharox_urls(one.manager, one.pool), ["/"])
        released.result()
    assert "pharox.crawl.waits" in caplog.text
    assert [seen.url for seen in one.lab.seen] == [one.lab.url()]


def test_who_asks_twice_in_a_task_has_one_lease(one: Lab) -> None:
    urls = pharox_urls(one.manager, one.pool)

    async def main() -> None:
        request = Request.from_url(one.lab.url())
        assert await urls("one", request) == await urls("one", request)
        assert len(one.lab.held) == 1

    async def in_a_task() -> None:
        await asyncio.create_task(main())
        await one.close()
        assert one.lab.held == []

    asyncio.run(in_a_task())


def test_names_are_left_to_the_proxy_unless_it_is_for_a_browser(any_storage: AnyStorage) -> None:
    with lab_for_tasks(any_storage, {"socks": FIVE["socks"]}) as one:

        async def main() -> None:
            for for_browsers, scheme in ((False, "socks5h://"), (True, "socks5://")):
                urls = pharox_urls(one.manager, one.pool, for_browsers=for_browsers)
                url = await asyncio.create_task(urls())
                assert url.startswith(scheme)
            await one.close()

        asyncio.run(main())


def test_bad_arguments_are_refused_at_once() -> None:
    blocking: Any = ProxyManager(InMemoryStorage())
    with pytest.raises(InvalidInputError, match="AsyncProxyManager"):
        pharox_urls(blocking, "pool")


@pytest.mark.parametrize(
    ("error", "kind", "status"),
    [
        (HttpStatusCodeError("failed", 503), OutcomeKind.TARGET_FAILED, 503),
        (HttpStatusCodeError("failed", 404), OutcomeKind.OK, 404),
        (SessionError("blocked based on HTTP status code 429"), OutcomeKind.BLOCKED, 429),
        (SessionError("a captcha"), OutcomeKind.BLOCKED, None),
        (ProxyError(), OutcomeKind.UNCLEAR, None),
        (impit.ConnectTimeout("late"), OutcomeKind.UNCLEAR, None),
        (impit.ConnectError("tcp connect error"), OutcomeKind.PROXY_FAILED, None),
        (impit.LocalProtocolError("a header"), None, None),
        (UserHandlerTimeoutError(), None, None),
        (KeyError("price"), None, None),
    ],
)
def test_an_exception_says_whose_it_is(
    error: Exception, kind: OutcomeKind | None, status: int | None
) -> None:
    found = outcome_in_crawl(error, "http://shop.example/")
    assert (found and (found.kind, found.status)) == (kind and (kind, status))


def test_the_example_runs(
    storage: PostgresStorage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url = storage.engine.url.render_as_string(hide_password=False)
    monkeypatch.setenv("PHAROX_DATABASE_URL", url)
    monkeypatch.setenv("PHAROX_SECRET_KEY", SECRET_KEY)
    monkeypatch.setenv("CRAWLEE_STORAGE_DIR", str(tmp_path))
    with proxy_lab({"password": FIVE["password"]}, storage=storage, pool_name="residential") as lab:
        pages = [lab.url(f"/{number}") for number in range(3)]
        sizes = asyncio.run(example("crawlee_crawl").main(*pages))
        assert sizes == {page: len(f"password {page}\n") for page in pages}
        assert lab.held == []
        assert sum(told.count for told in lab.outcomes if told.kind is OutcomeKind.OK) == 3

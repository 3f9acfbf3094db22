"""A browser's context holds its lease as long as it is open, and reports what became of pages."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar
from uuid import uuid4

import pytest
import trustme
from playwright.async_api import Browser as AsyncBrowser
from playwright.async_api import Error, async_playwright
from playwright.sync_api import sync_playwright
from pydantic import SecretStr

from pharox import (
    InMemoryStorage,
    InvalidInputError,
    Lease,
    LeasedProxy,
    LeaseLostError,
    OutcomeKind,
    ProxyCredentials,
    ProxyFilters,
    ProxyManager,
    ProxyProtocol,
)
from pharox.integrations._browser_errors import outcome_of_failure
from pharox.integrations.playwright import (
    FOR_BROWSERS,
    leased_context,
    pharox_context,
)
from pharox.integrations.testing import FIVE, Behaviour, proxy_lab
from pharox.models import utc_now
from pharox.storage.postgres import PostgresStorage
from tests.conftest import SECRET_KEY, AnyStorage
from tests.integrations.examples import example
from tests.integrations.ledgers import Lab, lab_for_tasks

T = TypeVar("T")

CHROMIUM = shutil.which("chromium")
"""Debian's, as scripts/setup-system installs it."""

ARGUMENTS: dict[str, Any] = {"executable_path": CHROMIUM, "args": ["--no-sandbox"]}
SOCKS_WITH_LOGIN = Behaviour(protocol="socks5", user="alice", password="secret")


class Chromium:
    """A browser for tests of coroutines, and the loop that it is of."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._playwright = self._runner.run(async_playwright().start())
        self.browser = self.run(self.launch())

    async def launch(self) -> AsyncBrowser:
        return await self._playwright.chromium.launch(**ARGUMENTS)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)

    def visit(self, one: Lab, visit: Callable[[AsyncBrowser], Coroutine[Any, Any, None]]) -> None:
        """Run a coroutine with the browser, and close the storage in its loop."""

        async def main() -> None:
            try:
                await visit(self.browser)
            finally:
                await one.close()

        self.run(main())

    def stop(self) -> None:
        self.run(self.browser.close())
        self.run(self._playwright.stop())
        self._runner.close()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Chromium]:
    """A browser that runs; it takes seconds to start."""
    if CHROMIUM is None:
        pytest.skip("there is no chromium here")
    chromium = Chromium()
    yield chromium
    chromium.stop()


@pytest.fixture
def one(any_storage: AnyStorage) -> Iterator[Lab]:
    """A pool of one good proxy, on each storage."""
    with lab_for_tasks(any_storage) as lab:
        yield lab


KINDS = {
    "good": (200, [OutcomeKind.OK]),
    "password": (200, [OutcomeKind.OK]),
    "socks": (200, [OutcomeKind.OK]),
    "refusing": (403, [OutcomeKind.BLOCKED]),
    "dying": (None, [OutcomeKind.OK, OutcomeKind.UNCLEAR]),  # its head came
    "down": (None, [OutcomeKind.PROXY_FAILED]),
}


def test_pages_go_through_the_proxy_and_are_reported(
    any_storage: AnyStorage, chromium: Chromium
) -> None:
    with lab_for_tasks(any_storage, {**FIVE, "down": Behaviour(is_down=True)}) as one:

        async def visit(browser: AsyncBrowser, name: str, status: int | None) -> None:
            only = ProxyFilters(proxy_id=one.lab.proxies[name].id)
            async with leased_context(one.manager, browser, one.pool, filters=only) as context:
                page = await context.new_page()
                assert [one.lab.name_of(lease) for lease in one.lab.held] == [name]
                if status is None:
                    with pytest.raises(Error):
                        await page.goto(one.lab.url(f"/{name}"))
                else:
                    answer = await page.goto(one.lab.url(f"/{name}"))
                    assert answer is not None
                    assert answer.status == status
                    assert f"{name} http://shop.example/{name}" in await page.content()
            assert one.lab.held == []

        async def all_of_them(browser: AsyncBrowser) -> None:
            for name, (status, _) in KINDS.items():
                await visit(browser, name, status)

        chromium.visit(one, all_of_them)
        told = [(each.proxy, each.kind) for each in one.lab.outcomes]
        assert told == [(name, kind) for name, (_, kinds) in KINDS.items() for kind in kinds]
        assert {each.target for each in one.lab.outcomes} == {"shop.example"}
        assert None not in [seen.proxy for seen in one.lab.seen]


def test_a_wrong_password_is_the_proxys_failure_without_tls(chromium: Chromium) -> None:
    """For a page with TLS Chromium shows 407 too, as a site might: that must not end the proxy."""
    with proxy_lab({"password": FIVE["password"]}, authority=trustme.CA()) as lab:
        wrong = ProxyCredentials(user="alice", password=SecretStr("wrong"))
        lab.storage.save_proxy(lab.proxies["password"].model_copy(update={"credentials": wrong}))

        async def visit(browser: AsyncBrowser) -> None:
            own = {"ignore_https_errors": True}
            for tls in (False, True):
                async with leased_context(
                    lab.async_manager, browser, "lab", context_options=own
                ) as context:
                    page = await context.new_page()
                    with contextlib.suppress(Error):
                        await page.goto(lab.url(tls=tls), timeout=20_000)

        chromium.run(visit(chromium.browser))
        assert lab.seen == []
        assert [(told.kind, told.status) for told in lab.outcomes] == [
            (OutcomeKind.PROXY_FAILED, 407),
            (OutcomeKind.BLOCKED, 407),
        ]


def test_an_error_in_the_block_gives_the_lease_back(one: Lab, chromium: Chromium) -> None:
    async def visit(browser: AsyncBrowser) -> None:
        with pytest.raises(RuntimeError, match="of the block"):
            async with leased_context(one.manager, browser, one.pool):
                raise RuntimeError("of the block")
        assert one.lab.held == []
        with pytest.raises(TypeError):
            async with leased_context(
                one.manager, browser, one.pool, context_options={"no_such_option": 1}
            ):
                pass
        assert one.lab.held == []
        assert browser.contexts == []

    chromium.visit(one, visit)


def test_a_cancelled_block_gives_the_lease_back(one: Lab, chromium: Chromium) -> None:
    async def visit(browser: AsyncBrowser) -> None:
        with pytest.raises(TimeoutError):
            async with (
                asyncio.timeout(2),
                leased_context(one.manager, browser, one.pool) as context,
            ):
                await (await context.new_page()).wait_for_event("popup", timeout=0)
        assert one.lab.held == []
        assert browser.contexts == []

    chromium.visit(one, visit)


def test_a_lost_lease_ends_the_block_and_the_context(one: Lab, chromium: Chromium) -> None:
    async def visit(browser: AsyncBrowser) -> None:
        async def work() -> None:
            async with leased_context(one.manager, browser, one.pool) as context:
                page = await context.new_page()
                (lease,) = one.lab.held
                await one.manager.revoke_lease(lease.id, "for maintenance")
                await page.wait_for_event("popup", timeout=0)

        with pytest.raises(LeaseLostError, match="for maintenance"):
            await work()
        assert browser.contexts == []
        assert one.lab.held == []

    chromium.visit(one, visit)


@pytest.mark.parametrize("what", ["context", "browser"])
def test_what_is_closed_gives_the_lease_back_at_once(
    one: Lab, chromium: Chromium, what: str
) -> None:
    """Also while the block goes on."""

    async def visit(_: AsyncBrowser) -> None:
        browser = chromium.browser if what == "context" else await chromium.launch()
        async with leased_context(one.manager, browser, one.pool) as context:
            await (browser if what == "browser" else context).close()
            async with asyncio.timeout(30):
                while one.lab.held:
                    await asyncio.sleep(0.01)
            async with one.manager.pool(one.pool).lease() as other:
                assert [lease.id for lease in one.lab.held] == [other.id]
        assert one.lab.held == []

    chromium.visit(one, visit)


def test_a_lease_of_ones_own_has_its_arguments(one: Lab, chromium: Chromium) -> None:
    async def visit(browser: AsyncBrowser) -> None:
        async with one.manager.pool(one.pool).lease() as lease:
            context = await browser.new_context(**pharox_context(lease))
            page = await context.new_page()
            await page.goto(one.lab.url())
            assert "good http://shop.example/" in await page.content()
            await context.close()
        assert one.lab.outcomes == []

    chromium.visit(one, visit)


def test_threads_have_the_same(any_storage: AnyStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    if CHROMIUM is None:
        pytest.skip("there is no chromium here")
    with (
        proxy_lab({"password": FIVE["password"]}, storage=any_storage) as lab,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(**ARGUMENTS)
        with leased_context(lab.manager, browser, "lab") as context:
            page = context.new_page()
            page.goto(lab.url("/page"))
            assert "password http://shop.example/page" in page.content()
            assert len(lab.held) == 1
        assert lab.held == []
        with pytest.raises(RuntimeError), leased_context(lab.manager, browser, "lab"):
            raise RuntimeError
        assert lab.held == []
        with (
            pytest.raises(LeaseLostError, match="for maintenance"),
            leased_context(lab.manager, browser, "lab"),
        ):
            lab.manager.revoke_lease(lab.held[0].id, "for maintenance")
        assert browser.contexts == []
        with leased_context(lab.manager, browser, "lab") as context:
            context.close()
            assert lab.held == []
        browser.close()
        assert [told.kind for told in lab.outcomes] == [OutcomeKind.OK]


def test_socks_with_a_password_is_refused_or_passed_over(any_storage: AnyStorage) -> None:
    """No browser is needed to know that it cannot."""
    browser: Any = None
    with lab_for_tasks(any_storage, {"socks": SOCKS_WITH_LOGIN, "good": Behaviour()}) as one:

        async def main() -> None:
            only = ProxyFilters(proxy_id=one.lab.proxies["socks"].id)
            with pytest.raises(InvalidInputError, match="cannot log in to a SOCKS proxy"):
                async with leased_context(one.manager, browser, one.pool, filters=only):
                    pass
            assert one.lab.held == []
            async with one.manager.pool(one.pool, filters=FOR_BROWSERS).lease() as lease:
                assert one.lab.name_of(lease) == "good"
            await one.close()

        asyncio.run(main())


def test_a_proxy_beside_the_leased_one_is_refused() -> None:
    manager: Any = ProxyManager(InMemoryStorage())
    with pytest.raises(InvalidInputError, match="leave out its proxy"):
        leased_context(manager, None, "pool", context_options={"proxy": {}})  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("proxy", "expected"),
    [
        (
            LeasedProxy(ProxyProtocol.HTTP, "2001:db8::1", 8080, None),
            ("http://[2001:db8::1]:8080",),
        ),
        (LeasedProxy(ProxyProtocol.SOCKS5, "192.0.2.1", 1080, None), ("socks5://192.0.2.1:1080",)),
        (
            LeasedProxy(
                ProxyProtocol.HTTPS,
                "proxy.example",
                443,
                ProxyCredentials(user="al:ice", password=SecretStr("p@ss/w%rd")),
            ),
            ("https://proxy.example:443", "al:ice", "p@ss/w%rd"),
        ),
    ],
)
def test_a_proxy_is_spelled_as_playwright_reads_it(
    proxy: LeasedProxy, expected: tuple[str, ...]
) -> None:
    """Login and address apart, and nothing quoted."""
    lease = Lease(proxy_id=uuid4(), consumer_id=uuid4(), expires_at=utc_now()).carry(proxy)
    assert tuple(pharox_context(lease)["proxy"].values()) == expected


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        ("net::ERR_PROXY_CONNECTION_FAILED", OutcomeKind.PROXY_FAILED),
        ("net::ERR_PROXY_AUTH_UNSUPPORTED", OutcomeKind.PROXY_FAILED),
        ("NS_ERROR_PROXY_CONNECTION_REFUSED", OutcomeKind.PROXY_FAILED),
        ("net::ERR_TUNNEL_CONNECTION_FAILED", OutcomeKind.UNCLEAR),
        ("net::ERR_SOCKS_CONNECTION_FAILED", OutcomeKind.UNCLEAR),
        ("net::ERR_EMPTY_RESPONSE", OutcomeKind.UNCLEAR),
        ("net::ERR_CERT_DATE_INVALID", OutcomeKind.UNCLEAR),
        ("NS_ERROR_NET_RESET", OutcomeKind.UNCLEAR),
        ("net::ERR_ABORTED", None),
        ("net::ERR_BLOCKED_BY_CLIENT", None),
        ("something else", None),
        ("", None),
        (None, None),
    ],
)
def test_a_failure_says_whose_it_is(failure: str | None, kind: OutcomeKind | None) -> None:
    found = outcome_of_failure(failure)
    assert (found and found.kind) == kind


def test_the_example_runs(storage: PostgresStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    if CHROMIUM is None:
        pytest.skip("there is no chromium here")
    url = storage.engine.url.render_as_string(hide_password=False)
    monkeypatch.setenv("PHAROX_DATABASE_URL", url)
    monkeypatch.setenv("PHAROX_SECRET_KEY", SECRET_KEY)
    behaviours = {"socks": SOCKS_WITH_LOGIN, "password": FIVE["password"]}
    with proxy_lab(behaviours, storage=storage, pool_name="residential") as lab:
        shown = asyncio.run(example("playwright_page").main(lab.url("/page"), CHROMIUM))
        assert shown.strip() == f"password {lab.url('/page')}"
        assert lab.held == []
        assert [told.kind for told in lab.outcomes] == [OutcomeKind.OK]

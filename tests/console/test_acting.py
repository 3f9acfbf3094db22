"""Each action in a real browser: its reason is filled in, and the page shows what the log has."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import pytest
from playwright.sync_api import Browser, Page, expect

from pharox import Lease, Proxy, ProxyManager, ProxyPool, ProxyStatus, Subscription
from pharox.console import Action, create_app
from pharox.history.describing import describe
from pharox.ledger.subscriptions import parked
from pharox.storage.postgres import PostgresStorage
from tests import servers
from tests.conftest import Clusters, fill, ledger, new_database
from tests.console.conftest import everything, served
from tests.ledger.following import following, is_level, until

WHY = '<b>slow</b> & it\'s "late"'
PARKED = "mailer"


@dataclass
class Stage:
    """A ledger with something for each action, its console, and a browser at it."""

    storage: PostgresStorage
    url: str
    page: Page
    pool: ProxyPool
    proxies: list[Proxy]
    lease: Lease
    complaints: list[str] = field(default_factory=list)

    def open(self, path: str, **options: Any) -> Page:
        self.page.goto(self.url + path, **options)
        return self.page

    def ask(self, label: str, button: str, **fields: str) -> None:
        """Follow the link of an action on the page, fill its form in, and send it."""
        self.page.get_by_role("link", name=label, exact=True).first.click()
        for name, value in fields.items():
            self.page.get_by_label(name.replace("_", " ")).fill(value)
        self.page.get_by_label("Why", exact=True).fill(WHY)
        self.page.get_by_role("button", name=button).click()

    def said(self, sentence: str) -> None:
        """Expect what the console says was done, and go back to the page."""
        expect(self.page.locator("main")).to_contain_text(sentence)
        self.page.get_by_role("link", name="Go on").click()

    def told(self, since: int) -> list[Any]:
        """Return the events since a seq; each has who did it, and one of them why."""
        events = [event for event in self.storage.events() if event.seq > since]
        assert {event.actor for event in events} == {"ada"}
        assert WHY in {getattr(event, "reason", None) for event in events}
        return events

    def shows_last_event(self, event: Any, address: str) -> None:
        """Expect that the story begins with an event, as it is told elsewhere."""
        line = self.page.locator(".story > li").first
        sentence = describe(event, pool=self.pool.name, address=address).sentence
        expect(line.locator(".when small")).to_have_text(str(event.seq))
        expect(line).to_contain_text(sentence)
        expect(line).to_contain_text("ada")

    @property
    def seq(self) -> int:
        return self.storage.seal()


def _fail(_: object) -> None:
    raise ValueError(WHY)


@pytest.fixture(scope="module")
def stage(clusters: Clusters, chromium: Browser) -> Iterator[Stage]:
    """One ledger in PostgreSQL, as memory has no subscriptions and nothing to rebuild."""
    cluster, template = clusters.get(servers.names()[0])
    with ExitStack() as stack:
        name = f"pharox_{uuid4().hex[:12]}"
        storage = stack.enter_context(
            ledger(stack.enter_context(new_database(cluster, name, template)))
        )
        pool, proxies = fill(storage, 4)
        lease = ProxyManager(storage).acquire_proxy(pool.name, "worker")
        assert lease is not None
        url = stack.enter_context(served(create_app(storage, authorize=everything)))
        page = chromium.new_page(viewport={"width": 390, "height": 844})
        stack.callback(page.close)
        found = Stage(storage, url, page, pool, proxies, lease)
        page.on("console", lambda message: found.complaints.append(message.text))
        page.on("pageerror", lambda error: found.complaints.append(str(error)))
        page.on("request", lambda asked: _own(found, asked.url))
        yield found


def _own(stage: Stage, asked: str) -> None:
    if not asked.startswith(stage.url):
        stage.complaints.append(f"a request to {asked}")


@pytest.fixture(autouse=True)
def is_silent(stage: Stage) -> Iterator[None]:
    """No page complains, and none asks anybody else."""
    yield
    assert stage.complaints == []


def free(stage: Stage) -> list[Proxy]:
    """Return the proxies that are not leased, by id."""
    return [proxy for proxy in stage.proxies if proxy.id != stage.lease.proxy_id]


def address_of(proxy: Proxy) -> str:
    return f"{proxy.protocol.value}://{proxy.host}:{proxy.port}"


def test_ban_and_by_keyboard_alone_unban(stage: Stage) -> None:
    """The page says until when; the ban is lifted without a mouse."""
    proxy, seq = free(stage)[0], stage.seq
    page = stage.open(f"/proxies/{proxy.id}")
    stage.ask("Ban", "Ban a proxy", For_how_many_minutes="5")
    stage.said("It is banned until")
    (banned,) = stage.told(seq)
    assert (banned.after.status, banned.until is not None) == (ProxyStatus.BANNED, True)
    stage.shows_last_event(banned, address_of(proxy))
    expect(page.locator("dl.facts .badge").first).to_have_text("banned")
    seq = stage.seq
    _tab_to(page, "Lift the ban")
    page.keyboard.press("Enter")
    page.wait_for_url("**/actions/unban/**")
    _tab_to(page, "Lease it again at once")
    page.keyboard.press("Space")
    page.keyboard.press("Tab")
    page.keyboard.type(WHY)
    page.keyboard.press("Enter")
    stage.said("It may be leased again.")
    (unbanned,) = stage.told(seq)
    assert unbanned.after.status is ProxyStatus.ACTIVE
    stage.shows_last_event(unbanned, address_of(proxy))


def _tab_to(page: Page, label: str) -> None:
    """Press the tab key until something has the focus."""
    focused = "(e => (e.labels?.[0] ?? e).textContent.trim())(document.activeElement)"
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate(focused) == label:
            return
    pytest.fail(f"nobody comes to {label!r} by the tab key")


def test_drain(stage: Stage) -> None:
    """A proxy without a lease is gone then; its page stays."""
    proxy, seq = free(stage)[1], stage.seq
    page = stage.open(f"/proxies/{proxy.id}")
    stage.ask("Drain", "Drain a proxy")
    stage.said("It was removed.")
    assert stage.told(seq)[-1].type == "ProxyRemoved"
    expect(page.locator("dl.facts .badge").first).to_have_text("removed")
    assert stage.storage.get_bare_proxy(proxy.id) is None


def test_revoke(stage: Stage) -> None:
    """The lease's page has the end, and offers no other."""
    seq, lease = stage.seq, stage.lease
    page = stage.open(f"/leases/{lease.id}")
    stage.ask("Revoke", "Revoke a lease")
    stage.said("The lease has ended")
    (revoked,) = stage.told(seq)
    assert (revoked.type, revoked.lease_id) == ("LeaseRevoked", lease.id)
    expect(page.locator(".story > li").last).to_contain_text(WHY)
    assert page.get_by_role("link", name="Revoke").count() == 0


def test_change_a_pool_without_script(stage: Stage, chromium: Browser) -> None:
    """A form needs none; a wrong value keeps what was typed, and changes nothing."""
    context = chromium.new_context(java_script_enabled=False)
    own = Stage(
        stage.storage, stage.url, context.new_page(), stage.pool, stage.proxies, stage.lease
    )
    page, seq = own.open(f"/pools/{stage.pool.id}"), stage.seq
    own.ask("Change", "Change a pool", A_lease_lasts="soon")
    expect(page.get_by_role("alert")).to_contain_text("is no number")
    assert stage.seq == seq
    page.get_by_label("A lease lasts").fill("77")
    page.get_by_role("button", name="Change a pool").click()
    own.said("The pool was changed.")
    assert [event.type for event in stage.told(seq)] == ["ActionTaken", "PoolChanged"]
    assert stage.storage.get_pool(str(stage.pool.id)).lease_seconds == 77
    assert page.url == f"{stage.url}/pools/{stage.pool.id}"
    context.close()


def test_retry_parked(stage: Stage) -> None:
    """The page lists what is parked, with its error as text, and marks it."""
    subscription = Subscription(PARKED, _fail, attempts=1, start="beginning")
    with following(subscription, stage.storage):
        until(lambda: is_level(stage.storage, PARKED))
    number, seq = len(parked(stage.storage, PARKED)), stage.seq
    page = stage.open("/ledger")
    page.get_by_role("link", name=re.compile("parked events")).click()
    expect(page.locator("main")).to_contain_text(f"ValueError: {WHY}")
    stage.ask("Retry them", "Retry parked events")
    stage.said(f"{number} parked events are marked")
    (taken,) = stage.told(seq)
    assert (taken.action, taken.subject) == (Action.RETRY_PARKED, PARKED)
    assert all(event.retry for event in parked(stage.storage, PARKED))


def test_sweep_now(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on while the page is looked at, which says how it ended."""
    monkeypatch.setenv("PHAROX_CHECK_URL", "http://127.0.0.1:1/")
    seq, page = stage.seq, stage.open("/ledger")
    stage.ask("Check now", "Check a pool now")
    stage.said("The sweep has begun.")
    sweeps = page.locator("section[aria-labelledby=checks-title]")
    proxies = stage.storage.list_proxies(str(stage.pool.id))
    number = sum(proxy.status is not ProxyStatus.BANNED for proxy in proxies)
    expect(sweeps).to_contain_text(f"{number} proxies were checked", timeout=30_000)
    expect(sweeps).to_contain_text("under way", timeout=30_000)
    events = stage.told(seq)
    assert events[0].action == Action.SWEEP
    checked = {check.proxy_id for event in events[1:] for check in event.parts()}
    assert len(checked) == number


def test_rebuild(stage: Stage) -> None:
    """Its outcome comes by itself."""
    seq, page = stage.seq, stage.open("/ledger")
    stage.ask("Rebuild all", "Rebuild read models")
    stage.said("The rebuild has begun.")
    models = page.locator("section[aria-labelledby=models-title]")
    expect(models).to_contain_text("nothing differed from the log", timeout=60_000)
    (taken,) = stage.told(seq)
    assert (taken.action, taken.subject) == (Action.REBUILD, "all")


def test_nothing_overflows_on_a_phone(stage: Stage) -> None:
    """Also after all that: each page is as wide as the window."""
    for path in ("/", f"/pools/{stage.pool.id}", "/ledger", f"/proxies/{stage.lease.proxy_id}"):
        page = stage.open(path)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path

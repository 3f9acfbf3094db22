"""The overview and the page of a pool, in a real browser: what they draw is what the log says."""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any, Literal
from urllib.parse import parse_qs

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page, expect

from pharox import InMemoryStorage, InvalidInputError, ProxyManager, ProxyPool
from pharox.console import create_app, pool_lines
from pharox.console.console import Console
from pharox.console.pool_view import Question
from pharox.history.replay import pool_at
from tests.conftest import AnyStorage
from tests.console.conftest import Client, everything, served
from tests.console.test_serving import HOSTILE
from tests.ledger.incident_story import START, Incident
from tests.ledger.used_pool import UsedPool

ENDS = ("at=0001-01-01T00:00:00", "at=0001-01-01T00:00+23:00", "end=0001-01-01T00:00Z")
"""Moments at the end of the calendar, before which there is none."""

WORST = START + timedelta(minutes=6, seconds=30)


class Site:
    """A console over the incident's ledger, served, and what a browser met there."""

    def __init__(self, incident: Incident, url: str, browser: Browser) -> None:
        self.incident, self.url, self._browser = incident, url, browser
        self.complaints: list[str] = []

    def open(self, path: str = "/", **options: Any) -> Page:
        context: BrowserContext = self._browser.new_context(base_url=self.url, **options)
        page = context.new_page()
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self._note(request.url))
        page.goto(path)
        return page

    def _note(self, url: str) -> None:
        if not url.startswith(self.url):
            self.complaints.append(f"a request to {url}")


@pytest.fixture(scope="module")
def site(chromium: Browser) -> Iterator[Site]:
    """The incident in memory, in the middle of it, with a pool of a hostile name."""
    incident = Incident(InMemoryStorage())
    incident.play(11)
    incident.storage.save_pool(ProxyPool(name=HOSTILE))
    with served(create_app(incident.storage, authorize=everything)) as url:
        yield Site(incident, url, chromium)


def holders_of(page: Page) -> list[tuple[str, str]]:
    """Return the holder and the proxy of each lease on a page."""
    rows = page.locator("section[aria-labelledby=leases-title] tbody tr")
    return [
        (row.locator("td").nth(0).inner_text(), row.locator("td").nth(1).inner_text())
        for row in rows.all()
    ]


def holders_at(storage: Any, pool: Any, at: datetime) -> list[tuple[str, str]]:
    """Return what the log says of a moment, in the order of the page."""
    proxies = {proxy.proxy.id: proxy for proxy in pool_at(storage, pool, at).proxies}
    leases = sorted(
        (lease.proxy_id, lease.id, lease.consumer_name)
        for proxy in proxies.values()
        for lease in proxy.holders
    )
    return [(consumer, proxies[proxy_id].address) for proxy_id, _, consumer in leases]


def test_the_slider_shows_the_pool_as_it_was(site: Site) -> None:
    """Wherever it stands, the page has the holders of then; its address leads there again."""
    storage, pool = site.incident.storage, site.incident.pool
    page = site.open(f"/pools/{pool.id}")
    slider = page.locator("#slider")
    expect(slider).to_be_visible()
    for value in (640, 700, 500, 20):
        slider.evaluate(
            "(slider, value) => { slider.value = value;"
            " slider.dispatchEvent(new Event('input', {bubbles: true})); }",
            value,
        )
        begin = datetime.fromisoformat(page.locator("#moment").get_attribute("data-begin") or "")
        at = (begin + timedelta(seconds=value)).replace(microsecond=0)
        page.wait_for_function(
            "at => document.documentElement.dataset.at?.startsWith(at)",
            arg=f"{at:%Y-%m-%dT%H:%M:%S}",
        )
        shown = datetime.fromisoformat(page.evaluate("document.documentElement.dataset.at"))
        if shown >= START - timedelta(minutes=2):
            assert holders_of(page) == holders_at(storage, pool.id, shown)
            again = site.open(page.url.removeprefix(site.url))
            assert holders_of(again) == holders_of(page)
            assert again.locator(".notice.past").is_visible()
            again.context.close()
    page.context.close()
    assert site.complaints == []


def test_pages_are_live_and_say_nothing_hostile(site: Site) -> None:
    """A lease that is granted while somebody looks is shown; a name with markup is text."""
    page = site.open("/")
    expect(page.locator("#live-state")).to_have_text("Live.", timeout=30_000)
    card = page.locator("section.pool", has_text="residential-eu")
    before = card.locator("dl dd").first.inner_text()
    lease = ProxyManager(site.incident.storage).acquire_proxy(
        "residential-eu", consumer_name="on-call"
    )
    assert lease is not None
    expect(card.locator("dl dd").first).to_have_text(str(int(before) + 1), timeout=30_000)
    site.incident.storage.release_lease(lease)
    expect(card.locator("dl dd").first).to_have_text(before, timeout=30_000)
    assert page.locator("script:not([src])").count() == 0
    assert "alert(1)" in page.locator("main").inner_text()
    page.context.close()
    assert site.complaints == []


@pytest.mark.parametrize(("scheme", "width"), [("light", 390), ("dark", 1280)])
def test_pages_are_accessible(site: Site, scheme: Literal["light", "dark"], width: int) -> None:
    """axe finds nothing, and no page is wider than a phone."""
    pool = site.incident.pool.id
    axe = Axe()
    for path in ("/", f"/pools/{pool}", f"/pools/{pool}?at={WORST:%Y-%m-%dT%H:%M:%S}", "/nothing"):
        page = site.open(path, color_scheme=scheme, viewport={"width": width, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
        found = axe.run(page)
        assert found.violations_count == 0, found.generate_report()
        page.context.close()
    site.complaints = [each for each in site.complaints if "404" not in each]
    assert site.complaints == []


def test_it_can_be_read_without_script(site: Site) -> None:
    """A moment is typed then, and links lead on."""
    page = site.open("/", java_script_enabled=False)
    page.get_by_role("link", name="residential-eu").first.click()
    page.get_by_label("Moment, UTC").fill(f"{WORST:%Y-%m-%d %H:%M:%S}")
    page.get_by_role("button", name="Show").click()
    pool = site.incident.pool.id
    assert holders_of(page) == holders_at(site.incident.storage, pool, WORST)
    page.get_by_role("link", name="Now").click()
    assert page.locator("#leases-title").inner_text() == "Leases now"
    page.context.close()


def test_a_view_pages_by_key_and_agrees_with_the_log(
    any_storage: AnyStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages of leases and proxies have each once; remaining time and renewals are those of then."""
    monkeypatch.setattr(pool_lines, "LEASES", 3)
    monkeypatch.setattr(pool_lines, "PROXIES", 5)
    incident = Incident(any_storage)
    incident.play(6)
    renewed = ProxyManager(any_storage).acquire_proxy("residential-eu", consumer_name="long")
    assert renewed is not None
    incident.clock.advance(1)
    ProxyManager(any_storage).renew_lease(renewed, 600)
    incident.clock.advance(1)
    views = Console(any_storage, everything, 30).pools
    pool_id = incident.pool.id
    now = views.of(pool_id, Question()).at
    truth = pool_at(any_storage, pool_id, now)
    for at in (None, now):
        view = views.of(pool_id, Question(at=at))
        assert view.next_proxies is not None
        second = views.of(pool_id, Question(at=at, proxies_after=view.next_proxies))
        ids = [proxy.proxy.id for proxy in truth.proxies]
        assert [proxy.id for proxy in (*view.proxies, *second.proxies)] == ids[:10]
        assert view.gauge.total == len(truth.proxies)
        assert view.active_leases == len(truth.leases)
        found = _all_leases(views, pool_id, at)
        assert [line.id for line in found] == sorted(
            truth.leases, key=lambda each: (truth.leases[each].proxy_id, each)
        )
        for line in found:
            row = truth.leases[line.id]
            assert line.remaining_s == pytest.approx((row.expires_at - now).total_seconds(), abs=5)
            assert line.renewals == (1 if line.id == renewed.id else 0)
    with pytest.raises(InvalidInputError, match="future"):
        views.of(pool_id, Question(at=now + timedelta(days=1)))
    client = Client(create_app(any_storage, authorize=everything))
    assert "data-live" in client.get(f"/pools/{pool_id}").text
    end = (now + timedelta(minutes=1)).isoformat()
    first = client.get(f"/pools/{pool_id}", params={"at": now.isoformat(), "end": end}).text
    for name in ("leases", "proxies"):
        following = re.search(rf'href="[^"]*\?([^"]*\b{name}=[^"]*)"', first)
        assert following
        asked = parse_qs(html.unescape(following[1]))
        assert (asked["at"], asked["end"]) == ([now.isoformat()], [end])
        # A live page would show the first leases and proxies again.
        later = client.get(f"/pools/{pool_id}?{name}={asked[name][0]}")
        assert later.status_code == 200
        assert "data-live" not in later.text
    for query in (*ENDS, "at=yesterday", "at=5", "span=7", "leases=x.y", "proxies=1"):
        assert client.get(f"/pools/{pool_id}?{query}").status_code == 400
    assert client.get(f"/pools/{renewed.id}").status_code == 404


def _all_leases(views: Any, pool_id: Any, at: datetime | None) -> list[Any]:
    lines, question = [], Question(at=at)
    while True:
        view = views.of(pool_id, question)
        lines += view.leases
        if view.next_leases is None:
            return lines
        question = Question(at=at, leases_after=view.next_leases)


@pytest.mark.parametrize("seed", range(2))
def test_a_moment_is_shown_as_it_was_shown_then(any_storage: AnyStorage, seed: int) -> None:
    """Shares, leases, checks, outcomes, rests and sessions; holders are told of the past alone."""
    used = UsedPool(any_storage, seed)
    views = create_app(any_storage).state.console.pools
    shown = []
    for _ in range(12):
        used.play(20)
        shown.append(views.of(used.pool.id, Question()))
        used.clock.advance(1)
    for now in shown:
        then = views.of(used.pool.id, Question(at=now.at))
        assert [line._replace(holders=()) for line in then.proxies] == now.proxies
        assert (then.leases, then.sessions, then.gauge) == (now.leases, now.sessions, now.gauge)
        held = Counter(line.consumer for line in then.leases)
        assert Counter(name for line in then.proxies for name in line.holders) == held

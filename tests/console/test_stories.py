"""Pages of proxies, consumers, leases and targets tell what the log has, and lead to each other."""

from __future__ import annotations

import asyncio
import html
import json
import re
import threading
import zipfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any, get_args
from urllib.parse import quote, urlencode
from uuid import UUID, uuid4

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page
from pydantic import SecretStr

from pharox import (
    InMemoryStorage,
    InvalidInputError,
    Outcome,
    Proxy,
    ProxyManager,
    ProxyPool,
    ProxySource,
    ProxyStatus,
    RotationAnswer,
    RotationFailure,
    SourceCounts,
    attributed,
)
from pharox.console import create_app, reports
from pharox.console.console import Console
from pharox.console.figures import figures_of
from pharox.console.rotating import rotation_of
from pharox.console.story.lines import WORDS
from pharox.console.story.reading import read_part
from pharox.console.story.window import KINDS, Wanted
from pharox.events import AcquireMissed, Event, LeaseAcquired, LeaseEnd, OutcomeReported
from pharox.history.audit import of_consumer, of_proxy
from pharox.history.describing import describe
from pharox.incident.report import write_report, write_window
from pharox.ledger import roles
from pharox.log import Extract
from pharox.storage.postgres import PostgresStorage
from pharox.storage.sources import RefreshResult
from tests import servers
from tests.conftest import AnyStorage, Clusters, clock_of, fill, ledger, new_database
from tests.console.conftest import Client, everything, served
from tests.database.sealing import connected, new_role
from tests.database.test_privileges import as_role
from tests.ledger.incident_story import BULK, Incident

TARGET = "shop.example"
HOSTILE = "<img src=x onerror=alert(1)>\u202e' of \"&/../?#"
KEY = "s3cret"
WINDOW = {"from": "2026-01-01T10:04:00Z", "to": "2026-01-01T10:09:00Z"}


class Told:
    """A ledger in which much happened, and its console."""

    def __init__(self, storage: AnyStorage, url: str | None = None) -> None:
        self.storage, self.url = storage, url
        self.incident = Incident(storage)
        self.incident.play(11)
        self._fail_at_target()
        self._be_hostile()
        self.events: list[Event] = list(storage.events())
        self.client = Client(create_app(storage, authorize=everything))

    def _fail_at_target(self) -> None:
        manager, clock = ProxyManager(self.storage), self.incident.clock
        for number in range(6):
            lease = manager.acquire_proxy(self.incident.pool.name, "checkout", 60, target=TARGET)
            if lease is not None:
                refused = Outcome.blocked(status=429, retry_after=600)
                manager.report(lease, refused if number % 2 else Outcome.ok(status=200))
                clock.advance(1)
                manager.release_proxy(lease)

    def _be_hostile(self) -> None:
        pool = ProxyPool(name=HOSTILE, description=HOSTILE)
        self.storage.save_pool(pool)
        self.hostile = Proxy(
            host="h.example", port=1, protocol="http", pool_id=pool.id, status="active",
            source=HOSTILE, country="DE", max_concurrency=1,
        )  # fmt: skip
        self.storage.add_proxies_bulk([self.hostile])
        self.storage.save_source(
            ProxySource(
                name=HOSTILE, pool_name=pool.name, url=SecretStr(f"https://s.example/?k={KEY}")
            )
        )
        with attributed(actor=HOSTILE, correlation_id=HOSTILE):
            manager = ProxyManager(self.storage)
            manager.acquire_proxy(pool.name, HOSTILE, 60)
            manager.acquire_proxy(pool.name, HOSTILE, 60)
            self.storage.set_status(self.hostile.id, ProxyStatus.BANNED, reason=HOSTILE)

    def of(self, kind: Any, **wanted: Any) -> Any:
        """Return the first event of a kind with these values."""
        return next(
            e for e in self.events
            if isinstance(e, kind) and all(getattr(e, k) == v for k, v in wanted.items())
        )  # fmt: skip

    def get(self, path: str, **query: Any) -> str:
        """Return a page."""
        answer = self.client.get(address(path, **query))
        assert answer.status_code == 200, answer.text
        return answer.text


def address(path: str, **query: Any) -> str:
    return f"{path}?{urlencode(query)}" if query else path


def seqs(text: str) -> list[int]:
    """Return the seqs of the lines of a page, as they stand there."""
    return [int(seq) for seq in re.findall(r'<li id="e(\d+)">', text)]


def sentences(text: str) -> list[str]:
    """Return what the lines of a page say, without markup and links to leases."""
    said = re.findall(r'<div class="said">\s*<p dir="auto">(.*?)</p>', text, re.DOTALL)
    plain = [re.sub(r' <a class="small nowrap".*?</a>', "", each, flags=re.DOTALL) for each in said]
    return [html.unescape(re.sub(r"<[^>]+>", "", each)).strip() for each in plain]


def attributes(text: str) -> set[str]:
    """Return the names of the attributes of all elements."""
    found = set[str]()

    class Parser(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.update(name for name, _ in attrs)

    Parser().feed(text)
    return found


def link(text: str, label: str) -> str:
    """Return where a link leads."""
    found = re.search(rf'href="([^"]*)"[^>]*>{label}</a>', text)
    assert found, label
    return html.unescape(found[1])


@contextmanager
def told_on(server: str, clusters: Clusters) -> Iterator[Told]:
    if server == "memory":
        yield Told(InMemoryStorage())
        return
    cluster, template = clusters.get(server)
    with (
        new_database(cluster, f"pharox_{uuid4().hex[:12]}", template) as url,
        ledger(url) as storage,
    ):
        yield Told(storage, url)


@pytest.fixture(scope="module", params=["memory", servers.names()[0]])
def told(request: pytest.FixtureRequest, clusters: Clusters) -> Iterator[Told]:
    """The same story in both storages."""
    with told_on(request.param, clusters) as told:
        yield told


@pytest.fixture(scope="module")
def url(told: Told) -> Iterator[str]:
    """The console, served."""
    with served(create_app(told.storage, authorize=everything)) as url:
        yield url


ON_POSTGRES = pytest.mark.parametrize("told", [servers.names()[0]], indirect=True)


class TestStories:
    @pytest.mark.parametrize("kind", ["consumer", "proxy"])
    def test_pages_back_to_back_are_the_whole_audit(self, told: Told, kind: str) -> None:
        """From the newest page by "Older" to the first event: as ``pharox audit`` tells it."""
        if kind == "consumer":
            story, path = of_consumer(told.storage, "price-watch"), "/consumer?name=price-watch"
        else:
            proxy = told.of(LeaseAcquired, consumer=BULK).proxy_id
            story, path = of_proxy(told.storage, proxy), f"/proxies/{proxy}"
        expected = [
            (e.event.seq, describe(e.event, pool=e.pool, address=e.address).sentence)
            for e in story.entries
        ]
        found: list[tuple[int, str]] = []
        pages = 0
        while True:
            text, pages = told.get(path), pages + 1
            found += zip(seqs(text), sentences(text), strict=True)
            if ">Older</a>" not in text:
                break
            path = link(text, "Older")
        assert found == expected[::-1]
        assert pages == -(-len(expected) // 50)
        if pages > 1:  # and forward again
            assert seqs(told.get(link(text, "Newer"))) == [
                seq for seq, _ in found[-len(seqs(text)) - 50 : -len(seqs(text))]
            ]

    def test_a_filter_leaves_out_the_rest(self, told: Told) -> None:
        """By kind, and by time, both ends inclusive."""
        misses = [
            e for e in told.events if isinstance(e, AcquireMissed) and e.consumer == "checkout"
        ]
        text = told.get("/consumer", name="checkout", show="misses")
        assert seqs(text) == [e.seq for e in misses[::-1]][:50]
        first, last = misses[1], misses[4]
        by_seq = told.get("/consumer", **{"name": "checkout", "from": first.seq, "to": last.seq})
        by_time = told.get(
            "/consumer",
            **{
                "name": "checkout",
                "from": first.recorded_at.isoformat(),
                "to": last.recorded_at.replace(tzinfo=None).isoformat(),
            },
        )
        assert seqs(by_seq) == seqs(by_time)
        assert seqs(by_seq)[0] == last.seq
        assert seqs(by_seq)[-1] == first.seq

    def test_a_permalink_shows_the_same_for_ever(self, told: Told) -> None:
        """Whatever happens later."""
        text = told.get("/consumer", name="checkout")
        fixed = link(text, "Link to just this window")
        told.storage.ensure_consumer("checkout")
        told.storage.save_pool(ProxyPool(name=f"another {uuid4()}"))
        assert seqs(told.get(fixed)) == seqs(text)

    def test_a_lease_leads_to_its_proxy_and_that_to_its_holder_then(self, told: Told) -> None:
        """Who held it is as the fold of the log says, now and then."""
        miss = told.of(AcquireMissed)
        lease = next(
            e for e in told.events
            if isinstance(e, LeaseAcquired) and e.consumer == BULK and e.seq < miss.seq
        )  # fmt: skip
        text = told.get(f"/leases/{lease.lease_id}")
        assert seqs(text)[0] == lease.seq
        ended = told.of(LeaseEnd, lease_id=lease.lease_id)
        assert ended.seq in seqs(text)
        text = told.get(html.unescape(re.findall(rf'"(/proxies/{lease.proxy_id}[^"]*)"', text)[0]))
        assert ended.seq == seqs(text)[0]
        then = told.get(f"/proxies/{lease.proxy_id}", to=miss.seq)
        held = {
            row.id for row in told.storage.state_at(miss.seq)["leases"].values()
            if row.proxy_id == lease.proxy_id
        }  # fmt: skip
        card = then.partition('id="holders-title"')[2].partition("</section>")[0]
        assert {UUID(each) for each in re.findall(r"/leases/([0-9a-f-]{36})", card)} == held
        assert lease.lease_id in held
        assert BULK in card

    def test_a_target_has_what_was_reported_of_it(self, told: Told) -> None:
        """Outcomes, who rests, and its leases."""
        text = told.get("/target", name=f"https://{TARGET}/")
        about = [e for e in told.events if getattr(e, "target", None) == TARGET]
        assert any(isinstance(e, OutcomeReported) for e in about)
        assert seqs(text) == [e.seq for e in about[::-1]]
        resting = told.storage.list_target_outcomes(target=TARGET, cooling=True)
        assert resting
        for pair in resting:
            assert f"/proxies/{pair.proxy_id}" in text

    @pytest.mark.parametrize(
        ("path", "status", "sentence"),
        [
            ("/consumer?name=nobody", 404, "There never was a consumer"),
            ("/consumer", 400, "lacks a name"),
            ("/consumer?name=checkout&from=soon", 400, "is not a moment"),
            ("/consumer?name=checkout&from=9&to=3", 400, "is before the beginning"),
            ("/consumer?name=checkout&show=everything", 400, "there are leases, misses"),
            ("/consumer?name=checkout&before=x", 400, "must be a seq"),
            (f"/proxies/{UUID(int=999)}", 404, "There never was a proxy"),
            (f"/leases/{UUID(int=999)}", 404, "There never was a lease"),
            ("/proxies/none", 404, "There is no such page"),
            ("/target?name=nowhere.example", 404, "Nothing is known of a target"),
            ("/why?consumer=nobody", 404, "There never was a consumer"),
            ("/why?consumer=checkout&at=99999999", 400, "the log has no event"),
            ("/incident?pool=none&from=2026-01-01T10:04Z&to=2026-01-01T10:05Z", 404, "No pool was"),
            ("/incident?pool=&from=2020-01-01&to=2020-01-02", 400, "longer than 6 hours"),
            ("/incident?pool=&from=2026-01-01T01:00&to=2026-01-01T02:00", 404, "Nothing was reco"),
            ("/incident/drawn?from=x&to=now", 400, "is not a moment"),
            ("/search?q=no-such-thing-at-all", 404, "No pool, proxy, consumer"),
            ("/ledger?parked=none", 404, "none"),
        ],
    )  # fmt: skip
    def test_what_is_wrong_is_said(self, told: Told, path: str, status: int, sentence: str) -> None:
        """A wrong name, id or time is a page with a sentence."""
        if told.url is None and path.startswith("/ledger"):
            assert told.client.get(path).status_code == 200  # it has no subscriptions
            return
        answer = told.client.get(path)
        assert (answer.status_code, sentence in html.unescape(answer.text)) == (status, True)


def test_each_type_of_event_has_a_kind_and_a_word() -> None:
    """So that what is new is found by its kind, and does not say that something was changed."""
    types = {each.model_fields["type"].default for each in get_args(get_args(Event)[0])}
    kinds = Counter(name for names in KINDS.values() for name in names)
    assert kinds == Counter(types)
    assert set(WORDS) == types
    assert [name for name, (word, _) in WORDS.items() if word == "changed"] == [
        "PoolChanged",
        "ProxyChanged",
    ]


@pytest.mark.parametrize("moment", ["0001-01-01", "9999-12-31T23:59-23:00"])
def test_the_ends_of_the_calendar_are_refused(told: Told, moment: str) -> None:
    """As a beginning and as an end: nothing can be looked for beyond them."""
    for path in ("/consumer?name=checkout", f"/proxies/{told.hostile.id}?"):
        for name in ("from", "to"):
            answer = told.client.get(f"{path}&{name}={moment}")
            assert (answer.status_code, "calendar" in answer.text) == (400, True)


class TestWhy:
    def test_the_culprit_is_named(self, told: Told) -> None:
        """Who held most, and its misses by minute."""
        misses = [
            e for e in told.events if isinstance(e, AcquireMissed) and e.consumer == "checkout"
        ]
        miss = misses[4]
        held = Counter(
            row.consumer_name for row in told.storage.state_at(miss.seq)["leases"].values()
            if row.pool_id == miss.pool_id
        )  # fmt: skip
        (most, number), total = held.most_common(1)[0], held.total()
        text = told.get("/why", consumer="checkout", at=miss.seq)
        plain = html.unescape(re.sub(r"<[^>]+>", "", text))
        assert most == BULK
        assert f"{most!r} held {number} of the {total} leases of the pool then" in plain
        assert "checkout got nothing from pool" in plain
        minutes = Counter((f"{e.recorded_at:%H:%M}") for e in misses if e.seq <= miss.seq)
        shown = re.findall(
            r'>(\d\d:\d\d)</a></td>\s*<td data-label="Reason">.*?</td>\s*'
            r'<td data-label="Misses" class="number">(\d+)</td>',
            text,
        )
        assert {minute: int(number) for minute, number in shown} == minutes
        path = html.unescape(re.findall(r'href="(/consumer[^"]*show=misses[^"]*)"', text)[0])
        newest = max(minutes)
        assert seqs(told.get(path)) == [
            e.seq for e in misses[::-1] if f"{e.recorded_at:%H:%M}" == newest
        ]

    def test_each_miss_leads_to_its_reason(self, told: Told) -> None:
        """From the line of the story."""
        text = told.get("/consumer", name="checkout", show="misses")
        path = html.unescape(re.findall(r'href="(/why[^"]*)"', text.partition("<ol")[2])[0])
        assert f"event {seqs(text)[0]}" in told.get(path)

    def test_who_never_missed_is_told_so(self, told: Told) -> None:
        """Before its first miss, for example."""
        assert "got a proxy each time" in told.get("/why", consumer="checkout", at=40)


class TestSearch:
    def test_each_thing_is_found(self, told: Told) -> None:
        """By name, by address with or without its protocol, by id; parts are listed."""
        lease = told.of(LeaseAcquired)
        proxy = told.incident.proxies[1]
        for text, path in {
            told.incident.pool.name: f"/pools/{told.incident.pool.id}",
            "checkout": "/consumer?name=checkout",
            f"{proxy.host}:{proxy.port}": f"/proxies/{proxy.id}",
            f"http://user:secret@{proxy.host}:{proxy.port}": f"/proxies/{proxy.id}",
            str(proxy.id): f"/proxies/{proxy.id}",
            str(lease.lease_id): f"/leases/{lease.lease_id}",
            TARGET: f"/target?name={TARGET}",
            f"  {HOSTILE} ": None,
        }.items():
            answer = told.client.get(address("/search", q=text))
            if path is None:
                assert answer.status_code == 200  # a pool, a consumer and a source have this name
                assert answer.text.count('<span class="badge">') == 3
                continue
            assert (answer.status_code, answer.headers["location"]) == (303, path)
        listed = told.get("/search", q="http://gw1")
        assert len(re.findall(r'href="/proxies/', listed)) == sum(
            str(p.host).startswith("gw1") and p.protocol.value == "http"
            for p in told.incident.proxies
        )


class TestIncident:
    def test_the_report_is_shown_and_exported(self, told: Told, tmp_path: Path) -> None:
        """In a frame with a policy of its own, and as a file with the timeline beside it."""
        query = {"pool": told.incident.pool.name, **WINDOW}
        answer = told.client.get(address("/incident", **query))
        assert "frame-src 'self'" in answer.headers["content-security-policy"]
        assert "unsafe" not in answer.headers["content-security-policy"]
        frame = re.search(r'<iframe[^>]* src="([^"]*)"', answer.text)
        assert frame
        drawn = told.client.get(html.unescape(frame[1]))
        policy = drawn.headers["content-security-policy"]
        assert "frame-ancestors 'self'" in policy
        assert "script-src 'sha256-" in policy
        assert "unsafe" not in policy
        packed = told.client.get(link(answer.text, "Export"))
        assert packed.headers["content-disposition"].startswith("attachment")
        with zipfile.ZipFile(BytesIO(packed.content)) as archive:
            page, timeline = sorted(archive.namelist())
            assert archive.read(page).decode() == drawn.text
            lines = archive.read(timeline).decode().splitlines()
        start, end = (e.replace(microsecond=0) for e in _window(told))
        report = write_report(told.storage, start, end, tmp_path / "report", pools=[query["pool"]])
        assert len(lines) == pytest.approx(report.events, abs=20)
        assert {json.loads(line)["pool"] for line in lines} == {query["pool"]}

    def test_a_window_is_drawn_once_and_has_its_bound(
        self, told: Told, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """However many look at it at once; of what is too long a sentence tells."""
        drawings = list[Any]()

        def counted(*arguments: Any, **options: Any) -> Any:
            drawings.append(arguments)
            return write_window(*arguments, **options)

        monkeypatch.setattr(reports, "write_window", counted)
        kept = reports.Reports(figures_of(told.storage).log)
        window = reports.Window(told.incident.pool.name, *_window(told))
        with ThreadPoolExecutor(3) as threads:
            drawn = list(threads.map(lambda _: kept.drawn(told.storage, window), range(3)))
        assert len(drawings) == 1
        assert drawn[0] is drawn[1] is drawn[2]
        monkeypatch.setattr(reports, "MOST_EVENTS", 10)
        query = {"pool": told.incident.pool.name, **WINDOW, "from": "2026-01-01T10:05:00Z"}
        answer = told.client.get(address("/incident", **query))
        assert answer.status_code == 400
        assert "events, of which 10 can be drawn" in answer.text

    def test_the_bound_is_of_the_pools_that_are_drawn(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Those of the name in the window: others do not count, and a renamed one is found."""
        storage = InMemoryStorage()
        manager = ProxyManager(storage)
        gone, _ = fill(storage, 1, name="gone")
        fill(storage, 0, name="busy")
        manager.acquire_proxy("gone", "w")
        for _ in range(30):
            manager.acquire_proxy("busy", "w")
        storage.save_pool(gone.model_copy(update={"name": "another"}))
        events = list(storage.events())
        start, end = events[0].recorded_at, events[-1].recorded_at
        kept = reports.Reports(figures_of(storage).log)
        monkeypatch.setattr(reports, "MOST_EVENTS", 20)
        assert "1 lease" in kept.drawn(storage, reports.Window("gone", start, end)).numbers
        monkeypatch.setattr(reports, "MOST_EVENTS", 2)
        with pytest.raises(InvalidInputError, match="of which 2 can be drawn"):
            kept.drawn(storage, reports.Window("another", start, end))

    def test_slow_pages_leave_room_for_others(self) -> None:
        """However many are asked for, two are read at a time and other pages are answered."""
        console = Console(InMemoryStorage(), everything, 30)
        began, may_end = list[int](), threading.Event()

        def slow(number: int) -> None:
            began.append(number)
            assert may_end.wait(60)

        async def crowd() -> str:
            slow_ones = [asyncio.create_task(console.read_slowly(slow, n)) for n in range(20)]
            try:
                return await asyncio.wait_for(console.read(lambda: "answered"), 30)
            finally:
                assert len(began) <= 2
                may_end.set()
                await asyncio.gather(*slow_ones)

        with ThreadPoolExecutor(1) as thread:  # Playwright keeps a loop in this one.
            assert thread.submit(asyncio.run, crowd()).result() == "answered"
        assert len(began) == 20


def _window(told: Told) -> tuple[Any, Any]:
    from datetime import datetime

    return datetime.fromisoformat(WINDOW["from"]), datetime.fromisoformat(WINDOW["to"])


def pages_of(told: Told) -> list[str]:
    """Return an address of each page, some about what has a hostile name."""
    miss = told.of(AcquireMissed, consumer="checkout")
    lease = told.of(LeaseAcquired, consumer=HOSTILE)
    return [
        address("/consumer", name=HOSTILE),
        address("/consumer", name=BULK),
        f"/proxies/{told.hostile.id}",
        f"/proxies/{told.incident.proxies[1].id}?to={miss.seq}",
        f"/leases/{lease.lease_id}",
        address("/target", name=TARGET),
        address("/why", consumer="checkout", at=miss.seq),
        address("/why", consumer=HOSTILE),
        address("/search", q=HOSTILE),
        address("/incident", pool=HOSTILE),
        address("/incident", pool=told.incident.pool.name, **WINDOW),
        address("/source", name=HOSTILE),
        "/ledger",
        "/login",
        f"/actions/ban/{told.incident.proxies[0].id}",
        f"/actions/unban/{told.hostile.id}",
        f"/actions/drain/{told.hostile.id}",
        f"/actions/revoke/{lease.lease_id}",
        f"/actions/change_pool/{lease.pool_id}",
        f"/actions/sweep/{quote(HOSTILE, safe='')}",
        f"/actions/retry_parked/{quote(HOSTILE, safe='')}",
        "/actions/rebuild/all",
    ]


def test_hostile_names_are_text(told: Told) -> None:
    """On each page, and nothing needs more than the policy allows."""
    for path in pages_of(told):
        text = told.client.get(path).text
        assert "<img src=x" not in text
        assert KEY not in text
        assert "\u202e" not in text
        assert not [name for name in attributes(text) if name.startswith("on") or name == "style"]
        if "name=" in path and "img" in path:
            assert html.escape("<img src=x onerror=alert(1)>") in text


def test_a_rare_target_is_looked_for_among_so_many_events_both_ways(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A page says how far it looked, and the next one goes on there, until it finds something."""
    storage = InMemoryStorage()
    pool, _ = fill(storage, 1)
    manager = ProxyManager(storage)
    for target in (TARGET, *["other.example"] * 10, TARGET):
        lease = manager.acquire_proxy(pool.name, consumer_name="c", target=target)
        assert lease is not None
        manager.release_proxy(lease)
    granted = (event for event in storage.events() if isinstance(event, LeaseAcquired))
    first, last = (event.seq for event in granted if event.target == TARGET)
    upto: list[int] = []
    plain = storage.history

    def history(extract: Extract) -> Iterator[Event]:
        if extract.target:
            upto.append(extract.upto)
        return plain(extract)

    monkeypatch.setattr(storage, "history", history)
    story, after, pages = Extract(types=("LeaseAcquired",), target=TARGET), first, 0
    while True:
        part = read_part(storage, story, Wanted(after=after), within=6)
        assert max(upto) <= after + 6
        if part.events:
            break
        assert part.newer == part.looked_upto == after + 6
        after, pages = after + 6, pages + 1
    assert [event.seq for event in part.events] == [last]
    assert pages > 1
    monkeypatch.setattr("pharox.console.pages.target.LOOKED", 6)
    text = Client(create_app(storage)).get(f"/target?name={TARGET}&after={first}").text
    assert f"Looked forward to event {first + 6}." in text
    assert "a page looks through 100,000 events of all targets." in text
    text = Client(create_app(storage)).get("/search?q=nowhere").text
    assert "is named so. Names of pools" in text


def test_sources_and_rotations_are_shown_as_they_are(
    any_storage: AnyStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is wrong with a list, and where another exit is; no page has the URL of either."""
    clock = clock_of(any_storage)
    secret = SecretStr(f"https://provider.example/?k={KEY}")
    pool, (phone,) = fill(any_storage, 1, rotate_url=secret)
    any_storage.save_source(ProxySource(name="list", pool_name=pool.name, url=secret))
    client = Client(create_app(any_storage, authorize=everything))
    seen: list[str] = []

    def page(path: str) -> str:
        seen.append(client.get(path).text)
        return seen[-1]

    def refreshed(result: RefreshResult) -> str:
        claim = any_storage.claim_source("list")
        assert claim is not None
        any_storage.finish_refresh(claim, result)
        return page("/source?name=list")

    def answered(answer: RotationAnswer) -> str:
        (due,) = any_storage.claim_rotations().due
        assert "Its link is being called" in page(f"/proxies/{phone.id}")
        any_storage.answer_rotation(due, answer)
        return page(f"/proxies/{phone.id}")

    assert "the server said no" in refreshed(RefreshResult(failure="the server said no"))
    kept = SourceCounts(listed=3, kept=2, skipped=1)
    text = refreshed(RefreshResult(kept, ("line 3 has no port",)))
    assert "ok, 1 unreadable" in text
    assert "line 3 has no port" in text
    assert "nothing is removed; 2 proxies no longer listed stay" in page(f"/pools/{pool.id}")
    assert "was not called yet" in page(f"/proxies/{phone.id}")
    any_storage.begin_rotation(phone.id, 600)
    assert "It rests for another exit" in page(f"/proxies/{phone.id}")
    refused = RotationAnswer(RotationFailure.REFUSED, 503, retry_after_seconds=30)
    assert "refused with 503. It is called again at" in answered(refused)
    clock.advance(31)
    assert "It took another exit at" in answered(RotationAnswer(status=200, exit_ip="192.0.2.77"))
    assert "192.0.2.77" in seen[-1]
    assert KEY not in "".join(seen)
    if isinstance(any_storage, PostgresStorage):
        # What happened before may be archived: the state is that of the read model.
        monkeypatch.setattr(PostgresStorage, "history", None)
    known = any_storage.get_bare_proxy(phone.id)
    assert known is not None
    now = rotation_of(any_storage, known)
    assert now is not None
    assert now.rotated_at == clock.now
    assert now.sentence.startswith("It took another exit at")


@ON_POSTGRES
def test_a_role_that_only_reads_sees_each_page(told: Told) -> None:
    """And may verify."""
    assert told.url is not None
    with connected(told.url) as server, new_role(server) as name:
        assert isinstance(told.storage, PostgresStorage)
        roles.grant(told.storage, roles.Roles(reader=[name]))
        server.execute(f"GRANT SELECT ON pharox.test_clock TO {name}")  # this test's clock
        with ledger(as_role(told.url, name)) as storage:
            client = Client(create_app(storage))
            for path in pages_of(told):
                if path.startswith("/actions/"):
                    continue  # what acts is another role
                answer = client.get(path)
                assert answer.status_code in (200, 404), answer.text.partition("<main")[2]
            assert storage.verify() == []


@ON_POSTGRES
class TestInABrowser:
    def test_pages_are_accessible_and_ask_nobody_else(
        self, told: Told, url: str, chromium: Browser, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """axe finds nothing in light, dark and narrow; the console is silent; nothing overflows."""
        monkeypatch.setenv("PHAROX_CHECK_URL", "http://127.0.0.1:1/")
        for scheme, width in (("light", 1280), ("dark", 390)):
            context = chromium.new_context(
                color_scheme=scheme,  # type: ignore[arg-type]
                viewport={"width": width, "height": 900},
            )
            page = context.new_page()
            complaints, requests = watched(page)
            for path in pages_of(told):
                page.goto(url + path, wait_until="load")
                assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
                if scheme == "light" and "/incident" not in path and "/why" not in path:
                    continue  # the same elements; each costs a second
                found = Axe().run(page).response["violations"]
                assert [(each["id"], path) for each in found] == []
            assert complaints == []
            assert {each.split("/")[2] for each in requests} == {url.split("/")[2]}
            context.close()

    def test_it_is_used_by_keyboard(self, told: Told, url: str, chromium: Browser) -> None:
        """Search with "/", filter a story, look at a report in its frame, verify."""
        page = chromium.new_page()
        complaints, _ = watched(page)
        page.goto(url)
        page.keyboard.press("/")
        page.keyboard.type("checkout")
        page.keyboard.press("Enter")
        page.wait_for_url("**/consumer?name=checkout")
        page.get_by_label("misses").check()
        page.keyboard.press("Enter")
        page.wait_for_url("**show=misses*")
        assert set(page.locator(".story .badge").all_inner_texts()) == {"missed"}
        page.goto(url + address("/incident", pool=told.incident.pool.name, **WINDOW))
        frame = page.frame_locator("iframe.report")
        frame.get_by_role("heading", name="Incident report").wait_for()
        frame.get_by_role("button", name="how they ended").click()  # its own script runs
        assert frame.locator('html[data-colour="ending"]').count() == 1
        page.goto(f"{url}/ledger")
        page.get_by_role("button", name="Verify now").press("Enter")
        page.get_by_text("Nothing is wrong").wait_for()
        assert complaints == []


def watched(page: Page) -> tuple[list[str], list[str]]:
    """Note what a page complains of, and what it asks for."""
    complaints: list[str] = []
    requests: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))

    def heard(message: Any) -> None:
        if message.type in ("error", "warning") and "status of 404" not in message.text:
            complaints.append(message.text)

    page.on("console", heard)
    return complaints, requests

"""What the pages show is what the log says, on both storages; alerts are those that are shipped."""

from __future__ import annotations

import html
import random
import re
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from urllib.parse import urlencode
from uuid import uuid4

import pytest
from pydantic import SecretStr

from pharox import InMemoryStorage, Outcome, ProxyManager, ProxyPool, ProxySource, SourceCounts
from pharox.console import create_app
from pharox.console.alerts import ELSEWHERE, RULES, Facts, Watch
from pharox.console.drawing import SLOTS, Spark
from pharox.console.figures import figures_of
from pharox.console.figures.activity import KEPT_S, SLOT_S, Activity, Counted, Slot, slot_of
from pharox.console.figures.logs import PlainLog
from pharox.console.figures.plain import PlainFigures
from pharox.console.pool_lines import PoolLines
from pharox.history.replay import pool_at
from pharox.models.ids import NIL
from pharox.storage.moving import BeginMove, CancelMove, DepartPool
from pharox.storage.sources import RefreshResult
from tests.conftest import AnyStorage, clock_of, fill
from tests.console.conftest import Client
from tests.ledger.incident_story import Incident


@pytest.fixture
def story(any_storage: AnyStorage) -> Incident:
    """An incident in its worst minute, with outcomes reported."""
    incident = Incident(any_storage)
    incident.play(9)
    manager = ProxyManager(any_storage)
    while lease := manager.acquire_proxy(incident.pool.name, consumer_name="reporter"):
        manager.report(lease, Outcome.blocked(target="shop.example", retry_after=60))
    return incident


def test_figures_and_counts_are_what_they_mean(story: Incident) -> None:
    """What PostgreSQL is asked for is what Python counts, for stretches of any length."""
    figures, meaning = figures_of(story.storage), PlainFigures(story.storage)
    (pool,), (meant,) = figures.pools(), meaning.pools()
    assert pool.shares == meant.shares
    assert (pool.leases, pool.active, pool.available, pool.overdue) == (
        meant.leases,
        meant.active,
        meant.available,
        meant.overdue,
    )
    assert pool.total == len(story.proxies)
    last = figures.log.last_seq()
    plain = PlainLog(story.storage)
    for after, upto, slot_s in ((0, last, 15), (last // 3, last - 5, 7.5), (last - 1, last, 60)):
        counted = Counter(
            {each[:5]: each[5:] for each in figures.log.count(after, upto, slot_s=slot_s)}
        )
        assert counted == Counter(
            {each[:5]: each[5:] for each in plain.count(after, upto, slot_s=slot_s)}
        )
    page = figures.proxies(story.pool.id, story.proxies[4].id, 3)
    assert [proxy.id for proxy in page] == [proxy.id for proxy in story.proxies[5:8]]


def test_a_moment_has_its_place_in_the_log(story: Incident) -> None:
    """Also one before all events, after them, and between many of the same time."""
    log, choose = figures_of(story.storage).log, random.Random(3)
    last = log.last_seq()
    times = [event.recorded_at for event in story.storage.events()]
    moments = [times[0] - timedelta(days=900), times[-1] + timedelta(days=900), times[0]]
    for _ in range(40):
        moments.append(
            choose.choice(times) + timedelta(microseconds=choose.choice((-1, 0, 1, 9**7)))
        )
    for moment in moments:
        assert log.seq_near(moment, last) == sum(time <= moment for time in times)
        few = choose.randint(0, last)
        assert log.seq_near(moment, few) == sum(time <= moment for time in times[:few])


def test_a_lease_that_was_granted_since_has_no_details_yet() -> None:
    """The page of a pool lists leases after it has read where the log ends."""
    storage = InMemoryStorage()
    pool, _ = fill(storage, 2)
    manager = ProxyManager(storage)
    figures = figures_of(storage)
    manager.acquire_proxy(pool.name, consumer_name="first")
    seq = figures.log.last_seq()
    manager.acquire_proxy(pool.name, consumer_name="second", target="shop.example")
    lines = PoolLines(storage, figures).leases(pool, (NIL, NIL), seq)
    assert {line.consumer for line in lines} == {"first", "second"}
    assert len(figures.past.details(pool.id, [line.id for line in lines], seq)) == 1


def test_activity_is_read_though_it_takes_long_to_find_where_it_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each call reads a piece, whatever the search for the first seq took; it says what is left."""
    incident = Incident(InMemoryStorage())
    incident.play(9)
    log = PlainLog(incident.storage)
    clock = [0.0]

    def slow(moment: datetime, last_seq: int) -> int:
        clock[0] += 10
        return PlainLog.seq_near(log, moment, last_seq)

    def counted(after: int, upto: int) -> Iterator[Counted]:
        clock[0] += 10
        return PlainLog.count(log, after, upto)

    monkeypatch.setattr(log, "seq_near", slow)
    monkeypatch.setattr(log, "count", counted)
    monkeypatch.setattr("pharox.console.figures.activity.time.monotonic", lambda: clock[0])
    monkeypatch.setattr("pharox.console.figures.activity._PIECE", log.last_seq() // 2 + 1)
    activity, now = Activity(log), figures_of(incident.storage).now()
    sums = []
    for is_whole in (False, True):
        activity.advance(now)
        assert activity.is_whole is is_whole
        slots = activity.of(incident.pool.id).values()
        sums.append(sum(slot.granted + slot.misses.total() for slot in slots))
    assert 0 < sums[0] < sums[1]
    begin = (slot_of(now) - KEPT_S // SLOT_S) * SLOT_S
    assert sums[1] == sum(
        event.type in ("LeaseAcquired", "AcquireMissed") and event.recorded_at.timestamp() >= begin
        for event in incident.storage.events()
    )


def test_misses_that_were_not_read_are_not_said_to_be_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """The overview and the page of a pool say so, also of a moment, until the window was read."""
    incident = Incident(InMemoryStorage())
    incident.play(9)
    for reads in (True, False):
        if not reads:
            monkeypatch.setattr(Activity, "advance", lambda activity, now: None)
        pool = f"/pools/{incident.pool.id}"
        moment = (incident.clock.now - timedelta(minutes=2)).isoformat()
        for path in ("/", pool, f"{pool}?{urlencode({'at': moment})}"):
            client = Client(create_app(incident.storage))
            assert ("not read yet" in client.get(path).text) is not reads


def test_activity_goes_on_and_the_spark_ends_with_what_is_available(story: Incident) -> None:
    """Read in pieces or at once, a slot is the same; each point is the pool at that moment."""
    figures = figures_of(story.storage)
    activity = Activity(figures.log)
    now = figures.now()
    activity.advance(now)
    slots = activity.of(story.pool.id)
    misses = sum((slot.misses for slot in slots.values()), Counter[str]())
    events = list(story.storage.events())
    since = (slot_of(now) - KEPT_S // SLOT_S) * SLOT_S
    assert misses == Counter(
        event.reason.value
        for event in events
        if event.type == "AcquireMissed" and event.recorded_at.timestamp() >= since
    )
    (pool,) = figures.pools()
    spark = Spark.of(pool.available, pool.total, slots, now)
    heights = [float(y) for y in re.findall(r",([\d.]+)", spark.line)]
    assert len(heights) == SLOTS
    for place in (-1, -7, -13):
        end = datetime.fromtimestamp((slot_of(now) + 2 + place) * SLOT_S, UTC)
        moment = min(end - timedelta(microseconds=1), now)
        counts = pool_at(story.storage, story.pool.id, moment).counts
        assert heights[place] == round(40 * (1 - counts.available_proxies / pool.total), 2)
    before = sum(slot.granted for slot in slots.values())
    story.clock.advance(61)
    assert ProxyManager(story.storage).acquire_proxy(story.pool.name, consumer_name="later")
    activity.advance(figures.now())
    assert sum(slot.granted for slot in activity.of(story.pool.id).values()) == before + 1


def test_alerts_are_the_shipped_rules() -> None:
    """Each rule for Prometheus is evaluated, or named as one that cannot be."""
    text = files("pharox.observability").joinpath("files/prometheus-rules.yml").read_text("utf-8")
    shipped = re.findall(r"- alert: (\w+)\n(?:.*\n)*?        labels", text)
    assert sorted(shipped) == sorted([rule.name for rule in RULES] + list(ELSEWHERE))
    for rule in RULES:
        block = text[text.index(f"alert: {rule.name}\n") :].partition("- alert")[0]
        duration = re.search(r"for: (\d+)m", block)
        assert rule.for_s == (60 * int(duration[1]) if duration else 0), rule.name


def test_a_stale_source_is_an_alert(any_storage: AnyStorage) -> None:
    """Until it is fetched well again; a paused one is not. It says which kind of thing it is."""
    clock = clock_of(any_storage)
    fill(any_storage)
    for name, enabled in (("list", True), ("paused", False)):
        url = SecretStr("https://provider.example/list")
        source = ProxySource(name=name, pool_name="pool", url=url, enabled=enabled)
        any_storage.save_source(source)
    figures = figures_of(any_storage)

    def stale() -> list[tuple[str, str]]:
        facts = Facts(figures.now(), (), {}, (), figures.sources())
        found = [alert.found for alert in Watch().look(facts)]
        return [(each.kind, each.of) for each in found]

    assert stale() == []
    clock.advance(1801)
    assert stale() == [("source", "list")]
    claim = any_storage.claim_source("list")
    assert claim is not None
    any_storage.finish_refresh(claim, RefreshResult(SourceCounts(listed=1)))
    assert stale() == []


def test_a_stuck_move_is_an_alert(any_storage: AnyStorage) -> None:
    """Soon, where the pool is in no ledger; later, while its last leases end."""
    clock = clock_of(any_storage)
    fill(any_storage, name="the pool")
    any_storage.save_pool(ProxyPool(name="that stays"))
    figures = figures_of(any_storage)

    def stuck() -> list[tuple[str, str, str]]:
        facts = Facts(figures.now(), (), {}, (), (), figures.moves())
        found = [alert.found for alert in Watch().look(facts)]
        return [(each.kind, each.of, each.sentence.partition(" for ")[0]) for each in found]

    move = any_storage.carry_out_move(BeginMove("the pool", "west 2", uuid4()))
    assert stuck() == []
    clock.advance(3601)
    assert stuck() == [("move", "the pool", "It began to leave")]
    any_storage.carry_out_move(DepartPool(move))
    assert stuck() == []
    clock.advance(301)
    assert stuck() == [("move", "the pool", "It left")]
    client = Client(create_app(any_storage))
    overview, ledger = client.get("/").text, client.get("/ledger").text
    assert "PharoxStuckMove" in overview
    assert "/ledger#moves-title" in overview
    assert 'id="moves-title"' in ledger
    for page in (overview, ledger):
        assert "pharox fleet move 'the pool' --to 'west 2'" in html.unescape(page)
    any_storage.carry_out_move(CancelMove(move))
    assert stuck() == []


def test_an_alert_is_pending_until_it_has_held() -> None:
    """It names the pool, holds on while the condition does, and is gone with it."""
    story = Incident(InMemoryStorage())
    story.play(9)
    figures, watch = figures_of(story.storage), Watch()
    pools, now = figures.pools(), figures.now()
    slots = {story.pool.id: {slot_of(now): Slot(granted=1, misses=Counter(at_capacity=9))}}
    first = {alert.rule: alert for alert in watch.look(Facts(now, pools, slots))}
    assert first["PharoxManyMisses"].is_pending
    assert first["PharoxManyMisses"].found.of == story.pool.name
    for seconds in range(20, 660, 20):
        later = Facts(now + timedelta(seconds=seconds), pools, slots)
        rules = {alert.rule for alert in watch.look(later)}
        assert seconds > 200 or rules == set(first)
    much_later = Facts(now + timedelta(minutes=11), pools, {})
    rest = {alert.rule: alert for alert in watch.look(much_later)}
    assert "PharoxManyMisses" not in rest
    assert not rest["PharoxManyInactive"].is_pending
    # Nobody looked for a night: what holds in the morning may have begun just now.
    morning = now + timedelta(hours=10)
    again = {alert.rule: alert for alert in watch.look(Facts(morning, pools, slots))}
    assert again["PharoxManyInactive"].is_pending
    assert {alert.since for alert in again.values()} == {morning}

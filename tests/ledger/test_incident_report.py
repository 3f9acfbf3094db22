"""The report's folder: the timeline equals the log, and there is a whole report or none."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pharox
from pharox import (
    InMemoryStorage,
    InvalidInputError,
    PoolNotFoundError,
    ProxyManager,
    ProxyPool,
    ProxyStatus,
)
from pharox.errors import ReportError
from pharox.events import LeaseExpired, LeaseReleased
from pharox.incident import write_report
from pharox.incident.gather.shapes import LeaseBar, Point
from pharox.incident.gather.thinning import MOST_LINES, Scale, grouped, lowest, stacked
from pharox.incident.gather.window import Fold, Window
from pharox.incident.wording import span
from pharox.log import Extract
from pharox.models.ids import NIL
from pharox.storage.reports import ReportRequest
from pharox.testing import checked
from projections.pool_stats import COUNTS
from tests.conftest import AnyStorage, Clock, fill
from tests.ledger.incident_story import START, Incident
from tests.queueing import live_with_waits

DERIVED = {"pool", "proxy", "held_seconds", "granted_seconds", "pool_stats"}
SAME = {"seq", "recorded_at", "type", "pool", "proxy", "consumer", "pool_stats", "held_seconds"}
POOL = "residential-eu"
MINUTE = timedelta(minutes=1)


def timeline(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "timeline.jsonl").read_text().splitlines()]


def events_between(storage: AnyStorage, start: datetime, end: datetime) -> list[Any]:
    after = storage.seq_at(start - timedelta(microseconds=1))
    return list(storage.history(Extract(after=after, upto=storage.seq_at(end))))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def memory(clock: Clock) -> InMemoryStorage:
    """A ledger of two pools, "eu" and "us", in which somebody holds a proxy of each."""
    storage = InMemoryStorage(clock=clock)
    for name in ("eu", "us"):
        fill(storage, 2, name=name)
    clock.advance(60)
    for name in ("eu", "us"):
        ProxyManager(storage).acquire_proxy(name, "worker", 3600)
    return storage


class TestTimeline:
    def test_it_equals_the_log(self, any_storage: AnyStorage, tmp_path: Path) -> None:
        """Every event of the window has its line, all its fields unchanged, in order."""
        Incident(any_storage).play(9)
        start, end = START, START + 5 * MINUTE
        report = write_report(any_storage, start, end, tmp_path / "report")
        events = events_between(any_storage, start, end)
        lines = timeline(report.folder)
        assert report.events == len(lines) == len(events) > 100
        for line, event in zip(lines, events, strict=True):
            told = {name: line[name] for name in line.keys() - DERIVED}
            assert told == event.model_dump(mode="json")

    def test_it_tells_what_follows(self, any_storage: AnyStorage, tmp_path: Path) -> None:
        """The pool by name, the proxy by address, seconds held, and the pool in numbers then."""
        incident = Incident(any_storage)
        incident.play(9)
        start, end = START + 4 * MINUTE, START + 6 * MINUTE
        report = write_report(any_storage, start, end, tmp_path / "report")
        lines = timeline(report.folder)
        for line, event in zip(lines, events_between(any_storage, start, end), strict=True):
            assert line["pool"] == (None if event.pool_id == NIL else "residential-eu")
            if event.proxy_id is not None:
                proxy = any_storage.get_proxy(str(event.proxy_id))
                assert line["proxy"] == f"{proxy.protocol.value}://{proxy.host}:{proxy.port}"
            if isinstance(event, LeaseReleased | LeaseExpired):
                held = event.recorded_at - event.acquired_at
                assert line["held_seconds"] == held.total_seconds()
        for line in [line for line in lines if "pool_stats" in line][::25]:
            (row,) = any_storage.state_at(line["seq"])["pool_stats"].values()
            assert line["pool_stats"] == {name: getattr(row, name) for name in COUNTS}

    def test_the_page_says_what_was_fallen_back_from(
        self, any_storage: AnyStorage, tmp_path: Path
    ) -> None:
        """Why a lease of the second pool was given, at its bar and in the list."""
        fill(any_storage, 0, name="residential")
        fill(any_storage, 1, name="datacenter")
        manager = ProxyManager(any_storage)
        manager.acquire_proxy("residential", fallback=["datacenter"])
        manager.acquire_proxy("residential", fallback=["datacenter"])
        last = list(any_storage.events())[-1].recorded_at
        report = write_report(any_storage, last - MINUTE, last + MINUTE, tmp_path / "report")
        page = report.page.read_text()
        assert page.count("residential had none: the pool had no proxy") == 2
        assert "datacenter had none: every proxy that fits was at capacity" in page

    def test_only_the_pools_that_were_asked_for(
        self, memory: InMemoryStorage, clock: Clock, tmp_path: Path
    ) -> None:
        """With names of pools, the report has their events and no others."""
        start = clock.now - MINUTE
        report = write_report(memory, start, clock.now, tmp_path / "us", pools=["us"])
        assert {line["pool"] for line in timeline(report.folder)} == {"us"}
        assert report.leases == 1
        both = write_report(memory, start, clock.now, tmp_path / "both", pools=["us", "eu"])
        everything = write_report(memory, start, clock.now, tmp_path / "all")
        assert {line["pool"] for line in timeline(both.folder)} == {"us", "eu"}
        # A consumer belongs to no pool.
        assert everything.events == both.events + 1

    def test_a_name_counts_that_a_pool_had_in_the_window(
        self, memory: InMemoryStorage, clock: Clock, tmp_path: Path
    ) -> None:
        """A pool that was renamed or removed is found by its name of then."""
        pool = memory.get_pool_by_name("us")
        assert pool is not None
        memory.save_pool(pool.model_copy(update={"name": "america"}))
        clock.advance(60)
        memory.delete_pool(str(pool.id))
        for name in ("us", "america"):
            report = write_report(
                memory, clock.now - 2 * MINUTE, clock.now, tmp_path / name, pools=[name]
            )
            lines = timeline(report.folder)
            assert [line["pool"] for line in lines if line["type"] == "PoolChanged"] == ["america"]
            assert lines[-1]["type"] == "PoolRemoved"
            assert lines[-1]["pool"] == "america"

    def test_a_pool_that_never_was_is_told_if_it_was_asked_for(
        self, memory: InMemoryStorage, clock: Clock, tmp_path: Path
    ) -> None:
        """A worker that misspells its pool's name finds nothing, and the report says so."""
        ProxyManager(memory).acquire_proxy("ue", "worker")
        report = write_report(memory, clock.now - MINUTE, clock.now, tmp_path / "r", pools=["ue"])
        (line,) = timeline(report.folder)
        assert (line["pool"], line["reason"], report.misses) == ("ue", "unknown_pool", 1)
        assert "no pool had this name" in report.page.read_text()

    def test_what_is_at_the_edges_is_in_the_window(
        self, memory: InMemoryStorage, clock: Clock, tmp_path: Path
    ) -> None:
        """Events recorded at the very moment of either end belong to it."""
        manager = ProxyManager(memory)
        clock.advance(10)
        start = clock.now
        manager.acquire_proxy("eu", "first")
        clock.advance(10)
        manager.acquire_proxy("us", "last")
        end = clock.now
        clock.advance(10)
        manager.acquire_proxy("us", "later")
        report = write_report(memory, start, end, tmp_path / "report")
        leases = [line for line in timeline(report.folder) if line["type"] == "LeaseAcquired"]
        assert [line["consumer"] for line in leases] == ["first", "last"]
        assert report.leases == 4


class TestRefused:
    @pytest.fixture
    def window(self, clock: Clock) -> tuple[datetime, datetime]:
        return clock.now - MINUTE, clock.now + MINUTE

    def test_a_window_that_ends_before_it_begins(
        self, memory: InMemoryStorage, clock: Clock, tmp_path: Path
    ) -> None:
        """It is refused, and so is one without a length."""
        for end in (clock.now, clock.now - MINUTE):
            with pytest.raises(InvalidInputError, match="must begin before it ends"):
                write_report(memory, clock.now, end, tmp_path / "report")

    def test_a_window_outside_of_the_calendar(
        self, memory: InMemoryStorage, clock: Clock, tmp_path: Path
    ) -> None:
        """The first moment of all has none before it."""
        for start in ("0001-01-01T00:00Z", "0001-01-01T00:00+02:00"):
            with pytest.raises(InvalidInputError, match="outside of the calendar"):
                write_report(memory, datetime.fromisoformat(start), clock.now, tmp_path / "report")

    def test_a_moment_without_a_zone(self, memory: InMemoryStorage, tmp_path: Path) -> None:
        """A moment must say where it is meant."""
        naive = datetime(2026, 1, 1)
        with pytest.raises(InvalidInputError, match="time zone"):
            write_report(memory, naive, naive + MINUTE, tmp_path / "report")

    def test_a_window_in_which_nothing_happened(
        self, memory: InMemoryStorage, clock: Clock, tmp_path: Path
    ) -> None:
        """The log's extent is told, and that of an empty one."""
        extent = "the log goes from 2026-01-01 00:00:00 UTC to 2026-01-01 00:01:00 UTC"
        for start in (clock.now - 9 * MINUTE, clock.now + MINUTE):
            with pytest.raises(ReportError, match=extent):
                write_report(memory, start, start + MINUTE, tmp_path / "report")
        with pytest.raises(ReportError, match="the log is empty"):
            write_report(InMemoryStorage(), clock.now, clock.now + MINUTE, tmp_path / "report")
        assert list(tmp_path.iterdir()) == []

    def test_a_pool_in_which_nothing_happened(
        self, memory: InMemoryStorage, clock: Clock, tmp_path: Path
    ) -> None:
        """A known pool without an event in the window has no report."""
        clock.advance(60)
        ProxyManager(memory).acquire_proxy("eu", "worker")
        with pytest.raises(ReportError, match="nothing happened in 'us' between"):
            write_report(memory, clock.now, clock.now + MINUTE, tmp_path / "report", pools=["us"])
        assert list(tmp_path.iterdir()) == []

    def test_an_unknown_pool(
        self, memory: InMemoryStorage, window: tuple[datetime, datetime], tmp_path: Path
    ) -> None:
        """The names that there are are told."""
        with pytest.raises(PoolNotFoundError, match=r"'asia'.*there were 'eu', 'us'"):
            write_report(memory, *window, tmp_path / "report", pools=["eu", "asia"])

    def test_a_window_in_the_future(self, memory: InMemoryStorage, tmp_path: Path) -> None:
        """It has not begun."""
        start = datetime.now(UTC) + timedelta(days=1)
        with pytest.raises(InvalidInputError, match="is in the future"):
            write_report(memory, start, start + MINUTE, tmp_path / "report")

    def test_an_end_in_the_future_is_now(self, tmp_path: Path) -> None:
        """A window that is not over yet ends when the report is made."""
        storage = InMemoryStorage()
        fill(storage, 1)
        before = datetime.now(UTC)
        report = write_report(storage, before - MINUTE, before + MINUTE, tmp_path / "report")
        assert before <= report.end <= datetime.now(UTC)

    @pytest.mark.parametrize("kind", ["file", "full"])
    def test_a_folder_that_is_used(
        self,
        memory: InMemoryStorage,
        window: tuple[datetime, datetime],
        tmp_path: Path,
        kind: str,
    ) -> None:
        """A file, or a folder with something in it, stays as it is."""
        used = tmp_path / "used"
        kept = used
        if kind == "full":
            used.mkdir()
            kept = used / "timeline.jsonl"
        kept.write_text("mine")
        with pytest.raises(ReportError, match="exists and is not an empty folder"):
            write_report(memory, *window, used)
        assert kept.read_text() == "mine"
        assert list(tmp_path.iterdir()) == [used]

    def test_a_folder_that_cannot_be_made(
        self, memory: InMemoryStorage, window: tuple[datetime, datetime], tmp_path: Path
    ) -> None:
        """Why it cannot be written is told in a sentence."""
        (tmp_path / "file").write_text("")
        with pytest.raises(ReportError, match=r"cannot be written to .*: File exists"):
            write_report(memory, *window, tmp_path / "file" / "report")


class TestFolder:
    def test_an_empty_or_missing_folder_will_do(
        self, memory: InMemoryStorage, clock: Clock, tmp_path: Path
    ) -> None:
        """Folders above it are made, and nothing else is left beside it."""
        (tmp_path / "empty").mkdir()
        for folder in (tmp_path / "empty", tmp_path / "a" / "b"):
            report = write_report(memory, clock.now - MINUTE, clock.now, folder)
            assert {path.name for path in folder.iterdir()} == {"timeline.jsonl", "index.html"}
            assert report.page == folder / "index.html"
        assert {path.name for path in tmp_path.iterdir()} == {"empty", "a"}

    def test_a_report_that_fails_leaves_nothing(
        self, memory: InMemoryStorage, clock: Clock, tmp_path: Path
    ) -> None:
        """If the log breaks off halfway, there is no folder at all."""

        class Breaking(InMemoryStorage):
            def history(self, extract: Extract) -> Any:
                for number, event in enumerate(super().history(extract)):
                    if extract.after == 0 and number > 3:
                        raise pharox.DatabaseError("the connection is gone")
                    yield event

        storage = Breaking(clock=clock)
        fill(storage, 9)
        with pytest.raises(pharox.DatabaseError, match="gone"):
            write_report(storage, clock.now - MINUTE, clock.now, tmp_path / "report")
        assert list(tmp_path.iterdir()) == []

    def test_a_killed_report_leaves_no_half_one(self, tmp_path: Path) -> None:
        """Killed at any event, the folder is not there."""
        folder = tmp_path / "report"
        program = (
            "import os, signal, sys; from datetime import timedelta\n"
            "from pharox import InMemoryStorage; from pharox.incident import write_report\n"
            "from tests.conftest import fill\n"
            "class Killing(InMemoryStorage):\n"
            "    def history(self, extract):\n"
            "        for number, event in enumerate(super().history(extract)):\n"
            "            if extract.after == 0 and extract.types is None and number == 5:\n"
            "                os.kill(os.getpid(), signal.SIGKILL)\n"
            "            yield event\n"
            "storage = Killing(); fill(storage, 9); now = storage._state.clock()\n"
            "minute = timedelta(minutes=1)\n"
            "write_report(storage, now - minute, now, sys.argv[1])\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, str(folder)],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PYTHONWARNINGS": "error"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == -9, done.stderr
        assert not folder.exists()
        assert [path.name.startswith(".report.") for path in tmp_path.iterdir()] == [True]


class TestMuch:
    def test_a_page_has_a_bound(self, tmp_path: Path) -> None:
        """Twice the leases that are drawn apart share bars, all counted, and the page says so."""
        clock = Clock()
        storage = InMemoryStorage(clock=clock)
        fill(storage, 2, max_concurrency=None)
        manager = ProxyManager(storage)
        clock.advance(1)
        start = clock.now
        for _ in range(35_000):
            lease = manager.acquire_proxy("pool", "worker", 60)
            assert lease is not None
            clock.advance(0.01)
            manager.release_proxy(lease)
        report = write_report(storage, start, clock.now, tmp_path / "report")
        page = report.page.read_text()
        assert report.events == 70_001
        assert len(page) < 5_000_000
        assert "share a bar" in page
        shared = [part.split('"')[0] for part in page.split('data-count="')[1:]]
        single = page.count("data-lease=")
        assert sum(map(int, shared)) + single == 35_000

    def test_proxies_without_anything_to_show_are_counted(self, tmp_path: Path) -> None:
        """Of five hundred proxies, the three that were leased have a line."""
        clock = Clock()
        storage = InMemoryStorage(clock=clock)
        fill(storage, 500)
        clock.advance(60)
        for _ in range(3):
            ProxyManager(storage).acquire_proxy("pool", "worker")
        report = write_report(storage, clock.now, clock.now + MINUTE, tmp_path / "report")
        page = report.page.read_text()
        assert page.count('class="row proxy"') == 3
        assert "Not drawn: 497 proxies without a lease or a change." in page

    def test_what_stands_out_is_listed_before_what_is_routine(self, tmp_path: Path) -> None:
        """A long list keeps every miss and says how many events it leaves to the timeline."""
        clock = Clock()
        storage = InMemoryStorage(clock=clock)
        fill(storage, 1, max_concurrency=None)
        manager = ProxyManager(storage)
        for _ in range(2500):
            manager.acquire_proxy("pool", "worker", 3600)
        manager.acquire_proxy("nowhere", "worker")
        report = write_report(storage, clock.now, clock.now + MINUTE, tmp_path / "report")
        page = report.page.read_text()
        assert f"Events (2,000 of {report.events:,}; the rest is in timeline.jsonl)" in page
        assert page.count('class="is-AcquireMissed"') == 1


def test_health_changes_of_a_proxy_that_comes_and_goes(tmp_path: Path) -> None:
    """Registered, banned, freed and removed within the window: each is a mark of its line."""
    clock = Clock()
    storage = InMemoryStorage(clock=clock)
    start = clock.now
    clock.advance(1)
    _, (proxy,) = fill(storage, 1)
    for status in (ProxyStatus.BANNED, ProxyStatus.ACTIVE):
        clock.advance(1)
        storage.save_proxy(proxy.model_copy(update={"status": status}))
    clock.advance(1)
    storage.delete_proxy(str(proxy.id))
    page = write_report(storage, start, clock.now, tmp_path / "report").page.read_text()
    marks = [part.split('"')[0] for part in page.split('<use href="#mark-')[1:]]
    assert marks[-4:] == ["active", "banned", "active", "absent"]
    assert page.count('data-status="absent"') == 2  # before it came, and the last mark


def test_a_proxy_that_changes_its_pool(tmp_path: Path) -> None:
    """It has a line in each pool, which says when it was not in it."""
    clock = Clock()
    storage = InMemoryStorage(clock=clock)
    _, (proxy,) = fill(storage, 1, name="a")
    other, _ = fill(storage, 0, name="b")
    clock.advance(10)
    start = clock.now
    clock.advance(5)
    storage.delete_proxy(str(proxy.id))
    storage.save_proxy(proxy.model_copy(update={"pool_id": other.id}))
    clock.advance(5)
    storage.delete_proxy(str(proxy.id))
    storage.save_proxy(proxy)
    clock.advance(10)  # in less than a minute nothing is folded
    page = write_report(storage, start, clock.now, tmp_path / "report").page.read_text()
    spans = re.findall(r'class="span s-absent" x="(.*?)%" width="(.*?)%"', page)
    assert [(float(x), float(width)) for x, width in spans] == [(25, 25), (0, 25), (50, 50)]
    assert "Not drawn" not in page


WINDOW = Window(START, START + timedelta(seconds=100), 0, 1)


@st.composite
def bars(draw: st.DrawFn) -> list[LeaseBar]:
    found = []
    for token in range(draw(st.integers(0, 40))):
        began = START + timedelta(seconds=draw(st.integers(-20, 99)))
        length = draw(st.none() | st.integers(1, 60))
        ended = None if length is None else began + timedelta(seconds=length)
        found.append(LeaseBar(UUID(int=token), "c", began, began, token, ended=ended))
    return found


class TestThinning:
    @given(bars())
    def test_leases_on_a_line_do_not_overlap(self, leases: list[LeaseBar]) -> None:
        """Each lease is on one line; only the last line may have some at once."""
        lines = stacked(leases)
        assert Counter(b.lease_id for line in lines for b in line) == Counter(
            b.lease_id for b in leases
        )
        assert len(lines) <= MOST_LINES
        for line in lines[: MOST_LINES - 1]:
            for one, next_one in pairwise(line):
                assert one.ended is not None
                assert one.ended <= next_one.began

    @given(bars(), st.sampled_from([None, 8, 64]))
    def test_groups_keep_everything_in_order(
        self, leases: list[LeaseBar], resolution: int | None
    ) -> None:
        """Only what is short and begins in the same slot of time is put together."""
        scale = Scale(WINDOW)
        leases.sort(key=lambda bar: (bar.began, bar.token))
        groups = list(grouped(leases, scale.ends, resolution))
        assert [bar for group in groups for bar in group] == leases
        for group in groups:
            if len(group) > 1:
                assert resolution is not None
                assert len({int(scale(bar.began) * resolution) for bar in group}) == 1
                for first, last in map(scale.ends, group):
                    assert (last - first) * resolution < 1

    @given(
        st.lists(st.tuples(st.integers(0, 99_999), st.integers(0, 9)), max_size=200),
        st.integers(1, 50),
    )
    def test_binned_availability_never_shows_more_than_there_was(
        self, changes: list[tuple[int, int]], slots: int
    ) -> None:
        """It is no higher than the truth at any moment, and its lowest is the true lowest."""
        points = [Point(START, 9, 9, 9, 0)]
        for ms, available in sorted(changes):
            points.append(Point(START + timedelta(milliseconds=ms), 9, 9, available, 0))
        drawn = lowest(points, WINDOW, slots)
        assert len(drawn) <= max(slots, len(points) if len(points) <= slots else 0)
        assert min(p.available for p in drawn) == min(p.available for p in points)
        for point in points:
            shown = [p for p in drawn if p.at <= point.at][-1]
            assert shown.available <= point.available or len(points) <= slots


class TestSentences:
    def test_what_stands_out_is_said(self, tmp_path: Path) -> None:
        """Misses, the time without a proxy, expiries and changes, as the log has them."""
        storage = InMemoryStorage()
        Incident(storage).play()
        end = START + 14 * MINUTE
        report = write_report(storage, START, end, tmp_path / "report")
        lines = timeline(report.folder)
        counts = [
            (datetime.fromisoformat(line["recorded_at"]), line["pool_stats"]["available_proxies"])
            for line in lines
            if "pool_stats" in line
        ]
        dry = sum(
            (until - at for (at, free), (until, _) in pairwise([*counts, (end, 0)]) if not free),
            timedelta(),
        )
        misses = [line["recorded_at"][11:19] for line in lines if line["type"] == "AcquireMissed"]
        ended = Counter(line["consumer"] for line in lines if line["type"] == "LeaseExpired")
        ten_seconds = Counter(miss[:-1] for miss in misses)
        worst, most_at_once = ten_seconds.most_common(1)[0]
        ((consumer, most),) = Counter(
            line["consumer"] for line in lines if line["type"] == "AcquireMissed"
        ).most_common(1)
        page = report.page.read_text()
        for sentence in (
            f"{len(misses)} acquisitions found nothing between {misses[0]} and {misses[-1]}: "
            "every proxy that fits was at capacity.",
            f"{most} of them by {consumer}; "
            f"at the worst, {most_at_once} in the 10 s from {worst}0.",
            f"No proxy was available for {span(dry)} in all, first at 10:05:",
            f"{report.leases} leases in all, 6 of which began before the window.",
            f"{ended.total()} leases ran out instead of being released, "
            f"{ended['bulk-import']} of them held by bulk-import.",
            "Changes of status: 5 to active, 3 to banned, 2 to slow.",
        ):
            assert sentence in page

    def test_the_cause_is_named(self, tmp_path: Path) -> None:
        """Who held most while none was available, as the log has it; who banned what, and why."""
        storage = InMemoryStorage()
        incident = Incident(storage)
        incident.play()
        with pharox.attributed(actor="ops"):
            for proxy in incident.proxies[:2]:
                storage.set_status(proxy.id, ProxyStatus.BANNED, reason="the target answers 429")
        end = incident.clock.now
        page = write_report(storage, START, end, tmp_path / "report").page.read_text()
        lines = timeline(tmp_path / "report")
        held: Counter[str] = Counter()
        leases = storage.state_at(storage.seq_at(START))["leases"].values()
        holders = Counter(lease.consumer_name for lease in leases)
        dry_s = inactive_s = 0.0
        for line, following in pairwise(lines):
            holders[line["consumer"]] += (line["type"] == "LeaseAcquired") - (
                line["type"] in ("LeaseReleased", "LeaseExpired")
            )
            at, until = (datetime.fromisoformat(x["recorded_at"]) for x in (line, following))
            if "pool_stats" in line and not line["pool_stats"]["available_proxies"]:
                seconds = (until - at).total_seconds()
                dry_s += seconds
                pool = line["pool_stats"]
                inactive_s += seconds * (pool["total_proxies"] - pool["active_proxies"])
                held.update({name: seconds * number for name, number in holders.items()})
        (first, most), (second, _) = held.most_common(2)
        share = most / sum(held.values())
        assert (
            f"While none was available, {first} held most: {most / dry_s:.1f} leases on average, "
            f"{share:.0%} of all; then {second} ("
        ) in page
        inactive = f"{inactive_s / dry_s:.1f}".removesuffix(".0")
        assert f"{inactive} of 12 proxies were not active on average while none" in page
        assert "ops banned 2 proxies, first at 10:14:" in page
        assert ": the target answers 429 (" in page
        assert "Health checks banned 3 proxies, first at 10:05:01: 403 (" in page
        missed = Counter(line["consumer"] for line in lines if line["type"] == "AcquireMissed")
        (name, times), *_ = missed.most_common()
        assert f"Misses by consumer: {name} ({times}), " in page

    @pytest.mark.parametrize(
        ("misses", "told"),
        [
            ([(5, "a")], "By a."),
            ([(5, "a"), (5, "a")], "All by a."),
            ([(5, "b"), (5, "a"), (5, "a")], "2 of them by a."),
            (
                [(5, "a"), (70, "b"), (70.5, "b"), (90, "a"), (95, "b")],
                "3 of them by b; at the worst, 2 in the 1 s from 00:01:10.",
            ),
        ],
    )
    def test_a_few_bursts_are_told_apart_from_a_long_drought(
        self, misses: list[tuple[float, str]], told: str, tmp_path: Path
    ) -> None:
        """Who missed most is said, and when the worst was if it was not all at once."""
        clock = Clock()
        storage = InMemoryStorage(clock=clock)
        start = clock.now
        for second, consumer in misses:
            clock.now = start + timedelta(seconds=second)
            ProxyManager(storage).acquire_proxy("nowhere", consumer)
        page = write_report(storage, start, start + 2 * MINUTE, tmp_path / "r").page.read_text()
        assert f">{told}<" in page

    def test_a_quiet_window_is_said_to_be_one(
        self, memory: InMemoryStorage, clock: Clock, tmp_path: Path
    ) -> None:
        """No miss, and how near to one it was."""
        page = write_report(memory, clock.now, clock.now + MINUTE, tmp_path / "r").page.read_text()
        assert page.count("No acquisition missed.") == 2
        assert page.count("At the worst, 1 of 2 proxies was available") == 2

    @pytest.mark.parametrize(
        ("seconds", "told"),
        [
            (0.0004, "0 ms"),
            (0.25, "250 ms"),
            (7, "7 s"),
            (7.25, "7.2 s"),
            (59.96, "1 min"),
            (252, "4 min 12 s"),
            (3600, "1 h"),
            (3725, "1 h 2 min"),
            (187_200, "2 d 4 h"),
        ],
    )
    def test_spans_are_told_in_two_units(self, seconds: float, told: str) -> None:
        """A span has its two greatest units, so that it can be read at a glance."""
        assert span(seconds) == span(timedelta(seconds=seconds)) == told


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.floats(-3, 9), st.floats(0.01, 9), st.sampled_from([(), (POOL,)]))
def test_any_window_of_any_incident_is_told_whole(
    seed: int, start: float, length: float, pools: tuple[str, ...]
) -> None:
    """Lines, bars and misses are those of the log, wherever the window is cut."""
    storage = InMemoryStorage()
    Incident(storage, seed=seed).play(9)
    begin = START + timedelta(minutes=start)
    end = begin + timedelta(minutes=length)
    events = events_between(storage, begin, end)
    held = storage.state_at(storage.seq_at(begin - timedelta(microseconds=1)))["leases"]
    if pools:
        events = [event for event in events if event.pool_id != NIL]
    with tempfile.TemporaryDirectory() as folder:
        if not events:
            with pytest.raises((ReportError, PoolNotFoundError)):
                write_report(storage, begin, end, Path(folder) / "report", pools=pools)
            return
        report = write_report(storage, begin, end, Path(folder) / "report", pools=pools)
        page = report.page.read_text()
        assert [line["seq"] for line in timeline(report.folder)] == [event.seq for event in events]
    types = Counter(event.type for event in events)
    assert page.count("data-lease=") == report.leases == len(held) + types["LeaseAcquired"]
    drawn = sum(map(int, re.findall(r'data-reason="at_capacity" data-count="([0-9]+)"', page)))
    assert drawn == report.misses == types["AcquireMissed"]


def test_waits_are_told(memory: InMemoryStorage, clock: Clock, tmp_path: Path) -> None:
    """Of a lease that was granted in turn, and of a miss: in the picture, the list and the file."""
    fill(memory)
    start = clock.now
    live_with_waits(ProxyManager(memory), clock.advance)
    report = write_report(memory, start, clock.now, tmp_path / "report", pools=["pool"])
    page = report.page.read_text()
    assert len(re.findall("Waited.{1,20}900 ms", page)) == 1
    assert len(re.findall("; waited 900 ms;", page)) == 1
    assert len(re.findall("at capacity; waited 0 ms;", page)) == 1
    waits = {
        line["consumer"]: line["waited_ms"]
        for line in timeline(report.folder)
        if line["type"] in ("LeaseAcquired", "AcquireMissed")
    }
    assert waits == {"early": None, "late": 900, "vain": 0}


def test_refusals_are_told_by_target(memory: InMemoryStorage, clock: Clock, tmp_path: Path) -> None:
    """Who was refused where, how often and since when; of many, the first of each and a number."""
    pool, _ = fill(memory, 8, name="shop")
    leases = ProxyManager(memory).acquire_proxies("shop", 8)
    start = clock.now
    for lease in (leases[0], *leases):
        clock.advance(1)
        refused = pharox.Outcome.blocked("shop.example", status=403, count=2)
        memory.report_outcomes([ReportRequest(lease, refused)])
    for number in range(7):
        outcome = pharox.Outcome.blocked(f"{number}.example")
        memory.report_outcomes([ReportRequest(leases[1], outcome)])
    for other in (pharox.Outcome.ok("a.example"), pharox.Outcome.unclear("a.example")):
        memory.report_outcomes([ReportRequest(leases[1], other)])
    written = write_report(memory, start, clock.now, tmp_path / "report", pools=["shop"])
    page = re.sub("<[^>]*>", "", written.page.read_text())
    assert "shop.example refused 18 requests since" in page
    first = memory.list_target_outcomes(pool.name, proxy_id=leases[0].proxy_id)[0]
    assert first.address is not None
    assert f"{first.address} (4, since" in page
    assert "and 3 other proxies" in page or ", 3 other proxies." in page
    assert "0.example refused 1 request since" in page
    assert "Other targets refused 3 requests." in page
    assert "shop.example; blocked; 403; 2 times" in page
    assert "rests until" in page
    told = [line for line in timeline(tmp_path / "report") if line["type"] == "OutcomeReported"]
    assert len(told) == 9 + 7 + 2
    assert {line["proxy"] for line in told} >= {first.address}


def test_a_window_of_nothing_but_quiet_checks_still_shows_the_pool(tmp_path: Path) -> None:
    """A pool whose proxies were only found healthy is drawn, without a line."""
    clock = Clock()
    storage = InMemoryStorage(clock=clock)
    _, (proxy, *_) = fill(storage, 12)
    clock.advance(60)
    storage.apply_health_check_result(checked(proxy, latency_ms=9, checked_at=clock.now))
    page = write_report(storage, clock.now, clock.now + MINUTE, tmp_path / "r").page.read_text()
    assert 'data-pool="pool"' in page
    assert page.count('class="row proxy"') == 0
    assert "Not drawn: 12 proxies without a lease or a change." in page


def test_a_miss_at_the_very_end_is_drawn(
    memory: InMemoryStorage, clock: Clock, tmp_path: Path
) -> None:
    """It belongs to the last slot of time, not to one behind the edge."""
    start = clock.now
    clock.advance(120)
    ProxyManager(memory).acquire_proxy("nowhere", "worker")
    page = write_report(memory, start, clock.now, tmp_path / "report").page.read_text()
    (x, width) = re.findall(r'class="r-unknown_pool" x="(.*?)%" width="(.*?)%"', page)[0]
    assert float(width) > 0
    assert float(x) + float(width) == pytest.approx(100)


def test_a_report_of_many_pools(tmp_path: Path) -> None:
    """Each pool to which something happened has its part, by name; others have none."""
    clock = Clock()
    storage = InMemoryStorage(clock=clock)
    for name in ("b", "a", "quiet"):
        fill(storage, 1, name=name)
    storage.save_pool(ProxyPool(id=uuid4(), name="empty"))
    clock.advance(60)
    for name in ("b", "a", "empty", "nowhere"):
        ProxyManager(storage).acquire_proxy(name, "worker")
    page = write_report(storage, clock.now, clock.now + MINUTE, tmp_path / "r").page.read_text()
    assert [part.split('"')[0] for part in page.split('data-pool="')[1:]] == [
        "a",
        "b",
        "empty",
        "nowhere",
    ]


def test_the_storages_tell_the_same(any_storage: AnyStorage, tmp_path: Path) -> None:
    """The same incident has the same timeline but for ids, whichever storage kept it."""
    told = []
    for name, storage in (("here", any_storage), ("there", InMemoryStorage())):
        Incident(storage).play(6)
        report = write_report(storage, START, START + 4 * MINUTE, tmp_path / name)
        told.append([{k: line.get(k) for k in SAME} for line in timeline(report.folder)])
    assert told[0] == told[1]


def test_a_revoked_lease_is_told_from_others(
    memory: InMemoryStorage, clock: Clock, tmp_path: Path
) -> None:
    """Its bar, its row in the list and the summary say that it was revoked, and why."""
    manager = ProxyManager(memory)
    lease = manager.acquire_proxy("eu", "revoked one", 600)
    assert lease is not None
    clock.advance(30)
    manager.revoke_lease(lease.id, "its subnet is banned")
    start = clock.now - MINUTE
    write_report(memory, start, clock.now + MINUTE, tmp_path / "report")
    page = (tmp_path / "report" / "index.html").read_text()
    assert 'data-ending="revoked"' in page
    assert "1 lease was revoked." in page
    assert "after 30 s; its subnet is banned" in page
    entry = next(each for each in timeline(tmp_path / "report") if each["type"] == "LeaseRevoked")
    assert (entry["reason"], entry["held_seconds"]) == ("its subnet is banned", 30)


def test_time_in_which_nothing_happened_is_folded(tmp_path: Path) -> None:
    """The page says from when to when; what happened keeps its order, and its share of the rest."""
    clock = Clock()
    storage = InMemoryStorage(clock=clock)
    start = clock.now
    fill(storage, 1, name="pool")
    manager = ProxyManager(storage)
    for pause in (60, 7200, 60, 3600):
        clock.advance(pause)
        lease = manager.acquire_proxy("pool", "worker", 30)
        assert lease is not None
        clock.advance(20)
        manager.release_proxy(lease)
    page = write_report(storage, start, clock.now, tmp_path / "r").page.read_text()
    bounds = re.findall(r'data-start="([^"]+)" data-end="([^"]+)"', page)
    folds = [Fold(*map(datetime.fromisoformat, fold)) for fold in dict.fromkeys(bounds)]
    assert len(folds) == 2
    assert "Folded, as nothing happened: 00:0" in page
    window = Window(start, clock.now, 0, 1, tuple(folds))
    scale = Scale(window)
    bars = re.findall(r'x="([\d.]+)%" width="([\d.]+)%"[^>]* data-lease', page)
    began = [event.recorded_at for event in storage.events() if event.type == "LeaseAcquired"]
    for (x, width), at in zip(bars, began, strict=True):
        ended = scale(at + timedelta(seconds=20))
        assert float(x) / 100 == pytest.approx(scale(at), abs=1e-6)
        assert float(width) / 100 == pytest.approx(ended - scale(at), abs=1e-6)
        assert not any(fold.start < at < fold.end for fold in folds)
    assert float(bars[0][1]) > 2  # of 20 seconds in three hours
    moments = [start + n * (clock.now - start) / 997 for n in range(998)]
    places = list(map(scale, moments))
    assert places == sorted(places)
    assert (places[0], places[-1]) == (0, 1)
    for moment, place in zip(moments, places, strict=True):
        assert abs(scale.moment(place) - moment) < timedelta(milliseconds=1)

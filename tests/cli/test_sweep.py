"""``pharox sweep``: what it checks, records and sums up, and how it ends."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from inspect import signature
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil  # type: ignore[import-untyped]
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg import sql
from rich.cells import cell_len
from sqlalchemy import make_url

from pharox import (
    CheckFailure,
    HealthCheckResult,
    HealthOutcome,
    Proxy,
    ProxyManager,
    ProxyPool,
    ProxyProtocol,
    ProxyStatus,
    SweepSummary,
)
from pharox.cli.sweep_report import LISTED, print_swept
from pharox.cli.sweep_run import Swept
from pharox.cli.sweeping import sweep
from pharox.events import HealthChecked
from pharox.health.checker import CONCURRENCY
from pharox.storage.postgres import PostgresStorage
from tests.conftest import SECRET_KEY, fill
from tests.health.zoo import Zoo, running_zoo

from .conftest import Pharox

CODE = "import sys; from pharox.cli import main; sys.exit(main())"
GOOD, CLOSING, SILENT = ("http-answers", "http"), ("http-closes", "http"), ("silent", "http")
DEADLINE_S = 60
"""How long a process may take for anything, on a busy machine."""


@pytest.fixture(scope="module")
def zoo() -> Iterator[Zoo]:
    with running_zoo() as zoo:
        yield zoo


@pytest.fixture
def target(zoo: Zoo) -> tuple[str, str]:
    """The option that keeps checks on loopback."""
    return "--target", zoo.target("/ok")


@pytest.fixture
def keep(storage: PostgresStorage, zoo: Zoo) -> Callable[..., list[Proxy]]:
    """Call with proxies of the zoo, to have them in a pool: ACTIVE, unless facts say otherwise."""

    def register(*members: tuple[str, str], pool: str = "pool", **facts: object) -> list[Proxy]:
        known = ProxyPool(name=pool)
        storage.save_pool(known)
        facts = {"status": ProxyStatus.ACTIVE, "pool_id": known.id, **facts}
        proxies = [
            zoo.proxy(*member).model_copy(update={**facts, "id": uuid4()}) for member in members
        ]
        storage.add_proxies_bulk(proxies)
        return proxies

    return register


Keep = Callable[..., list[Proxy]]
Target = tuple[str, str]


def statuses(storage: PostgresStorage, proxies: list[Proxy]) -> list[ProxyStatus]:
    return [storage.get_proxy(str(proxy.id)).status for proxy in proxies]


def checks(storage: PostgresStorage) -> list[HealthChecked]:
    parts = (part for event in storage.events() for part in event.parts())
    return [part for part in parts if isinstance(part, HealthChecked)]


@contextmanager
def running(
    database_url: str, *arguments: object, **options: Any
) -> Iterator[subprocess.Popen[str]]:
    """Run ``pharox`` as a process, which is gone after the block."""
    known = {"PHAROX_DATABASE_URL": database_url, "PHAROX_SECRET_KEY": SECRET_KEY}
    with subprocess.Popen(
        [sys.executable, "-c", CODE, *map(str, arguments)],
        text=True,
        env={**os.environ, **known},
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


class TestWhatIsFound:
    def test_it_is_recorded_and_summed_up(
        self, pharox: Pharox, storage: PostgresStorage, keep: Keep, target: Target
    ) -> None:
        """Each proxy has the status that was found, and the summary counts them."""
        proxies = keep(GOOD, ("pproxy-socks5", "socks5"), CLOSING, country="AR", source="a list")
        outcome = pharox("sweep", "pool", *target)
        assert (outcome.status, outcome.err) == (0, "")
        assert statuses(storage, proxies) == ["active", "active", "inactive"]
        first, *lines = outcome.out.splitlines()
        assert first.startswith("3 proxies checked in ")
        assert first.endswith(" s: found 2 active, 1 inactive")
        assert lines == [
            "1 dropped out; 0 came back",
            "failures: 1 disconnected",
            "",
            "by        value   active  slow  inactive",
            "protocol  http         1     0         1",
            "protocol  socks5       1     0         0",
            "country   AR           2     0         1",
            "source    a list       2     0         1",
        ]

    def test_that_nothing_went_well_may_be_the_targets_fault(
        self, pharox: Pharox, keep: Keep, target: Target
    ) -> None:
        """A target that is down makes all of a pool inactive: somebody should look at it."""
        keep(CLOSING, CLOSING)
        outcome = pharox("sweep", "pool", *target)
        assert outcome.status == 0
        assert (
            outcome.err == "pharox: no check succeeded: is the target reachable without a proxy?\n"
        )

    def test_leases_on_what_dropped_out_are_told(
        self, pharox: Pharox, storage: PostgresStorage, keep: Keep, target: Target
    ) -> None:
        """In the summary, and in the proxy's story."""
        (proxy,) = keep(CLOSING, max_concurrency=None)
        manager = ProxyManager(storage)
        assert manager.acquire_proxy("pool")
        assert manager.acquire_proxy("pool")
        outcome = pharox("sweep", *target)
        assert "1 dropped out, with 2 leases held on them; 0 came back" in outcome.out
        story = pharox("audit", "proxy", proxy.id).out
        assert "so status active -> inactive, while 2 leases were held on it\n" in story

    @pytest.mark.parametrize(
        ("error", "told"), [(None, "not reachable, timeout"), ("no answer", "inactive, no answer")]
    )
    def test_why_a_check_failed_is_told_once(
        self, pharox: Pharox, storage: PostgresStorage, error: str | None, told: str
    ) -> None:
        """In words if there are any, else by the kind of failure."""
        _, (proxy,) = fill(storage)
        result = HealthCheckResult(
            proxy_id=proxy.id,
            status=ProxyStatus.INACTIVE,
            latency_ms=1,
            protocol=proxy.protocol,
            failure=CheckFailure.TIMEOUT,
            error_message=error,
        )
        storage.record_health_checks([result])
        story = pharox("audit", "proxy", proxy.id).out
        assert told in story
        assert ("timeout" in story) is (error is None)

    def test_what_came_back_is_told(
        self, pharox: Pharox, storage: PostgresStorage, keep: Keep, target: Target
    ) -> None:
        """A proxy that is leasable again is no news among those that always were."""
        proxies = keep(GOOD, status=ProxyStatus.INACTIVE) + keep(GOOD, pool="other")
        assert "0 dropped out; 1 came back" in pharox("sweep", *target).out
        assert statuses(storage, proxies) == ["active", "active"]

    def test_a_page_of_the_proxys_own_is_told_apart(
        self, pharox: Pharox, storage: PostgresStorage, keep: Keep, zoo: Zoo
    ) -> None:
        """By the text and the headers that only the target has; the log has the reason."""
        own, honest = keep(GOOD, ("pproxy-http", "http"))
        page = ("--target", zoo.target("/marked"), "--json")
        (found,) = pharox("sweep", *page).objects
        assert found["statuses"] == {"active": 2}
        for options in (
            ("--expect-text", "served by the target"),
            ("--expect-header", "x-served-by"),
            ("--expect-header", "X-Served-By: the target", "--expect-header", "content-type"),
        ):
            (found,) = pharox("sweep", *page, *options).objects
            assert found["failures"] == {"unexpected_content": 1}
            assert statuses(storage, [own, honest]) == [ProxyStatus.INACTIVE, ProxyStatus.ACTIVE]
        told = checks(storage)
        assert {event.proxy_id for event in told if event.failure} == {own.id}
        assert {event.failure for event in told} == {None, CheckFailure.UNEXPECTED_CONTENT}

    def test_json_has_it_all(self, pharox: Pharox, keep: Keep, target: Target) -> None:
        """One object a sweep; who has no country counts under null."""
        keep(GOOD, CLOSING)
        (found,) = pharox("sweep", "pool", *target, "--json").objects
        assert found.pop("seconds") > 0
        assert found.pop("started_at").endswith("Z")
        assert found == {
            "pool": "pool",
            "interrupted": False,
            "checked": 2,
            "unknown": 0,
            "statuses": {"active": 1, "inactive": 1},
            "dropped": 1,
            "dropped_leases": 0,
            "recovered": 0,
            "failures": {"disconnected": 1},
            "by": {
                "protocol": [{"value": "http", "active": 1, "inactive": 1}],
                "country": [{"value": None, "active": 1, "inactive": 1}],
                "source": [{"value": None, "active": 1, "inactive": 1}],
            },
        }


class TestWhatIsChecked:
    def test_one_pool_or_all(self, pharox: Pharox, keep: Keep, target: Target) -> None:
        """A pool's name keeps the others out."""
        keep(GOOD)
        keep(GOOD, GOOD, pool="other")
        counts = [
            pharox("sweep", *pool, *target, "--json").objects[0]["checked"]
            for pool in ([], ["pool"], ["other"])
        ]
        assert counts == [3, 1, 2]

    def test_the_banned_only_if_asked_for(
        self, pharox: Pharox, storage: PostgresStorage, keep: Keep, target: Target
    ) -> None:
        """And no check lifts their ban."""
        banned = keep(GOOD, status=ProxyStatus.BANNED)
        keep(GOOD, pool="other", status=ProxyStatus.SLOW)
        (found,) = pharox("sweep", *target, "--status", "slow", "--json").objects
        assert found["checked"] == 1
        options = ("--status", "banned", "--status", "inactive", "--json")
        (found,) = pharox("sweep", *target, *options).objects
        assert (found["checked"], found["recovered"]) == (1, 0)
        assert statuses(storage, banned) == ["banned"]

    def test_what_was_checked_lately_may_be_left_out(
        self, pharox: Pharox, keep: Keep, target: Target
    ) -> None:
        """--stale-after takes those that were not checked for so long, or never."""
        keep(GOOD)
        pharox("sweep", *target)
        keep(GOOD, GOOD, pool="new")
        (found,) = pharox("sweep", *target, "--stale-after", "1h", "--json").objects
        assert found["checked"] == 2

    @pytest.mark.parametrize("pool", [[], ["pool"]])
    def test_nothing_due_is_no_failure(
        self, pharox: Pharox, storage: PostgresStorage, target: Target, pool: list[str]
    ) -> None:
        """It is said; with --json the sums are zero."""
        fill(storage, 0)
        outcome = pharox("sweep", *pool, *target)
        assert outcome == (0, "", "pharox: no proxy is due to be checked\n")
        (found,) = pharox("sweep", *pool, *target, "--json").objects
        assert (found["checked"], found["by"]["country"]) == (0, [])

    def test_an_unknown_pool_fails(self, pharox: Pharox, target: Target) -> None:
        """In one sentence, also if it were to be swept again and again."""
        for options in ([], ["--every", "1s"]):
            outcome = pharox("sweep", "nope", *target, *options)
            assert (outcome.status, outcome.out, outcome.err.count("\n")) == (1, "", 1)
            assert "'nope'" in outcome.err


class TestOptions:
    def test_a_policy_waits_for_several_failures(
        self, pharox: Pharox, storage: PostgresStorage, keep: Keep, target: Target
    ) -> None:
        """And for several successes, counted over sweeps."""
        proxies = keep(CLOSING) + keep(GOOD, pool="other", status=ProxyStatus.INACTIVE)
        policy = ("--failures", "2", "--successes", "2")
        pharox("sweep", *target, *policy)
        assert statuses(storage, proxies) == ["active", "inactive"]
        out = pharox("sweep", *target, *policy).out
        assert statuses(storage, proxies) == ["inactive", "active"]
        assert "1 dropped out; 1 came back" in out

    def test_what_is_a_good_answer(self, pharox: Pharox, zoo: Zoo, keep: Keep) -> None:
        """--expect replaces 200, and may be given twice."""
        keep(("pproxy-http", "http"))
        found = [
            pharox("sweep", "--target", zoo.target("/status/418"), *codes, "--json").objects[0]
            for codes in ([], ["--expect", 418], ["--expect", 200, "--expect", 418])
        ]
        assert [one["statuses"] for one in found] == [{"inactive": 1}, {"active": 1}, {"active": 1}]
        assert found[0]["failures"] == {"unexpected_status": 1}

    def test_where_a_proxy_comes_out(
        self, pharox: Pharox, storage: PostgresStorage, zoo: Zoo, keep: Keep
    ) -> None:
        """--exit-ip-from says where the answer has it, and the ledger keeps it."""
        (proxy,) = keep(("pproxy-http", "http"))
        page = ("--target", zoo.target("/says/%7B%22ip%22:%22192.0.2.7%22%7D"))
        assert pharox("sweep", *page, "--exit-ip-from", "json:ip").status == 0
        assert storage.get_proxy(str(proxy.id)).exit_ip == "192.0.2.7"
        assert "exit_ip=192.0.2.7" in pharox("log").out
        assert pharox("sweep", *page, "--exit-ip-from", "xml:ip").status == 2

    def test_what_is_slow(self, pharox: Pharox, zoo: Zoo, keep: Keep) -> None:
        """--slow is a bound in milliseconds, --timeout one in seconds."""
        keep(("pproxy-http", "http"))
        page = ("--target", zoo.target("/slow"), "--json")
        assert pharox("sweep", *page, "--slow", 100).objects[0]["statuses"] == {"slow": 1}
        (late,) = pharox("sweep", *page, "--timeout", 0.1).objects
        assert late["failures"] == {"timeout": 1}

    def test_attempts(
        self, pharox: Pharox, storage: PostgresStorage, keep: Keep, target: Target
    ) -> None:
        """A failure is one only after so many attempts, which the log counts."""
        keep(CLOSING)
        pharox("sweep", *target, "--attempts", 3, "--per-host", 1, "--concurrency", 2)
        *_, event = storage.events()
        assert isinstance(event, HealthChecked)
        assert event.attempts == 3

    def test_an_authority_may_be_added(
        self, pharox: Pharox, zoo: Zoo, keep: Keep, tmp_path: Path
    ) -> None:
        """A target with a certificate of one's own needs --ca."""
        (tmp_path / "ca.pem").write_text(zoo.authority)
        keep(("pproxy-http", "http"))
        page = ("--target", zoo.tls_target("/ok"), "--json")
        assert pharox("sweep", *page).objects[0]["failures"] == {"tls": 1}
        (found,) = pharox("sweep", *page, "--ca", tmp_path / "ca.pem").objects
        assert found["statuses"] == {"active": 1}

    def test_a_file_without_certificates_is_refused(
        self, pharox: Pharox, target: Target, tmp_path: Path
    ) -> None:
        """It is said which."""
        (tmp_path / "ca.pem").write_text("no certificate")
        outcome = pharox("sweep", *target, "--ca", tmp_path / "ca.pem")
        assert (outcome.status, outcome.out) == (2, "")
        assert "ca.pem has no readable certificates\n" in outcome.err

    @pytest.mark.parametrize(
        "options",
        [
            ["--every", "x"],
            ["--every", "0s"],
            ["--every", "0.5"],
            ["--every", "now"],
            ["--every", "2026-01-31T12:00Z"],
            ["--every", "99999999d"],
            ["--stale-after", ""],
            ["--stale-after", "-5m"],
            ["--stale-after", "200000d"],
            ["--timeout", "0"],
            ["--timeout", "nan"],
            ["--attempts", "0"],
            ["--target", "ftp://127.0.0.1/"],
            ["--target", "x"],
            ["--expect", "99"],
            ["--expect-text", " "],
            ["--expect-header", ""],
            ["--expect-header", ": value"],
            ["--expect-header", "a name: value"],
            ["--expect-header", "X: a", "--expect-header", "x: b"],
            ["--slow", "-1"],
            ["--failures", "0"],
            ["--successes", "1001"],
            ["--latency-window", "0"],
            ["--concurrency", "0"],
            ["--per-host", "0"],
            ["--status", "gone"],
            ["--ca", "/nonexistent"],
            ["pool", "other"],
        ],
    )
    def test_what_makes_no_sense_is_refused(
        self, pharox: Pharox, options: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """In one line, with exit status 2."""
        monkeypatch.setenv("PHAROX_CHECK_URL", "http://target.example/")
        outcome = pharox("sweep", *options)
        assert (outcome.status, outcome.out, outcome.err.count("\n")) == (2, "", 1)

    @pytest.mark.parametrize("url", [None, "", "target.example", "ftp://target.example/"])
    def test_without_a_target_nothing_is_asked(
        self, pharox: Pharox, monkeypatch: pytest.MonkeyPatch, url: str | None
    ) -> None:
        """No public site is fetched by default: the error names both ways to give a page."""
        if url is not None:
            monkeypatch.setenv("PHAROX_CHECK_URL", url)
        outcome = pharox("sweep")
        assert (outcome.status, outcome.out, outcome.err.count("\n")) == (2, "", 1)
        assert "PHAROX_CHECK_URL" in outcome.err
        assert ("--target" in outcome.err) is (not url)

    def test_the_target_may_be_set_for_all_sweeps(
        self, pharox: Pharox, keep: Keep, zoo: Zoo, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As PHAROX_CHECK_URL; --target comes before it."""
        keep(("pproxy-http", "http"))
        monkeypatch.setenv("PHAROX_CHECK_URL", zoo.target("/status/418"))
        (found,) = pharox("sweep", "--json").objects
        assert found["failures"] == {"unexpected_status": 1}
        (found,) = pharox("sweep", "--target", zoo.target("/ok"), "--json").objects
        assert found["statuses"]["active"] == 1

    def test_the_defaults_are_those_of_the_library(self) -> None:
        """The defaults in the help are those of the library."""
        assert signature(sweep).parameters["concurrency"].default == CONCURRENCY

    @pytest.mark.parametrize(("limits", "status"), [((256, 4096), 0), ((256, 256), 2)])
    def test_checks_have_the_files_that_they_need(
        self, keep: Keep, target: Target, database_url: str, limits: tuple[int, int], status: int
    ) -> None:
        """The system's limit is raised as far as it can be, or the command is refused.

        Else healthy proxies would be found dead for want of a socket.
        """
        keep(GOOD)
        with running(
            database_url,
            *("sweep", *target, "--concurrency", 500),
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, limits),
        ) as process:
            out, err = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == status
        assert ("1 active" in out) is not ("500 checks at once need 1100" in err)


class TestTheEnd:
    @pytest.mark.parametrize(
        ("number", "options", "status"),
        [
            (signal.SIGINT, [], 130),
            (signal.SIGTERM, [], 143),
            (signal.SIGINT, ["--every", "1h"], 0),
            (signal.SIGTERM, ["--every", "1h"], 0),
        ],
    )
    def test_a_signal_sums_up_what_is_recorded(
        self,
        storage: PostgresStorage,
        keep: Keep,
        target: Target,
        database_url: str,
        number: signal.Signals,
        options: list[str],
        status: int,
    ) -> None:
        """Checks under way are given up: they are neither recorded nor counted."""
        keep(*[GOOD, SILENT] * 100)
        words = ("sweep", *target, "--timeout", 600, "--concurrency", 20, "--json", *options)
        with running(database_url, *words) as process:
            until(lambda: len(checks(storage)) > 0)
            for _ in "12":  # as from a terminal, and from a parent that passes it on
                process.send_signal(number)
            out, err = process.communicate(timeout=DEADLINE_S)
        assert (process.returncode, err) == (status, "")
        (found,) = map(json.loads, out.splitlines())
        assert found["interrupted"] is True
        assert 0 < found["checked"] == len(checks(storage)) < 200

    def test_a_person_is_told_that_it_was_interrupted(
        self, storage: PostgresStorage, keep: Keep, target: Target, database_url: str
    ) -> None:
        """Before all else."""
        keep(GOOD, SILENT)
        with running(database_url, "sweep", *target, "--timeout", 600) as process:
            until(lambda: len(checks(storage)) == 1)
            process.send_signal(signal.SIGINT)
            out, _ = process.communicate(timeout=DEADLINE_S)
        assert out.startswith("interrupted: 1 proxy checked in ")

    def test_nothing_recorded_is_told_too(
        self, storage: PostgresStorage, keep: Keep, target: Target, database_url: str
    ) -> None:
        """No table has nothing in it."""
        (proxy,) = keep(SILENT)
        with running(database_url, "sweep", *target, "--timeout", 600) as process:
            until(lambda: proxy.port in _remote_ports(process.pid))
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=DEADLINE_S)
        assert (process.returncode, out, len(checks(storage))) == (143, "", 0)
        assert err == "pharox: interrupted before any check was recorded\n"

    def test_a_closed_pipe_is_no_error(self, keep: Keep, target: Target, database_url: str) -> None:
        """``pharox sweep --every 1s --json | head -1`` ends quietly."""
        keep(GOOD)
        with running(database_url, "sweep", *target, "--every", "1s", "--json") as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.readline()
            process.stdout.close()
            assert (process.wait(DEADLINE_S), process.stderr.read()) == (141, "")


class TestAgainAndAgain:
    def test_sweeps_start_so_far_apart(self, keep: Keep, target: Target, database_url: str) -> None:
        """However long each took; one that takes longer is followed at once."""
        keep(GOOD)
        with running(database_url, "sweep", *target, "--every", "2s", "--json") as process:
            assert process.stdout is not None
            began = [json.loads(process.stdout.readline())["started_at"] for _ in "123"]
            process.send_signal(signal.SIGTERM)
            assert process.wait(DEADLINE_S) == 0
        for earlier, later in pairwise(map(datetime.fromisoformat, began)):
            assert later - earlier >= timedelta(seconds=1.9)

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_a_signal_between_sweeps_ends_it(
        self, keep: Keep, target: Target, database_url: str, number: signal.Signals
    ) -> None:
        """That is its ordinary end, also if the signal comes twice."""
        keep(GOOD)
        with running(database_url, "sweep", *target, "--every", "1h", "--json") as process:
            assert process.stdout is not None
            process.stdout.readline()
            for _ in "12":
                process.send_signal(number)
            assert process.communicate(timeout=DEADLINE_S) == ("", "")
            assert process.returncode == 0

    def test_a_database_that_is_away_is_asked_again(
        self, keep: Keep, target: Target, database_url: str
    ) -> None:
        """Each failed sweep is printed, and the next one is tried."""
        keep(GOOD)
        with (
            running(database_url, "sweep", *target, "--every", "1s", "--json") as process,
            _administration(database_url) as allow,
        ):
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.readline()
            allow(False)
            assert process.stderr.readline().startswith("pharox: ")
            allow(True)
            while json.loads(process.stdout.readline())["checked"] != 1:
                pass
            process.send_signal(signal.SIGINT)
            assert process.wait(DEADLINE_S) == 0


class TestTheTerminal:
    def test_progress_is_shown_on_a_terminal(
        self, keep: Keep, target: Target, database_url: str
    ) -> None:
        """Beside the result, which does not change."""
        keep(GOOD, GOOD, CLOSING)
        ours, theirs = os.openpty()
        with running(database_url, "sweep", *target, stderr=theirs) as process:
            out, _ = process.communicate(timeout=DEADLINE_S)
        os.close(theirs)
        shown = os.read(ours, 100_000).decode()
        os.close(ours)
        assert "3/3" in shown
        assert out.startswith("3 proxies checked in ")

    def test_the_most_frequent_have_a_row(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Of two hundred countries ten, then the others together; all are counted."""
        countries = [f"C{n}" for n in range(200) for _ in range(200 - n)]
        rows = [line for line in _printed(capsys, countries) if line.startswith("country")]
        assert rows[0].split() == ["country", "C0", "200", "0", "0"]
        assert rows[-1].split()[:3] == ["country", "190", "others"]
        assert len(rows) == LISTED + 1
        assert sum(int(row.split()[-3]) for row in rows) == len(countries)

    def test_the_banned_have_a_column_if_there_are_any(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """A strategy of one's own may find that a proxy is."""
        assert not any("banned" in line for line in _printed(capsys, ["AR"]))
        lines = _printed(capsys, ["AR"], ProxyStatus.BANNED)
        assert "by        value  active  slow  inactive  banned" in lines
        assert "country   AR          0     0         0       1" in lines

    def test_no_text_bends_the_table(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Whatever countries are called, each line prints and has room on 80 columns."""

        @given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=20))
        def lines_fit(countries: list[str]) -> None:
            lines = _printed(capsys, [*countries, "東京\x1b[2J" * 50], ProxyStatus.BANNED)
            assert all(line.isprintable() and cell_len(line) <= 80 for line in lines)

        lines_fit()


def _remote_ports(pid: int) -> set[int]:
    connections = psutil.Process(pid).net_connections("tcp")
    return {connection.raddr.port for connection in connections if connection.raddr}


@contextmanager
def _administration(url: str) -> Iterator[Callable[[bool], None]]:
    """Yield what lets nobody into a database any more, or everybody again."""
    name = make_url(url).database or ""
    server = make_url(url).set(drivername="postgresql", database="postgres")
    with psycopg.connect(server.render_as_string(hide_password=False), autocommit=True) as admin:

        def allow(whether: bool) -> None:
            statement = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")
            admin.execute(statement.format(sql.Identifier(name), sql.Literal(whether)))
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name]
            )

        yield allow


def _printed(
    capsys: pytest.CaptureFixture[str],
    countries: list[str],
    status: ProxyStatus = ProxyStatus.ACTIVE,
) -> list[str]:
    """Return the lines of the summary of a sweep that found a proxy in each country."""
    swept = Swept(None, summary=SweepSummary())
    proxies = [
        Proxy(host="h", port=1, protocol=ProxyProtocol.HTTP, pool_id=uuid4()).model_copy(
            update={"country": country}
        )
        for country in countries
    ]

    async def watched() -> list[Proxy]:
        return [proxy async for proxy in swept.summary.watch(proxies)]

    for proxy in asyncio.run(watched()):
        result = HealthCheckResult(
            proxy_id=proxy.id, status=status, latency_ms=1, protocol=proxy.protocol
        )
        before = ProxyStatus.ACTIVE
        swept.summary.add(HealthOutcome(result, status_before=before, status_after=status))
    capsys.readouterr()
    print_swept(swept, dated=False, as_json=False)
    return capsys.readouterr().out.splitlines()

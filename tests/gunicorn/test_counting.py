"""One scrape shows what all workers do, and forgets nothing when they die."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from tests.gunicorn.web import NEWEST, Samples, Web, running, until

KINDS = {
    "sync": (),
    "gthread": ("--worker-class", "gthread", "--threads", "4"),
    "gevent": ("--worker-class", "gevent"),
}


def total(shown: Samples, name: str) -> float:
    """Return the sum of a metric's series."""
    return sum(value for series, value in shown.items() if series.split("{")[0] == name)


def assert_monotone(before: Samples, after: Samples) -> None:
    """Compare the counters of two scrapes."""
    ends = ("_total", "_bucket", "_count", "_sum")
    for series, value in before.items():
        if series.split("{")[0].endswith(ends):
            assert after[series] >= value, series


@pytest.mark.parametrize("preload", [(), ("--preload",)], ids=["lazy", "preload"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_scrape_shows_all_workers(
    version: str, kind: str, preload: tuple[str, ...], tmp_path: Path
) -> None:
    """Whatever their class, and whether the application was loaded before they were forked."""
    with running(version, tmp_path, *KINDS[kind], *preload) as web:
        with ThreadPoolExecutor(8) as pool:
            answered = list(pool.map(web.get, ["/lease", "/plain"] * 50))
        assert set(answered) <= set(web.workers())
        shown = web.scrape()
        assert web.hits(shown) == web.seen()
        assert web.seen()["/lease"] == web.seen()["/plain"] == 50
        assert total(shown, "pharox_acquire_total") == 50
        assert (
            shown[
                "pharox_acquire_duration_seconds_count"
                "{consumer=web,pool=shop,selector=first_available,status=hit}"
            ]
            == 50
        )
        assert total(shown, "pharox_release_total") == 50
        requests = web.seen().total()
        assert total(shown, "gunicorn_requests_total") == requests
        until(lambda: total(web.scrape(), "gunicorn_responses_total") == requests)
        assert web.scrape()["gunicorn_request_duration_seconds_count{method=GET}"] == requests
        assert shown["gunicorn_workers"] == shown["gunicorn_worker_starts_total"] == 2
        assert total(shown, "gunicorn_worker_restarts_total") == 0


def test_waits_are_counted(newest: str, tmp_path: Path) -> None:
    """Those of all workers, by pool and outcome."""
    with running(newest, tmp_path) as web:
        for _ in range(6):
            web.get("/wait")
        shown = web.scrape()
        assert shown["pharox_wait_seconds_count{outcome=granted,pool=scarce}"] == 6


def test_failures_are_counted_by_their_status(version: str, tmp_path: Path) -> None:
    """An application that raises answers 500, and a method that is none is "other"."""
    with running(version, tmp_path) as web:
        web.get("/error")
        until(
            lambda: web.scrape().get("gunicorn_responses_total{method=GET,status=500}") == 1,
            "a response",
        )


@pytest.mark.stress
@pytest.mark.parametrize(("kind", "signals"), [("sync", 100), ("gthread", 40)])
def test_totals_are_exact_whatever_workers_die_of(
    version: str, kind: str, signals: int, tmp_path: Path
) -> None:
    """A hundred signals: after each, everything that was seen is shown, and nothing twice.

    What an older gunicorn does otherwise shows in a few of them.
    """
    signals = signals if version == NEWEST else signals // 5
    chance = random.Random(7)
    deaths = {signal.SIGINT: "interrupted", signal.SIGTERM: "ended", signal.SIGKILL: "killed"}
    died: Counter[str] = Counter()
    with running(version, tmp_path, *KINDS[kind], "--preload") as web:
        before = web.scrape()
        for _ in range(signals):
            for _ in range(chance.randrange(4)):
                assert web.get(chance.choice(["/lease", "/plain"])) is not None
            number = chance.choice(list(deaths))
            web.end(chance.choice(web.workers()), number)
            died[deaths[number]] += 1
            shown = web.scrape()
            assert web.hits(shown) == web.seen()
            assert total(shown, "gunicorn_requests_total") == web.seen().total()
            assert_monotone(before, shown)
            before = shown
        until(lambda: total(web.scrape(), "gunicorn_worker_restarts_total") == signals)
        shown = web.scrape()
        for reason, times in died.items():
            assert shown[f"gunicorn_worker_restarts_total{{reason={reason}}}"] == times
        assert shown["gunicorn_worker_starts_total"] == 2 + signals
        assert total(shown, "pharox_acquire_total") == web.seen()["/lease"]
        assert shown.get("app_alive", 0) <= 2
        assert len(web.files()) < 20


@pytest.mark.stress
def test_under_load_every_answer_was_counted(version: str, tmp_path: Path) -> None:
    """Signals by the hundred to workers and master, while clients do not wait for them."""
    chance = random.Random(11)
    outcomes: Counter[bool] = Counter()
    over = threading.Event()

    def ask(web: Web) -> Counter[bool]:
        own: Counter[bool] = Counter()
        while not over.is_set():
            own[web.get("/plain") is not None] += 1
        return own

    with running(version, tmp_path, workers=3) as web, ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(ask, web) for _ in range(4)]
        try:
            before = web.scrape()
            for turn in range(150 if version == NEWEST else 30):
                if turn % 50 == 19:
                    web.signal(signal.SIGHUP)
                number = chance.choice([signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
                with contextlib.suppress(ProcessLookupError, IndexError):
                    os.kill(chance.choice(web.workers()), number)
                shown = web.scrape()
                assert_monotone(before, shown)
                before = shown
                over.wait(0.05)
        finally:
            over.set()
        for client in clients:
            outcomes += client.result()
        until(lambda: web.scrape()["gunicorn_workers"] == 3)
        shown = web.scrape()
        begun = shown["gunicorn_requests_total{method=GET}"]
        up = web.seen()["/up"]
        assert outcomes[True] <= begun - up <= outcomes.total()
        # A worker that is killed between noting a request and counting it does only the first.
        assert web.seen()["/plain"] - 150 <= web.hits(shown)["/plain"] <= web.seen()["/plain"]


def test_workers_that_reach_their_limit(version: str, tmp_path: Path) -> None:
    """With max_requests a worker ends after so many, and what it counted stays."""
    with running(version, tmp_path, "--max-requests", "5") as web:
        for _ in range(60):
            until(lambda: web.get("/lease") is not None)
        shown = web.scrape()
        assert web.hits(shown) == web.seen()
        assert total(shown, "pharox_acquire_total") == web.seen()["/lease"]
        assert shown["gunicorn_worker_restarts_total{reason=max_requests}"] >= 8
        assert len(web.files()) < 20


def test_a_worker_that_hangs_is_counted_as_aborted(version: str, tmp_path: Path) -> None:
    """Gunicorn sends SIGABRT to one that is silent for too long; here somebody else does."""
    with running(version, tmp_path) as web:
        web.end(web.workers()[0], signal.SIGABRT)
        until(
            lambda: web.scrape()["gunicorn_worker_restarts_total{reason=aborted}"] == 1,
            "the worker's end",
        )


def test_gauges_of_the_dead_disappear(version: str, tmp_path: Path) -> None:
    """A live gauge tells of the living."""
    with running(version, tmp_path, workers=1) as web:
        assert web.scrape()["app_alive"] == 1
        web.end(web.workers()[0], signal.SIGKILL)
        assert "app_alive" not in web.scrape() or web.scrape()["app_alive"] == 0
        web.get()
        assert web.scrape()["app_alive"] == 1


def test_consumers_are_bounded_over_all_workers(newest: str, tmp_path: Path) -> None:
    """Each worker that comes would else tell apart its own first hundred."""
    with running(newest, tmp_path, workers=1) as web:
        for turn in range(4):
            for number in range(40):
                web.get(f"/lease?consumer-{turn}-{number}")
            web.end(web.workers()[0], signal.SIGTERM)
        shown = web.scrape()
        series = [s for s in shown if s.startswith("pharox_acquire_total")]
        assert len(series) == 101
        assert total(shown, "pharox_acquire_total") == 160


def test_workers_do_not_hold_the_socket_of_the_metrics(version: str, tmp_path: Path) -> None:
    """The master does not hold it either; the process that serves holds no other socket."""
    with running(version, tmp_path) as web:
        ports = {
            pid: {c.laddr.port for c in psutil.Process(pid).net_connections() if not c.raddr}
            for pid in (web.master, web.server(), *web.workers())
        }
        assert ports.pop(web.server()) == {web.metrics_port}
        assert set(map(frozenset, ports.values())) == {frozenset({web.port})}

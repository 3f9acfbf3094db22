"""What is shown of workers and sizes, and the names that gunicorn-prometheus-exporter has."""

from __future__ import annotations

import contextlib
import os
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pharox.errors import InvalidInputError
from pharox.gunicorn.environment import EnvironmentManager
from tests.gunicorn.test_counting import assert_monotone
from tests.gunicorn.web import HOOKS, Samples, Web, running, until

LEGACY = {
    "gunicorn_worker_requests_total",
    "gunicorn_worker_request_duration_seconds_count",
    "gunicorn_worker_memory_bytes",
    "gunicorn_worker_cpu_percent",
    "gunicorn_worker_uptime_seconds",
    "gunicorn_worker_state",
    "gunicorn_worker_request_size_bytes_count",
    "gunicorn_worker_response_size_bytes_count",
    "gunicorn_worker_failed_requests_total",
    "gunicorn_worker_error_handling_total",
    "gunicorn_worker_restart_total",
    "gunicorn_worker_restart_count_total",
    "gunicorn_master_worker_restart_total",
    "gunicorn_master_worker_restart_count_total",
}
CLASS = 'worker_class = "pharox.gunicorn.PrometheusWorker"\n'


def names(shown: Samples) -> set[str]:
    """Return the names of what is shown."""
    return {series.split("{")[0] for series in shown}


def seats(shown: Samples, name: str) -> dict[str, float]:
    """Return a metric's values, by worker."""
    found: dict[str, float] = {}
    for series, value in shown.items():
        if series.split("{")[0] == name:
            labels = dict(part.split("=", 1) for part in series.split("{")[1][:-1].split(","))
            found[labels["worker_id"]] = found.get(labels["worker_id"], 0) + value
    return found


def post(web: Web, path: str, body: bytes) -> None:
    """Send a body; the application may fail."""
    with contextlib.suppress(urllib.error.HTTPError):
        urllib.request.urlopen(f"http://127.0.0.1:{web.port}{path}", body, timeout=10).close()


class TestWorkers:
    """Memory, CPU time and uptime, by the worker's seat."""

    def test_they_are_those_of_the_processes(self, version: str, tmp_path: Path) -> None:
        """As the system knows them."""
        with running(version, tmp_path) as web:
            shown = web.scrape()
            for name, least in (("memory_bytes", 5e6), ("uptime_seconds", 0.0)):
                found = seats(shown, f"gunicorn_worker_{name}")
                assert set(found) == {"1", "2"}
                assert all(value > least for value in found.values())
            before = seats(shown, "gunicorn_worker_cpu_seconds_total")
            assert set(before) == {"1", "2"}
            for _ in range(50):
                web.get("/lease")
            until(
                lambda: (
                    sum(seats(web.scrape(), "gunicorn_worker_cpu_seconds_total").values())
                    > sum(before.values())
                )
            )

    def test_a_seat_is_taken_again(self, version: str, tmp_path: Path) -> None:
        """So there are no more series after twenty workers, and no counter has gone back."""
        with running(version, tmp_path, PROMETHEUS_LEGACY_NAMES="true") as web:
            before = web.scrape()
            for turn in range(20):
                web.get("/lease")
                number = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)[turn % 3]
                web.end(web.workers()[0], number)
                if turn == 10:
                    server = web.server()
                    os.kill(server, signal.SIGKILL)
                    until(lambda: web.is_scraped() and web.server() != server, "another")  # noqa: B023
                shown = web.scrape()
                assert_monotone(before, shown)
                before = shown
            until(lambda: len(seats(web.scrape(), "gunicorn_worker_memory_bytes")) == 2)
            shown = web.scrape()
            for name in names(shown):
                if name.startswith("gunicorn_worker_") and "worker_id" in str(
                    [s for s in shown if s.startswith(name + "{")]
                ):
                    assert set(seats(shown, name)) <= {"1", "2", "3", "4"}
            assert sum(seats(shown, "gunicorn_worker_requests_total").values()) == sum(
                v for s, v in shown.items() if s.startswith("gunicorn_responses_total")
            )
            assert sum(seats(shown, "gunicorn_worker_restart_total").values()) == 20


class TestSizes:
    """How large bodies are."""

    def test_of_requests_and_responses(self, version: str, tmp_path: Path) -> None:
        """What was said and what was sent."""
        with running(version, tmp_path, workers=1) as web:
            for size in (0, 10, 5000):
                post(web, "/plain", b"x" * size)
            # The last one is counted when its answer has been sent.
            until(lambda: web.scrape().get("gunicorn_request_size_bytes_count{method=POST}") == 3)
            shown = web.scrape()
            digits = len(str(web.workers()[0]))
            assert shown["gunicorn_request_size_bytes_sum{method=POST}"] == 5010
            assert shown["gunicorn_request_size_bytes_bucket{le=1024.0,method=POST}"] == 2
            assert shown["gunicorn_request_size_bytes_bucket{le=+Inf,method=POST}"] == 3
            assert shown["gunicorn_response_size_bytes_sum{method=POST}"] == 3 * digits
            assert shown["gunicorn_response_size_bytes_count{method=POST}"] == 3


class TestBuckets:
    """They can be set."""

    def test_they_are_those_of_the_settings(self, newest: str, tmp_path: Path) -> None:
        """Of durations and of sizes."""
        options = {
            "PROMETHEUS_DURATION_BUCKETS": "0.5, 2",
            "PROMETHEUS_SIZE_BUCKETS": "10,100,+Inf",
        }
        with running(newest, tmp_path, **options) as web:
            found = {
                name: {
                    series.split("le=")[1].split(",")[0]
                    for series in web.scrape()
                    if series.startswith(f"gunicorn_{name}_bucket")
                }
                for name in ("request_duration_seconds", "response_size_bytes")
            }
            assert found == {
                "request_duration_seconds": {"0.5", "2.0", "+Inf"},
                "response_size_bytes": {"10.0", "100.0", "+Inf"},
            }

    @pytest.mark.parametrize(
        "text", ["x", "1,,2", "2,1", "1,1", "nan", "inf", ",", "1;2", ",".join(map(str, range(51)))]
    )
    def test_those_that_make_no_sense(self, text: str) -> None:
        """They are refused by the variable's name, without its value."""
        environment = {"PROMETHEUS_DURATION_BUCKETS": text}
        with pytest.raises(InvalidInputError, match="PROMETHEUS_DURATION_BUCKETS must be"):
            EnvironmentManager(environment=environment).settings()

    @given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=50, unique=True).map(sorted))
    def test_any_that_rise_are_taken(self, limits: list[float]) -> None:
        """As they are."""
        environment = {"PROMETHEUS_SIZE_BUCKETS": ",".join(map(repr, limits))}
        found = EnvironmentManager(environment=environment).requests()
        assert found.size_buckets == tuple(limits)

    def test_a_reload_with_nonsense_changes_nothing(self, newest: str, tmp_path: Path) -> None:
        """Requests are counted as at the start, and the log says why."""
        config = "import os, pathlib\nos.environ['PROMETHEUS_DURATION_BUCKETS'] = "
        config += f"pathlib.Path('buckets').read_text()\n{HOOKS}"
        (tmp_path / "buckets").write_text("1,2")
        with running(newest, tmp_path, config=config) as web:
            (tmp_path / "buckets").write_text("nonsense")
            former = set(web.workers())
            web.signal(signal.SIGHUP)
            until(lambda: not former & set(web.workers()) and len(web.workers()) == 2)
            until(lambda: web.get("/lease") is not None)
            assert (
                "the former settings of request metrics stay in use: PROMETHEUS_DURATION_BUCKETS"
                in web.log
            )
            assert "nonsense" not in web.log
            assert web.scrape()["gunicorn_requests_total{method=GET}"] == web.seen().total()


@pytest.fixture
def legacy(version: str, tmp_path: Path) -> Iterator[Web]:
    """A server that shows the former names too."""
    options = {"config": CLASS + HOOKS, "PROMETHEUS_LEGACY_NAMES": "true"}
    with running(version, tmp_path, **options) as web:
        yield web


class TestLegacyNames:
    """The metrics of gunicorn-prometheus-exporter, beside ours."""

    def test_all_are_there(self, legacy: Web) -> None:
        """With the figures that ours have."""
        for _ in range(10):
            legacy.get("/lease")
        legacy.get("/error")
        worker = legacy.get("/lease")
        assert worker is not None
        # The client has its answer before the worker is done with it.
        until(lambda: responses(legacy.scrape()) == legacy.seen().total(), "the end of requests")
        legacy.end(worker, signal.SIGINT)
        until(lambda: names(legacy.scrape()) >= LEGACY, "all names")
        shown = legacy.scrape()
        ours = responses(shown)
        for name in ("requests_total", "request_duration_seconds_count"):
            assert sum(seats(shown, f"gunicorn_worker_{name}").values()) == ours
        (failed,) = [s for s in shown if s.startswith("gunicorn_worker_failed_requests_total")]
        (handled,) = [s for s in shown if s.startswith("gunicorn_worker_error_handling_total")]
        for series in (failed, handled):
            assert "endpoint=/error,error_type=ValueError,method=GET,worker_id=" in series
            assert shown[series] == 1
        assert shown["gunicorn_master_worker_restart_total{reason=quit}"] == 1
        (count,) = [s for s in shown if s.startswith("gunicorn_worker_restart_count_total")]
        assert "reason=quit,restart_type=graceful" in count

    def test_paths_are_bounded(self, legacy: Web) -> None:
        """Over all workers, whatever clients ask for."""
        for number in range(130):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{legacy.port}/error?{number}", timeout=10)
        assert_bounded(legacy)

    def test_they_are_not_there_unless_asked_for(self, newest: str, tmp_path: Path) -> None:
        """Nothing else depends on one of them either."""
        added = {"gunicorn_worker_memory_bytes", "gunicorn_worker_uptime_seconds"}
        with running(newest, tmp_path) as web:
            web.get("/error")
            assert names(web.scrape()) & LEGACY == added


def responses(shown: Samples) -> float:
    """Return how many responses a scrape shows."""
    return sum(v for s, v in shown.items() if s.startswith("gunicorn_responses_total"))


def assert_bounded(web: Web) -> None:
    """Look at how many series there are of failures."""
    shown = web.scrape()
    series = [s for s in shown if s.startswith("gunicorn_worker_failed_requests_total")]
    assert sum(shown[one] for one in series) == 130
    assert len(series) <= 2


def test_the_number_of_paths_is_bounded(tmp_path: Path) -> None:
    """A hundred, and the others together."""
    from prometheus_client import CollectorRegistry

    from pharox.gunicorn.environment import RequestSettings
    from pharox.gunicorn.legacy import LegacyMetrics

    registry = CollectorRegistry()
    metrics = LegacyMetrics(registry, RequestSettings(), "1")
    for number in range(300):
        metrics.end(("GET", f"/{number}"), 0.1, 1, 1, ValueError())
    (family,) = [one for one in registry.collect() if one.name.endswith("failed_requests")]
    counts = {
        sample.labels["endpoint"]: sample.value
        for sample in family.samples
        if sample.name.endswith("_total")
    }
    assert len(counts) == 101
    assert counts["other"] == 200

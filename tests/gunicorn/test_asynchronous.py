"""ASGI workers: gunicorn's own, and uvicorn's."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.gunicorn.web import Web, running, until

APPLICATION = "tests.gunicorn.asynchronous:application"
UVICORN = ["uvicorn_worker.UvicornWorker", "uvicorn_worker.UvicornH11Worker"]


@contextmanager
def asynchronous(
    version: str, folder: Path, kind: str, *arguments: str, **options: str | int
) -> Iterator[Web]:
    """Run gunicorn with such a worker for a block."""
    every = ("--worker-class", kind, *arguments)
    with running(version, folder, *every, application=APPLICATION, **options) as web:
        yield web


def responses(web: Web) -> dict[str, float]:
    """Return how many answers there were, by status."""
    prefix = "gunicorn_responses_total{method=GET,status="
    shown = web.scrape().items()
    return {series[len(prefix) : -1]: value for series, value in shown if series.startswith(prefix)}


class TestGunicornsOwn:
    """``-k asgi``."""

    @pytest.mark.parametrize("log", [(), ("--access-logfile", "/dev/null")], ids=["quiet", "log"])
    def test_answers_are_counted_by_their_status(
        self, newest: str, log: tuple[str, ...], tmp_path: Path
    ) -> None:
        """Whether or not there is an access log, of which gunicorn makes it depend what it says."""
        with asynchronous(newest, tmp_path, "asgi", *log) as web:
            asked = web.seen()["/up"]
            for path in ("/200", "/404", "/404", "/503", "/error", "/silent"):
                web.get(path)
            expected = {"200": asked + 1, "404": 2, "503": 1, "500": 2}
            until(lambda: responses(web) == expected, "the answers")
            shown = web.scrape()
            assert shown["gunicorn_requests_total{method=GET}"] == asked + 6
            assert shown["gunicorn_requests_in_progress"] == 0
            assert shown["gunicorn_request_duration_seconds_count{method=GET}"] == asked + 6
            assert web.hits(shown) == web.seen()

    def test_sizes_of_answers_are_what_was_sent(self, newest: str, tmp_path: Path) -> None:
        """All parts of a body."""
        with asynchronous(newest, tmp_path, "asgi", workers=1) as web:
            asked, digits = web.seen()["/up"], len(str(web.workers()[0]))
            series = "gunicorn_response_size_bytes_sum{method=GET}"
            until(lambda: web.scrape().get(series) == digits * asked, "the sizes")

    def test_a_client_that_leaves_is_no_failure_of_the_application(
        self, newest: str, tmp_path: Path
    ) -> None:
        """It has the status that proxies have for this."""
        with asynchronous(newest, tmp_path, "asgi") as web:
            with socket.create_connection(("127.0.0.1", web.port)) as client:
                client.sendall(b"GET /never HTTP/1.1\r\nHost: x\r\n\r\n")
                until(lambda: web.seen()["/never"] == 1, "the request")
            until(lambda: responses(web).get("499") == 1, "its end")
            assert "500" not in responses(web)

    @pytest.mark.parametrize(
        ("number", "reason"),
        [(signal.SIGTERM, "ended"), (signal.SIGINT, "interrupted"), (signal.SIGKILL, "killed")],
    )
    def test_ends_are_told_apart(
        self, newest: str, number: int, reason: str, tmp_path: Path
    ) -> None:
        """As those of any worker."""
        assert_end(newest, tmp_path, "asgi", number, reason)


@pytest.mark.parametrize("kind", UVICORN)
@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (signal.SIGABRT, "aborted"),
        (signal.SIGINT, "interrupted"),
        (signal.SIGKILL, "killed"),
        (signal.SIGTERM, "ended"),
    ],
)
def test_a_graceful_end_of_uvicorns_worker(
    version: str, kind: str, number: int, reason: str, tmp_path: Path
) -> None:
    """It ends itself by the signal that it was sent, once all is answered."""
    assert_end(version, tmp_path, kind, number, reason)


def test_a_reload_of_uvicorns_workers_kills_none(newest: str, tmp_path: Path) -> None:
    """Gunicorn ends the former workers gracefully."""
    with asynchronous(newest, tmp_path, UVICORN[0]) as web:
        former = set(web.workers())
        until(lambda: {web.get("/200") for _ in range(20)} >= former, "answers of both")
        web.signal(signal.SIGHUP)
        until(lambda: not former & set(web.workers()) and len(web.workers()) == 2)
        ended = "gunicorn_worker_restarts_total{reason=ended}"
        until(lambda: web.scrape()[ended] == 2, "both ends")
        assert web.scrape()["gunicorn_worker_restarts_total{reason=killed}"] == 0
        assert web.hits() == web.seen()


def assert_end(version: str, folder: Path, kind: str, number: int, reason: str) -> None:
    """End a worker; its end is counted as what it was, and as nothing else."""
    with asynchronous(version, folder, kind) as web:
        worker = web.get("/200")  # One that answers has begun to listen to signals.
        assert worker is not None
        web.end(worker, number)
        series = "gunicorn_worker_restarts_total{reason=%s}"
        until(lambda: web.scrape()[series % reason] == 1, "the worker's end")
        shown = web.scrape()
        restarts = [v for s, v in shown.items() if s.startswith("gunicorn_worker_restarts_total")]
        assert sum(restarts) == 1
        assert web.hits(shown) == web.seen()
        until(lambda: web.scrape()["gunicorn_workers"] == 2, "a worker in its place")
        assert os.path.exists(f"/proc/{web.master}")

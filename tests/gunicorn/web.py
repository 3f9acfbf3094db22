"""Run the real gunicorn with an application, ask it, scrape it, and do things to it."""

from __future__ import annotations

import os
import signal
import ssl
import subprocess
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO

import psutil  # type: ignore[import-untyped]
from prometheus_client.parser import text_string_to_metric_families

from scripts.lib.gunicorn_demo import free_port

ROOT = Path(__file__).parents[2]
OLDEST, NEWEST = "23.0.0", "27.0.1"
HOOKS = """
from pharox.gunicorn import (
    default_on_exit as on_exit,
    default_on_starting as on_starting,
    default_post_fork as post_fork,
    default_when_ready as when_ready,
    default_worker_int as worker_int,
)
"""
Samples = dict[str, float]
_PATIENCE_S = 90
"""How long something may take that hangs: on a busy machine workers import for half a minute."""


def until(
    holds: Callable[[], bool], what: str = "it", told: Callable[[], object] = lambda: ""
) -> None:
    """Wait until something holds; say at the end what is ``told``."""
    end = time.monotonic() + _PATIENCE_S
    while not holds():
        assert time.monotonic() < end, f"{what} did not come about {told()}"
        time.sleep(0.05)


def samples(text: str) -> Samples:
    """Return what a scrape shows, by series; each metric and each series is there once."""
    types = [line for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(types) == len(set(types))
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()))
            series = f"{sample.name}{{{labels}}}" if labels else sample.name
            assert series not in found
            found[series] = sample.value
    return found


class Web:
    """A running gunicorn."""

    def __init__(
        self,
        version: str,
        folder: Path,
        *arguments: str,
        config: str = HOOKS,
        workers: int = 2,
        application: str = "tests.gunicorn.application:application",
        **environment: str,
    ) -> None:
        self.folder, self.port, self.metrics_port = folder, free_port(), free_port()
        self.noted, self.log_file = folder / "noted", folder / "log"
        self.multiproc = Path(environment.get("PROMETHEUS_MULTIPROC_DIR", folder / "multiproc"))
        self.ssl: ssl.SSLContext | None = None
        self.application = application
        (folder / "gunicorn.conf.py").write_text(config)
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("PROMETHEUS", "REDIS"))},
            "NOTED": str(self.noted),
            "PROMETHEUS_METRICS_PORT": str(self.metrics_port),
            "PROMETHEUS_MULTIPROC_DIR": str(self.multiproc),
            "PYTHONPATH": str(ROOT),
            **environment,
        }
        with self.log_file.open("ab") as log:
            self.process = self._start(version, workers, arguments, log)
        self.master = self.process.pid

    def _start(
        self, version: str, workers: int, arguments: tuple[str, ...], log: BinaryIO
    ) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [
                str(ROOT / f".venv-gunicorn-{version}" / "bin" / "gunicorn"),
                *("--workers", str(workers), "--bind", f"127.0.0.1:{self.port}"),
                *("--graceful-timeout", "5", *arguments),
                self.application,
            ],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,
        )

    @property
    def log(self) -> str:
        """What gunicorn has logged."""
        return self.log_file.read_text()

    def get(self, path: str = "/") -> int | None:
        """Return the pid that answered; None if nobody did."""
        try:
            address = f"http://127.0.0.1:{self.port}{path}"
            with urllib.request.urlopen(address, timeout=10) as answer:
                return int(answer.read())
        except (OSError, HTTPException):
            return None

    def is_up(self) -> bool:
        """Whether requests are answered."""
        assert self.process.poll() is None, self.log
        return self.get("/up") is not None

    def scrape(self) -> Samples:
        """Return what the metrics are."""
        scheme = "https" if self.ssl else "http"
        address = f"{scheme}://127.0.0.1:{self.metrics_port}/metrics"
        with urllib.request.urlopen(address, timeout=20, context=self.ssl) as answer:
            return samples(answer.read().decode())

    def is_scraped(self) -> bool:
        """Whether metrics are served."""
        try:
            self.scrape()
        except (OSError, ValueError):  # ValueError: the port is still another test's
            return False
        return True

    def wait(self) -> Web:
        """Wait until requests are answered and metrics served."""
        until(self.is_up, "an answer", lambda: self.log)
        until(self.is_scraped, "a scrape", lambda: self.log)
        return self

    def seen(self) -> Counter[str]:
        """Return what requests the application saw, by path, from its own notes."""
        return Counter(self.noted.read_text().split())

    def hits(self, shown: Samples | None = None) -> Counter[str]:
        """Return what the metrics say of the same."""
        shown = self.scrape() if shown is None else shown
        prefix = "app_hits_total{"
        found: Counter[str] = Counter()
        for series, value in shown.items():
            if series.startswith(prefix):
                labels = dict(part.split("=", 1) for part in series[len(prefix) : -1].split(","))
                found[labels["path"]] += int(value)
        return found

    def children(self) -> list[psutil.Process]:
        """Return the processes of the master."""
        try:
            return list(psutil.Process(self.master).children())
        except psutil.NoSuchProcess:
            return []

    def workers(self) -> list[int]:
        """Return the pids of the workers."""
        return [child.pid for child in self.children() if _works(child)]

    def server(self) -> int:
        """Return the pid of the process that serves metrics."""
        (found,) = (int(child.pid) for child in self.children() if _serves(child))
        return found

    def signal(self, number: int) -> None:
        """Send the master a signal."""
        os.kill(self.master, number)

    def end(self, worker: int, number: int) -> None:
        """Send a worker a signal, and wait until it has gone and another is there."""
        wanted = len(self.workers())
        os.kill(worker, number)
        until(lambda: worker not in self.workers(), f"the end of worker {worker}")
        until(lambda: len(self.workers()) >= wanted, "another worker")

    def files(self) -> list[str]:
        """Return the names of the files of numbers."""
        return [path.name for path in self.multiproc.rglob("*.db")]

    def stop(self) -> None:
        """Stop it as an operator does."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(_PATIENCE_S)

    def clear(self) -> None:
        """End whatever is left of it."""
        for process in psutil.process_iter(["pid", "environ"]):
            if (process.info["environ"] or {}).get("NOTED") == str(self.noted):
                process.kill()
        self.process.wait()


def _works(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and not _serves(process)
    except psutil.NoSuchProcess:
        return False


def _serves(process: psutil.Process) -> bool:
    try:
        return any("pharox.gunicorn.serving" in part for part in process.cmdline())
    except psutil.Error:
        return False


@contextmanager
def running(version: str, folder: Path, *arguments: str, **options: str | int) -> Iterator[Web]:
    """Run gunicorn for a block, answering and serving metrics at its start."""
    folder.mkdir(exist_ok=True)
    web = Web(version, folder, *arguments, **options)  # type: ignore[arg-type]
    try:
        yield web.wait()
        web.stop()
    finally:
        web.clear()

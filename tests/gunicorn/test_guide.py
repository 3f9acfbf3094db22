"""The guide of the hooks, word for word, with the name of the module changed alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.gunicorn.web import Web, running, until

USAGE = """
from pharox.gunicorn.hooks import (
    default_on_starting,
    {when_ready},
    default_worker_int,
    default_on_exit,
    default_post_fork,
)
on_starting = default_on_starting
when_ready = {when_ready}
worker_int = default_worker_int
on_exit = default_on_exit
post_fork = default_post_fork
"""
LAZY = """
def when_ready(server):
    from pharox.gunicorn.hooks import default_when_ready
    default_when_ready(server)
"""
FORMS = """
import logging, os, sys
import gunicorn.config
from types import SimpleNamespace
from pharox.gunicorn import hooks
from pharox.gunicorn.hooks import (
    EnvironmentManager, HookContext, HookManager, MetricsServerManager, ProcessManager,
    _get_hook_manager, _get_metrics_manager, _get_process_manager,
)
logger = logging.getLogger("mine")
lines = []
logger.addHandler(logging.Handler())
logger.handlers[0].emit = lambda record: lines.append(record.getMessage())

manager = _get_hook_manager()
assert isinstance(manager, HookManager) and manager is _get_hook_manager()
assert isinstance(_get_metrics_manager(), MetricsServerManager)
assert _get_metrics_manager() is _get_metrics_manager()
assert isinstance(_get_process_manager(), ProcessManager)
assert _get_process_manager() is _get_process_manager()
done = []
assert manager.safe_execute(done.append, 1) is True
assert manager.safe_execute(lambda *, named: done.append(named), named=2) is True
assert done == [1, 2]
assert HookManager().safe_execute(lambda: 1 / 0) is False
assert manager.get_logger() is manager.logger is logging.getLogger("gunicorn.error")

server = SimpleNamespace(log=logger)
assert HookContext(server).logger is logger
assert HookContext(server=server, worker=None, logger=manager.logger).logger is manager.logger
assert HookContext(SimpleNamespace()).logger is manager.logger
context = HookContext(server)
assert HookManager(context).safe_execute(lambda: 1 / 0) is False
assert len(lines) == 1

cfg = gunicorn.config.Config()
cfg.set("workers", 3)
cfg.set("bind", "127.0.0.1:1")
cfg.set("timeout", 7)
EnvironmentManager(logger).update_from_cli(cfg)
assert os.environ["GUNICORN_WORKERS"] == "3"
assert os.environ["GUNICORN_BIND"] == "127.0.0.1:1"
assert os.environ["GUNICORN_WORKER_CLASS"] == "sync"

port, registry = MetricsServerManager(logger).setup_server()
assert port == 9091
ProcessManager(logger).cleanup_processes()
MetricsServerManager(logger).stop_server()
print("all ran")
"""
SERVES = """
import sys, time, urllib.request
from prometheus_client import Counter
from pharox.gunicorn import prepare
from pharox.gunicorn.hooks import _get_metrics_manager, default_on_exit
prepare()
Counter("mine", "Mine.").inc(3)
manager = _get_metrics_manager()
port, registry = manager.setup_server()
assert manager.start_server(port, registry) is True
end = time.monotonic() + 30
while time.monotonic() < end:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            text = answer.read().decode()
        break
    except OSError:
        time.sleep(0.1)
assert "mine_total 3.0" in text
manager.stop_server()
try:
    urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics")
except OSError:
    print("stopped")
"""


def python(code: str, **environment: str) -> str:
    """Run code in a Python of its own; return what it prints."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PROMETHEUS", "REDIS"))}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_its_classes_are_made_and_called_as_it_says(tmp_path: Path) -> None:
    """Each with the arguments of the guide."""
    assert python(FORMS, PROMETHEUS_MULTIPROC_DIR=str(tmp_path)) == "all ran"


def test_its_metrics_manager_serves(tmp_path: Path) -> None:
    """From start_server to stop_server."""
    from scripts.lib.gunicorn_demo import free_port

    options = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    assert python(SERVES, PROMETHEUS_METRICS_PORT=str(free_port()), **options) == "stopped"


@pytest.mark.parametrize("when_ready", ["default_when_ready", "redis_when_ready"])
def test_its_configurations_run(version: str, when_ready: str, tmp_path: Path) -> None:
    """Both: without Redis, and with one that is not there."""
    config = USAGE.format(when_ready=when_ready)
    with running(version, tmp_path, config=config) as web:
        for _ in range(5):
            web.get("/lease")
        assert web.hits() or web.scrape()
        shown = web.scrape()
        (workers,) = (v for s, v in shown.items() if s.startswith("gunicorn_workers"))
        assert workers == 2
        assert "Traceback" not in web.log
        assert "not counted" not in web.log


class TestWhenReadyAlone:
    """A configuration without the hook by which workers count."""

    @pytest.mark.parametrize(
        "config", ["from pharox.gunicorn import default_when_ready as when_ready", LAZY]
    )
    def test_it_is_told_what_is_missing(self, version: str, config: str, tmp_path: Path) -> None:
        """By name, and no figure is shown that would be wrong."""
        with running(version, tmp_path, config=config) as web:
            web.get("/lease")
            (line,) = [one for one in web.log.splitlines() if "is not shown" in one]
            assert "[WARNING]" in line
            for name in ("on_starting", "post_fork", "worker_int", "on_exit"):
                assert f"default_{name} as {name}" in line
            assert not [s for s in web.scrape() if s.startswith("gunicorn_worker")]

    def test_what_is_there_is_not_called_missing(self, newest: str, tmp_path: Path) -> None:
        """Here two are. The cause is told once, and no other one when workers are looked for."""
        config = "from pharox.gunicorn import default_when_ready as when_ready\n"
        config += "from pharox.gunicorn import default_on_exit as on_exit\n"
        config += "from pharox.gunicorn import keeping\n"
        config += "keeping._FIRST_WORKER_S = 0\n"
        with running(newest, tmp_path, config=config) as web:
            time.sleep(1)  # Four looks.
            (line,) = [one for one in web.log.splitlines() if "not counted" in one]
            assert "default_post_fork as post_fork" in line
            assert "on_exit" not in line

    def test_a_hook_that_does_not_call_ours(self, newest: str, tmp_path: Path) -> None:
        """It is found by what comes of it."""
        config = f"{USAGE.format(when_ready='default_when_ready')}\n"
        config += "def post_fork(server, worker):\n    pass\n"
        with running(newest, tmp_path, config=config) as web:
            until(lambda: "does not call pharox.gunicorn.default_post_fork" in web.log)
            assert web.log.count("not counted") == 1


class TestWorkerClasses:
    """Those of gunicorn-prometheus-exporter, in a configuration whose module was changed."""

    @pytest.mark.parametrize("module", ["pharox.gunicorn", "pharox.gunicorn.plugin"])
    @pytest.mark.parametrize(
        "name", ["PrometheusWorker", "PrometheusThreadWorker", "PrometheusGeventWorker"]
    )
    def test_they_count_with_when_ready_alone(
        self, version: str, module: str, name: str, tmp_path: Path
    ) -> None:
        """Requests, workers and how these end."""
        config = f'worker_class = "{module}.{name}"\n{LAZY}'
        with running(version, tmp_path, config=config) as web:
            for _ in range(5):
                web.get("/lease")
            assert web.hits() == web.seen()
            shown = web.scrape()
            assert shown["gunicorn_requests_total{method=GET}"] == web.seen().total()
            assert shown["gunicorn_workers"] == 2
            web.end(web.workers()[0], signal.SIGKILL)
            worker = web.get("/lease")
            assert worker is not None
            web.end(worker, signal.SIGINT)
            for reason in ("killed", "interrupted"):
                series = f"gunicorn_worker_restarts_total{{reason={reason}}}"
                until(lambda: web.scrape()[series] == 1, reason, lambda: (web.scrape(), web.log))  # noqa: B023
            assert web.hits() == web.seen()
            assert "not counted" not in web.log
            folder = web.multiproc
        assert not list(folder.iterdir())

    def test_with_all_hooks_nothing_is_counted_twice(self, version: str, tmp_path: Path) -> None:
        """As most configurations have them."""
        config = 'worker_class = "pharox.gunicorn.PrometheusWorker"\n'
        config += USAGE.format(when_ready="default_when_ready")
        with running(version, tmp_path, config=config) as web:
            for _ in range(5):
                web.get("/lease")
            assert web.hits() == web.seen()
            assert web.scrape()["gunicorn_requests_total{method=GET}"] == web.seen().total()

    def test_one_that_this_gunicorn_does_not_have(self, newest: str, tmp_path: Path) -> None:
        """It says what it needs."""
        config = f'worker_class = "pharox.gunicorn.PrometheusEventletWorker"\n{LAZY}'
        web = Web(newest, tmp_path, config=config)
        try:
            assert web.process.wait(30) != 0
            assert "PrometheusEventletWorker cannot be used" in web.log
            assert "It needs eventlet, and a gunicorn version that supports it" in web.log
        finally:
            web.clear()

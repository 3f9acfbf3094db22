"""What ends the start, and what an earlier start leaves behind."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.gunicorn.web import HOOKS, Web, running, until


def refused(web: Web) -> str:
    """Return what gunicorn logs when it does not start."""
    try:
        assert web.process.wait(30) != 0
        return web.log
    finally:
        web.clear()


class TestTooLate:
    """What was made before the folder is set would count where nobody looks."""

    def test_metrics_were_imported_before(self, version: str, tmp_path: Path) -> None:
        """The server does not start, and says what to do."""
        log = refused(Web(version, tmp_path, config=f"import prometheus_client\n{HOOKS}"))
        assert "prometheus_client was imported before pharox.gunicorn" in log
        assert "import pharox.gunicorn first" in log

    def test_the_folder_was_set_after(self, version: str, tmp_path: Path) -> None:
        """In the configuration file, below the import."""
        late = 'import os\nos.environ["PROMETHEUS_MULTIPROC_DIR"] = "elsewhere"\n'
        log = refused(Web(version, tmp_path, config=f"{HOOKS}\n{late}"))
        assert "PROMETHEUS_MULTIPROC_DIR was set after pharox.gunicorn was imported" in log

    def test_the_folder_is_set_by_gunicorn_itself(self, version: str, tmp_path: Path) -> None:
        """Which sets the environment of raw_env after it has read the configuration."""
        config = f'{HOOKS}\nraw_env = ["PROMETHEUS_MULTIPROC_DIR=elsewhere"]\n'
        assert "was set after" in refused(Web(version, tmp_path, config=config))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PROMETHEUS_METRICS_PORT", "70000"),
        ("PROMETHEUS_METRICS_PORT", "port-s3cret"),
        ("PROMETHEUS_SSL_CERTFILE", "/nowhere/s3cret"),
        ("PROMETHEUS_SSL_CLIENT_AUTH_REQUIRED", "s3cret"),
        ("REDIS_ENABLED", "s3cret"),
    ],
)
def test_settings_that_make_no_sense_end_the_start(
    newest: str, name: str, value: str, tmp_path: Path
) -> None:
    """With the variable's name, and without its value."""
    web = Web(newest, tmp_path, workers=1, **{name: value})
    log = refused(web)
    assert "InvalidInputError" in log
    assert name in log or "HTTPS needs both" in log
    assert "s3cret" not in log


def test_a_folder_that_cannot_be_made_ends_the_start(newest: str, tmp_path: Path) -> None:
    """There is a file in its place."""
    (tmp_path / "file").touch()
    web = Web(newest, tmp_path, PROMETHEUS_MULTIPROC_DIR=str(tmp_path / "file"))
    assert "PROMETHEUS_MULTIPROC_DIR: the folder for metrics cannot be created" in refused(web)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_start_carries_no_old_counts(version: str, number: int, tmp_path: Path) -> None:
    """Even if the server before it could not clear away."""
    with running(version, tmp_path / "first", PROMETHEUS_MULTIPROC_DIR=str(tmp_path)) as web:
        web.get("/lease")
        web.signal(number)
        web.process.wait(30)
    with running(version, tmp_path / "second", PROMETHEUS_MULTIPROC_DIR=str(tmp_path)) as web:
        assert web.hits() == web.seen()
        assert web.scrape()["gunicorn_worker_starts_total"] == 2


def test_what_a_killed_server_left_is_removed(newest: str, tmp_path: Path) -> None:
    """By the next one, once a minute has passed."""
    with running(newest, tmp_path / "first", PROMETHEUS_MULTIPROC_DIR=str(tmp_path)) as web:
        (left,) = (path for path in tmp_path.iterdir() if list(path.glob("*.master")))
        web.signal(signal.SIGKILL)
        web.process.wait(30)
        until(lambda: not web.is_scraped())
    os.utime(left, (0, 0))
    with running(newest, tmp_path / "second", PROMETHEUS_MULTIPROC_DIR=str(tmp_path)) as web:
        assert not left.exists()


def test_servers_of_one_folder_do_not_mix(newest: str, tmp_path: Path) -> None:
    """As containers that share a volume, whose workers have the same pids."""
    with (
        running(newest, tmp_path / "one", PROMETHEUS_MULTIPROC_DIR=str(tmp_path)) as one,
        running(newest, tmp_path / "other", PROMETHEUS_MULTIPROC_DIR=str(tmp_path)) as other,
    ):
        for _ in range(5):
            one.get("/one")
            other.get("/other")
        assert one.hits() == one.seen()
        assert other.hits() == other.seen()
        assert not one.hits()["/other"]


def test_gunicorn_in_the_background(version: str, tmp_path: Path) -> None:
    """With --daemon the master is forked twice after its configuration was read."""
    pid, log = tmp_path / "pid", tmp_path / "errors"
    web = Web(version, tmp_path, "--daemon", "--pid", str(pid), "--error-logfile", str(log))
    try:
        assert web.process.wait(30) == 0
        until(lambda: pid.exists() and bool(pid.read_text().strip()))
        web.master = int(pid.read_text())
        until(web.is_scraped)
        until(lambda: web.get("/lease") is not None)
        assert web.hits() == web.seen()
        until(lambda: "metrics are served" in log.read_text())
    finally:
        web.clear()


def test_settings_of_the_command_line_reach_the_application(newest: str, tmp_path: Path) -> None:
    """And GUNICORN_WORKERS reaches gunicorn, where the configuration asks for it."""
    config = f"""
from pharox.gunicorn import EnvironmentManager
{HOOKS}
workers = EnvironmentManager().workers
def post_worker_init(worker):
    import os
    names = ("WORKERS", "BIND", "WORKER_CLASS", "TIMEOUT")
    worker.log.warning("carried %s", [os.environ["GUNICORN_" + name] for name in names])
"""
    web = Web(
        newest,
        tmp_path,
        *("--worker-class", "gthread", "--timeout", "77"),
        config=config,
        GUNICORN_WORKERS="9",
    )
    try:
        web.wait()
        bind = f"127.0.0.1:{web.port}"
        assert f"carried {['2', bind, 'gthread', '77']}" in web.log
    finally:
        web.clear()

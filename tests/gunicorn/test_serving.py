"""The metrics' port: bound in the background, for ever, and by nobody else."""

from __future__ import annotations

import os
import signal
import socket
import ssl
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest
import trustme

from scripts.lib.gunicorn_demo import free_port
from tests.gunicorn.web import HOOKS, Web, running, until

FROM_A_FILE = f"""
import os, pathlib
os.environ["PROMETHEUS_METRICS_PORT"] = pathlib.Path("port").read_text()
{HOOKS}
"""


class TestThePortIsTaken:
    """By another program, when the server starts."""

    def test_the_application_does_not_wait_for_it(self, version: str, tmp_path: Path) -> None:
        """And metrics are served as soon as it is free, with all that was counted."""
        web = Web(version, tmp_path)
        try:
            with socket.create_server(("127.0.0.1", web.metrics_port)):
                until(web.is_up)
                until(lambda: "metrics are not served yet" in web.log)
                assert web.get("/lease") is not None
            until(web.is_scraped)
            assert web.hits() == web.seen()
            assert web.log.count("metrics are not served yet") == 1
            web.stop()
        finally:
            web.clear()

    def test_it_is_asked_for_in_growing_pauses(self, newest: str, tmp_path: Path) -> None:
        """The process that serves stays the same one meanwhile."""
        web = Web(newest, tmp_path)
        try:
            with socket.create_server(("127.0.0.1", web.metrics_port)):
                until(lambda: "metrics are not served yet" in web.log)
                server = web.server()
            until(web.is_scraped)
            assert web.server() == server
        finally:
            web.clear()


class TestReloading:
    """SIGHUP."""

    def test_counts_go_on(self, version: str, tmp_path: Path) -> None:
        """Workers are replaced; what the former ones counted stays."""
        with running(version, tmp_path) as web:
            web.get("/lease")
            former = set(web.workers())
            web.signal(signal.SIGHUP)
            until(lambda: not former & set(web.workers()) and len(web.workers()) == 2)
            until(lambda: web.get("/lease") is not None)
            assert web.hits() == web.seen()

    def test_the_port_changes_with_the_configuration(self, version: str, tmp_path: Path) -> None:
        """The new one is served, the former one is free."""
        (tmp_path / "port").write_text(str(first := free_port()))
        web = Web(version, tmp_path, config=FROM_A_FILE)
        try:
            web.metrics_port = first
            web.wait().get("/lease")
            web.metrics_port = free_port()
            (tmp_path / "port").write_text(str(web.metrics_port))
            web.signal(signal.SIGHUP)
            until(web.is_scraped)
            assert web.hits() == web.seen()
            with socket.create_server(("127.0.0.1", first)):
                pass
        finally:
            web.clear()

    def test_a_port_that_makes_no_sense_changes_nothing(self, newest: str, tmp_path: Path) -> None:
        """The metrics stay where they are, and the log says why."""
        (tmp_path / "port").write_text(str(port := free_port()))
        web = Web(newest, tmp_path, config=FROM_A_FILE)
        try:
            web.metrics_port = port
            web.wait()
            (tmp_path / "port").write_text("none-of-your-business")
            web.signal(signal.SIGHUP)
            until(lambda: "PROMETHEUS_METRICS_PORT must be a number" in web.log)
            assert web.is_scraped()
            assert "none-of-your-business" not in web.log
        finally:
            web.clear()


@pytest.mark.parametrize("preload", [(), ("--preload",)], ids=["lazy", "preload"])
@pytest.mark.parametrize("reloaded", [False, True], ids=["fresh", "reloaded"])
def test_an_upgrade_carries_the_counts_on(
    version: str, preload: tuple[str, ...], reloaded: bool, tmp_path: Path
) -> None:
    """SIGUSR2 starts a new master, then the old one leaves: nothing is lost or counted twice."""
    with running(version, tmp_path, "--pid", str(tmp_path / "pid"), *preload) as web:
        if reloaded:
            web.signal(signal.SIGHUP)
            until(lambda: "Hang up" in web.log)
        for _ in range(10):
            until(lambda: web.get("/lease") is not None)
        old = web.master
        web.signal(signal.SIGUSR2)
        until((tmp_path / "pid.2").exists, "the new master")
        new = int((tmp_path / "pid.2").read_text())
        until(lambda: len([*psutil.Process(new).children()]) == 3, "its workers")
        for _ in range(10):
            assert web.get("/lease") is not None
        assert web.hits() == web.seen()
        os.kill(old, signal.SIGTERM)
        web.process.wait(30)
        web.master = new
        until(web.is_scraped)
        for _ in range(10):
            assert web.get("/lease") is not None
        assert web.hits() == web.seen()
        assert web.scrape()["gunicorn_workers"] == 2
        os.kill(new, signal.SIGTERM)
        until(lambda: not psutil.pid_exists(new) or not web.is_scraped())
        until(lambda: not list(web.multiproc.iterdir()), "an empty folder")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGKILL])
def test_nothing_holds_the_port_after_the_master(version: str, number: int, tmp_path: Path) -> None:
    """However it went."""
    web = Web(version, tmp_path)
    try:
        web.wait()
        server = psutil.Process(web.server())
        web.signal(number)
        web.process.wait(30)
        until(lambda: not server.is_running() or server.status() == psutil.STATUS_ZOMBIE)
        until(lambda: _is_free(web.metrics_port))
        if number != signal.SIGKILL:
            assert not list(web.multiproc.iterdir())
    finally:
        web.clear()


def _is_free(port: int) -> bool:
    """Return whether a port is free; another connection may hold it for a moment."""
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def test_a_server_of_metrics_that_was_killed_comes_back(version: str, tmp_path: Path) -> None:
    """With all counts."""
    with running(version, tmp_path) as web:
        web.get("/lease")
        web.end(web.workers()[0], signal.SIGKILL)
        web.scrape()
        for _ in range(3):
            server = web.server()
            os.kill(server, signal.SIGKILL)
            until(lambda: not psutil.pid_exists(server))  # noqa: B023
            until(web.is_scraped)
            assert web.hits() == web.seen()
            assert web.scrape()["gunicorn_worker_restarts_total{reason=killed}"] == 1


def test_metrics_over_https_ask_for_certificates_of_clients(newest: str, tmp_path: Path) -> None:
    """Who has none is refused."""
    authority, own = trustme.CA(), trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    own.cert_pem.write_to_path(tmp_path / "clients.pem")
    for blob in certificate.cert_chain_pems:
        blob.write_to_path(tmp_path / "server.pem", append=True)
    certificate.private_key_pem.write_to_path(tmp_path / "server.key")
    web = Web(
        newest,
        tmp_path,
        PROMETHEUS_SSL_CERTFILE=str(tmp_path / "server.pem"),
        PROMETHEUS_SSL_KEYFILE=str(tmp_path / "server.key"),
        PROMETHEUS_SSL_CLIENT_CAFILE=str(tmp_path / "clients.pem"),
        PROMETHEUS_SSL_CLIENT_AUTH_REQUIRED="true",
    )
    try:
        web.ssl = ssl.create_default_context(cafile=str(tmp_path / "authority.pem"))
        until(lambda: "metrics are served: https" in web.log)
        assert not web.is_scraped()
        own.issue_cert("scraper.example").private_key_and_cert_chain_pem.write_to_path(
            tmp_path / "scraper.pem"
        )
        web.ssl.load_cert_chain(tmp_path / "scraper.pem")
        until(web.is_scraped)
    finally:
        web.clear()

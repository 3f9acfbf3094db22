"""HTTPS: certificates that are renewed, damaged and replaced while metrics are served."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import ssl
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from pharox.errors import InvalidInputError
from pharox.scraping.server import Certificates, MetricsServer
from tests.gunicorn.web import HOOKS, Web, until

FROM_A_FILE = f"""
import os, pathlib
os.environ["PROMETHEUS_SSL_CERTFILE"] = pathlib.Path("path").read_text()
os.environ["PROMETHEUS_SSL_KEYFILE"] = pathlib.Path("path").read_text()
{HOOKS}
"""


class Issuer:
    """An authority, whose certificates for this machine are one file with their key."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.authority = folder, trustme.CA()
        self.context = ssl.create_default_context()
        self.authority.configure_trust(self.context)

    def issue(self, name: str) -> str:
        """Put a new certificate into a file, as a whole; return its path."""
        blob = self.authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem
        blob.write_to_path(self.folder / "new.pem")
        (self.folder / "new.pem").replace(self.folder / name)
        return str(self.folder / name)

    def shown(self, port: int) -> int | None:
        """Return the serial number of the certificate that is shown; None if there is none."""
        try:
            with (
                socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
                self.context.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
            ):
                found = connection.getpeercert()
                assert found is not None
                return int(str(found["serialNumber"]), 16)
        except OSError:
            return None


@pytest.fixture
def issuer(tmp_path: Path) -> Issuer:
    """An authority of this test."""
    return Issuer(tmp_path)


@pytest.fixture
def web(newest: str, issuer: Issuer, tmp_path: Path) -> Iterator[Web]:
    """A gunicorn that serves metrics over HTTPS, with the file that "path" names."""
    (tmp_path / "path").write_text(issuer.issue("first.pem"))
    web = Web(newest, tmp_path, config=FROM_A_FILE)
    web.ssl = issuer.context
    try:
        yield web.wait()
    finally:
        web.clear()


def damage(path: Path, how: str) -> None:
    """Make a file unusable, as people do."""
    if how == "missing":
        path.unlink(missing_ok=True)
    elif how == "garbage":
        path.write_text("no certificate")
    elif how == "empty":
        path.write_text("")
    elif how == "another's key":
        one, other = trustme.CA().issue_cert("x"), trustme.CA().issue_cert("x")
        one.private_key_pem.write_to_path(path)
        other.cert_chain_pems[0].write_to_path(path, append=True)
    elif how == "encrypted key":
        key = trustme.CA().issue_cert("x")
        key.private_key_and_cert_chain_pem.write_to_path(path.with_suffix(".plain"))
        command = ["openssl", "pkey", "-aes256", "-passout", "pass:x"]
        command += ["-in", str(path.with_suffix(".plain")), "-out", str(path)]
        subprocess.run(command, check=True)
        key.cert_chain_pems[0].write_to_path(path, append=True)


DAMAGES = ["missing", "garbage", "empty", "another's key", "encrypted key"]


class TestReloading:
    """SIGHUP, with another certificate in the configuration."""

    @pytest.mark.parametrize("how", DAMAGES)
    def test_an_unusable_certificate_changes_nothing(
        self, web: Web, issuer: Issuer, how: str, tmp_path: Path
    ) -> None:
        """The former one is served, by the process that does so already, and the log says why."""
        first, server = issuer.shown(web.metrics_port), web.server()
        damage(tmp_path / "second.pem", how)
        (tmp_path / "path").write_text(str(tmp_path / "second.pem"))
        web.signal(signal.SIGHUP)
        until(
            lambda: (
                "metrics are still served with the former settings: the certificates cannot be used"
                in web.log
            )
        )
        (line,) = [
            one
            for one in web.log.splitlines()
            if "metrics are still served with the former settings" in one
        ]
        assert "[ERROR]" in line
        assert issuer.shown(web.metrics_port) == first
        web.get("/lease")
        assert web.hits() == web.seen()
        assert os.path.exists(f"/proc/{server}")
        assert "Traceback" not in web.log

    def test_a_usable_one_takes_its_place(self, web: Web, issuer: Issuer, tmp_path: Path) -> None:
        """Also after one that was not: no further reload is needed once the file is mended."""
        first = issuer.shown(web.metrics_port)
        damage(tmp_path / "second.pem", "garbage")
        (tmp_path / "path").write_text(str(tmp_path / "second.pem"))
        web.signal(signal.SIGHUP)
        until(lambda: "metrics are still served with the former settings" in web.log)
        issuer.issue("second.pem")
        until(lambda: issuer.shown(web.metrics_port) not in (first, None), "the second one")
        web.get("/lease")
        until(web.is_scraped)
        assert web.hits() == web.seen()


class TestRenewal:
    """A certificate whose file is replaced."""

    def test_the_renewed_one_is_served(self, web: Web, issuer: Issuer) -> None:
        """From the next connection on, without a reload."""
        first = issuer.shown(web.metrics_port)
        issuer.issue("first.pem")
        assert issuer.shown(web.metrics_port) not in (first, None)
        assert web.is_scraped()
        until(lambda: "metrics are served with the renewed certificate" in web.log)

    @pytest.mark.parametrize("how", DAMAGES)
    def test_the_former_one_is_served_on(
        self, web: Web, issuer: Issuer, how: str, tmp_path: Path
    ) -> None:
        """If it cannot be used; the log says so once, whoever connects, and whoever reloads."""
        first = issuer.shown(web.metrics_port)
        damage(tmp_path / "first.pem", how)
        web.signal(signal.SIGHUP)
        complaint = "metrics are still served with the former certificate"
        until(lambda: complaint in web.log)
        for _ in range(5):
            assert issuer.shown(web.metrics_port) == first
        assert web.log.count(complaint) == 1
        issuer.issue("first.pem")
        until(lambda: issuer.shown(web.metrics_port) not in (first, None))


class TestClients:
    """What clients send ends nothing, and costs a line at most."""

    @pytest.fixture
    def server(self, issuer: Issuer) -> Iterator[MetricsServer]:
        path = issuer.issue("own.pem")
        server = MetricsServer(CollectorRegistry(), 0, "127.0.0.1", Certificates(path, path))
        yield server
        server.close()

    @pytest.mark.parametrize(
        "sent", [b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", b"\0" * 500, b"", b"\x16\x03"]
    )
    def test_a_client_that_speaks_no_tls(
        self,
        server: MetricsServer,
        issuer: Issuer,
        sent: bytes,
        caplog: pytest.LogCaptureFixture,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        """A hundred of them write one line, and nothing to standard error."""
        for _ in range(100):
            with (
                socket.create_connection(("127.0.0.1", server.port)) as client,
                contextlib.suppress(OSError),  # The server may be quicker.
            ):
                client.sendall(sent)
                client.shutdown(socket.SHUT_WR)
                client.recv(100)
        address = f"https://127.0.0.1:{server.port}/metrics"
        with urllib.request.urlopen(address, timeout=10, context=issuer.context) as answer:
            assert answer.status == 200
        lines = [line for record in caplog.records for line in record.getMessage().splitlines()]
        assert len(lines) <= 1
        assert capfd.readouterr().err == ""

    def test_a_plain_request_is_told_of(self, web: Web, issuer: Issuer) -> None:
        """In gunicorn's log, in one line."""
        before = web.log.count("\n")
        with socket.create_connection(("127.0.0.1", web.metrics_port)) as client:
            client.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            client.settimeout(10)
            client.recv(100)
        until(lambda: "a scrape was not answered: SSLError" in web.log)
        assert web.log.count("\n") == before + 1
        assert web.is_scraped()


class TestListening:
    """It goes on, whatever fails."""

    def test_a_scrape_that_fails(
        self, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """The client has an error, the log a line, and the next scrape is as any other."""

        class Failing(Collector):
            fails = False

            def collect(self) -> list[Metric]:
                if self.fails:
                    raise LookupError("nothing there")
                return []

        registry, failing = CollectorRegistry(), Failing()
        registry.register(failing)
        server = MetricsServer(registry, 0, "127.0.0.1")
        try:
            failing.fails = True
            for _ in range(3):
                connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
                connection.request("GET", "/metrics")
                assert connection.getresponse().status == 500
                connection.close()
            failing.fails = False
            with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics") as answer:
                assert answer.status == 200
        finally:
            server.close()
        assert [r.getMessage() for r in caplog.records] == [
            "a scrape failed: LookupError: nothing there"
        ]
        assert "Traceback" not in capfd.readouterr().err

    def test_what_ends_the_listening_begins_it_again(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Be it an error that nobody thought of."""
        server = MetricsServer(CollectorRegistry(), 0, "127.0.0.1")
        try:
            accept = server._server.get_request
            fails = iter([True])

            def once() -> object:
                if next(fails, False):
                    raise RuntimeError("out of something")
                return accept()

            monkeypatch.setattr(server._server, "get_request", once)
            address = f"http://127.0.0.1:{server.port}/metrics"
            with urllib.request.urlopen(address, timeout=10) as answer:
                assert answer.status == 200
            assert "the metrics server restarts: RuntimeError" in caplog.text
        finally:
            server.close()

    @pytest.mark.parametrize("address", ["x" * 70 + ".example", "a..b", "no.such.host.invalid"])
    def test_an_address_that_is_none(self, address: str) -> None:
        """It is an error of ours, so trying goes on."""
        with pytest.raises(InvalidInputError, match="cannot serve"):
            MetricsServer(CollectorRegistry(), 0, address)


@pytest.mark.parametrize("how", DAMAGES)
def test_certificates_are_checked_before(how: str, tmp_path: Path) -> None:
    """With an error that names no path, and without asking anybody for a passphrase."""
    damage(tmp_path / "own.pem", how)
    path = str(tmp_path / "own.pem")
    with pytest.raises(InvalidInputError, match="the certificates cannot be used") as caught:
        Certificates(path, path).check()
    assert str(tmp_path) not in str(caught.value)

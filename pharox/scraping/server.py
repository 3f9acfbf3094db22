"""Serve metrics to Prometheus over HTTP or HTTPS.

All errors of configuration are found before the port is bound, so a failed start
leaves no port taken. After that, neither a client nor a damaged new certificate can
stop the server.
"""

from __future__ import annotations

import io
import logging
import os
import socket
import ssl
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

from ..errors import InvalidInputError

logger = logging.getLogger("pharox.scraping")

_PATIENCE_S = 30
_AGAIN_S = 0.1
_SILENCE_S = 60.0


@dataclass(frozen=True)
class Certificates:
    """The paths of the PEM files for HTTPS.

    Parameters
    ----------
    certfile, keyfile:
        The server's certificate and its key. Without both, plain HTTP is served.
    client_cafile, client_capath:
        The authorities for certificates of clients: a file, or a folder.
    client_auth_required:
        Whether to refuse clients without a certificate.
    """

    certfile: str | None = None
    keyfile: str | None = None
    client_cafile: str | None = None
    client_capath: str | None = None
    client_auth_required: bool = False

    @property
    def scheme(self) -> str:
        """The scheme of the server's URL."""
        return "https" if self.certfile else "http"

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths of all files that are given."""
        given = (self.certfile, self.keyfile, self.client_cafile, self.client_capath)
        return tuple(path for path in given if path)

    def check(self) -> None:
        """Raise InvalidInputError if HTTPS cannot be served with these."""
        authorities = self.client_cafile or self.client_capath
        if (self.certfile is None) != (self.keyfile is None):
            raise InvalidInputError("HTTPS needs both a certificate and its key")
        if self.certfile is None and (authorities or self.client_auth_required):
            raise InvalidInputError("client certificates need HTTPS")
        if self.client_auth_required and not authorities:
            raise InvalidInputError("required client certificates need a CA to check them with")
        if self.certfile is not None:
            self.load()

    def load(self) -> ssl.SSLContext:
        """Read the files and return an SSL context for connections.

        Raises
        ------
        InvalidInputError
            If they cannot be used.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            if self.client_cafile or self.client_capath:
                context.load_verify_locations(self.client_cafile, self.client_capath)
            # Otherwise OpenSSL would ask for a passphrase on the terminal.
            context.load_cert_chain(self.certfile or "", self.keyfile, password="")
        except (OSError, ValueError) as error:
            raise InvalidInputError(f"the certificates cannot be used: {error}") from error
        if self.client_auth_required:
            context.verify_mode = ssl.CERT_REQUIRED
        return context


class _Renewed:
    """Certificates that are reloaded when one of their files has been replaced."""

    def __init__(self, certificates: Certificates) -> None:
        self._certificates = certificates
        self._lock = threading.Lock()
        self._state = self._look()
        self.context = certificates.load()

    def _look(self) -> list[tuple[int, int, int] | None]:
        """Return the identities of the files, which change when a file is replaced."""
        found: list[tuple[int, int, int] | None] = []
        for path in self._certificates.paths:
            try:
                now = os.stat(path)
                found.append((now.st_ino, now.st_mtime_ns, now.st_size))
            except OSError:
                found.append(None)
        return found

    def renew(self) -> None:
        """Load the current files; keep the previous ones if these cannot be used."""
        with self._lock:
            # Stat before reading: a file written meanwhile is read the next time.
            state = self._look()
            if state == self._state:
                return
            self._state = state
            try:
                self.context = self._certificates.load()
            except InvalidInputError as error:
                logger.error("metrics are still served with the former certificate: %s", error)
            else:
                logger.info("metrics are served with the renewed certificate")


class _LastLine(io.StringIO):
    """A stream for tracebacks that logs only their last line."""

    def __init__(self, server: _Server) -> None:
        super().__init__()
        self._server = server

    def flush(self) -> None:
        """Log the last line of what was written."""
        lines = self.getvalue().strip().splitlines()
        self.seek(0)
        self.truncate()
        if lines:
            self._server.complain(f"a scrape failed: {lines[-1]}")


class _Handler(WSGIRequestHandler):
    """Answers a request, in a thread of its own."""

    timeout = _PATIENCE_S
    server: _Server

    def get_stderr(self) -> io.StringIO:
        """Return the stream for the traceback of a failed scrape."""
        return _LastLine(self.server)

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
        """Log nothing."""


class _Server(ThreadingWSGIServer):
    """A server that no client can stop."""

    renewed: _Renewed | None = None
    _warned: dict[str, float] | None = None

    def get_request(self) -> tuple[Any, Any]:
        """Return the next connection.

        The TLS handshake is left to the first read, in the request's own thread.
        Otherwise a client that connects and sends nothing would block all others.
        """
        connection, address = super().get_request()
        if self.renewed is None:
            return connection, address
        try:
            self.renewed.renew()
            return self.renewed.context.wrap_socket(
                connection, server_side=True, do_handshake_on_connect=False
            ), address
        except Exception as error:  # Any exception but an OSError would stop the server.
            connection.close()
            raise OSError(f"no connection: {type(error).__name__}") from error

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log a failed request in one line: a client's error needs no traceback."""
        error = sys.exception()
        self.complain(f"a scrape was not answered: {type(error).__name__}: {error}")

    def complain(self, message: str) -> None:
        """Log a message at most once a minute, as clients can send anything for ever."""
        warned = self._warned = self._warned or {}
        if time.monotonic() >= warned.get(message, 0.0):
            if len(warned) > 100:
                warned.clear()
            warned[message] = time.monotonic() + _SILENCE_S
            logger.warning("%s", message)


class MetricsServer:
    """Serves ``/metrics`` of a registry in threads of its own, until it is closed.

    Parameters
    ----------
    registry:
        The registry to expose.
    port:
        The port; a free one if 0.
    address:
        The address of this machine to bind.
    certificates:
        For HTTPS. Replaced files are used from the next connection on.

    Raises
    ------
    InvalidInputError
        If the port cannot be bound, or the certificates cannot be used.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        port: int,
        address: str,
        certificates: Certificates | None = None,
    ) -> None:
        certificates = certificates or Certificates()
        certificates.check()
        self._renewed = _Renewed(certificates) if certificates.certfile else None
        try:
            found = socket.getaddrinfo(
                address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            family, address = found[0][0], str(found[0][4][0])
            kind = type("Server", (_Server,), {"address_family": family, "renewed": self._renewed})
            self._server: WSGIServer = make_server(
                address, port, make_wsgi_app(registry), kind, handler_class=_Handler
            )
        except (OSError, OverflowError, UnicodeError) as error:
            raise InvalidInputError(f"cannot serve {address} port {port}: {error}") from error
        self.port: int = self._server.server_port
        self._thread = threading.Thread(target=self._serve, name="pharox-scraping", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                return self._server.serve_forever()  # returns when it is closed
            except Exception as error:
                logger.error("the metrics server restarts: %s", type(error).__name__)
                time.sleep(_AGAIN_S)

    def renew(self) -> None:
        """Load replaced certificates; every connection does this too."""
        if self._renewed is not None:
            self._renewed.renew()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

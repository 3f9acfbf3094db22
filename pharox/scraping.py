"""Serve metrics to Prometheus over HTTP or HTTPS.

Everything that can be found wrong is found before anything listens, so that what
could not be served leaves no port taken.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, start_http_server

from .errors import InvalidInputError

_PATIENCE_S = 30


@dataclass(frozen=True)
class Certificates:
    """What HTTPS takes: paths of PEM files.

    Parameters
    ----------
    certfile, keyfile:
        The server's certificate and its key. Without both it is HTTP.
    client_cafile, client_capath:
        What certificates of clients are checked against: a file, or a folder.
    client_auth_required:
        Whether clients without a certificate are refused.
    """

    certfile: str | None = None
    keyfile: str | None = None
    client_cafile: str | None = None
    client_capath: str | None = None
    client_auth_required: bool = False

    @property
    def scheme(self) -> str:
        """With which the address of what is served begins."""
        return "https" if self.certfile else "http"

    def check(self) -> None:
        """Raise InvalidInputError unless HTTPS could be served with these."""
        authorities = self.client_cafile or self.client_capath
        if (self.certfile is None) != (self.keyfile is None):
            raise InvalidInputError("HTTPS takes both, a certificate and its key")
        if self.certfile is None and (authorities or self.client_auth_required):
            raise InvalidInputError("clients can show certificates with HTTPS only")
        if self.client_auth_required and not authorities:
            raise InvalidInputError("there is nothing to check certificates of clients against")
        if self.certfile is None:
            return
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            context.load_cert_chain(self.certfile, self.keyfile)
            if authorities:
                context.load_verify_locations(self.client_cafile, self.client_capath)
        except OSError as error:
            raise InvalidInputError(f"the certificates cannot be used: {error}") from error


class MetricsServer:
    """Serves ``/metrics`` of a registry in threads of its own, until it is closed.

    Parameters
    ----------
    registry:
        What to show.
    port:
        Where to listen; a free one if 0.
    address:
        On which address of this machine.
    certificates:
        For HTTPS.

    Raises
    ------
    InvalidInputError
        If the port cannot be listened on, or the certificates not be used.
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
        try:
            self._server, self._thread = start_http_server(
                port,
                address,
                registry,
                certfile=certificates.certfile,
                keyfile=certificates.keyfile,
                client_cafile=certificates.client_cafile,
                client_capath=certificates.client_capath,
                client_auth_required=certificates.client_auth_required,
            )
        except (OSError, OverflowError) as error:
            raise InvalidInputError(f"cannot serve {address} port {port}: {error}") from error
        self.port: int = self._server.server_port
        if certificates.certfile:
            # The handshake is left to the first read, in the request's own thread: one who
            # connects and says nothing would else keep all others waiting.
            self._server.socket.do_handshake_on_connect = False  # type: ignore[attr-defined]
        handler: Any = self._server.RequestHandlerClass
        self._server.RequestHandlerClass = type("Handler", (handler,), {"timeout": _PATIENCE_S})

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

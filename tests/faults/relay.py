"""A relay between a client and its PostgreSQL that cuts or freezes a connection at a chosen point.

It looks at no message. A request is what arrives from the client in one piece, and
an answer what the server then says; libpq and PostgreSQL both flush a whole one.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum

from sqlalchemy import make_url

CHUNK = 1 << 16


class Fault(StrEnum):
    """What is done to the connection on which the next request arrives."""

    CUT_BEFORE_REQUEST = "cut before the request reached the server"
    CUT_BEFORE_ANSWER = "cut after the request, before the answer"
    CUT_IN_ANSWER = "cut half-way through the answer"
    FREEZE_BEFORE_REQUEST = "frozen before the request reached the server"
    FREEZE_BEFORE_ANSWER = "frozen after the request, before the answer"


CUTS = (Fault.CUT_BEFORE_REQUEST, Fault.CUT_BEFORE_ANSWER, Fault.CUT_IN_ANSWER)
FREEZES = (Fault.FREEZE_BEFORE_REQUEST, Fault.FREEZE_BEFORE_ANSWER)


class Relay:
    """Relays connections to a server; made by :func:`in_front_of`."""

    def __init__(self, url: str) -> None:
        self._target = make_url(url)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._flows = threading.Event()
        self._flows.set()
        self._lock = threading.Lock()
        self._armed: Fault | None = None
        self._skipped = 0
        self._sockets: list[socket.socket] = []
        self.url = self._target.set(
            host="127.0.0.1", port=self._listener.getsockname()[1]
        ).difference_update_query(["host", "port"])
        threading.Thread(target=self._accept, daemon=True).start()

    def arm(self, fault: Fault, *, skip: int = 0) -> None:
        """Do this to the request that comes next, or to one after so many others."""
        with self._lock:
            self._armed, self._skipped = fault, skip

    @property
    def is_armed(self) -> bool:
        """Whether the fault is still to come."""
        return self._armed is not None

    def disarm(self) -> None:
        """Do nothing to the requests that come."""
        with self._lock:
            self._armed = None

    def freeze(self) -> None:
        """Hold back every byte, in both directions, also of connections to come."""
        self._flows.clear()

    def thaw(self) -> None:
        """Let flow what was held back."""
        self._flows.set()

    def close(self) -> None:
        """Accept no more connections and cut those that there are."""
        self._flows.set()
        _close(self._listener, *self._sockets)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = self._connect()
                self._sockets += [client, server]
                _Pair(self, client, server)

    def _connect(self) -> socket.socket:
        host = self._target.query.get("host") or self._target.host or "localhost"
        port = self._target.query.get("port") or self._target.port or 5432
        if str(host).startswith("/"):
            server = socket.socket(socket.AF_UNIX)
            server.connect(f"{host}/.s.PGSQL.{port}")
            return server
        return socket.create_connection((str(host), int(str(port))))

    def take(self) -> Fault | None:
        """Return what is to be done to the request that has just arrived."""
        with self._lock:
            if self._armed is None or self._skipped > 0:
                self._skipped -= 1
                return None
            fault, self._armed = self._armed, None
            return fault

    def wait(self) -> None:
        """Wait while everything is frozen."""
        self._flows.wait()


class _Pair:
    """One client's connection, and the one to the server that was opened for it."""

    def __init__(self, relay: Relay, client: socket.socket, server: socket.socket) -> None:
        self._relay, self._client, self._server = relay, client, server
        self._fault: Fault | None = None
        for pump in (self._ask, self._answer):
            threading.Thread(target=pump, daemon=True).start()

    def _ask(self) -> None:
        with suppress(OSError):
            while data := self._client.recv(CHUNK):
                fault = self._relay.take()
                if fault is Fault.CUT_BEFORE_REQUEST:
                    break
                if fault is Fault.FREEZE_BEFORE_REQUEST:
                    self._relay.freeze()
                self._fault = fault
                self._relay.wait()
                self._server.sendall(data)
        _close(self._client, self._server)

    def _answer(self) -> None:
        with suppress(OSError):
            while data := self._server.recv(CHUNK):
                if self._fault is Fault.CUT_BEFORE_ANSWER:
                    break
                if self._fault is Fault.CUT_IN_ANSWER:
                    self._client.sendall(data[: len(data) // 2])
                    break
                if self._fault is Fault.FREEZE_BEFORE_ANSWER:
                    self._relay.freeze()
                self._relay.wait()
                self._client.sendall(data)
        _close(self._client, self._server)


def _close(*sockets: socket.socket) -> None:
    for each in sockets:
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
        each.close()


@contextmanager
def in_front_of(url: str) -> Iterator[Relay]:
    """Run a relay in front of a server for a block."""
    relay = Relay(url)
    try:
        yield relay
    finally:
        relay.close()

"""Serve an application with uvicorn, on a port or on a Unix socket, until it is told to stop.

A server that is told to stop takes no new connections, sends away who waits for a proxy, lets the
other requests finish for some seconds, and ends. A second signal ends it at once.

Whoever may open a Unix socket still needs a token: its permissions bound who can try.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from ..errors import InvalidInputError, PharoxError

GRACE_S = 5.0
"""How long requests that are under way have when a server is told to stop."""


class Server(uvicorn.Server):
    """A uvicorn server that says when it is told to stop.

    Parameters
    ----------
    stopping:
        Called in the event loop.
    """

    def __init__(self, config: uvicorn.Config, stopping: Callable[[], None]) -> None:
        super().__init__(config)
        self._stopping = stopping
        self._loop: asyncio.AbstractEventLoop | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until told to stop."""
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop, or end at once if that was asked for before.

        uvicorn would raise the signal again at its end, which would end this process before the
        storage is closed, and what was counted is written.
        """
        self.force_exit = self.should_exit
        self.should_exit = True
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._stopping)


def config_of(app: Any, **options: Any) -> uvicorn.Config:
    """Return how an application is served: quietly, and without trusting headers of proxies."""
    usual = {
        "lifespan": "off",
        "log_level": "warning",
        "access_log": False,
        "server_header": False,
        "proxy_headers": False,
        "ws": "none",
        "timeout_keep_alive": 60,
        "timeout_graceful_shutdown": int(GRACE_S),
    }
    return uvicorn.Config(app, **{**usual, **_protocol(), **options})


def _protocol() -> dict[str, Any]:
    """Return what reads requests: httptools with a bound of its own if it is installed, or h11."""
    if find_spec("httptools") is None:
        return {"http": "h11", "h11_max_incomplete_event_size": 32 * 1024}
    from .http_protocol import BoundedProtocol  # noqa: PLC0415 - it needs httptools

    return {"http": BoundedProtocol}


def run(serving: Coroutine[Any, Any, None]) -> None:
    """Run what serves to its end, in the quickest event loop there is."""
    try:
        import uvloop  # noqa: PLC0415 - it comes with an extra
    except ModuleNotFoundError:
        asyncio.run(serving)
    else:
        uvloop.run(serving)


def tcp_socket(host: str, port: int) -> socket.socket:
    """Return a socket that listens: who connects from now on is answered.

    Raises
    ------
    PharoxError
        If it cannot, as the port is taken or the address is none of this machine.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, place = found[0]
        return socket.create_server(place[:2], family=family, backlog=2048)
    except socket.gaierror as error:
        raise PharoxError(f"cannot serve {host} port {port}: {error.strerror}") from error
    except OSError as error:  # Its own text repeats the address.
        why = os.strerror(error.errno) if error.errno else error
        raise PharoxError(f"cannot serve {host} port {port}: {why}") from error
    except UnicodeError as error:
        raise PharoxError(f"cannot serve {host} port {port}: {error}") from error


def unix_socket(path: Path, mode: int) -> socket.socket:
    """Return a socket that listens at a path, in place of one that a dead server has left there.

    Parameters
    ----------
    mode:
        The permissions of the file, as of chmod.

    Raises
    ------
    InvalidInputError
        If something else is there, a server listens at it, or it cannot be made.
    """
    _clear(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Nobody else may connect before the permissions are right.
        listener.bind(str(path))
        path.chmod(mode)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise InvalidInputError(
            f"{path} cannot be listened at: {error.strerror or error}"
        ) from None
    return listener


@contextmanager
def unix_socket_for_a_time(path: Path, mode: int) -> Iterator[socket.socket]:
    """Listen at a path for a block, as :func:`unix_socket`, and leave nothing there.

    Once nobody listens, a successor may put its own socket there, which then stays.
    """
    with unix_socket(path, mode) as listener:
        bound = _identity(path)
        try:
            yield listener
        finally:
            if bound is not None and _identity(path) == bound:
                path.unlink(missing_ok=True)


def _identity(path: Path) -> tuple[int, int, int] | None:
    """Return what tells a file from another one of the same name; None if there is none.

    The number of a file that was removed may be given to the next one, which is made later.
    """
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns


def _clear(path: Path) -> None:
    """Remove the socket of a dead server."""
    try:
        is_socket = stat.S_ISSOCK(path.lstat().st_mode)
    except FileNotFoundError:
        return
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be listened at: {error.strerror}") from None
    if not is_socket:
        raise InvalidInputError(f"{path} is there already, and no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe, suppress(OSError):
        probe.connect(str(path))
        raise InvalidInputError(f"a server listens at {path} already")
    path.unlink(missing_ok=True)

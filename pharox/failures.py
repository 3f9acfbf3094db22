"""Translate a library's exceptions into the reason why a check, or a request, failed.

The first specific exception in the chain of causes and contexts, from the outermost
inwards, decides the reason.

A message quotes nothing that the other side sent: a proxy knows its credentials and
could repeat them in a reason phrase.
"""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import anyio
import httpcore
import httpx
import python_socks

from .errors import OutOfResourcesError
from .models import CheckFailure
from .models.text import escape_unprintable

MAX_MESSAGE = 200
"""The longest message, in characters."""

_Explain = Callable[[Any], "Failure | None"]
_UNREACHABLE = {
    errno.EADDRNOTAVAIL,
    errno.EAFNOSUPPORT,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.ENETUNREACH,
}
_OURS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_CUT_OFF = (
    anyio.BrokenResourceError,
    anyio.ClosedResourceError,
    anyio.EndOfStream,
    ssl.SSLEOFError,
    ssl.SSLZeroReturnError,
    BrokenPipeError,
    ConnectionAbortedError,
    ConnectionResetError,
    httpcore.ReadError,
    httpcore.WriteError,
    httpx.ReadError,
    httpx.WriteError,
)
# python-socks and httpcore distinguish these by their messages alone.
_SOCKS_CUT_OFF = "Connection closed unexpectedly"
_SOCKS_AUTHENTICATION = (
    "No acceptable authentication methods were offered",
    "Username and password authentication failure",
)
_SOCKS4_USER_REFUSED = (0x5C, 0x5D)
_HTTP_CUT_OFF = ("Server disconnected", "peer closed connection")


class Failure(NamedTuple):
    """Why an attempt failed, a sentence about it, and the proxy's own response if there is one."""

    kind: CheckFailure
    message: str
    status_code: int | None = None


class CheckFailedError(Exception):
    """The proxy answered, but not with the expected response."""

    def __init__(self, kind: CheckFailure, message: str) -> None:
        super().__init__(message)
        self.failure = Failure(kind, message)


def failure_of(error: Exception) -> Failure:
    """Return the failure that an exception of an attempt stands for.

    Raises
    ------
    OutOfResourcesError
        If this machine is at fault: a result would make a whole pool inactive.
    """
    for cause in chain_of(error):
        if isinstance(cause, MemoryError) or getattr(cause, "errno", None) in _OURS:
            raise OutOfResourcesError(
                f"checks cannot run because this machine has run out of resources ({cause}): check "
                "fewer proxies at once, or raise the limit (`ulimit -n`)"
            ) from error
    found = next(filter(None, map(_explained, chain_of(error))), None)
    if found is None:
        # Its message may contain anything, such as a header's value.
        found = Failure(CheckFailure.OTHER, f"the check itself failed: {type(error).__name__}")
    return found._replace(message=escape_unprintable(found.message)[:MAX_MESSAGE])


def chain_of(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception with its causes and contexts, from the outermost inwards."""
    while error is not None:
        yield error
        if isinstance(error, BaseExceptionGroup):  # one exception for each address of a name
            for member in error.exceptions:
                yield from chain_of(member)
        error = error.__cause__ or error.__context__


def _explained(error: BaseException) -> Failure | None:
    """Return the failure of one exception by itself, or None for a mere wrapper."""
    return next((explain(error) for kinds, explain in _EXPLAIN if isinstance(error, kinds)), None)


def _cut_off(_: object) -> Failure:
    return Failure(
        CheckFailure.DISCONNECTED, "the connection was closed before the answer was complete"
    )


def _too_late(_: object) -> Failure:
    return Failure(CheckFailure.TIMEOUT, "no complete answer in time")


def _connect_refused(error: httpcore.ProxyError) -> Failure:
    status = str(error)[:3]  # its message is the status code and the reason phrase
    if not status.isdecimal():  # or it is of httpcore's own SOCKS
        return Failure(CheckFailure.HANDSHAKE, "the proxy refused the connection")
    code = int(status)
    if code == httpx.codes.PROXY_AUTHENTICATION_REQUIRED:
        return Failure(
            CheckFailure.PROXY_AUTHENTICATION, "the proxy answered CONNECT with 407", code
        )
    return Failure(CheckFailure.HANDSHAKE, f"the proxy answered CONNECT with {code}", code)


def _socks_failed(error: python_socks.ProxyError) -> Failure:
    words = str(error)
    if words == _SOCKS_CUT_OFF:
        return _cut_off(words)
    refused = words in _SOCKS_AUTHENTICATION or error.error_code in _SOCKS4_USER_REFUSED
    kind = CheckFailure.PROXY_AUTHENTICATION if refused else CheckFailure.HANDSHAKE
    return Failure(kind, f"SOCKS: {words[:1].lower()}{words[1:]}")


def _socks_reply_unreadable(_: object) -> Failure:
    return Failure(CheckFailure.HANDSHAKE, "SOCKS: malformed connect reply")


def _not_http(error: Exception) -> Failure:
    words = str(error)
    if words.startswith(_HTTP_CUT_OFF):
        return _cut_off(words)
    rule, _, _ = words.partition(":")  # after it h11 quotes the response
    return Failure(CheckFailure.PROTOCOL, f"the answer is not HTTP: {rule}")


def _tls_failed(error: ssl.SSLError) -> Failure:
    if isinstance(error, ssl.SSLCertVerificationError):
        why = getattr(error, "verify_message", "unknown reason")
        return Failure(CheckFailure.TLS, f"bad certificate: {why}")
    reason = (getattr(error, "reason", None) or "unknown reason").replace("_", " ").lower()
    return Failure(CheckFailure.TLS, f"TLS failed: {reason}")


def _not_connected(error: OSError) -> Failure | None:
    # These two repeat their cause, which says more.
    if error.errno is None or isinstance(error, python_socks.ProxyConnectionError):
        return None
    if isinstance(error, ConnectionRefusedError):
        return Failure(CheckFailure.REFUSED, "the proxy's port refused the connection")
    if isinstance(error, socket.gaierror):
        return Failure(CheckFailure.UNREACHABLE, "the proxy's name does not resolve")
    kind = CheckFailure.UNREACHABLE if error.errno in _UNREACHABLE else CheckFailure.OTHER
    return Failure(kind, f"cannot connect: {error.strerror}")


_EXPLAIN: Sequence[tuple[type[BaseException] | tuple[type[BaseException], ...], _Explain]] = (
    (CheckFailedError, lambda error: error.failure),
    (httpcore.ProxyError, _connect_refused),
    (python_socks.ProxyError, _socks_failed),
    (UnicodeDecodeError, _socks_reply_unreadable),  # raised by python-socks for a name in the reply
    ((httpcore.RemoteProtocolError, httpx.RemoteProtocolError), _not_http),
    (_CUT_OFF, _cut_off),
    (TimeoutError, _too_late),
    (ssl.SSLError, _tls_failed),
    (OSError, _not_connected),
)
"""The failure of each kind of exception; the first match wins."""

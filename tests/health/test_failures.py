"""Exceptions that no proxy on loopback can cause are read, too."""

from __future__ import annotations

import errno
import os
import socket

import httpx
import pytest
from python_socks import ProxyConnectionError

from pharox.errors import OutOfResourcesError
from pharox.failures import MAX_MESSAGE, CheckFailedError, failure_of
from pharox.models import CheckFailure


def _wrapped(cause: OSError, library: str) -> Exception:
    """Return an exception as a library raises it for what the kernel said."""
    if library == "httpx":
        inner: Exception = OSError("All connection attempts failed")
        inner.__cause__ = ExceptionGroup("of each address", [cause])
        error: Exception = httpx.ConnectError("All connection attempts failed")
        error.__cause__ = inner
    else:
        error = ProxyConnectionError(cause.errno, "Couldn't connect to proxy 127.0.0.1:1")
        error.__cause__ = cause
    return error


def _of_the_kernel(number: int) -> OSError:
    return OSError(number, os.strerror(number))


@pytest.mark.parametrize(
    ("cause", "kind"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "unreachable"),
        (_of_the_kernel(errno.EHOSTUNREACH), "unreachable"),
        (_of_the_kernel(errno.ENETUNREACH), "unreachable"),
        (_of_the_kernel(errno.ECONNREFUSED), "refused"),
        (_of_the_kernel(errno.ETIMEDOUT), "timeout"),
        (_of_the_kernel(errno.ECONNRESET), "disconnected"),
        (_of_the_kernel(errno.EACCES), "other"),
    ],
)
@pytest.mark.parametrize("library", ["httpx", "python_socks"])
def test_a_connection_that_cannot_be_made(cause: OSError, kind: str, library: str) -> None:
    """The cause counts, whichever library wrapped it."""
    assert failure_of(_wrapped(cause, library)).kind == CheckFailure(kind)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
@pytest.mark.parametrize("library", ["httpx", "python_socks"])
def test_a_lack_of_our_own_is_no_proxys_fault(number: int, library: str) -> None:
    with pytest.raises(OutOfResourcesError, match="run out of resources"):
        failure_of(_wrapped(_of_the_kernel(number), library))


def test_an_unknown_exception_is_named_but_not_quoted() -> None:
    found = failure_of(LookupError("open sesame"))
    assert found.kind == CheckFailure.OTHER
    assert found.message == "the check itself failed: LookupError"


def test_a_message_is_short_and_prints() -> None:
    error = CheckFailedError(CheckFailure.UNEXPECTED_STATUS, "a\x1b[2J\n" + "x" * 1000)
    found = failure_of(error)
    assert len(found.message) == MAX_MESSAGE
    assert found.message.isprintable()

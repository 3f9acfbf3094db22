"""What an exception of a request through a proxy says: whose fault it was.

PROXY_FAILED needs proof that nothing came through: no TCP connection to the proxy, 407, or a
handshake with it that failed. Once it takes requests on, a failure may be its own or the target's,
which is UNCLEAR. A proxy that answers CONNECT with 502, or SOCKS with "host unreachable", says
that about the target.

Exceptions of httpx and python-socks are known by their types, those of requests, urllib3, PySocks,
aiohttp and curl_cffi by their names, numbers and words, as these libraries may not be installed. A
note quotes nothing that the other side sent.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import httpcore
import httpx
import python_socks

from .errors import OutOfResourcesError, PharoxError
from .failures import Failure, chain_of, failure_of
from .models import CheckFailure, Outcome, OutcomeKind

_PROXY_AUTHENTICATION = 407

_CALLERS_OWN = (
    PharoxError,
    httpx.InvalidURL,
    httpx.LocalProtocolError,
    httpx.PoolTimeout,
    httpx.UnsupportedProtocol,
    httpcore.LocalProtocolError,
    httpcore.PoolTimeout,
    httpcore.UnsupportedProtocol,
)
_LIBRARIES = ("aiohttp", "curl_cffi", "httpcore", "httpx", "requests", "socks", "urllib3")
_CONNECTING = {
    "ClientProxyConnectionError",
    "ConnectError",
    "ConnectTimeout",
    "ConnectTimeoutError",
    "ConnectionTimeoutError",
    "NewConnectionError",
    "ProxyConnectionError",
}
"""What libraries call an exception of connecting, which is to the proxy."""

_REFUSED_LOGIN = {"SOCKS5AuthError"}
_BEYOND_CONNECTING = {"GeneralProxyError", "SOCKS4Error", "SOCKS5Error"}
"""What PySocks calls the answer of a proxy, or none, once it is connected."""

_ANSWERED_CONNECT = re.compile(
    r"(?:Tunnel connection failed: |CONNECT tunnel failed, response )(\d{3})\b"
)
_CURL_NOT_CONNECTED = {5, 7}
_CURL_HANDSHAKE = 97
_CURL_SOCKS_ANSWERED = "cannot complete SOCKS"
_CONNECT_FAILURES = (CheckFailure.REFUSED, CheckFailure.UNREACHABLE)


def outcome_of_error(
    error: BaseException, *, target: str | None = None, is_connected: bool | None = None
) -> Outcome | None:
    """Return what an exception of a request through a proxy says, to be reported.

    Parameters
    ----------
    error:
        As it was raised, with its causes. Of a library's error for a status, such as
        ``httpx.HTTPStatusError``, the response counts.
    target:
        The host that was asked; the one of the response, or of the lease, if None.
    is_connected:
        Whether the connection to the proxy stood by then; None if nobody knows.

    Returns
    -------
    Outcome or None
        PROXY_FAILED or UNCLEAR. None if it says nothing of proxy and target: a mistake of the
        caller, a cancellation, a lease that has ended, a machine without files or memory.

    Examples
    --------
    >>> import httpx
    >>> from pharox import outcome_of_error
    >>> outcome_of_error(httpx.ConnectTimeout("late"), target="shop.example").kind.value
    'proxy_failed'
    >>> outcome_of_error(httpx.ReadTimeout("late"), target="shop.example").kind.value
    'unclear'
    """
    if not isinstance(error, Exception) or isinstance(error, _CALLERS_OWN):
        return None
    response = getattr(error, "response", None)
    # curl_cffi has one with the status 0, or with that of an answer that broke off.
    if getattr(response, "status_code", None) and not _curl_code(error):
        return Outcome.from_response(response, target=target)
    chain = list(chain_of(error))
    if any(map(_is_bad_name, chain)):
        return None
    try:
        failure = _answer_to_connect(chain) or failure_of(error)
    except OutOfResourcesError:
        return None
    if failure.kind is CheckFailure.OTHER and not any(map(_is_of_a_library, chain)):
        return None
    is_proxys = _is_proxys_fault(chain, failure, is_connected)
    return Outcome(
        kind=OutcomeKind.PROXY_FAILED if is_proxys else OutcomeKind.UNCLEAR,
        target=target,
        status=failure.status_code if is_proxys else None,
        note=_note(error, failure),
    )


def _is_proxys_fault(
    chain: Sequence[BaseException], failure: Failure, is_connected: bool | None
) -> bool:
    if failure.kind is CheckFailure.PROXY_AUTHENTICATION:
        return True
    if failure.kind is CheckFailure.HANDSHAKE:
        return not any(map(_is_about_the_target, chain))
    if is_connected is not None:
        return not is_connected
    if failure.kind is CheckFailure.TLS or any(map(_may_be_the_targets, chain)):
        return False
    return failure.kind in _CONNECT_FAILURES or any(map(_is_of_connecting, chain))


def _may_be_the_targets(error: BaseException) -> bool:
    """Return whether it comes while connecting as well, but not of connecting to the proxy."""
    is_late = isinstance(error, python_socks.ProxyTimeoutError)
    return is_late or not _BEYOND_CONNECTING.isdisjoint(_names(error))


def _is_of_connecting(error: BaseException) -> bool:
    return not _CONNECTING.isdisjoint(_names(error)) or _curl_code(error) in _CURL_NOT_CONNECTED


def _is_about_the_target(error: BaseException) -> bool:
    """Return whether it is the answer of a proxy that could not, or would not, get there."""
    is_reply = isinstance(error, python_socks.ProxyError) and error.error_code is not None
    return is_reply or isinstance(error, httpcore.ProxyError) or _tunnel_status(error) is not None


def _answer_to_connect(chain: Sequence[BaseException]) -> Failure | None:
    """Return what the proxy answered to CONNECT, or to a login, by the words of other libraries."""
    for each in chain:
        if not _REFUSED_LOGIN.isdisjoint(_names(each)):
            return Failure(CheckFailure.PROXY_AUTHENTICATION, "SOCKS: the login was refused")
        if _curl_code(each) == _CURL_HANDSHAKE and _CURL_SOCKS_ANSWERED not in str(each):
            return Failure(CheckFailure.HANDSHAKE, "SOCKS: the handshake failed")
        status = _tunnel_status(each)
        if status == _PROXY_AUTHENTICATION:
            words = "the proxy answered CONNECT with 407"
            return Failure(CheckFailure.PROXY_AUTHENTICATION, words, status)
        if status is not None:
            return Failure(CheckFailure.HANDSHAKE, f"the proxy answered CONNECT with {status}")
    return None


def _tunnel_status(error: BaseException) -> int | None:
    if "ClientHttpProxyError" in _names(error):
        status = getattr(error, "status", None)
        return status if isinstance(status, int) else None
    found = _ANSWERED_CONNECT.search(str(error)) if isinstance(error, OSError) else None
    return None if found is None else int(found[1])


def _curl_code(error: BaseException) -> int | None:
    """Return the number of an error of curl."""
    if "CurlError" not in _names(error):
        return None
    code = getattr(error, "code", None)
    return int(code) if isinstance(code, int) else None


def _is_bad_name(error: BaseException) -> bool:
    """Return whether the caller asked for a host that no name can be."""
    return isinstance(error, UnicodeError) and not isinstance(error, UnicodeDecodeError)


def _is_of_a_library(error: BaseException) -> bool:
    modules = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    return not modules.isdisjoint(_LIBRARIES)


def _names(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def _note(error: Exception, failure: Failure) -> str:
    # The message of others may contain anything, such as a URL with a password.
    is_known = failure.kind is not CheckFailure.OTHER
    return failure.message if is_known else type(error).__name__

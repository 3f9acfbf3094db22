"""What an exception of Crawlee, or of the clients and browsers that it uses, says of a request."""

from __future__ import annotations

import re
from types import SimpleNamespace

from ..models import Outcome
from ..outcomes import outcome_of_error
from ._browser_errors import outcome_of_failure
from ._core import require

require("crawlee", "1.4")

from crawlee.errors import (  # noqa: E402 - after it is known to be there
    HttpStatusCodeError,
    ProxyError,
    SessionError,
    UserHandlerTimeoutError,
)

_STATUS = re.compile(r"HTTP status code (\d{3})")

_NO_WAY_THROUGH = re.compile(
    "tcp connect error|dns error|SocksConnect|Proxy authentication required"
)
"""What impit, Crawlee's client, says if nothing came through the proxy."""

_OF_IMPIT = {"NetworkError", "ProtocolError", "ProxyError", "TimeoutException"}
_CALLERS_OWN = {"LocalProtocolError", "PoolTimeout"}


def outcome_in_crawl(error: BaseException | None, url: str | None) -> Outcome | None:
    """Return what the exception of a request says; None if it says nothing of proxy and target."""
    if isinstance(error, HttpStatusCodeError):
        return Outcome.from_response(SimpleNamespace(status=error.status_code, url=url))
    if isinstance(error, SessionError) and not isinstance(error, ProxyError):
        status = _STATUS.search(str(error))
        return Outcome.blocked(status=int(status[1]) if status else None)
    if error is None or isinstance(error, UserHandlerTimeoutError):
        return None
    cause = error
    while not _is_of(cause, "impit") and not _is_of(cause, "playwright"):
        if cause.__cause__ is None:
            known = outcome_of_error(cause) or outcome_of_error(error)
            return Outcome.unclear(note="ProxyError") if _is_vague(error, known) else known
        cause = cause.__cause__
    return _of_impit(cause) if _is_of(cause, "impit") else outcome_of_failure(str(cause))


def _is_vague(error: BaseException, known: Outcome | None) -> bool:
    return known is None and isinstance(error, ProxyError)


def _of_impit(error: BaseException) -> Outcome | None:
    names = {kind.__name__ for kind in type(error).__mro__}
    if not names.isdisjoint(_CALLERS_OWN) or names.isdisjoint(_OF_IMPIT):
        return None
    # Its message may quote the URL of the proxy, so only the name is noted.
    name = type(error).__name__
    is_proxys = _NO_WAY_THROUGH.search(str(error)) is not None
    return Outcome.proxy_failed(note=name) if is_proxys else Outcome.unclear(note=name)


def _is_of(error: BaseException, package: str) -> bool:
    return type(error).__module__.partition(".")[0] == package

"""What an exception of Scrapy says of a proxy: whose fault it was.

Scrapy's handler connects to nothing but the proxy, so no connection, or no name, is the proxy's
fault. What breaks off later may be the target's. Exceptions of Twisted are known by their names;
in newer versions they are the causes of Scrapy's own. Those of httpx and aiohttp, which other
handlers use, pharox knows anyway.
"""

from __future__ import annotations

import re

from ...failures import chain_of
from ...models import Outcome
from ...outcomes import outcome_of_error

_SAY_NOTHING = {
    "DownloadCancelledError",  # too large, or stopped by the spider
    "IgnoreRequest",
    "NotSupported",
    "StopDownload",
    "UnsupportedURLSchemeError",
}
_NOT_CONNECTED = {
    "CannotResolveHostError",
    "ConnectBindError",
    "ConnectionRefusedError",
    "DNSLookupError",
    "DownloadConnectionRefusedError",
    "NoRouteError",
    "TCPTimedOutError",
    "UnknownHostError",
}
_BROKEN_OFF = {
    "ConnectionAborted",
    "ConnectionClosed",
    "ConnectionDone",
    "ConnectionLost",
    "DownloadFailedError",
    "DownloadTimeoutError",
    "ResponseDataLossError",
    "ResponseFailed",
    "TimeoutError",
}
_TUNNEL = "TunnelError"
_OF_SCRAPY = ("scrapy", "twisted")
_STATUS = re.compile(r"'status': (\d{3})\b")
_PROXY_AUTHENTICATION = 407


def outcome_of_failure(error: BaseException, target: str | None) -> Outcome | None:
    """Return what the exception of a download says, to be reported; None if it says nothing.

    Parameters
    ----------
    error:
        As the download handler raised it.
    target:
        The host that was asked.
    """
    chain = list(chain_of(error))
    names = {kind.__name__ for each in chain for kind in _kinds(each)}
    if not names.isdisjoint(_SAY_NOTHING):
        return None
    if _TUNNEL in names:
        return _of_tunnel(chain, target)
    known = next((each for each in chain if not _kinds(each)), None)
    if known is not None and (outcome := outcome_of_error(known, target=target)) is not None:
        return outcome  # of httpx or aiohttp, which say more
    note = type(error).__name__
    if not names.isdisjoint(_NOT_CONNECTED):
        return Outcome.proxy_failed(target, note=note)
    if not names.isdisjoint(_BROKEN_OFF):
        return Outcome.unclear(target, note=note)
    return None


def _kinds(error: BaseException) -> list[type]:
    """Return the types of an exception that are Scrapy's or Twisted's."""
    return [kind for kind in type(error).__mro__ if kind.__module__.partition(".")[0] in _OF_SCRAPY]


def _of_tunnel(chain: list[BaseException], target: str | None) -> Outcome:
    """Return what the answer of a proxy to CONNECT says: 407 of itself, all else of the target."""
    found = next((match for each in chain if (match := _STATUS.search(str(each)))), None)
    status = None if found is None else int(found[1])
    if status == _PROXY_AUTHENTICATION:
        note = "the proxy answered CONNECT with 407"
        return Outcome.proxy_failed(target, status=status, note=note)
    answered = "no HTTP" if status is None else f"{status}"
    return Outcome.unclear(target, note=f"the proxy answered CONNECT with {answered}")

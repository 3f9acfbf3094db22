"""What a browser's name of a failure says of proxy and target."""

from __future__ import annotations

import re

from ..models import Outcome

_NAME = re.compile(r"net::ERR_[A-Z0-9_]+|NS_ERROR_[A-Z0-9_]+")

_PROXYS_FAULT = re.compile(
    r"net::ERR_(PROXY_(AUTH|CERTIFICATE|CONNECTION)|UNEXPECTED_PROXY_AUTH)"
    r"|NS_ERROR_(PROXY_(AUTHENTICATION|CONNECTION)|UNKNOWN_PROXY_HOST)"
)
"""What Chromium and Firefox say if there is no way through the proxy."""

_UNCLEAR = re.compile(
    r"net::ERR_(CERT|CONNECTION|HTTP2|QUIC|SOCKS|SSL|TUNNEL)_"
    r"|net::ERR_(CONTENT_LENGTH_MISMATCH|EMPTY_RESPONSE|INCOMPLETE_CHUNKED_ENCODING"
    r"|INVALID_HTTP_RESPONSE|RESPONSE_HEADERS_TRUNCATED|TIMED_OUT)"
    r"|NS_ERROR_(CONNECTION_REFUSED|NET_|PROXY_)"
)
"""What they say of a failure that may be the proxy's or the target's."""


def outcome_of_failure(text: str | None) -> Outcome | None:
    """Return what the name of a browser's failure in a text says; None if it says nothing.

    Parameters
    ----------
    text:
        With a name such as ``net::ERR_PROXY_CONNECTION_FAILED`` of Chromium, or an ``NS_ERROR`` of
        Firefox.
    """
    name = _NAME.search(text or "")
    if name is None:
        return None
    if _PROXYS_FAULT.match(name[0]):
        return Outcome.proxy_failed(note=name[0])
    return Outcome.unclear(note=name[0]) if _UNCLEAR.match(name[0]) else None

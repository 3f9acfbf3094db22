"""What a response says that any HTTP library for Python returned.

httpx, requests and curl_cffi call its status ``status_code``, aiohttp ``status``. Headers and URL
have the same names in all of them. What cannot be read is as if it were not there.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Protocol

from ..errors import InvalidInputError
from .validation import utc_now

_SECONDS = re.compile(r"\d{1,18}(\.\d{1,9})?", re.ASCII)
_BYTES = re.compile(r"\d{1,18}", re.ASCII)


class HasStatusCode(Protocol):
    """A response of httpx, requests or curl_cffi."""

    @property
    def status_code(self) -> int:
        """Its HTTP status."""


class HasStatus(Protocol):
    """A response of aiohttp or Scrapy."""

    @property
    def status(self) -> int:
        """Its HTTP status."""


Response = HasStatusCode | HasStatus


def status_of(response: Any) -> int:
    """Return the status of a response.

    Raises
    ------
    InvalidInputError
        If it has none, so that it is no response.
    """
    for name in ("status_code", "status"):
        status = getattr(response, name, None)
        if isinstance(status, int) and not isinstance(status, bool):
            return int(status)
    raise InvalidInputError(
        "a response is needed, with a status_code or status that is a number, "
        f"not a {type(response).__name__}",
        value=response,
    )


def retry_after_of(response: Any, most_s: float) -> float | None:
    """Return in how many seconds a response asks to be asked again, at most ``most_s``.

    ``Retry-After`` is a number of seconds, or a date (RFC 9110, 10.2.3). A date that has passed
    is as none.
    """
    text = _header(response, "Retry-After")
    if text is None:
        return None
    if _SECONDS.fullmatch(text):
        return min(float(text), most_s)
    seconds = _seconds_until(text)
    return None if seconds is None or seconds < 0 else min(seconds, most_s)


def length_of(response: Any) -> int | None:
    """Return how many bytes the body of a response has, if a header says so."""
    text = _header(response, "Content-Length")
    return int(text) if text is not None and _BYTES.fullmatch(text) else None


def url_of_response(response: Any) -> str | None:
    """Return the URL that a response came from, if it knows it."""
    try:
        url = response.url
    except Exception:  # httpx raises for a response that was made without a request.
        return None
    return None if url is None else str(url)


def is_response(response: Any) -> bool:
    """Return whether something has a status, as responses of all libraries do."""
    try:
        status_of(response)
    except InvalidInputError:
        return False
    return True


def body_of(response: Any) -> bytes | None:
    """Return the body of a response, without content coding; None if it was not read.

    httpx, requests and curl_cffi have it in ``content``, Scrapy in ``body``. aiohttp keeps it once
    it was read.
    """
    if getattr(response, "_content", None) is False:
        return None  # requests would read it now.
    for name in ("content", "body", "_body"):
        try:
            body = getattr(response, name, None)
        except Exception:  # httpx raises if it was not read.
            return None
        if isinstance(body, bytes):
            return body
    return None


def _header(response: Any, name: str) -> str | None:
    headers = getattr(response, "headers", None)
    for each in (name, name.lower()):
        try:
            value = headers.get(each)  # type: ignore[union-attr] # whose absence is caught
        except Exception:  # A library of its own kind.
            return None
        if isinstance(value, bytes):
            value = value.decode("latin-1")
        if isinstance(value, str):
            return value.strip()
    return None


def _seconds_until(text: str) -> float | None:
    try:
        at: datetime = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError):
        return None
    if at.tzinfo is None:  # "-0000": in UTC, from nobody knows where
        at = at.replace(tzinfo=UTC)
    return (at - utc_now()).total_seconds()

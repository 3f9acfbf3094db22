"""Fetch the whole list of a source, page by page, and distrust the answer.

A server may be broken, and a redirect may lead anywhere. So a fetch is bounded in time, bytes,
redirects and pages; headers of the source are sent to its own host only, and nothing but http and
https is asked. A web page, an empty answer and a further page that cannot be found are errors: they
would look like a list that lost its proxies.

Errors show the host of a URL, and never its path, its query or a header.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from ..errors import SourceError
from ..storage.sources import Validators
from .opening import decoded, our_errors, shown_url, unzipped
from .paging import next_page

if TYPE_CHECKING:
    import httpx

MAX_BYTES = 64 << 20
"""How much all pages of a list may have together, decompressed."""

MAX_REDIRECTS = 10
MAX_PAGES = 1000
FETCH_S = 120.0
"""How long the fetch of all pages may take."""

READ_S = 15.0
"""How long to wait for a connection, and for the next bytes."""

_REDIRECTS = {301, 302, 303, 307, 308}
_NOT_MODIFIED = 304
_GZIP = b"\x1f\x8b"
_USUAL_PORTS = {"http": 80, "https": 443}
_MAX_VALIDATOR_LENGTH = 500


@dataclass(slots=True)
class FetchedList:
    """The pages of a list, or, if ``is_known``, that the last answer still holds."""

    pages: list[bytes] = field(default_factory=list)
    validators: Validators = field(default_factory=Validators)
    is_known: bool = False


def fetch_list(
    url: str,
    headers: Mapping[str, str],
    known: Validators | None = None,
    is_stopped: Callable[[], bool] = lambda: False,
) -> FetchedList:
    """Fetch all pages of a list.

    A page names the next one in a ``Link`` header with ``rel="next"``, or in its JSON, as
    :func:`~pharox.sources.paging.next_page` finds it.

    Parameters
    ----------
    known:
        The validators of the last answer, if the pool still has what it said.
    is_stopped:
        Asked between pieces of the answer: whether to give up.

    Raises
    ------
    SourceError
        If any page cannot be fetched or is no list.
    """
    import httpx  # noqa: PLC0415 - takes a while to import

    fetch = _Fetch(url, headers, is_stopped)
    fetched = FetchedList()
    with (
        our_errors(url),
        httpx.Client(timeout=READ_S, follow_redirects=False, verify=_trust()) as client,
    ):
        page: str | None = url
        while page is not None:
            conditions = _conditions(known) if page == url else {}
            response, body = fetch.page(client, page, conditions)
            if response.status_code == _NOT_MODIFIED and conditions:
                return FetchedList(validators=known or Validators(), is_known=True)
            fetched.pages.append(body)
            page = fetch.following(response, body)
            if len(fetched.pages) == 1 and page is None:  # Of several pages any may change.
                fetched.validators = _validators_of(response)
    return fetched


@cache
def _trust() -> ssl.SSLContext:
    """Return the context of all fetches: to make one takes longer than a fetch."""
    import httpx  # noqa: PLC0415

    return httpx.create_ssl_context()


class _Fetch:
    """One fetch: how much of its bounds is used up."""

    def __init__(
        self, url: str, headers: Mapping[str, str], is_stopped: Callable[[], bool]
    ) -> None:
        self._url, self._headers, self._is_stopped = url, headers, is_stopped
        self._ends_at = time.monotonic() + FETCH_S
        self._length = 0
        self._asked = {url}

    def page(
        self, client: httpx.Client, url: str, conditions: Mapping[str, str]
    ) -> tuple[httpx.Response, bytes]:
        """Return the answer for one page, after redirects, and its decompressed body."""
        for _ in range(MAX_REDIRECTS + 1):
            own = self._headers if _may_have_secrets(self._url, url) else {}
            headers = {**own, **conditions, "accept-encoding": "gzip"}
            with client.stream("GET", url, headers=headers) as response:
                if response.status_code not in _REDIRECTS:
                    self._check_answer(response, conditions)
                    return response, self._body(response, url)
            url = self._target(response, url)
        raise self._error(f"redirects more than {MAX_REDIRECTS} times")

    def following(self, response: httpx.Response, body: bytes) -> str | None:
        """Return the URL of the page after an answer, or None."""
        found = response.links.get("next", {}).get("url") or next_page(body, len(self._asked))
        if not found:
            return None
        if not isinstance(found, str) or not ("/" in found or found.startswith("?")):
            raise self._error("says that there are more pages, but not at which URL")
        url = urljoin(str(response.url), found)
        self._check_scheme(url)
        if not _may_have_secrets(self._url, url):
            raise self._error("says that its next page is on another host")
        if url in self._asked or len(self._asked) >= MAX_PAGES:
            raise self._error(f"has more than {MAX_PAGES} pages, or the same one again")
        self._asked.add(url)
        return url

    def _check_answer(self, response: httpx.Response, conditions: Mapping[str, str]) -> None:
        if response.status_code == _NOT_MODIFIED and conditions:
            return
        if not response.is_success:
            answer = f"{response.status_code} {response.reason_phrase}".rstrip()
            raise self._error(f"answered {answer}")
        if "html" in response.headers.get("content-type", "").lower():
            raise self._error("answered with a web page, not a list")

    def _body(self, response: httpx.Response, url: str) -> bytes:
        shown = shown_url(url)
        body = self._joined(decoded(response, shown))
        if body.startswith(_GZIP):  # A file that is compressed itself, such as list.txt.gz.
            self._length -= len(body)
            body = self._joined(unzipped([body], shown))
        if body.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
            raise self._error("answered with a web page, not a list")
        return body

    def _joined(self, chunks: Iterator[bytes]) -> bytes:
        parts = []
        with closing(chunks):  # type: ignore[type-var]
            for chunk in chunks:
                self._length += len(chunk)
                if self._length > MAX_BYTES:
                    raise self._error(f"sends more than {MAX_BYTES >> 20} MiB")
                if time.monotonic() > self._ends_at:
                    raise self._error(f"takes more than {FETCH_S:g} seconds")
                if self._is_stopped():
                    raise self._error("was given up, as the refresh is stopped")
                parts.append(chunk)
        return b"".join(parts)

    def _target(self, response: httpx.Response, url: str) -> str:
        location = response.headers.get("location")
        if not location:
            raise self._error("redirects to nowhere")
        target: str = urljoin(url, location)
        self._check_scheme(target)
        return target

    def _check_scheme(self, url: str) -> None:
        if urlsplit(url).scheme.lower() not in _USUAL_PORTS:
            raise self._error("leads to a URL that is neither http nor https")

    def _error(self, what: str) -> SourceError:
        shown = shown_url(self._url)
        return SourceError(f"{shown} {what}", source=shown)


def _may_have_secrets(own: str, url: str) -> bool:
    """Return whether a URL is of the same host, and does not give up https."""
    mine, other = _place(own), _place(url)
    is_upgrade = (mine, other) == (("http", mine[1], 80), ("https", mine[1], 443))
    return mine == other or is_upgrade


def _place(url: str) -> tuple[str, str | None, int]:
    parts = urlsplit(url)
    scheme = parts.scheme.lower()
    return scheme, parts.hostname, parts.port or _USUAL_PORTS.get(scheme, 0)


def _conditions(known: Validators | None) -> dict[str, str]:
    given = known or Validators()
    named = {"if-none-match": given.etag, "if-modified-since": given.last_modified}
    return {name: value for name, value in named.items() if value}


def _validators_of(response: httpx.Response) -> Validators:
    values = (response.headers.get(name) for name in ("etag", "last-modified"))
    return Validators(
        *(v if v and len(v) <= _MAX_VALIDATOR_LENGTH and v.isprintable() else None for v in values)
    )

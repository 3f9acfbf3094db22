"""Open a file, standard input or a URL as chunks of bytes.

A server may be hostile: its response is decompressed piece by piece, so that a small
response cannot fill memory, and an endless list is aborted.

Every failure is a :class:`SourceError`. It shows only the scheme and host of a URL: the
userinfo before and the path after are often a key.
"""

from __future__ import annotations

import re
import sys
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import urlsplit

from ..errors import PharoxError, SourceError
from ..models.text import without_secrets

if TYPE_CHECKING:
    import httpx

CHUNK_BYTES = 1 << 16
TIMEOUT_S = 30.0

MAX_FETCHED_BYTES = 1 << 30
"""The maximum decompressed size of a list from a URL: more than ten million proxies."""

MAX_WAITED_S = 3600.0
"""How long to wait for the pieces of a list from a URL in total."""

_GZIP_WINDOW_BITS = 16 + zlib.MAX_WBITS

_URL = re.compile(r"https?://", re.IGNORECASE)
_USERINFO = re.compile(r"(?<=://)[^/@\s]*@")


@dataclass(frozen=True, slots=True)
class OpenedSource:
    """A source's content, which can be read once, and its size in bytes if known."""

    chunks: Iterator[bytes]
    size_bytes: int | None = None


@contextmanager
def open_source(location: str) -> Iterator[OpenedSource]:
    """Open a source for a block.

    Parameters
    ----------
    location:
        A file's path, ``-`` for standard input, or an http(s) URL, whose
        redirects are followed.

    Raises
    ------
    SourceError
        If it cannot be opened; reading the chunks may raise it too.
    """
    if location == "-":
        if sys.stdin is None:  # The parent process closed it.
            raise SourceError("standard input is closed", source=location)
        yield OpenedSource(_read(sys.stdin.buffer, "standard input"))
    elif _URL.match(location):
        with _fetched(location) as source:
            yield source
    else:
        with _file(location) as source:
            yield source


@contextmanager
def _file(path: str) -> Iterator[OpenedSource]:
    is_plain = not re.search(r"://|@|:[0-9]+(:|$)", path)
    shown = f"'{path if is_plain else without_secrets(path)}'"
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed below; only opening may fail in this way
    except (OSError, ValueError) as error:
        raise _unreadable(shown, error) from error
    with file:
        size = file.seek(0, 2) if file.seekable() else None
        if size is not None:
            file.seek(0)
        # A device or a file in /proc reports size 0 but has content.
        yield OpenedSource(_read(file, shown), size or None)


def _read(file: BinaryIO, name: str) -> Iterator[bytes]:
    # read1 returns what has arrived, so a slow pipe is read as it fills.
    read = getattr(file, "read1", file.read)
    try:
        while chunk := read(CHUNK_BYTES):
            yield chunk
    except OSError as error:
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: Exception) -> SourceError:
    why = getattr(error, "strerror", None) or str(error)
    return SourceError(f"{name} cannot be read: {why}", source=name)


@contextmanager
def _fetched(url: str) -> Iterator[OpenedSource]:
    import httpx  # noqa: PLC0415 - takes a while to import, and most sources are files

    headers = {"accept-encoding": "gzip"}
    stream = httpx.stream("GET", url, headers=headers, follow_redirects=True, timeout=TIMEOUT_S)
    with our_errors(url):
        response = stream.__enter__()
    try:
        if not response.is_success:
            answer = f"{response.status_code} {response.reason_phrase}".rstrip()
            raise SourceError(f"{shown_url(url)} answered {answer}", source=shown_url(url))
        yield OpenedSource(_body(response, url), _size_of(response))
    finally:
        stream.__exit__(None, None, None)


def _body(response: httpx.Response, url: str) -> Iterator[bytes]:
    length, waited_s = 0, 0.0
    with our_errors(url):
        chunks = decoded(response, shown_url(url))
        while True:
            began = time.monotonic()
            chunk = next(chunks, None)
            waited_s += time.monotonic() - began
            if chunk is None:
                return
            length += len(chunk)
            if length > MAX_FETCHED_BYTES:
                raise _endless(url, f"more than {MAX_FETCHED_BYTES >> 20} MiB")
            if waited_s > MAX_WAITED_S:
                raise _endless(url, f"for more than {MAX_WAITED_S / 60:g} minutes")
            yield chunk


def _endless(url: str, how_much: str) -> SourceError:
    return SourceError(
        f"{shown_url(url)} sends {how_much}, and may never end; save what you need of it to a "
        "file, and import that",
        source=shown_url(url),
    )


def decoded(response: httpx.Response, shown: str) -> Iterator[bytes]:
    """Yield the decompressed content in pieces of bounded size."""
    chunks = response.iter_raw()
    encodings = response.headers.get_list("content-encoding", split_commas=True)
    match [name for each in encodings if (name := each.strip().lower()) not in ("", "identity")]:
        case []:
            yield from chunks
        case ["gzip" | "x-gzip"]:
            yield from unzipped(chunks, shown)
        case _:
            raise SourceError(
                f"{shown} answered with a Content-Encoding that was not requested", source=shown
            )


def unzipped(chunks: Iterable[bytes], shown: str) -> Iterator[bytes]:
    """Yield what gzip's members have, in pieces of bounded size."""
    decoder, has_begun = zlib.decompressobj(_GZIP_WINDOW_BITS), False
    try:
        for chunk in chunks:
            rest, piece, has_begun = chunk, b"", True
            while rest or len(piece) == CHUNK_BYTES:
                if decoder.eof:  # A file may consist of several members.
                    decoder = zlib.decompressobj(_GZIP_WINDOW_BITS)
                piece = decoder.decompress(rest, CHUNK_BYTES)
                rest = decoder.unused_data if decoder.eof else decoder.unconsumed_tail
                yield piece
                if decoder.eof and not rest:
                    break
    except zlib.error as error:
        raise SourceError(f"the answer of {shown} cannot be decompressed", source=shown) from error
    if has_begun and not decoder.eof:
        raise SourceError(f"the answer of {shown} is cut off", source=shown)


def _size_of(response: httpx.Response) -> int | None:
    """Return the size of the content; unknown if it is compressed."""
    length = response.headers.get("content-length", "")
    encoded = "content-encoding" in response.headers
    return int(length) if length.isdecimal() and not encoded else None


@contextmanager
def our_errors(url: str) -> Iterator[None]:
    """Raise errors of httpx, and those of a URL that is none, as :class:`SourceError`, for a block.

    The URL may be one that the server answered with: of a redirect or of a next page.
    """
    import httpx  # noqa: PLC0415

    try:
        yield
    except PharoxError:  # Some of ours are a ValueError.
        raise
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        # If it is not a valid URL, any part may be a password. httpx repeats the part that is wrong
        # with the URL of a redirect.
        is_url = isinstance(error, httpx.HTTPError) and not isinstance(
            error.__context__, httpx.InvalidURL
        )
        why = _USERINFO.sub("", str(error)) if is_url else "it is not a valid URL"
        why = why or type(error).__name__
        raise SourceError(
            f"{shown_url(url)} cannot be read: {why}", source=shown_url(url)
        ) from error


def shown_url(url: str) -> str:
    """Return what of a URL may be shown: its scheme and its host."""
    try:
        parts = urlsplit(url)
        return f"{parts.scheme}://{parts.hostname or ''}"
    except ValueError:
        return "the URL"

"""Detect which of four formats a source has, and read its entries one by one.

Three of them have one entry a line (a quoted CSV cell cannot span lines), so a broken
line affects no other. A JSON document has no such boundaries.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from enum import StrEnum
from functools import partial

from ..errors import SourceError
from ..models import Proxy
from .documents import check_shape, is_document, read_document
from .entries import Defaults, Entry
from .layout import Layout
from .lines import SAMPLED_LINES, Lines, is_comment
from .plain import PlainLines
from .reading import Found, attempt, each, proxies_of_json
from .tables import is_table, read_table
from .text import SourceText

_JSON_ARRAY = re.compile(
    r"""\[\s*(?:[\[\]{"]|$)"""
)  # Not "[" alone, as an IPv6 address begins with it.


class Format(StrEnum):
    """The format of a source."""

    LINES = "lines"
    CSV = "csv"
    JSON = "json"
    JSON_LINES = "jsonl"


def read_proxies(
    chunks: Iterable[bytes],
    defaults: Defaults | None = None,
    *,
    kind: Format | None = None,
    line: str | None = None,
) -> Found:
    """Yield the entries of a source.

    Parameters
    ----------
    chunks:
        The content as bytes in UTF-8, or in UTF-16 with a byte order mark, in pieces
        of any size.
    defaults:
        Values for fields that the source does not give.
    kind:
        The format; detected from the first characters if None.
    line:
        The order of a line's parts, such as ``user:pass:host:port``; detected from the
        lines if None.

    Raises
    ------
    SourceError
        If the content is binary, is not of the given format, or has a shape without
        proxies.
    InvalidInputError
        If no line can be read in this order.
    """
    layout = None if line is None else Layout(line)
    return _read(SourceText(chunks), defaults or Defaults(), kind, layout)


def format_of(start: str) -> Format:
    """Return the format that the first characters of a source show."""
    start = start.lstrip()
    if _JSON_ARRAY.match(start):
        return Format.JSON
    if start.startswith("{"):
        return Format.JSON if is_document(start) else Format.JSON_LINES
    return Format.CSV if is_table(start.partition("\n")[0]) else Format.LINES


def _read(
    text: SourceText, defaults: Defaults, kind: Format | None, layout: Layout | None
) -> Found:
    start = text.ahead()
    if "\x00" in start:
        raise SourceError(
            "the source is binary, or UTF-16 without a byte order mark; a list of proxies must be "
            "UTF-8 text"
        )
    kind = kind or format_of(start)
    yield from _READERS[kind](text, defaults, Lines(layout))


def _read_addresses(text: SourceText, defaults: Defaults, lines: Lines) -> Found:
    plain = None if lines.has_layout else PlainLines(defaults, lines.orders)
    ahead = text.ahead().split("\n")[:SAMPLED_LINES]
    lines.learn(line for line in ahead if not is_comment(line))

    def read(line: str) -> Iterable[Proxy]:
        return [proxy for parts in lines.read(line) for proxy in defaults.proxies(parts)]

    for number, line in text.lines():
        if plain and line and (proxy := plain.proxy(line)) is not None:
            yield Entry(number, proxy)
        elif line is None or not is_comment(line):
            yield from attempt(number, "line", line, read)


def _read_json_lines(text: SourceText, defaults: Defaults, lines: Lines) -> Found:
    check_shape(text.ahead().replace("\n", ","))
    return each(text.lines(), partial(proxies_of_json, defaults, lines))


_READERS: dict[Format, Callable[[SourceText, Defaults, Lines], Found]] = {
    Format.LINES: _read_addresses,
    Format.CSV: read_table,
    Format.JSON: read_document,
    Format.JSON_LINES: _read_json_lines,
}

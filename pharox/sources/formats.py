"""The four formats: which one a source has, and its entries one by one.

Three of them have one entry a line (a quoted CSV cell cannot span lines), so
what is broken on one line harms no other. A JSON array has no such seams:
after a syntax error nothing more of it can be trusted, so the last entry is a
bad one.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from functools import partial

from ..errors import SourceError
from ..models import Proxy
from .entries import (
    BadEntry,
    Defaults,
    Entry,
    Unit,
    Unreadable,
    record_of_address,
    record_of_object,
)
from .text import ENTRY_LIMIT, SourceText

Found = Iterator[Entry | BadEntry]

_TOO_LONG = f"is longer than {ENTRY_LIMIT} characters"
_JSON_ARRAY = re.compile(r"""\[\s*(?:[\[\]{"]|$)""")  # Not "[", as an IPv6 address has it.
_CSV_NEEDS = {"host", "port"}
_decode = json.JSONDecoder().raw_decode


class Format(StrEnum):
    """How proxies are written down in a source."""

    LINES = "lines"
    CSV = "csv"
    JSON = "json"
    JSON_LINES = "jsonl"


def read_proxies(
    chunks: Iterable[bytes], defaults: Defaults | None = None, *, kind: Format | None = None
) -> Found:
    """Yield what stands in a source, entry by entry.

    Parameters
    ----------
    chunks:
        The content as bytes in UTF-8, in pieces of any size.
    defaults:
        What the source does not say of its proxies.
    kind:
        How it is written; if None, as its first characters show.

    Raises
    ------
    SourceError
        If the content is binary, or is not of the format that was named.
    """
    text = SourceText(chunks)
    start = text.ahead()
    if "\x00" in start:
        raise SourceError("the source is binary or UTF-16; a list of proxies is text in UTF-8")
    reader = _READERS[kind or format_of(start)]
    yield from reader(text, defaults or Defaults())


def format_of(start: str) -> Format:
    """Return the format that the first characters of a source show."""
    start = start.lstrip()
    if _JSON_ARRAY.match(start):
        return Format.JSON
    if start.startswith("{"):
        return Format.JSON_LINES
    _, columns = _columns(start.partition("\n")[0])
    return Format.CSV if set(columns) >= _CSV_NEEDS else Format.LINES


def _read_addresses(text: SourceText, defaults: Defaults) -> Found:
    lines = ((n, line) for n, line in text.lines() if not (line or "").lstrip().startswith("#"))
    return _each(lines, lambda line: defaults.proxy(record_of_address(line)))


def _read_csv(text: SourceText, defaults: Defaults) -> Found:
    lines = text.lines()
    header = next((line or "" for _, line in lines if line is None or line.strip()), "")
    delimiter, columns = _columns(header)
    if not set(columns) >= _CSV_NEEDS:
        raise SourceError("the first line of the CSV names no columns host and port")

    def read(line: str) -> Proxy:
        cells = _cells(line, delimiter)
        if len(cells) > len(columns):
            raise Unreadable("has more cells than the header has columns")
        return defaults.proxy(dict(zip(columns, cells, strict=False)))

    return _each(lines, read)


def _read_json_lines(text: SourceText, defaults: Defaults) -> Found:
    return _each(text.lines(), partial(_proxy_of_json, defaults))


def _read_json(text: SourceText, defaults: Defaults) -> Found:
    if text.take() != "[":
        raise SourceError("the JSON is no array; one object a line is the format jsonl")
    read = partial(_proxy_of_json, defaults)
    number = 1
    text.skip_blank()
    mark = text.take() if text.ahead().startswith("]") else ","
    while mark == ",":
        text.skip_blank()
        ahead = text.ahead()
        try:
            _, end = _decode(ahead)
        except (ValueError, RecursionError) as error:
            yield BadEntry(number, f"{_broken(error, ahead)}; nothing after it was read", "entry")
            return
        text.at += end
        yield _attempt(number, "entry", ahead[:end], read)
        number += 1
        mark = text.take()
    if mark == "":
        yield BadEntry(number, "is missing: the JSON ends before its array does", "entry")
    elif mark != "]" or text.take():
        reason = "is not after a comma" if mark != "]" else "stands after the array's end"
        yield BadEntry(number, f"{reason}; nothing of it was read", "entry")


_READERS: dict[Format, Callable[[SourceText, Defaults], Found]] = {
    Format.LINES: _read_addresses,
    Format.CSV: _read_csv,
    Format.JSON: _read_json,
    Format.JSON_LINES: _read_json_lines,
}


def _each(lines: Iterable[tuple[int, str | None]], read: Callable[[str], Proxy]) -> Found:
    for number, line in lines:
        if line is None or line.strip():
            yield _attempt(number, "line", line, read)


def _attempt(
    number: int, unit: Unit, raw: str | None, read: Callable[[str], Proxy]
) -> Entry | BadEntry:
    """Return what ``read`` makes of one raw entry."""
    if raw is None or len(raw) > ENTRY_LIMIT:
        return BadEntry(number, _TOO_LONG, unit)
    try:
        raw.encode()
        return Entry(number, read(raw))
    except UnicodeEncodeError:
        return BadEntry(number, "is not UTF-8", unit)
    except Unreadable as error:
        return BadEntry(number, str(error), unit)


def _proxy_of_json(defaults: Defaults, text: str) -> Proxy:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"is not valid JSON{_why(error)}") from error
    return defaults.proxy(record_of_object(value))


def _broken(error: Exception, ahead: str) -> str:
    """Say why no JSON value could be read from the longest text that one may have."""
    if isinstance(error, json.JSONDecodeError):
        ran_out = error.pos >= len(ahead.rstrip()) or error.msg.startswith("Unterminated")
        if ran_out:
            is_end = len(ahead) <= ENTRY_LIMIT
            return "is cut off: the JSON ends in the middle of it" if is_end else _TOO_LONG
    return f"is not valid JSON{_why(error)}"


def _why(error: Exception) -> str:
    """Return what the decoder says, which quotes nothing of the text."""
    return f" ({error.msg.lower()})" if isinstance(error, json.JSONDecodeError) else ""


def _columns(header: str) -> tuple[str, list[str]]:
    """Return a CSV's delimiter and the columns that its header names."""
    delimiter = max(",;\t", key=header.count)
    try:
        return delimiter, [name.strip().lower() for name in _cells(header, delimiter)]
    except Unreadable:
        return delimiter, []


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line.strip("\r\n")], delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise Unreadable(f"is not valid CSV ({error})") from error

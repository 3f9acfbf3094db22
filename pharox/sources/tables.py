"""Read CSV: columns named in the first line, or one column of addresses per protocol."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from dataclasses import replace

from ..errors import SourceError
from ..models import Proxy
from .entries import Defaults
from .lines import Lines, is_comment
from .reading import Found, each
from .records import field_of, has_address, parts_of
from .text import SourceText
from .unreadable import Unreadable
from .values import protocol_of_name

_DELIMITERS = ",;\t|"
_SEPARATOR_LINE = re.compile(r"\s*\"?sep=.\"?\s*", re.IGNORECASE)  # written by Excel
_WORDS = re.compile(r"[^\W\d_][^\W\d]*(?:[ -][^\W\d]+)*")
_TITLE = re.compile(r"[^\W\d_][\w ./()-]*")
_SHOWN = 12
"""How many columns of an unknown table an error names."""


def is_table(line: str) -> bool:
    """Return whether a first line is a table's header."""
    if _SEPARATOR_LINE.fullmatch(line):
        return True
    if is_comment(line):
        return False
    _, columns = _columns(line)
    if len(columns) > 1 and all(_TITLE.fullmatch(column) for column in columns if column):
        return True
    return len(columns) == 1 and (_has_place(columns) or _has_protocols(columns))


def read_table(text: SourceText, defaults: Defaults, lines: Lines) -> Found:
    """Yield the entries in the lines after the header."""
    numbered = text.lines()
    header = next(
        (
            line or ""
            for _, line in numbered
            if line is None or (line.strip() and not _SEPARATOR_LINE.fullmatch(line))
        ),
        "",
    )
    delimiter, columns = _columns(header)
    if not (_has_place(columns) or _has_protocols(columns)):
        raise SourceError(
            f"the first line of the CSV does not name the columns host and port{_but(columns)}"
        )

    def read(line: str) -> Iterable[Proxy]:
        cells = _cells(line, delimiter)
        while len(cells) > len(columns) and not cells[-1].strip():
            cells.pop()
        if len(cells) > len(columns):
            raise Unreadable("has more cells than the header has columns")
        row = dict(zip(columns, cells, strict=False))
        if _has_protocols(columns):
            return _by_protocol(row, defaults, lines)
        return defaults.proxies(parts_of(row, lines.address))

    return each(numbered, read)


def with_protocol(defaults: Defaults, name: str) -> Defaults:
    """Return the defaults for a column or key named after a protocol."""
    offered = defaults.proxies({"host": "gw.example", "port": 1, "protocol": name})
    return replace(defaults, protocol=offered[0].protocol)


def _by_protocol(row: dict[str, str], defaults: Defaults, lines: Lines) -> Iterable[Proxy]:
    for name, cell in row.items():
        if cell.strip():
            below = with_protocol(defaults, name)
            for parts in lines.read(cell):
                yield from below.proxies(parts)


def _has_place(columns: list[str]) -> bool:
    fields = {field_of(column) for column in columns}
    return has_address(columns) and (
        "port" in fields or "address" in fields or len(fields & {"host", "protocol"}) > 0
    )


def _has_protocols(columns: list[str]) -> bool:
    return bool(columns) and all(map(protocol_of_name, columns))


def _but(columns: list[str]) -> str:
    # A line that is not a header may be a proxy with its password.
    if not all(map(_WORDS.fullmatch, columns)) and not any(map(field_of, columns)):
        return ""
    named = [column for column in columns if _TITLE.fullmatch(column) and len(column) < 40]
    return f", but {', '.join(named[:_SHOWN])}" if len(named) > 1 else ""


def _columns(header: str) -> tuple[str, list[str]]:
    """Return a table's delimiter and the columns that its header names."""
    delimiter = max(_DELIMITERS, key=header.count)
    try:
        return delimiter, [name.strip().lower() for name in _cells(header, delimiter)]
    except Unreadable:
        return delimiter, []


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line.strip("\r\n")], delimiter=delimiter, strict=True), [])
    except csv.Error as error:
        reason = f"is not valid CSV ({error})"
        raise Unreadable(reason) from None

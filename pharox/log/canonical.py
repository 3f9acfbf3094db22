"""Compute the sealed bytes of an event in Python, from its row.

The schema's functions ``digest`` and ``root`` define what is sealed. This module
implements them in Python, so that an archived part of the log can be verified
without a database. The bytes of an event are the digest's version and all
columns, separated by commas. A text is quoted as PostgreSQL quotes a literal, or
NULL. Other nulls are empty. A column that is added later is covered by a later
version, and the bytes of older events do not change. A timestamp is the seconds
since 1970 with six decimals. ``data`` is the text that PostgreSQL prints for it:
parsing it would lose the order of keys and the digits of numbers.

A tick's root covers the previous root, the tick as a JSON array with
PostgreSQL's spacing, and the concatenated digests of its events. Whoever knows the
last root can detect a change anywhere in the log.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from pharox.errors import InvalidInputError

DIGEST_VERSION = 1
"""Determines the covered columns and their order. A seal stores the version it was made with."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def canonical(row: Mapping[str, Any]) -> bytes:
    """Return the bytes that the digest of an event covers.

    Parameters
    ----------
    row:
        The columns of the table ``events`` by name: ``recorded_at`` with a time
        zone, ids as UUIDs or in their usual spelling, ``data`` as the text that
        PostgreSQL prints.
    """
    columns = (
        DIGEST_VERSION,
        row["position"],
        row["tx"],
        _moment(row["recorded_at"]),
        _literal(row["type"]),
        row["schema_version"],
        row["pool_id"],
        row["proxy_id"],
        row["lease_id"],
        _literal(row["consumer"]),
        row["consumer_id"],
        _literal(row["pool_name"]),
        _moment(row["expires_at"]),
        _moment(row["acquired_at"]),
        _literal(row["status_before"]),
        _literal(row["status_after"]),
        row["leases_before"],
        row["leases_after"],
        row["max_concurrency_before"],
        row["max_concurrency_after"],
        _literal(row["selector"]),
        _literal(row["actor"]),
        _literal(row["correlation_id"]),
        _ids(row["proxy_ids"]),
        row["data"],
    )
    return ",".join("" if column is None else str(column) for column in columns).encode()


def digest(row: Mapping[str, Any]) -> bytes:
    """Return the digest that seals the event in this row; see :func:`canonical`."""
    return hashlib.sha256(canonical(row)).digest()


def row_of(content: bytes) -> dict[str, Any]:
    """Return the row whose canonical bytes these are; its ``data`` is parsed.

    Raises
    ------
    InvalidInputError
        If they are not those of an event in the version that is known here.
    """
    try:
        version, *values = _values(content.decode())
        if version != str(DIGEST_VERSION):
            raise InvalidInputError(f"the event is sealed in version {version}, unknown here")
        columns = zip(_COLUMNS, values, strict=True)
        row = {name: None if value is None else read(value) for (name, read), value in columns}
    except (ValueError, OverflowError, RecursionError) as error:
        if isinstance(error, InvalidInputError):
            raise
        raise InvalidInputError("these are not the bytes of an event") from error
    return row


def root(before: bytes, tick: Mapping[str, Any], digests: Iterable[bytes]) -> bytes:
    """Return the root of a tick.

    Parameters
    ----------
    before:
        The root of the tick before, empty for the first.
    tick:
        The columns of the table ``ticks`` by name, ``snapshot`` as text.
    digests:
        Those of the tick's events, by ``seq``.
    """
    total = hashlib.sha256(before)
    described = ", ".join(
        (
            str(tick["first_seq"]),
            str(tick["last_seq"]),
            json.dumps(str(tick["snapshot"])),
            str(tick["anchor"]),
            str(tick["system_identifier"]),
            _seconds(tick["sealed_at"]),
        )
    )
    total.update(f"[{described}]".encode())
    for one in digests:
        total.update(one)
    return total.digest()


def _values(text: str) -> Iterator[str | None]:
    """Yield the values of a line: quoted texts as they were, None for what is null or empty."""
    at = 0
    for _ in range(len(_COLUMNS)):  # the version, and all but ``data``, which ends the line
        found = _VALUE.match(text, at)
        if found is None:
            raise ValueError(at)
        escaped, quoted, plain = found.groups()
        if quoted is None:
            yield None if plain in ("", "NULL") else plain
        else:
            unquoted = quoted.replace("''", "'")
            yield unquoted.replace("\\\\", "\\") if escaped else unquoted
        at = found.end()
    yield text[at:] or None


def _at(text: str) -> datetime:
    """Return a moment given as seconds since 1970."""
    found = _SECONDS.fullmatch(text)
    if found is None:
        raise ValueError(text)
    sign, whole, rest = found.groups()
    elapsed = timedelta(seconds=int(whole), microseconds=int(rest))
    return _EPOCH - elapsed if sign else _EPOCH + elapsed


def _read_ids(text: str) -> list[UUID]:
    return [UUID(each) for each in text.strip("{}").split(",") if each]


_SECONDS = re.compile(r"(-?)([0-9]+)\.([0-9]{6})")
_VALUE = re.compile(r"(?:(E?)'((?:[^']|'')*)'|(\{[^}]*\}|[^,']*)),")
"""A value of a line and the comma behind it."""

_COLUMNS: tuple[tuple[str, Callable[[str], Any]], ...] = (
    ("position", int),
    ("tx", int),
    ("recorded_at", _at),
    ("type", str),
    ("schema_version", int),
    ("pool_id", UUID),
    ("proxy_id", UUID),
    ("lease_id", UUID),
    ("consumer", str),
    ("consumer_id", UUID),
    ("pool_name", str),
    ("expires_at", _at),
    ("acquired_at", _at),
    ("status_before", str),
    ("status_after", str),
    ("leases_before", int),
    ("leases_after", int),
    ("max_concurrency_before", int),
    ("max_concurrency_after", int),
    ("selector", str),
    ("actor", str),
    ("correlation_id", str),
    ("proxy_ids", _read_ids),
    ("data", json.loads),
)
"""The columns of a line behind its version, and how each is read."""


def _literal(value: str | None) -> str:
    """Return a text as PostgreSQL's ``quote_nullable`` does."""
    if value is None:
        return "NULL"
    quoted = value.replace("\\", "\\\\").replace("'", "''")
    return f"E'{quoted}'" if "\\" in value else f"'{quoted}'"


def _ids(values: Iterable[object] | None) -> str | None:
    """Return ids as PostgreSQL prints an array of them."""
    return None if values is None else f"{{{','.join(map(str, values))}}}"


def _moment(moment: datetime | None) -> str | None:
    return None if moment is None else _seconds(moment)


def _seconds(moment: datetime) -> str:
    microseconds = (moment - _EPOCH) // _MICROSECOND
    whole, rest = divmod(abs(microseconds), 1_000_000)
    return f"{'-' if microseconds < 0 else ''}{whole}.{rest:06d}"

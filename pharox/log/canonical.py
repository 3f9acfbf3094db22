"""The bytes that seal an event, made in Python from its row.

The schema's functions ``digest`` and ``root`` decide what is sealed; this says
the same in another language, so that a part of the log that left the database
can be checked without one. The bytes of an event are a JSON array of the digest's
version and all columns, with the spaces that PostgreSQL puts. A column that is added
later is covered by a later version, and the bytes of older events stay what they are. A
moment is the seconds since 1970 with six decimals. ``data`` is the text that
PostgreSQL prints for it: the order of its keys and the digits of its numbers
are PostgreSQL's own, and no parser keeps them.

A tick's root covers the root before it, the tick itself, and its events'
digests one after another, so whoever knows the last root can tell a change
anywhere in the log.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

DIGEST_VERSION = 1
"""Which columns are covered, and in which order. A seal keeps the version it was made with."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def canonical(row: Mapping[str, Any]) -> bytes:
    """Return the bytes of an event that its digest covers.

    Parameters
    ----------
    row:
        The columns of the table ``events`` by name: ``recorded_at`` with a time
        zone, ids as UUIDs or in their usual spelling, ``data`` as the text that
        PostgreSQL prints.
    """
    return _array(
        _number(DIGEST_VERSION),
        _number(row["position"]),
        _text(row["tx"]),
        _seconds(row["recorded_at"]),
        _text(row["type"]),
        _number(row["schema_version"]),
        _text(row["pool_id"]),
        _text(row["proxy_id"]),
        _text(row["lease_id"]),
        _text(row["consumer"]),
        _text(row["consumer_id"]),
        _text(row["pool_name"]),
        _seconds(row["expires_at"]),
        _seconds(row["acquired_at"]),
        _text(row["status_before"]),
        _text(row["status_after"]),
        _number(row["leases_before"]),
        _number(row["leases_after"]),
        _number(row["max_concurrency_before"]),
        _number(row["max_concurrency_after"]),
        _text(row["selector"]),
        _text(row["actor"]),
        _text(row["correlation_id"]),
        _texts(row["proxy_ids"]),
        row["data"] or "null",
    )


def digest(row: Mapping[str, Any]) -> bytes:
    """Return the digest that an event of this row is sealed with; see :func:`canonical`."""
    return hashlib.sha256(canonical(row)).digest()


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
    total.update(
        _array(
            _number(tick["first_seq"]),
            _number(tick["last_seq"]),
            _text(tick["snapshot"]),
            _number(tick["anchor"]),
            _number(tick["system_identifier"]),
            _seconds(tick["sealed_at"]),
        )
    )
    for one in digests:
        total.update(one)
    return total.digest()


def _array(*items: str) -> bytes:
    return f"[{', '.join(items)}]".encode()


def _number(value: int | None) -> str:
    return "null" if value is None else str(int(value))


def _text(value: object | None) -> str:
    return "null" if value is None else json.dumps(str(value), ensure_ascii=False)


def _texts(values: Iterable[object] | None) -> str:
    """Return an array as PostgreSQL prints one within JSON: without spaces."""
    return "null" if values is None else f"[{','.join(map(_text, values))}]"


def _seconds(moment: datetime | None) -> str:
    if moment is None:
        return "null"
    microseconds = (moment - _EPOCH) // _MICROSECOND
    whole, rest = divmod(abs(microseconds), 1_000_000)
    return f"{'-' if microseconds < 0 else ''}{whole}.{rest:06d}"

"""Identifiers: time-ordered for leases, derived for imported proxies.

A lease id is a UUID of version 7 (RFC 9562, section 5.7): consecutive ids are
adjacent in an index, so the cost of a lease does not grow with the number of
past leases.
"""

from __future__ import annotations

import os
import time
from uuid import UUID, uuid5

_MADE = 28776
"""The constant in the schema's function ``is_made_v1``."""

NIL = UUID(int=0)
"""Stands for "no pool" in an event that has none, such as a miss in an unknown pool."""


def uuid7() -> UUID:
    """Return a new time-ordered UUID: 48 bits of Unix milliseconds, 74 random bits."""
    millis = time.time_ns() // 1_000_000
    tail = int.from_bytes(os.urandom(10), "big")
    return _stamped((millis << 80) | tail, version=7)


def made_lease_id() -> UUID:
    """Return an id for a lease whose caller chose none: a time-ordered UUID that can be recognized.

    The exclusive or of its eight 16-bit words is :data:`_MADE`. The ledger recognizes such an
    id when it is sent again: it has been granted, even if only the log still has it.
    """
    value = uuid7().int >> 16 << 16
    words = value
    for width in (64, 32, 16):
        words ^= words >> width
    return UUID(int=value | (words & 0xFFFF) ^ _MADE)


def new_lease_id() -> UUID:
    """Return an id for a lease, to pass to acquire so that a retry cannot lease twice."""
    return uuid7()


def following(uuid: UUID) -> UUID:
    """Return the id right after ``uuid``, where the next page begins."""
    return UUID(int=min(uuid.int + 1, 2**128 - 1))


def imported_proxy_id(pool_id: UUID, protocol: str, host: str, port: int) -> UUID:
    """Return the id of an imported proxy without credentials, the same on every import."""
    return uuid5(pool_id, "\x00".join((protocol, host, str(port), "")))


def derived_id(digest: bytes) -> UUID:
    """Return a UUID of version 8 (RFC 9562) made from a digest of 16 bytes."""
    return _stamped(int.from_bytes(digest, "big"), version=8)


def health_record_id(proxy_id: UUID, position: int) -> UUID:
    """Return the id of a health record, derived from its position in the log."""
    return uuid5(proxy_id, str(position))


def _stamped(value: int, *, version: int) -> UUID:
    """Return 128 bits as a UUID of this version, in the variant of RFC 9562."""
    value = (value & ~(0xF << 76)) | (version << 76)
    value = (value & ~(0x3 << 62)) | (0x2 << 62)
    return UUID(int=value)

"""Identifiers: time-ordered for leases, derived for imported proxies.

A lease id is a UUID of version 7 (RFC 9562, section 5.7): ids made one after
the other lie side by side in an index, so the cost of a lease does not grow
with the leases of last year.
"""

from __future__ import annotations

import os
import time
from uuid import UUID, uuid5

_MADE = 28776
"""As the function ``is_made_v1`` of the schema has it."""

NIL = UUID(int=0)
"""Stands for "no pool" in an event that has none, such as a miss in an unknown pool."""


def uuid7() -> UUID:
    """Return a new time-ordered UUID: 48 bits of Unix milliseconds, 74 random bits."""
    millis = time.time_ns() // 1_000_000
    tail = int.from_bytes(os.urandom(10), "big")
    return _stamped((millis << 80) | tail, version=7)


def made_lease_id() -> UUID:
    """Return an id for a lease whose caller chose none: a time-ordered UUID of a known form.

    The exclusive or of its eight words of 16 bits is :data:`_MADE`, so that the ledger
    knows one that comes back: it was granted once, also if only the log remembers.
    """
    value = uuid7().int >> 16 << 16
    words = value
    for width in (64, 32, 16):
        words ^= words >> width
    return UUID(int=value | (words & 0xFFFF) ^ _MADE)


def new_lease_id() -> UUID:
    """Return an id to acquire a lease under, so that asking again cannot lease twice."""
    return uuid7()


def following(uuid: UUID) -> UUID:
    """Return the id right after ``uuid``, where the next page begins."""
    return UUID(int=min(uuid.int + 1, 2**128 - 1))


def imported_proxy_id(pool_id: UUID, protocol: str, host: str, port: int) -> UUID:
    """Return the id of an imported proxy without credentials, the same for each time."""
    return uuid5(pool_id, "\x00".join((protocol, host, str(port), "")))


def derived_id(digest: bytes) -> UUID:
    """Return the id that a digest of 16 bytes stands for: a UUID of version 8 (RFC 9562)."""
    return _stamped(int.from_bytes(digest, "big"), version=8)


def health_record_id(proxy_id: UUID, position: int) -> UUID:
    """Return the id of a health record: derived, as the log knows it by its position."""
    return uuid5(proxy_id, str(position))


def _stamped(value: int, *, version: int) -> UUID:
    """Return 128 bits as a UUID of this version, in the variant of RFC 9562."""
    value = (value & ~(0xF << 76)) | (version << 76)
    value = (value & ~(0x3 << 62)) | (0x2 << 62)
    return UUID(int=value)

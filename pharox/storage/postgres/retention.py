"""Find the archived parts of the log, and reject reads that would need them.

A reader that ignored them would silently return a wrong result. So a
read that needs an archived event raises an error that says where the event is. A
part is listed as archived before it leaves its table, and a reader reads the
list after its read has begun, so it cannot miss a part that leaves meanwhile.

All events of a lease are available if its acquisition is, because the others
came later.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC
from functools import lru_cache
from typing import Any

from sqlalchemy import Uuid, select

from pharox.log import Extract, events, partitions

from ...errors import ArchivedError
from .driver import Session
from .sql import ONE, Statement, compiled, parameter, text_literal

Part = Mapping[str, Any]
"""A row of the table ``partitions``."""


@lru_cache(maxsize=16)
def archived_statement(schema: str) -> Statement:
    """Return the statement that lists the archived parts of the log, oldest first."""
    query = (
        select(partitions)
        .where(partitions.c.archive.is_not(None))
        .order_by(partitions.c.first_position)
    )
    return compiled(query, schema)


@lru_cache(maxsize=16)
def _acquisition_statement(schema: str) -> Statement:
    acquired = select(ONE.label("one")).where(
        events.c.lease_id == parameter("lease_id", Uuid),
        events.c.type == text_literal("LeaseAcquired"),
    )
    return compiled(acquired, schema)


def refuse_archived(session: Session, schema: str, extract: Extract) -> None:
    """Raise an error if an extract needs archived events. Its read must have begun.

    Raises
    ------
    ArchivedError
        With ``last_seq`` and ``last_recorded_at`` of the last of them, and ``archive``.
    """
    needed = parts_needed(session.rows(archived_statement(schema)), extract)
    if not needed:
        return
    if extract.lease_id is not None:
        acquisition = _acquisition_statement(schema)
        if session.rows(acquisition, lease_id=extract.lease_id):
            return
    raise archived_error(needed)


def parts_needed(parts: Iterable[Part], extract: Extract) -> list[Part]:
    """Return the archived parts that may contain events of an extract."""
    return [part for part in parts if _may_hold(part, extract)]


def archived_error(parts: Sequence[Part]) -> ArchivedError:
    """Return the error that says up to which event the log is archived, and in which file."""
    last = max(parts, key=lambda part: part["last_seq"])
    moment = max(part["last_recorded_at"] for part in parts).astimezone(UTC)
    return ArchivedError(
        f"events up to seq {last['last_seq']} ({moment:%Y-%m-%dT%H:%M:%S.%fZ}) are archived "
        f"in {last['archive']}; ask for later events, or read the archive too",
        last_seq=last["last_seq"],
        last_recorded_at=moment,
        archive=last["archive"],
    )


def _may_hold(part: Part, extract: Extract) -> bool:
    return (
        part["last_seq"] is not None
        and extract.after < part["last_seq"]
        and extract.upto >= part["first_seq"]
        and (extract.since is None or extract.since <= part["last_recorded_at"])
        and (extract.until is None or extract.until > part["first_recorded_at"])
    )

"""Administer subscriptions: list them, look at parked events, retry, reset and remove."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from pharox.errors import ConflictError, SubscriptionNotFoundError
from pharox.log.extract import BIGGEST
from pharox.models import check_name, check_text, check_whole
from pharox.storage.interface import IStorage
from pharox.storage.postgres.driver import Session

from . import statements
from .options import Start, check_start
from .subscription import checkpoint_before, in_postgres


@dataclass(frozen=True, slots=True)
class SubscriptionStatus:
    """The progress of a subscription.

    ``lag_seconds`` is the age of the first event after the checkpoint, 0 if there
    is none. ``active`` says whether a reader was seen recently.
    """

    name: str
    checkpoint: int
    epoch: int
    active: bool
    lag_events: int
    lag_seconds: float
    parked: int


@dataclass(frozen=True, slots=True)
class ParkedEvent:
    """An event that a handler failed on or, without an error, one that waits behind it."""

    seq: int
    type: str
    key: str
    attempts: int
    error: str | None
    parked_at: datetime
    retry: bool


@dataclass(frozen=True, slots=True)
class Reset:
    """The seq a subscription continues with, and how many parked events were dropped."""

    next_seq: int
    forgotten: int


def subscriptions(storage: IStorage) -> list[SubscriptionStatus]:
    """Return every subscription, by name.

    Raises
    ------
    InvalidInputError
        If the storage is not in PostgreSQL.
    """
    checked = in_postgres(storage)
    checked.seal()
    with checked.session() as session:
        return [
            SubscriptionStatus(**row) for row in session.rows(statements.statuses(checked.schema))
        ]


def parked(storage: IStorage, name: str) -> list[ParkedEvent]:
    """Return the parked events of a subscription, in order.

    Raises
    ------
    SubscriptionNotFoundError
        If there is no such subscription.
    """
    with _session(storage, name) as (session, schema):
        rows = session.rows(statements.parked(schema), name=name)
        return [ParkedEvent(**row) for row in rows]


def retry(storage: IStorage, name: str, *, key: str | None = None, seq: int | None = None) -> int:
    """Mark parked events for the reader to retry, and return how many.

    Parameters
    ----------
    storage:
        Where the subscription is kept.
    name:
        The subscription's.
    key:
        Only events parked under this key.
    seq:
        Only events under the key of this event: the order of a key is kept.

    Raises
    ------
    SubscriptionNotFoundError
        If there is no such subscription.
    """
    with _session(storage, name) as (session, schema):
        if key is not None:
            check_text(key)
        if seq is not None:
            seq = min(max(check_whole(seq, "seq"), 0), BIGGEST)
        return session.run(statements.mark(schema), name=name, key=key, seq=seq)


def reset(storage: IStorage, name: str, to: Start) -> Reset:
    """Move a subscription to another place in the log, and drop its parked events.

    Waits for the current batch.

    Parameters
    ----------
    storage:
        Where the subscription is kept.
    name:
        The subscription's.
    to:
        "beginning", "now", or the seq of the first event to be delivered.

    Raises
    ------
    InvalidInputError
        If that is not a place in the log, or beyond its end.
    SubscriptionNotFoundError
        If there is no such subscription.
    """
    checked = in_postgres(storage)
    check_start(to)
    checkpoint = checkpoint_before(to, checked)
    with _session(checked, name) as (session, schema):
        session.run(statements.move(schema), name=name, checkpoint=checkpoint)
        forgotten = session.run(statements.forget_parked(schema), name=name)
    return Reset(checkpoint + 1, forgotten)


def remove(storage: IStorage, name: str) -> None:
    """Remove a subscription, its checkpoint and its parked events.

    Raises
    ------
    SubscriptionNotFoundError
        If there is no such subscription.
    ConflictError
        If it has a reader, which must be stopped first.
    """
    with _session(storage, name) as (session, schema):
        if not session.run(statements.remove(schema), name=name):
            raise ConflictError(
                f"subscription {name!r} has a running reader; stop it first", name=name
            )
        session.run(statements.forget_parked(schema), name=name)


@contextmanager
def _session(storage: IStorage, name: str) -> Iterator[tuple[Session, str]]:
    """Open a session in which the subscription was found; yield it with the schema's name."""
    checked = in_postgres(storage)
    with checked.session() as session:
        check_name(name, "subscription")
        if not session.rows(statements.find(checked.schema), name=name):
            raise SubscriptionNotFoundError(f"Subscription {name!r} not found.", name=name)
        yield session, checked.schema

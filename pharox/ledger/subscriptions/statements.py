"""The SQL statements of readers and of the administration of subscriptions.

The subscription's row is the lock and the fence: a batch locks it from its first
read to its checkpoint, and a reader that takes over must lock it first. ``seen_at``
is always the server's time, so readers' clocks do not matter.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from psycopg import sql
from sqlalchemy.dialects.postgresql import insert as upsert

from pharox.log import events, last_tick, parked_events, seals, subscriptions
from pharox.storage.postgres.history import SEALED, position_before
from pharox.storage.postgres.sql import (
    ONE,
    Statement,
    by_schema,
    now,
    parameter,
    quoted,
    text_literal,
)

TAKE_OVER_S = 2.5
"""How long an owner may be silent before another reader takes over."""

s, p = subscriptions, parked_events
_NAME = parameter("name", sa.Text)
_ME = parameter("me", sa.Uuid)
_SEQ = parameter("seq", sa.BigInteger)
_is_mine = (s.c.name == _NAME, s.c.owner == _ME)
_is_silent = sa.or_(
    s.c.owner.is_(None),
    s.c.seen_at < sa.literal_column(f"clock_timestamp() - interval '{TAKE_OVER_S} seconds'"),
)
_is_parked = p.c.subscription == _NAME


def _to_be_retried() -> sa.ColumnElement[bool]:
    marked = sa.select(ONE).where(p.c.subscription == s.c.name, p.c.retry)
    return marked.exists().label("retries")


@by_schema
def register() -> Any:
    """Insert a subscription unless its name exists."""
    values = {"name": _NAME, "checkpoint": parameter("checkpoint", sa.BigInteger)}
    return upsert(s).values(**values, epoch=sa.literal_column("0")).on_conflict_do_nothing()


@by_schema
def claim() -> Any:
    """Become the owner, unless another reader was seen recently."""
    # SKIP LOCKED: a batch of the owner holds the row, and nobody waits for it.
    free = (
        sa.select(s.c.name)
        .where(s.c.name == _NAME, sa.or_(s.c.owner == _ME, _is_silent))
        .with_for_update(skip_locked=True)
    )
    another = sa.case((s.c.owner.is_distinct_from(_ME), ONE), else_=sa.literal_column("0"))
    return (
        sa.update(s)
        .where(s.c.name == free.scalar_subquery())
        .values(owner=_ME, seen_at=sa.func.clock_timestamp(), epoch=s.c.epoch + another)
        .returning(s.c.checkpoint, s.c.epoch, _to_be_retried())
    )


@by_schema
def renew() -> Any:
    """Update ``seen_at``; no row if another reader is the owner now."""
    return (
        sa.update(s)
        .where(*_is_mine)
        .values(seen_at=sa.func.clock_timestamp())
        .returning(s.c.checkpoint, _to_be_retried())
    )


@by_schema
def release() -> Any:
    """Give the ownership up for the next reader that claims it."""
    return sa.update(s).where(*_is_mine).values(owner=sa.null(), seen_at=sa.null())


@by_schema
def lock() -> Any:
    """Lock the subscription until the end of the transaction; no row if that fails."""
    return (
        sa.select(s.c.checkpoint, _to_be_retried())
        .where(*_is_mine)
        .with_for_update(skip_locked=True, of=s)
    )


@by_schema
def advance() -> Any:
    """Move the checkpoint."""
    checkpoint = parameter("checkpoint", sa.BigInteger)
    return (
        sa.update(s)
        .where(*_is_mine)
        .values(checkpoint=checkpoint, seen_at=sa.func.clock_timestamp())
    )


@by_schema
def parked_keys() -> Any:
    """Select the keys that have parked events."""
    return sa.select(p.c.key).distinct().where(_is_parked)


@by_schema
def park() -> Any:
    """Park an event, with its error, or without one behind another event of its key."""
    row = sa.insert(p).values(
        subscription=_NAME,
        seq=_SEQ,
        key=parameter("key", sa.Text),
        attempts=parameter("attempts", sa.Integer),
        error=parameter("error", sa.Text),
        parked_at=now,
    )
    return row.inline()  # otherwise SQLAlchemy adds RETURNING


@by_schema
def next_retry() -> Any:
    """Select the first event marked for a retry, which is always the first of its key."""
    return sa.select(p.c.seq, p.c.key).where(_is_parked, p.c.retry).order_by(p.c.seq).limit(ONE)


@by_schema
def take_back() -> Any:
    """Delete a parked event."""
    return sa.delete(p).where(_is_parked, p.c.seq == _SEQ)


@by_schema
def mark_key() -> Any:
    """Mark the parked events of a key for a retry."""
    return (
        sa.update(p).where(_is_parked, p.c.key == parameter("key", sa.Text)).values(retry=sa.true())
    )


@by_schema
def leave_parked() -> Any:
    """Store the error of a failed retry, and unmark the events of its key."""
    tried = p.c.seq == _SEQ
    key = sa.select(p.c.key).where(_is_parked, tried).scalar_subquery()
    return (
        sa.update(p)
        .where(_is_parked, p.c.key == key)
        .values(
            retry=sa.false(),
            attempts=p.c.attempts + sa.case((tried, ONE), else_=sa.literal_column("0")),
            error=sa.case((tried, parameter("error", sa.Text)), else_=p.c.error),
        )
    )


@by_schema
def session_pid() -> Any:
    """Select the process id of the server process."""
    return sa.select(sa.func.pg_backend_pid().label("pid"))


@by_schema
def keep_alive() -> Any:
    """Set TCP keepalives so that the server notices a dead client within seconds."""
    return sa.select(
        *(
            sa.func.set_config(
                text_literal(f"tcp_keepalives_{name}"), text_literal(value), sa.false()
            )
            for name, value in (("idle", "2"), ("interval", "1"), ("count", "3"))
        )
    )


def listening(schema: str) -> Statement:
    """Return the LISTEN statement for notifications of seals."""
    channel = sql.Identifier(f"pharox.{quoted(schema)}"[:63])
    return Statement(sql.SQL("LISTEN {}").format(channel).as_bytes(), (), {}, ())


@by_schema
def find() -> Any:
    """Select the subscription of this name."""
    return sa.select(s.c.name).where(s.c.name == _NAME)


@by_schema
def statuses() -> Any:
    """Select the progress of each subscription."""
    last = sa.select(sa.func.coalesce(sa.func.max(last_tick.c.last_seq), sa.literal_column("0")))
    behind = (
        sa.select(events.c.recorded_at)
        .select_from(SEALED)
        .where(seals.c.seq > s.c.checkpoint)
        .where(*(table.c.position > position_before(s.c.checkpoint) for table in (seals, events)))
        .order_by(seals.c.seq)
        .limit(ONE)
        .correlate(s)
    )
    zero = sa.literal_column("0", sa.Integer)
    lag = sa.cast(sa.extract("epoch", now - behind.scalar_subquery()), sa.Float)
    waiting = sa.select(sa.func.count()).select_from(p).where(p.c.subscription == s.c.name)
    return sa.select(
        s.c.name,
        s.c.checkpoint,
        s.c.epoch,
        sa.not_(_is_silent).label("active"),
        sa.func.greatest(last.scalar_subquery() - s.c.checkpoint, zero).label("lag_events"),
        sa.func.greatest(sa.func.coalesce(lag, zero), zero).label("lag_seconds"),
        waiting.scalar_subquery().label("parked"),
    ).order_by(s.c.name.collate("C"))


@by_schema
def parked() -> Any:
    """Select the parked events of a subscription."""
    sealed = p.join(seals, seals.c.seq == p.c.seq).join(
        events, events.c.position == seals.c.position
    )
    return (
        sa.select(
            p.c.seq, events.c.type, p.c.key, p.c.attempts, p.c.error, p.c.parked_at, p.c.retry
        )
        .select_from(sealed)
        .where(_is_parked)
        .order_by(p.c.seq)
    )


@by_schema
def mark() -> Any:
    """Mark parked events for a retry: all, those of a key, or those of an event's key."""
    key, seq = parameter("key", sa.Text), _SEQ
    one = p.alias("one")
    of_seq = sa.select(one.c.key).where(one.c.subscription == _NAME, one.c.seq == seq)
    return (
        sa.update(p)
        .where(
            _is_parked,
            sa.or_(key.is_(None), p.c.key == key),
            sa.or_(seq.is_(None), p.c.key == of_seq.scalar_subquery()),
        )
        .values(retry=sa.true())
    )


@by_schema
def move() -> Any:
    """Set the checkpoint to another place."""
    return (
        sa.update(s)
        .where(s.c.name == _NAME)
        .values(checkpoint=parameter("checkpoint", sa.BigInteger))
    )


@by_schema
def forget_parked() -> Any:
    """Delete all parked events."""
    return sa.delete(p).where(_is_parked)


@by_schema
def remove() -> Any:
    """Delete a subscription without an active reader."""
    return sa.delete(s).where(s.c.name == _NAME, _is_silent)

"""The reader of a subscription: the rules of delivery, without I/O.

A batch is one transaction: lock the subscription's row, read sealed events
after the checkpoint, call the handler, move the checkpoint. A reader that loses its
connection loses the lock with it and cannot commit anything any more. This needs no
session state, so a pooler may use another connection for each transaction.

One reader owns the name and keeps it. Another one takes over only when the row is
unlocked and the owner has been silent. Each change of owner increases the epoch.

An event that the handler fails on is retried alone, with growing pauses outside of
the transaction, and then parked. Later events of its key are parked behind it.

Not known here: what a handler does outside of the database. A disconnected owner may
still be in its handler when the next one begins; the epoch is there for this case.
"""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple
from uuid import uuid4

import psycopg
from psycopg.pq import TransactionStatus
from tenacity import RetryCallState, Retrying, wait_random_exponential
from tenacity.wait import wait_base

from pharox.errors import DatabaseError, DatabaseUnavailableError
from pharox.events import Event
from pharox.log import Extract, event_from_row
from pharox.models.text import escape_unprintable
from pharox.storage.postgres import PostgresStorage
from pharox.storage.postgres.history import page_statement, positions_statement, seal_statement
from pharox.storage.postgres.retention import archived_error, archived_statement, parts_needed
from pharox.storage.postgres.sql import Query, Statement

from . import statements
from .delivery import Delivery, subject_of
from .effects import AwaitNotice, Call, Connect, InTransaction, Pause, Program, Together
from .options import SubscriptionOptions

RENEW_S = 1.0
"""How often an owner updates ``seen_at``."""
STANDBY_S = 0.5
"""How often a standby reader checks whether the owner is gone."""
BATCH_S = 1.0
"""How long a batch may take before it ends early to commit its checkpoint."""
WINDOW = 20_000
"""How many seqs to search at once for events that match a filter."""

_MAX_ERROR = 10_000
_RECONNECTING = wait_random_exponential(multiplier=0.2, max=10)
_AWAY = (psycopg.OperationalError, DatabaseUnavailableError)

logger = logging.getLogger("pharox")


class Reading(NamedTuple):
    """A subscription, where it is kept, and which part of the log it selects."""

    subscription: SubscriptionOptions
    storage: PostgresStorage
    selection: Extract


class DeposedError(Exception):
    """Another reader is the owner now, or another session has locked the row."""


class HandlerError(Exception):
    """The handler failed on the events from the first to the last seq."""

    def __init__(self, first: int, last: int, error: str) -> None:
        super().__init__(error)
        self.first, self.last, self.error = first, last, error


class Pauses:
    """Growing pauses between attempts, by a wait strategy of tenacity."""

    def __init__(self, strategy: wait_base) -> None:
        self._strategy = strategy
        self._state = RetryCallState(Retrying(), None, (), {})
        self.taken = 0

    def after_failure(self) -> float:
        """Count a failure and return how many seconds to wait."""
        self.taken += 1
        self._state.attempt_number = self.taken
        return float(self._strategy(self._state))


class Trouble:
    """An event that the handler fails on: the attempts so far, and the last error."""

    def __init__(self, seq: int, pauses: Pauses) -> None:
        self.seq, self.pauses = seq, pauses
        self.error = ""


class GivenUp(NamedTuple):
    """An event that was parked with its error, and the key whose events wait behind it."""

    seq: int
    key: str


class Done(NamedTuple):
    """The result of a batch: its checkpoint, and the failure that ended it early."""

    checkpoint: int
    failure: HandlerError | None = None


class Reader:
    """Reads for one subscription, competing with other readers of its name."""

    def __init__(self, reading: Reading, stopped: Callable[[], bool]) -> None:
        self._subscription, storage, selection = reading
        self._schema = storage.schema
        self._stopped = stopped
        self._me = uuid4()
        selected = selection.given()
        filtered = selected.keys() - {"after", "upto"}
        self._part = selection.part
        self._selection = {name: selected[name] for name in filtered}
        self._history = page_statement(self._schema, frozenset({*filtered, "after", "upto"}))
        self._window = WINDOW if filtered else self._subscription.batch_size
        self._connection: Any = None
        self._listens = False
        self._epoch = 0
        self._checkpoint = 0
        self._retries = False
        self._seen = 0.0
        self._trouble: Trouble | None = None
        self._given_up: GivenUp | None = None
        self._one_by_one = range(0)

    @property
    def checkpoint(self) -> int:
        """The seq up to which everything is delivered and committed; 0 until it is known."""
        return self._checkpoint

    def run(self) -> Program[None]:
        """Read until stopped, through as many connections as it takes.

        Raises
        ------
        ArchivedError
            If an event after the checkpoint may have been archived.
        DatabaseError
            If the database refuses a query of the reader.
        """
        pauses = Pauses(_RECONNECTING)
        while not self._stopped():
            try:
                self._connection = yield Connect()
                yield from self._greet()
                pauses = Pauses(_RECONNECTING)
                yield from self._compete()
            except (psycopg.Error, DatabaseUnavailableError) as error:
                if not self._is_away(error):
                    raise DatabaseError(f"the database refused: {error}") from error
                self._warn("pharox.subscription.disconnected: %s: %s", error)
                yield Pause(pauses.after_failure())

    def _is_away(self, error: Exception) -> bool:
        """Return whether an error means a lost connection, such as one idle for too long."""
        return isinstance(error, _AWAY) or (
            self._connection is not None and bool(self._connection.closed)
        )

    # Ownership

    def _greet(self) -> Program[None]:
        """Listen for seals, unless a pooler is in between, as the session is not ours then."""
        (row,) = yield self._query(statements.session_pid)
        self._listens = row["pid"] == self._connection.info.backend_pid
        if self._listens:
            yield self._query(statements.keep_alive)
            yield self._query(statements.listening)
        else:
            self._connection.prepare_threshold = None

    def _compete(self) -> Program[None]:
        try:
            while not self._stopped():
                rows = yield self._query(statements.claim)
                if not rows:
                    yield Pause(STANDBY_S)
                    continue
                self._note(rows[0])
                self._epoch = rows[0]["epoch"]
                try:
                    yield from self._lead()
                except DeposedError:
                    logger.info(
                        "pharox.subscription.deposed: %s",
                        escape_unprintable(self._subscription.name),
                    )
        finally:
            # An error here must not replace the exception that ended the loop.
            with suppress(psycopg.Error):
                yield self._query(statements.release)

    def _lead(self) -> Program[None]:
        """Deliver while this reader is the owner."""
        while not self._stopped():
            (row,) = yield Query(seal_statement(self._schema, wait=False), {})
            if self._retries:
                yield from self._retry()
            elif row["seq"] > self._checkpoint:
                yield from self._attempt(row["seq"])
            else:
                if time.monotonic() - self._seen > RENEW_S:
                    yield from self._renew()
                yield from self._await_news()

    def _await_news(self) -> Program[None]:
        seconds = min(self._subscription.poll_s, RENEW_S)
        yield AwaitNotice(seconds) if self._listens else Pause(seconds)

    def _renew(self) -> Program[None]:
        self._note_owned((yield self._query(statements.renew)))

    def _rest(self, seconds: float) -> Program[None]:
        """Wait between attempts and keep the ownership meanwhile."""
        until = time.monotonic() + seconds
        while not self._stopped() and (left := until - time.monotonic()) > 0:
            yield Pause(min(left, RENEW_S))
            yield from self._renew()

    def _note_owned(self, rows: Sequence[dict[str, Any]]) -> None:
        if not rows:
            raise DeposedError
        self._note(rows[0])

    def _note(self, row: dict[str, Any]) -> None:
        self._checkpoint, self._retries = row["checkpoint"], row["retries"]
        self._seen = time.monotonic()

    # A batch

    def _attempt(self, last: int) -> Program[None]:
        self._given_up = None
        try:
            done: Done = yield InTransaction(self._batch(last))
        except HandlerError as rolled_back:
            done = Done(self._checkpoint, rolled_back)
        else:
            self._warn_of_given_up()
        self._checkpoint = done.checkpoint
        self._seen = time.monotonic()
        if self._trouble is not None and self._trouble.seq <= self._checkpoint:
            self._trouble = None
        if self._listens:
            yield AwaitNotice(0)  # consume notifications, which would pile up while there is work
        if done.failure is not None:
            yield from self._try_again(done.failure)

    def _batch(self, last: int) -> Program[Done]:
        after, (upto, limit) = self._checkpoint, self._extent(last)
        positions = yield from self._positions(after, upto)
        values = {**self._selection, **positions, "after": after, "upto": upto, "limit": limit}
        # The lock comes first: without the row, nothing that is read below counts.
        owned, parked, rows, archived = yield Together(
            [
                self._query(statements.lock),
                self._query(statements.parked_keys),
                Query(self._history, values),
                Query(archived_statement(self._schema), {}),
            ]
        )
        self._note_owned(owned)
        if self._checkpoint != after:  # it was reset
            return Done(self._checkpoint)
        if needed := parts_needed(archived, Extract(after, upto)):
            raise archived_error(needed)
        blocked = {row["key"] for row in parked}
        events = [self._part(event_from_row(row)) for row in rows]
        if len(events) == limit:
            upto = events[-1].seq
        deliver = self._deliver_all if self._subscription.whole_batches else self._deliver_each
        done: Done = yield from deliver(events, upto, blocked)
        yield self._query(statements.advance, checkpoint=done.checkpoint)
        yield from self._check_constraints(events)
        return done

    def _extent(self, last: int) -> tuple[int, int]:
        """Return the last seq to read, and the maximum number of events."""
        after, alone = self._checkpoint, self._one_by_one
        upto = min(after + self._window, last)
        if after + 1 < alone.start:
            upto = min(upto, alone.start - 1)
        elif after + 1 in alone:
            return upto, 1
        return upto, self._subscription.batch_size

    def _deliver_each(self, events: Sequence[Event], upto: int, blocked: set[str]) -> Program[Done]:
        ends_at = time.monotonic() + BATCH_S
        for event in events:
            if self._stopped() or time.monotonic() > ends_at:
                return Done(event.seq - 1)
            try:
                if not (yield from self._put_aside(event, blocked)):
                    yield from self._call([event])
            except HandlerError as failure:
                if self._subscription.in_transaction:
                    raise
                return Done(event.seq - 1, failure)
        return Done(upto)

    def _deliver_all(self, events: Sequence[Event], upto: int, blocked: set[str]) -> Program[Done]:
        wanted = []
        for event in events:
            if not (yield from self._put_aside(event, blocked)):
                wanted.append(event)
        if wanted:
            yield from self._call(wanted)
        return Done(upto)

    def _call(self, events: Sequence[Event]) -> Program[None]:
        """Call the handler; raise its errors as :class:`HandlerError`."""
        subscription = self._subscription
        connection = self._connection if subscription.in_transaction else None
        deliveries = [
            Delivery(subscription.name, event, self._epoch, connection) for event in events
        ]
        argument: Any = deliveries if subscription.whole_batches else deliveries[0]
        first, last = events[0].seq, events[-1].seq
        try:
            yield Call(subscription.handler, argument)
        except Exception as error:
            if connection is not None and connection.closed:
                raise psycopg.OperationalError("the connection was lost in a handler") from error
            raise HandlerError(first, last, f"{type(error).__name__}: {error}") from error
        if connection is not None and not _is_open(connection):
            raise HandlerError(first, last, "the handler ended the transaction, or let it fail")

    def _check_constraints(self, events: Sequence[Event]) -> Program[None]:
        """Check deferred constraints now: a failing commit would not be a HandlerError."""
        if not (self._subscription.in_transaction and events):
            return
        try:
            yield Query(_CHECK, {})
        except psycopg.Error as error:
            if self._is_away(error):
                raise
            raise HandlerError(events[0].seq, events[-1].seq, str(error)) from error

    # Failures of the handler

    def _try_again(self, failure: HandlerError) -> Program[None]:
        """Continue one by one; pause before an event that failed alone."""
        yield from self._renew()  # the handler may have taken longer than TAKE_OVER_S
        self._one_by_one = range(failure.first, failure.last + 1)
        if failure.first < failure.last:
            return
        trouble = self._trouble
        if trouble is None or trouble.seq != failure.first:
            trouble = Trouble(failure.first, Pauses(self._subscription.pause))
        trouble.error = failure.error
        self._trouble = trouble
        pause = trouble.pauses.after_failure()
        self._warn(
            "pharox.subscription.failed: %s: event %s, attempt %s: %s",
            trouble.seq,
            trouble.pauses.taken,
            trouble.error,
        )
        if not self._is_spent(trouble.seq):
            yield from self._rest(pause)

    def _is_spent(self, seq: int) -> bool:
        trouble, attempts = self._trouble, self._subscription.attempts
        if trouble is None or attempts is None:
            return False
        return trouble.seq == seq and trouble.pauses.taken >= attempts

    def _put_aside(self, event: Event, blocked: set[str]) -> Program[bool]:
        """Park an event that used up its attempts or waits behind one; return whether."""
        spent = self._is_spent(event.seq)
        if not (blocked or spent):
            return False
        key = _storable((self._subscription.key or subject_of)(event))
        if not spent and key not in blocked:
            return False
        blocked.add(key)
        known = self._trouble if spent else None
        if spent:
            self._given_up = GivenUp(event.seq, key)
        yield self._query(
            statements.park,
            seq=event.seq,
            key=key,
            attempts=known.pauses.taken if known else 0,
            error=_storable(known.error) if known else None,
        )
        return True

    def _warn_of_given_up(self) -> None:
        """Log a parked event, after the commit, so that each is logged once."""
        if self._given_up is not None:
            self._warn(
                "pharox.subscription.parked: %s: event %s parked; "
                "later events of %s wait behind it; `pharox subscriptions retry %s`",
                *self._given_up,
                shlex.quote(self._subscription.name),
            )

    def _retry(self) -> Program[None]:
        """Try the first event marked for a retry, once."""
        try:
            yield InTransaction(self._deliver_parked())
        except HandlerError as failure:
            yield InTransaction(self._leave_parked(failure))
            self._warn(
                "pharox.subscription.failed: %s: event %s stays parked: %s",
                failure.first,
                failure.error,
            )

    def _deliver_parked(self) -> Program[None]:
        self._note_owned((yield self._query(statements.lock)))
        rows = yield self._query(statements.next_retry)
        self._retries = bool(rows)
        if not rows:
            return
        seq = rows[0]["seq"]
        one = page_statement(self._schema, frozenset({"after", "upto"}))
        positions = yield from self._positions(seq - 1, seq)
        found = yield Query(one, {**positions, "after": seq - 1, "upto": seq, "limit": 1})
        if not found:
            raise HandlerError(seq, seq, "the event is in an archived part of the log")
        events = [self._part(event_from_row(found[0]))]
        yield from self._call(events)
        yield self._query(statements.take_back, seq=seq)
        yield self._query(statements.mark_key, key=rows[0]["key"])
        yield self._query(statements.advance, checkpoint=self._checkpoint)
        yield from self._check_constraints(events)

    def _leave_parked(self, failure: HandlerError) -> Program[None]:
        self._note_owned((yield self._query(statements.lock)))
        error = _storable(failure.error)
        yield self._query(statements.leave_parked, seq=failure.first, error=error)

    def _warn(self, sentence: str, *values: object) -> None:
        """Log a warning about this subscription, with unprintable characters escaped."""
        shown = (escape_unprintable(str(value)) for value in (self._subscription.name, *values))
        logger.warning(sentence, *shown)

    def _positions(self, after: int, upto: int) -> Program[dict[str, Any]]:
        """Query between which positions a range of seqs lies."""
        span = {"after": after, "upto": upto}
        row: dict[str, Any]
        (row,) = yield Query(positions_statement(self._schema), span)
        return row

    def _query(self, statement: Callable[[str], Statement], **values: Any) -> Query:
        known = {"name": self._subscription.name, "me": self._me}
        return Query(statement(self._schema), {**known, **values})


_CHECK = Statement(b"SET CONSTRAINTS ALL IMMEDIATE", (), {}, ())


def _is_open(connection: Any) -> bool:
    return bool(connection.info.transaction_status == TransactionStatus.INTRANS)


def _storable(text: str) -> str:
    """Return text that the database can store."""
    cleaned = text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()
    return cleaned[:_MAX_ERROR]

"""The exceptions of pharox, one class for each thing that can go wrong.

Every error that a caller can cause or must handle is a :class:`PharoxError`.
An error carries its data as attributes. If a driver raised first, that exception
is chained. The docstring of each class says what to do next.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

LONGEST_MESSAGE = 2000
"""The middle of a longer message is left out: it quotes a value that nobody reads."""


class PharoxError(Exception):
    """Base of every error of pharox.

    Parameters
    ----------
    message:
        One sentence for a person.
    data:
        The data of the error; each item becomes an attribute.
    """

    def __init__(self, message: str = "", **data: Any) -> None:
        super().__init__(_shortened(str(message)))
        self.data = data
        self.__dict__.update(data)


def _shortened(message: str) -> str:
    if len(message) <= LONGEST_MESSAGE:
        return message
    half = LONGEST_MESSAGE // 2
    return f"{message[:half]} [...] {message[-half:]}"


def raise_together(errors: Sequence[BaseException], of: str = "several releases failed") -> None:
    """Raise one error as it is, several as a group; do nothing if there are none."""
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise BaseExceptionGroup(of, errors)


class PoolNotFoundError(PharoxError):
    """No pool has this id. Register it with ``storage.save_pool``."""


class PoolMovedError(PharoxError):
    """The pool has moved to another ledger, or is about to. Ask that one.

    Attributes
    ----------
    pool_name, pool_id:
        The pool.
    ledger:
        The name of the other ledger.
    stage:
        How far the move is, a :class:`pharox.MoveStage`. If it is not ``MOVED``, the pool may
        still be cancelled to stay.
    """

    pool_name: str
    pool_id: UUID
    ledger: str
    stage: Any = None


class MoveTimeoutError(PharoxError):
    """Leases of a pool that moves were still held when the time was over.

    The pool goes on draining. Move it again to go on, with a time after which leases are revoked
    if need be, or cancel the move.

    Attributes
    ----------
    move:
        The move, a :class:`pharox.PoolMove`.
    leases:
        How many leases are left.
    """

    move: Any
    leases: int


class ProxyNotFoundError(PharoxError):
    """No proxy has this id; it may have been removed since it was read."""


class ProxyUnavailableError(PharoxError):
    """Nothing can be leased now: no proxy of a pool is free, or the requested one is not.

    Attributes
    ----------
    reason:
        Why a pool had none, a :class:`pharox.MissReason`. None if a certain proxy was
        requested: then ask the manager for another.
    retry_after_seconds:
        In how many seconds the pool's next lease runs out. It may be released or renewed
        before. None if nobody knows, or if waiting for a lease does not help.
    waited_seconds:
        How long the call waited in turn. None if it did not.
    limit:
        The limit of the pool that was reached, a :class:`pharox.LimitReached`. None if it is none.
    """

    reason: str | None = None
    retry_after_seconds: float | None = None
    waited_seconds: float | None = None
    limit: Any = None

    @classmethod
    def of_pool(
        cls,
        pool_name: str,
        reason: str | None,
        retry_after_seconds: float | None,
        *,
        free: int,
        waited_seconds: float | None = None,
        limit: Any = None,
        others: Sequence[tuple[str, str | None]] = (),
    ) -> ProxyUnavailableError:
        """Return the error for a miss, of which ``free`` proxies were too few.

        ``others`` are the further pools that were tried, and why they had none.
        """
        why = f": {reason}" if reason else ""
        waited = "" if waited_seconds is None else f" after {waited_seconds:.1f} s of waiting"
        found = f"only {free} free" if free else "no free proxy"
        message = f"Pool {pool_name!r} has {found}{waited}{why}."
        if limit is not None:
            message = f"A limit of pool {pool_name!r} is reached{waited}: {limit}."
        if reason == "unknown_pool":
            message = f"There is no pool {pool_name!r}."
        for name, other in others:
            message += f" Pool {name!r} has no free proxy either: {other}."
        return cls(
            message,
            pool_name=pool_name,
            reason=reason,
            miss_reason=reason,
            free=free,
            retry_after_seconds=retry_after_seconds,
            waited_seconds=waited_seconds,
            limit=limit,
        )

    @classmethod
    def because(
        cls,
        proxy_id: UUID,
        status: str,
        holders: Sequence[str],
        rests_until: datetime | None = None,
        limit: Any = None,
    ) -> ProxyUnavailableError:
        """Return the error that says why: a limit, a rest, who holds the proxy, or its status."""
        why = f"held by {', '.join(holders)}" if holders else f"its status is {status}"
        if rests_until is not None:
            why = f"it rests until {rests_until.astimezone(UTC).isoformat()}"
        if limit is not None:
            why = f"a limit of its pool is reached: {limit}"
        return cls(
            f"Proxy {proxy_id} is not available: {why}.",
            proxy_id=proxy_id,
            status=status,
            holders=tuple(holders),
            limit=limit,
        )


class QueueFullError(PharoxError):
    """Too many requests wait for a proxy of the pool already. Ask again later."""


class SessionNotFoundError(PharoxError):
    """The key of a sticky session is not bound to a proxy. Its next lease binds it."""


class LeaseEndedError(PharoxError):
    """The lease has ended, and somebody else may hold its proxy.

    Open another HTTP client, with a longer ``duration_seconds`` if need be; acquire under
    another ``lease_id``.
    """


class LeaseLostError(LeaseEndedError):
    """The lease could not be kept: it ran out or was taken back while its holder worked.

    What was done since then may overlap with the next holder. Acquire another lease and
    do it again.
    """


class LeaseBusyError(PharoxError):
    """Another session is ending or renewing the lease. Renew it again."""


class ConsumerNotFoundError(PharoxError):
    """No consumer has this name. Kept for adapters that do not register consumers on first use."""


class InvalidLeaseError(PharoxError, ValueError):
    """A lease was requested with invalid parameters. Correct the call."""


class InvalidInputError(PharoxError, ValueError):
    """A value cannot be stored, such as text with a NUL in it. Correct the value."""


class ConflictError(PharoxError):
    """The object contradicts what is registered, such as a second pool of the same name."""


class SchemaError(PharoxError):
    """The database lacks pharox's tables, or has those of another version.

    Run ``pharox db upgrade``, or call ``storage.upgrade_schema()``.
    """


class EventVersionError(PharoxError):
    """The log has an event that this pharox cannot read: a newer one wrote it. Upgrade pharox."""


class UndecodableEventError(PharoxError):
    """The log has a row that is not a valid event: something other than pharox wrote it.

    ``position`` says which row, so that its owner can look at it.
    """

    @classmethod
    def at(cls, position: int, type_: str, why: str) -> UndecodableEventError:
        """Return the error for the event at a position, with the reason why it cannot be read."""
        return cls(
            f"the event at position {position} cannot be read as {type_!r}: {why}",
            position=position,
            type=type_,
        )


class ProjectionError(PharoxError):
    """A package offers a projection that cannot be loaded."""


class SecretKeyError(PharoxError):
    """Credentials cannot be encrypted or read without the right key.

    Set ``PHAROX_SECRET_KEY`` to the key that encrypted the ledger's credentials.
    """


class DatabaseError(PharoxError):
    """The database refused a statement: a time-out, a lack of rights or of space. See the cause."""


class AnswerTimeoutError(DatabaseError):
    """No answer came within ``answer_timeout_s``, and the server cancelled the statement.

    The statement had no effect. What the command did before it stays, such as expiring
    leases. Find out what blocks it (``pg_stat_activity``), and try again.
    """


class DatabaseUnavailableError(DatabaseError):
    """No database could be reached. Check ``PHAROX_DATABASE_URL`` and the server."""


class DirectoryUnavailableError(DatabaseUnavailableError):
    """The home ledger of a fleet does not answer, and nobody knows which ledger the pool is in.

    Pools whose place was read before go on. ``ledger`` is the home ledger.
    """


class ReadOnlyDatabaseError(DatabaseError):
    """The database takes no writes: it is a standby, or set to be read only.

    Reading works. To write, connect to the primary: a URL may name several hosts, and
    ``target_session_attrs=read-write`` selects the writable one.
    """


class OutcomeUnknownError(DatabaseUnavailableError):
    """The connection broke before the answer: the command may or may not be committed.

    ``lease_id`` is the lease in doubt, or None. Both commands can be repeated: acquire again
    with ``lease_id=error.lease_id`` and at most one lease is granted, release again and it
    ends once. A lease that nobody asks for again expires.
    """


class OutOfResourcesError(PharoxError):
    """The machine has no files, sockets or memory left for a check; the proxy is not at fault.

    Check fewer at once, or raise the limit (``ulimit -n``).
    """


class SourceError(PharoxError):
    """A list of proxies cannot be read to its end. Check the file or URL and its format."""


class MissingHostError(PharoxError, ImportError):
    """What an integration works with is not installed, or too old. Install the extra it names.

    Attributes
    ----------
    extra:
        The extra: ``pip install 'pharox[extra]'``.
    host, least_version:
        What is missing, and from which version on the integration works.
    found_version:
        The version that is installed; None if none is.
    """

    host: str
    extra: str
    least_version: str
    found_version: str | None


class ReportError(PharoxError):
    """The window is empty, or the folder cannot be used for a report. Choose another."""


class CheckpointError(PharoxError):
    """The log contradicts a checkpoint that was signed: it was changed, cut or restored.

    Sign nothing more; ``pharox verify --checkpoint`` shows where it differs.
    """


class PublishingError(PharoxError):
    """A web server did not take a checkpoint, or a witness did not sign it. Try again later."""


class ArchivedError(PharoxError):
    """The requested events are, or begin, in an archived part of the log.

    Ask for later events (after ``last_seq`` or ``last_recorded_at``), or read the ``archive``
    as well: ``--archive FOLDER``, in the library ``WithArchive``.
    """


class ArchiveFileError(PharoxError):
    """An archive cannot be written or read, or differs from the log. Check its folder."""


class SubscriptionNotFoundError(PharoxError):
    """No subscription has this name. Its first reader registers it."""

"""What can go wrong, each as a class of its own.

Every error that a caller can cause or must handle is a :class:`PharoxError`.
An error carries the data it is about as attributes, and where a driver raised
first, that exception is chained. A class's docstring says what to do next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

LONGEST_MESSAGE = 2000
"""A longer one quotes a value that no person reads: its middle is left out."""


class PharoxError(Exception):
    """Base of every error of pharox.

    Parameters
    ----------
    message:
        One sentence for a person.
    data:
        What the error is about; each item becomes an attribute.
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
    """Raise an error alone, or several as a group; nothing if there is none."""
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise BaseExceptionGroup(of, errors)


class PoolNotFoundError(PharoxError):
    """No pool has this id. Register it with ``storage.save_pool``."""


class ProxyNotFoundError(PharoxError):
    """No proxy has this id; it may have been removed since it was read."""


class ProxyUnavailableError(PharoxError):
    """The proxy cannot be leased now: at capacity, or not healthy. Ask the manager for another."""

    @classmethod
    def because(cls, proxy_id: UUID, status: str, holders: Sequence[str]) -> ProxyUnavailableError:
        """Return the error that says why: who holds the proxy, or its status."""
        why = f"held by {', '.join(holders)}" if holders else f"its status is {status}"
        return cls(
            f"Proxy {proxy_id} is not available: {why}.",
            proxy_id=proxy_id,
            status=status,
            holders=tuple(holders),
        )


class LeaseEndedError(PharoxError):
    """The lease has ended, and somebody else may hold its proxy.

    Open another HTTP client, with a longer ``duration_seconds`` if need be; acquire under
    another ``lease_id``.
    """


class ConsumerNotFoundError(PharoxError):
    """No consumer has this name. Kept for adapters that do not register consumers on first use."""


class InvalidLeaseError(PharoxError, ValueError):
    """A lease was asked for with parameters that make no sense. Correct the call."""


class InvalidInputError(PharoxError, ValueError):
    """A value cannot be stored, such as text with a NUL in it. Correct the value."""


class ConflictError(PharoxError):
    """What is to be saved contradicts what is registered, such as two pools of one name."""


class SchemaError(PharoxError):
    """The database lacks pharox's tables, or has those of another version.

    Run ``pharox db upgrade``, or call ``storage.upgrade_schema()``.
    """


class EventVersionError(PharoxError):
    """The log has an event that this pharox cannot read: a newer one wrote it. Upgrade pharox."""


class UndecodableEventError(PharoxError):
    """The log has an event that is none: something else than pharox wrote it.

    The error's ``position`` says which, for its owner to look at.
    """

    @classmethod
    def at(cls, position: int, type_: str, why: str) -> UndecodableEventError:
        """Return the error that names an event and says why it cannot be read."""
        return cls(
            f"the event at position {position} cannot be read as {type_!r}: {why}",
            position=position,
            type=type_,
        )


class ProjectionError(PharoxError):
    """A package offers a projection that cannot be loaded."""


class SecretKeyError(PharoxError):
    """Credentials cannot be encrypted or read without the right key.

    Set ``PHAROX_SECRET_KEY`` to the key that the ledger was filled with.
    """


class DatabaseError(PharoxError):
    """The database refused a statement: a time-out, a lack of rights or of space. See the cause."""


class AnswerTimeoutError(DatabaseError):
    """No answer came within ``answer_timeout_s``; the server was asked to cancel, and has.

    Nothing came of that statement; what the command did before it stays, such as taking back
    what had run out. Look what holds it up (``pg_stat_activity``), and ask again.
    """


class DatabaseUnavailableError(DatabaseError):
    """No database could be reached. Check ``PHAROX_DATABASE_URL`` and the server."""


class ReadOnlyDatabaseError(DatabaseError):
    """The database takes no writes: it is a standby, or set to be read only.

    Reading goes on. To write, connect to the primary: a URL may name several hosts, and
    ``target_session_attrs=read-write`` takes the one that can be written.
    """


class OutcomeUnknownError(DatabaseUnavailableError):
    """The connection broke before the answer: whether it was committed is not known here.

    ``lease_id`` is the lease that is in doubt, or None if no lease is. Acquire again with
    ``lease_id=error.lease_id``, and there is one lease however often you do; release again,
    and it has ended once. What nobody asks for again runs out.
    """


class OutOfResourcesError(PharoxError):
    """The machine has no files, sockets or memory left for a check; no proxy is to blame.

    Check fewer at once, or raise the limit (``ulimit -n``).
    """


class SourceError(PharoxError):
    """A list of proxies cannot be read to its end. Check the file or URL and its format."""


class ReportError(PharoxError):
    """No report can be made of this window, or not in this folder. Choose another."""


class ArchivedError(PharoxError):
    """What was asked for is, or begins, in a part of the log that was archived.

    Ask for what came after ``last_seq`` or ``last_recorded_at``, or read ``archive`` along:
    ``--archive FOLDER``, in the library ``WithArchive``.
    """


class ArchiveFileError(PharoxError):
    """An archive cannot be written or read, or is not what the log says. Check its folder."""


class SubscriptionNotFoundError(PharoxError):
    """No subscription has this name. It is remembered when a reader of it first runs."""

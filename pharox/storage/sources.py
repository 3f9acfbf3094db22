"""What a refresh of a source is told, what it has found, and what of that is an event.

Of a list that stays as it is nothing is recorded, however often somebody looks, and of a source
that fails in the same way one event an hour: the log keeps what it has for ever. When a source was
last looked at is kept beside the log.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from ..errors import InvalidInputError, PharoxError
from ..models import MAX_SOURCES, ProxySource, SourceCounts, SourceStatus

HELD_S = 300.0
"""How long a claim of a source lasts; a refresh extends it before each batch that it writes."""

REFRESH_JOB = "source "
"""How the correlation id of a refresh's events begins."""

REPEATED_S = 3600.0
"""After how long a failure that repeats is recorded again."""

MAX_REASONS = 5
MAX_REASON_LENGTH = 300
"""In characters."""


class Validators(NamedTuple):
    """What tells a server which answer is known: its ``ETag`` and ``Last-Modified``."""

    etag: str | None = None
    last_modified: str | None = None


@dataclass(frozen=True, slots=True)
class SourceClaim:
    """The right to refresh a source, which one process has at a time.

    ``validators`` are those of the last answer. They are None if the source was changed since, or
    if its proxies were: then the whole list is needed. ``owned`` is how many proxies it has that do
    not drain, and ``claimed_at`` is by the storage's clock.
    """

    source: ProxySource
    status: SourceStatus
    secret_id: UUID
    holder: UUID
    claimed_at: datetime
    owned: int
    validators: Validators | None = None


@dataclass(frozen=True, slots=True)
class RefreshResult:
    """What a refresh has found: ``counts`` of a list that was read, or why it ``failed``.

    Neither is the case if the list was not read since it is the known one. ``owned`` is how many
    proxies the source has afterwards that do not drain.
    """

    counts: SourceCounts | None = None
    reasons: tuple[str, ...] = ()
    failure: str | None = None
    validators: Validators = field(default_factory=Validators)
    owned: int | None = None


@dataclass(slots=True)
class SyncReport:
    """What :meth:`IStorage.sync_source` did with a list, or would do.

    If ``refused``, more proxies would go than may, and nothing was changed: ``gone`` of the ``had``
    that the source had. ``owned`` is how many it has now that do not drain.
    """

    counts: SourceCounts
    gone: int = 0
    had: int = 0
    owned: int = 0
    refused: bool = False


def event_to_tell(
    status: SourceStatus, result: RefreshResult, now: datetime
) -> tuple[str, dict[str, Any]] | None:
    """Return the type and the data of the event of a refresh; None if nothing is new."""
    if result.failure is not None:
        reason = result.failure[:MAX_REASON_LENGTH]
        is_known = status.failure == reason and status.failed_at is not None
        if is_known and now - status.failed_at < timedelta(seconds=REPEATED_S):  # type: ignore[operator]
            return None
        return "SourceFailed", {"reason": reason}
    counts = result.counts or status.counts
    if counts is None:
        return None
    before = status.counts
    is_new = (
        status.refreshed_at is None
        or status.failure is not None
        or (result.counts is not None and result.counts.is_change)
        or (counts.skipped, counts.kept) != (before and (before.skipped, before.kept))
    )
    if not is_new:
        return None
    if result.counts is None:  # It answers again, and has what it had.
        counts = SourceCounts(listed=counts.listed, unchanged=counts.listed)
    reasons = [reason[:MAX_REASON_LENGTH] for reason in result.reasons[:MAX_REASONS]]
    return "SourceRefreshed", {"counts": counts.model_dump(), "reasons": reasons}


def data_of(status: SourceStatus, data: dict[str, Any]) -> dict[str, Any]:
    """Return the data of an event of a source."""
    return {"source": status.name, "source_id": str(status.id), **data}


def source_unknown(name: str) -> PharoxError:
    """Return the error for a source that is not there."""
    return PharoxError(f"there is no source {name!r}", source=name)


def too_many_sources(name: str) -> InvalidInputError:
    """Return the error for one source more than there may be."""
    return InvalidInputError(f"a ledger has at most {MAX_SOURCES} sources", source=name)


def check_same_pool(source: ProxySource, pool_name: str) -> None:
    """Refuse to move a source to another pool, as its proxies would stay behind."""
    if source.pool_name != pool_name:
        raise InvalidInputError(
            f"source {source.name!r} is of pool {pool_name!r}; remove it first", source=source.name
        )


def check_source(source: ProxySource) -> ProxySource:
    """Return a source, else raise :class:`InvalidInputError`."""
    if not isinstance(source, ProxySource):
        raise InvalidInputError(f"a ProxySource is needed, not a {type(source).__name__}")
    return source

"""Log what a manager does, one line per event, with the event's fields as keys.

If the application has configured structlog, lines go through structlog. Otherwise they
go to the standard logger "pharox", with the fields as attributes of the record. No
field holds a secret: payloads have no credentials, and only the class of an exception
is logged.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID

import structlog

from .. import models
from ..events.attribution import current_attribution
from ..manager.leasing import Leasing
from .registering import register_once

_LAZY = type(structlog.get_logger())
"""The type of structlog's lazy loggers: a new one for each call, identified by its repr."""

_SAMPLES = 1_000_000


class StructuredLogger:
    """Logs a line for each acquisition, release, expiry, health check and failed callback.

    Parameters
    ----------
    logger:
        A logger of structlog or of the standard library. If None, structlog's if it
        is configured, else the standard logger "pharox".
    sample_rate:
        The share of lines to write, from 0 to 1. Either all lines of a lease are
        written or none. Failed callbacks, misses for an unknown pool, and checks
        that cost a proxy its leases are always written.
    include_pool_stats:
        Whether lines have the pool's statistics.
    random_fn:
        Returns a number from 0 up to 1 for each line, instead of one derived from
        the lease's id or drawn at random.

    Raises
    ------
    ValueError
        If ``sample_rate`` is not valid.
    """

    def __init__(
        self,
        *,
        logger: Any = None,
        sample_rate: float = 1.0,
        include_pool_stats: bool = True,
        random_fn: Callable[[], float] | None = None,
    ) -> None:
        if not 0 <= sample_rate <= 1:
            raise ValueError("sample_rate must be between 0 and 1.")
        self._given = logger  # keep it alive, so that its id() stays unique
        written_to = repr(logger) if isinstance(logger, _LAZY) else id(logger)
        self._identity = type(self), written_to, sample_rate, include_pool_stats, random_fn
        is_standard = isinstance(logger, logging.Logger | logging.LoggerAdapter)
        self._logger = _Records(logger) if is_standard else logger
        self._unless_configured = _Records(logging.getLogger("pharox"))
        self._sample_rate = sample_rate
        self._include_pool_stats = include_pool_stats
        self._random_fn = random_fn

    def register(self, manager: Leasing[Any]) -> StructuredLogger:
        """Register this logger with a manager of either kind, and return it.

        A manager that has one with the same logger and options is left as it is:
        otherwise each line would be written twice.
        """
        register_once(manager, self._identity, self)
        return self

    def handle_acquire(self, payload: models.AcquireEventPayload) -> None:
        """Write a line for an attempt to lease, hit or miss."""
        lease = payload.lease
        is_misspelled = payload.miss_reason is models.MissReason.UNKNOWN_POOL
        if not is_misspelled and not self._is_sampled(lease.id if lease else None):
            return
        filters = payload.filters
        self._write(
            "pharox.acquire",
            pool=payload.pool_name,
            consumer=payload.consumer_name,
            selector=payload.selector.value,
            status="hit" if lease else "miss",
            miss_reason=payload.miss_reason and payload.miss_reason.value,
            duration_ms=payload.duration_ms,
            waited_ms=payload.waited_ms,
            lease_id=lease and str(lease.id),
            proxy_id=lease and str(lease.proxy_id),
            started_at=payload.started_at.isoformat(),
            completed_at=payload.completed_at.isoformat(),
            filters=filters and filters.model_dump(mode="json", exclude_none=True),
            stats=payload.pool_stats,
        )

    def handle_release(self, payload: models.ReleaseEventPayload) -> None:
        """Write a line for a release."""
        self._write_ending("pharox.release", "released", payload, payload.released_at.isoformat())

    def handle_expire(self, payload: models.ExpireEventPayload) -> None:
        """Write a line for a lease that expired."""
        self._write_ending("pharox.expire", "expired", payload, payload.expired_at.isoformat())

    def handle_revoke(self, payload: models.RevokeEventPayload) -> None:
        """Write a line for a lease that was revoked."""
        self._write_ending("pharox.revoke", "revoked", payload, payload.revoked_at.isoformat())

    def handle_health(self, payload: models.HealthEventPayload) -> None:
        """Write a line for a health check."""
        if not payload.lease_ids and not self._is_sampled(None):
            return
        result = payload.result
        self._write(
            "pharox.health",
            pool=payload.pool_name,
            proxy_id=str(result.proxy_id),
            source=payload.source,
            protocol=result.protocol.value,
            status=result.status.value,
            status_before=payload.status_before.value,
            status_after=payload.status_after.value,
            applied=payload.applied,
            latency_ms=result.latency_ms,
            status_code=result.status_code,
            attempts=result.attempts,
            failure=result.failure and result.failure.value,
            lease_ids=[str(lease_id) for lease_id in payload.lease_ids],
            stats=payload.pool_stats,
        )

    def handle_lost(self, payload: models.LostEventPayload) -> None:
        """Write a line for a lease that could not be kept alive."""
        self._write(
            "pharox.lease_lost",
            level="warning",
            pool=payload.pool_name,
            consumer=payload.lease.consumer_name,
            lease_id=str(payload.lease.id),
            proxy_id=str(payload.lease.proxy_id),
            reason=payload.reason,
        )

    def handle_failure(self, payload: models.CallbackFailurePayload) -> None:
        """Write a line for a callback that raised."""
        self._write(
            "pharox.callback_failed",
            level="error",
            told=payload.told,
            callback=payload.callback,
            error_type=payload.error_type,
            pool=payload.pool_name,
            lease_id=payload.lease_id and str(payload.lease_id),
        )

    def _write_ending(
        self,
        event: str,
        status: str,
        payload: models.ReleaseEventPayload | models.ExpireEventPayload | models.RevokeEventPayload,
        at: str,
    ) -> None:
        lease = payload.lease
        if not self._is_sampled(lease.id):
            return
        self._write(
            event,
            pool=payload.pool_name,
            consumer=lease.consumer_name,
            consumer_id=str(lease.consumer_id),
            status=status,
            lease_id=str(lease.id),
            proxy_id=str(lease.proxy_id),
            lease_duration_ms=payload.lease_duration_ms,
            reason=None if isinstance(payload, models.ExpireEventPayload) else payload.reason,
            stats=payload.pool_stats,
            **{f"{status}_at": at},
        )

    def _write(
        self,
        event: str,
        *,
        level: str = "info",
        stats: models.PoolStatsSnapshot | None = None,
        **fields: Any,
    ) -> None:
        actor, correlation_id = current_attribution()
        if stats is not None and self._include_pool_stats:
            fields["pool_stats"] = {"pool": stats.pool_name, **stats.figures()}
        logger = self._logger
        if logger is None:  # The application may configure structlog after this was registered.
            configured = structlog.is_configured()
            logger = structlog.get_logger("pharox") if configured else self._unless_configured
        write = getattr(logger, level)
        write(event, actor=actor, correlation_id=correlation_id, **fields)

    def _is_sampled(self, lease_id: UUID | None) -> bool:
        if self._sample_rate >= 1:
            return True
        if self._random_fn is not None:
            return self._random_fn() < self._sample_rate
        if lease_id is None:
            return random.random() < self._sample_rate  # noqa: S311 - a sample, no secret
        # The end of an id is random, and the same for all lines of a lease.
        return lease_id.int % _SAMPLES < self._sample_rate * _SAMPLES


def register_structured_logging(manager: Leasing[Any], **options: Any) -> StructuredLogger:
    """Log what a manager of either kind does; options are those of StructuredLogger."""
    return StructuredLogger(**options).register(manager)


class _Records:
    """Writes lines to a logger of the standard library, the fields as attributes of the record.

    Values bound in structlog's context or by a LoggerAdapter are added to the line; the
    line's own fields take precedence.
    """

    def __init__(self, logger: logging.Logger | logging.LoggerAdapter[Any]) -> None:
        self._own: Mapping[str, Any] = {}
        if isinstance(logger, logging.LoggerAdapter):
            self._own = _renamed(logger.extra or {})
            logger = logger.logger
        self._logger = logger

    def info(self, event: str, **fields: Any) -> None:
        self._log(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        self._log(logging.WARNING, event, fields)

    def error(self, event: str, **fields: Any) -> None:
        self._log(logging.ERROR, event, fields)

    def _log(self, level: int, event: str, fields: dict[str, Any]) -> None:
        if self._logger.isEnabledFor(level):
            bound = _renamed(structlog.contextvars.get_contextvars())
            self._logger.log(level, event, extra={**bound, **self._own, **fields, "event": event})


_OF_A_RECORD = {*vars(logging.makeLogRecord({})), "message", "asctime"}


def _renamed(bound: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return bound values, renamed where a record has an attribute of that name."""
    return {f"{key}_" if key in _OF_A_RECORD else key: fact for key, fact in bound.items()}

"""OpenTelemetry spans of what a manager does, with the times of the events.

The parent of an acquisition's span is the caller's current span. A release has a
link to the acquisition of its lease, if that was made in this process. Without
opentelemetry-api there are no spans and no errors.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from datetime import datetime
from threading import Lock
from typing import Any
from uuid import UUID

from .. import models
from ..manager.leasing import Leasing
from .registering import register_once

try:
    from opentelemetry import trace
except ModuleNotFoundError:  # an optional dependency
    trace = None  # type: ignore[assignment]

REMEMBERED = 10_000
"""How many acquisitions' spans to remember for links."""


class TracingRecorder:
    """Makes a span for each acquisition, release, expiry and health check.

    Parameters
    ----------
    tracer_name:
        The instrumentation scope's name, for the global provider.
    tracer:
        A tracer of another provider.
    """

    def __init__(self, tracer_name: str = "pharox", tracer: Any = None) -> None:
        self._identity = type(self), tracer_name if tracer is None else id(tracer)
        self._tracer = tracer
        if tracer is None and trace is not None:
            self._tracer = trace.get_tracer(tracer_name)
        self._acquired: OrderedDict[UUID, Any] = OrderedDict()
        self._lock = Lock()

    def register(self, manager: Leasing[Any]) -> TracingRecorder:
        """Register this recorder with a manager of either kind, and return it.

        A manager that has one with the same tracer is left as it is: otherwise there
        would be two spans of everything.
        """
        if self._tracer is not None:
            register_once(manager, self._identity, self)
        return self

    def handle_acquire(self, payload: models.AcquireEventPayload) -> None:
        """Make a span for an attempt to lease, from its beginning to its end."""
        lease = payload.lease
        span = self._span(
            "pharox.acquire",
            payload.started_at,
            payload.completed_at,
            pool=payload.pool_name,
            consumer=payload.consumer_name,
            selector=payload.selector.value,
            hit=lease is not None,
            miss_reason=payload.miss_reason and payload.miss_reason.value,
            duration_ms=payload.duration_ms,
            **_of_lease(lease),
        )
        if lease is not None and span is not None:
            with self._lock:
                self._acquired[lease.id] = span.get_span_context()
                if len(self._acquired) > REMEMBERED:
                    self._acquired.popitem(last=False)

    def handle_release(self, payload: models.ReleaseEventPayload) -> None:
        """Make a span for a release, linked to the acquisition."""
        completed_at = payload.completed_at or payload.released_at
        self._span(
            "pharox.release",
            payload.started_at or completed_at,
            completed_at,
            links=self._links(payload.lease),
            pool=payload.pool_name,
            lease_duration_ms=payload.lease_duration_ms,
            reason=payload.reason,
            **_of_lease(payload.lease),
        )

    def handle_expire(self, payload: models.ExpireEventPayload) -> None:
        """Make a span for the time that a lease was overdue, linked to the acquisition."""
        self._span(
            "pharox.expire",
            payload.lease.expires_at,
            max(payload.expired_at, payload.lease.expires_at),
            links=self._links(payload.lease),
            pool=payload.pool_name,
            lease_duration_ms=payload.lease_duration_ms,
            **_of_lease(payload.lease),
        )

    def handle_revoke(self, payload: models.RevokeEventPayload) -> None:
        """Make a span for a revocation, linked to the acquisition."""
        self._span(
            "pharox.revoke",
            payload.revoked_at,
            payload.revoked_at,
            links=self._links(payload.lease),
            pool=payload.pool_name,
            lease_duration_ms=payload.lease_duration_ms,
            reason=payload.reason,
            **_of_lease(payload.lease),
        )

    def handle_health(self, payload: models.HealthEventPayload) -> None:
        """Make a span for a health check: as long as its latency, ending when it was made."""
        result = payload.result
        ended = _nanoseconds(result.checked_at)
        self._span(
            "pharox.health_check",
            ended - result.latency_ms * 1_000_000,
            ended,
            pool=payload.pool_name,
            proxy_id=str(result.proxy_id),
            source=payload.source,
            protocol=result.protocol.value,
            status=result.status.value,
            status_after=payload.status_after.value,
            applied=payload.applied,
            failure=result.failure and result.failure.value,
        )

    def _links(self, lease: models.Lease) -> list[Any]:
        with self._lock:
            context = self._acquired.pop(lease.id, None)
        return [] if context is None else [trace.Link(context)]

    def _span(
        self,
        name: str,
        begun: datetime | int,
        ended: datetime | int,
        *,
        links: Sequence[Any] = (),
        **attributes: Any,
    ) -> Any:
        if self._tracer is None:
            return None
        span = self._tracer.start_span(
            name,
            start_time=_nanoseconds(begun),
            links=links,
            attributes={
                f"pharox.{key}": value for key, value in attributes.items() if value is not None
            },
        )
        span.end(end_time=_nanoseconds(ended))
        return span


def register_tracing(manager: Leasing[Any], **options: Any) -> TracingRecorder:
    """Make spans of what a manager of either kind does; options as for TracingRecorder."""
    return TracingRecorder(**options).register(manager)


def _of_lease(lease: models.Lease | None) -> dict[str, Any]:
    return {} if lease is None else {"lease_id": str(lease.id), "proxy_id": str(lease.proxy_id)}


def _nanoseconds(moment: datetime | int) -> int:
    if isinstance(moment, int):
        return moment
    return int(moment.timestamp() * 1_000_000) * 1_000

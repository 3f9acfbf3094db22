"""Count a worker's requests with gunicorn's own hooks.

A request is counted before the application sees it, and its answer after it was sent. So every
answered request is counted, even if its worker is killed right after, and the difference of the two
is the number of requests without an answer.

Gunicorn's ASGI worker does not report the answer. There the application is wrapped by
:meth:`RequestMetrics.watched`, which records what it sends.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from .environment import RequestSettings
from .legacy import LegacyMetrics

_METHODS = frozenset(
    ("CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE")
)
_FAILED, _LEFT = 500, 499


@dataclass
class Request:
    """The data of a request in progress."""

    begun: float = field(default_factory=time.perf_counter)
    status: int | None = None
    sent: int = 0
    error: BaseException | None = None


_request: ContextVar[Request | None] = ContextVar("pharox_request", default=None)


class RequestMetrics:
    """The metrics of a worker's requests.

    Parameters
    ----------
    registry:
        Where they are registered.
    settings:
        How to count requests.
    seat:
        The worker's seat, for metrics with a label for the worker.
    """

    def __init__(self, registry: CollectorRegistry, settings: RequestSettings, seat: str) -> None:
        self._begun: dict[int, Request] = {}
        own: dict[str, Any] = {"registry": registry}
        self._requests = Counter(
            "gunicorn_requests", "Requests that were received.", ["method"], **own
        )
        self._responses = Counter(
            "gunicorn_responses", "Requests that were answered.", ["method", "status"], **own
        )
        self._seconds = Histogram(
            "gunicorn_request_duration_seconds",
            "Duration of requests.",
            ["method"],
            buckets=settings.duration_buckets,
            **own,
        )
        self._received, self._sent = (
            Histogram(f"gunicorn_{name}", text, ["method"], buckets=settings.size_buckets, **own)
            for name, text in (
                ("request_size_bytes", "Size of request bodies, as their headers say."),
                ("response_size_bytes", "Size of response bodies."),
            )
        )
        self._now = Gauge(
            "gunicorn_requests_in_progress",
            "Requests in progress.",
            multiprocess_mode="livesum",
            **own,
        )
        self.legacy = LegacyMetrics(registry, settings, seat) if settings.legacy_names else None

    def begin(self, worker: Any, request: Any) -> None:
        """Count a request (``pre_request``)."""
        self._requests.labels(_method(request)).inc()
        self._now.inc()
        found = self._begun[id(request)] = Request()
        _request.set(found)

    def end(self, worker: Any, request: Any, environ: Any, response: Any) -> None:
        """Count its answer (``post_request``)."""
        found = self._begun.pop(id(request), None)
        if found is None:
            return
        self._now.dec()
        method = _method(request)
        seconds = time.perf_counter() - found.begun
        received, sent = _received(request), max(found.sent, _sent(response))
        self._seconds.labels(method).observe(seconds)
        if received is not None:
            self._received.labels(method).observe(received)
        self._sent.labels(method).observe(sent)
        self._responses.labels(method, str(_status(response, found))).inc()
        if self.legacy is not None:
            error = found.error or sys.exception()
            self.legacy.end(_labels(request), seconds, received, sent, error)

    def handled(self, request: Any, error: BaseException) -> None:
        """Count an error that gunicorn answers itself, under its former name."""
        if self.legacy is not None:
            self.legacy.handled(_labels(request), error)

    def watched(self, application: Any) -> Any:
        """Return an ASGI application that records the answers of the given one."""

        async def watched(
            scope: dict[str, Any], receive: Any, send: Callable[[Any], Awaitable[None]]
        ) -> None:
            found = _request.get()
            if scope["type"] != "http" or found is None:
                answer: None = await application(scope, receive, send)
                return answer

            async def noting(message: dict[str, Any]) -> None:
                await send(message)
                if message["type"] == "http.response.start":
                    found.status = int(message["status"])
                elif message["type"] == "http.response.body" and _has_body(scope, found):
                    found.sent += len(message.get("body", b""))

            try:
                await application(scope, receive, noting)
            except asyncio.CancelledError:
                if found.status is None:
                    found.status = _LEFT
                raise
            except Exception as error:
                found.error = error
                raise
            return None

        return watched


def _method(request: Any) -> str:
    """Return the method as a label. Clients may send any text."""
    return request.method if request.method in _METHODS else "other"


def _labels(request: Any) -> tuple[str, str]:
    """Return the method and path; a request that could not be read has neither."""
    if getattr(request, "method", None) is None:
        return "UNKNOWN", "UNKNOWN"
    return _method(request), str(getattr(request, "path", None) or "UNKNOWN")


def _has_body(scope: dict[str, Any], found: Request) -> bool:
    return scope.get("method") != "HEAD" and found.status not in (204, 304)


def _status(response: Any, found: Request) -> int:
    """Return the status; 500 if the application failed before it set one."""
    for code in (getattr(response, "status_code", None), found.status):
        if isinstance(code, int) and 100 <= code <= 999:
            return code
    return _FAILED


def _received(request: Any) -> int | None:
    """Return the declared size of the body; None if there is none."""
    for name, value in request.headers:
        if name.upper() == "CONTENT-LENGTH":
            return int(value) if value.isascii() and value.isdigit() else None
        if name.upper() == "TRANSFER-ENCODING":
            return None
    return 0


def _sent(response: Any) -> int:
    """Return the size of the body. Gunicorn does not count a file that the system sends."""
    sent = int(getattr(response, "sent", 0))
    length = getattr(response, "response_length", None)
    has_body = not getattr(response, "_omits_body", False)
    was_sent = getattr(response, "headers_sent", False)
    return length if not sent and length and has_body and was_sent else sent

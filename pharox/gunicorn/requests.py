"""Count what a worker's requests come to, by gunicorn's own hooks.

A request is counted before the application sees it, and its answer after it was
sent: every request that was answered has been counted, also if its worker is
killed the moment after, and the difference of the two is what was never answered.
"""

from __future__ import annotations

import time
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_METHODS = frozenset(
    ("CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE")
)


class RequestMetrics:
    """The metrics of a worker's requests.

    Parameters
    ----------
    registry:
        Where they are registered.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._begun: dict[int, float] = {}
        self._requests = Counter(
            "gunicorn_requests", "Requests that were begun.", ["method"], registry=registry
        )
        self._responses = Counter(
            "gunicorn_responses",
            "Requests that were ended.",
            ["method", "status"],
            registry=registry,
        )
        self._seconds = Histogram(
            "gunicorn_request_duration_seconds",
            "How long requests took.",
            ["method"],
            registry=registry,
        )
        self._now = Gauge(
            "gunicorn_requests_in_progress",
            "Requests that are being worked on.",
            multiprocess_mode="livesum",
            registry=registry,
        )

    def begin(self, worker: Any, request: Any) -> None:
        """Count a request (``pre_request``)."""
        self._requests.labels(_method(request)).inc()
        self._now.inc()
        self._begun[id(request)] = time.perf_counter()

    def end(self, worker: Any, request: Any, environ: Any, response: Any) -> None:
        """Count its answer (``post_request``)."""
        begun = self._begun.pop(id(request), None)
        if begun is None:
            return
        self._now.dec()
        method = _method(request)
        self._seconds.labels(method).observe(time.perf_counter() - begun)
        self._responses.labels(method, _status(response)).inc()


def _method(request: Any) -> str:
    """Return the method as a label: clients may send any."""
    return request.method if request.method in _METHODS else "other"


def _status(response: Any) -> str:
    """Return the status as a label; the application failed if it has set none."""
    code = getattr(response, "status_code", None)
    return str(code) if isinstance(code, int) and 100 <= code <= 999 else "500"

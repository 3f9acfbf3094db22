"""The metrics of gunicorn-prometheus-exporter under its names, for users who switch.

Here the label ``worker_id`` is the number of a worker's seat. There are as many seats as workers
that live at the same time; a new worker adds none. The label ``endpoint`` has the first hundred
paths of requests, and "other".
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, values

from ..scraping.bounded_label import BoundedLabel
from .environment import RequestSettings

_ENDPOINTS, _ERRORS = 100, 50
_FAILED = ["worker_id", "method", "endpoint", "error_type"]


class LegacyMetrics:
    """A worker's metrics under the former names.

    Parameters
    ----------
    registry:
        Where they are registered.
    settings:
        The buckets of histograms.
    seat:
        The worker's seat.
    """

    def __init__(self, registry: CollectorRegistry, settings: RequestSettings, seat: str) -> None:
        self._endpoint = _bounded("endpoint", _ENDPOINTS)
        self._error = _bounded("error_type", _ERRORS)
        self._seat = seat
        own: dict[str, Any] = {"registry": registry}
        prefix, seats = "gunicorn_worker", ["worker_id"]
        self._requests = Counter(
            f"{prefix}_requests", "Total number of requests handled by this worker", seats, **own
        ).labels(seat)
        self._seconds = Histogram(
            f"{prefix}_request_duration_seconds",
            "Request duration in seconds",
            seats,
            buckets=settings.duration_buckets,
            **own,
        ).labels(seat)
        self._received, self._sent = (
            Histogram(f"{prefix}_{name}", text, seats, buckets=settings.size_buckets, **own).labels(
                seat
            )
            for name, text in (
                ("request_size_bytes", "Request size in bytes"),
                ("response_size_bytes", "Response size in bytes"),
            )
        )
        self._failed, self._handled = (
            Counter(f"{prefix}_{name}", f"Total number of {text} by this worker", _FAILED, **own)
            for name, text in (
                ("failed_requests", "failed requests handled"),
                ("error_handling", "errors handled"),
            )
        )

    def end(
        self,
        labels: tuple[str, str],
        seconds: float,
        received: int | None,
        sent: int,
        error: BaseException | None,
    ) -> None:
        """Count a finished request by method and path, with the exception that it raised."""
        self._requests.inc()
        self._seconds.observe(seconds)
        if received is not None:
            self._received.observe(received)
        self._sent.observe(sent)
        if error is not None:
            if isinstance(error, StopIteration) and error.__context__ is not None:
                error = error.__context__  # By which gunicorn says that headers were sent.
            self._count(self._failed, labels, error)

    def handled(self, labels: tuple[str, str], error: BaseException) -> None:
        """Count an error that gunicorn answers, of the application or the client."""
        self._count(self._handled, labels, error)

    def _count(self, counter: Counter, labels: tuple[str, str], error: BaseException) -> None:
        method, path = labels
        error_type = self._error(type(error).__name__)
        counter.labels(self._seat, method, self._endpoint(path), error_type).inc()


def _bounded(what: str, limit: int) -> Callable[[str], str]:
    """Return a label whose number of values is bounded over all workers."""
    folder: Path | None = getattr(values.ValueClass, "folder", None)
    return BoundedLabel(limit, shared=folder and folder / f"names.gunicorn.{what}")

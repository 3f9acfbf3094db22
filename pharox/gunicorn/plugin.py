"""Worker classes that count without hooks, under the names of gunicorn-prometheus-exporter.

With one of them a configuration needs only the hook ``when_ready``::

    worker_class = "pharox.gunicorn.PrometheusWorker"

They are gunicorn's classes with the work of ``default_post_fork`` built in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gunicorn.workers.gthread import ThreadWorker  # type: ignore[import-untyped]
from gunicorn.workers.sync import SyncWorker  # type: ignore[import-untyped]

from ..errors import InvalidInputError
from .counting import count
from .environment import EnvironmentManager
from .hooks import HookContext, HookManager
from .requests import RequestMetrics

if TYPE_CHECKING:
    _Worker = Any
else:
    _Worker = object


class CountingWorker(_Worker):  # type: ignore[misc]
    """A mixin that makes a worker class of gunicorn count."""

    counts_by_itself = True
    _metrics: RequestMetrics | None = None

    def init_process(self) -> None:
        """Start to count in the worker's process, then continue as gunicorn does."""
        run = HookManager(HookContext(None, self)).safe_execute
        run(EnvironmentManager().update_from_cli, self.cfg)
        run(self._count)
        super().init_process()

    def _count(self) -> None:
        self._metrics = count(self)

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Handle an error as gunicorn does, and count it under its former name."""
        if self._metrics is not None:
            self._metrics.handled(req, exc)
        super().handle_error(req, client, addr, exc)


class PrometheusWorker(CountingWorker, SyncWorker):  # type: ignore[misc]
    """Gunicorn's ``sync`` worker, counting."""


class PrometheusThreadWorker(CountingWorker, ThreadWorker):  # type: ignore[misc]
    """Gunicorn's ``gthread`` worker, counting."""


def _gevent() -> Any:
    from gunicorn.workers.ggevent import (  # type: ignore[import-untyped]  # noqa: PLC0415
        GeventWorker,
    )

    return GeventWorker


def _eventlet() -> Any:
    from gunicorn.workers.geventlet import (  # type: ignore[import-untyped]  # noqa: PLC0415
        EventletWorker,
    )

    return EventletWorker


_ASYNC = {"PrometheusGeventWorker": _gevent, "PrometheusEventletWorker": _eventlet}


def __getattr__(name: str) -> Any:
    """Return a class with further dependencies, created at first use."""
    if name not in _ASYNC:
        raise AttributeError(name)
    try:
        base = _ASYNC[name]()
    except (ImportError, RuntimeError) as error:
        what = name.removeprefix("Prometheus").removesuffix("Worker").lower()
        raise InvalidInputError(
            f"{name} cannot be used: {error}. It needs {what}, and a gunicorn version that "
            "supports it"
        ) from error
    made = globals()[name] = type(name, (CountingWorker, base), {"__module__": __name__})
    return made


def get_prometheus_gevent_worker() -> Any:
    """Return the class ``PrometheusGeventWorker``."""
    return __getattr__("PrometheusGeventWorker")


def get_prometheus_eventlet_worker() -> Any:
    """Return the class ``PrometheusEventletWorker``."""
    return __getattr__("PrometheusEventletWorker")

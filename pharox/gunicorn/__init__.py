"""Hooks for gunicorn: one scrape shows the metrics of all workers of a server.

Import the hooks in ``gunicorn.conf.py``, before any module that creates metrics::

    from pharox.gunicorn import (
        default_on_exit as on_exit,
        default_on_starting as on_starting,
        default_post_fork as post_fork,
        default_when_ready as when_ready,
        default_worker_int as worker_int,
    )

Within gunicorn, the import creates the folder for the workers' counts and sets
``PROMETHEUS_MULTIPROC_DIR`` to it, because ``--preload`` loads the application before the first
hook. Worker classes that need only the hook ``when_ready`` are here too, under the names of
gunicorn-prometheus-exporter. Environment variables set everything else; see docs/gunicorn.md.
"""

import sys
from typing import Any

_is_late = "prometheus_client" in sys.modules
try:
    from .environment import (
        EnvironmentManager,
        MetricsSettings,
        RedisSettings,
        RequestSettings,
    )
    from .hooks import (
        HookContext,
        HookManager,
        default_on_exit,
        default_on_starting,
        default_post_fork,
        default_when_ready,
        default_worker_abort,
        default_worker_exit,
        default_worker_int,
        prepare,
        redis_when_ready,
    )
    from .keeping import MetricsServerManager, ProcessManager
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"{error.name} is not installed: pip install 'pharox[gunicorn]'", name=error.name
    ) from error

if "gunicorn" in sys.modules:
    prepare(is_late=_is_late)

_WORKERS = (
    "PrometheusEventletWorker",
    "PrometheusGeventWorker",
    "PrometheusThreadWorker",
    "PrometheusWorker",
    "get_prometheus_eventlet_worker",
    "get_prometheus_gevent_worker",
)


def __getattr__(name: str) -> Any:
    """Return a worker class. They are loaded late, because they import gunicorn."""
    if name not in _WORKERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import plugin  # noqa: PLC0415 - its import is that of gunicorn

    return getattr(plugin, name)


__all__ = [
    "EnvironmentManager",
    "HookContext",
    "HookManager",
    "MetricsServerManager",
    "MetricsSettings",
    "ProcessManager",
    "RedisSettings",
    "RequestSettings",
    "default_on_exit",
    "default_on_starting",
    "default_post_fork",
    "default_when_ready",
    "default_worker_abort",
    "default_worker_exit",
    "default_worker_int",
    "prepare",
    "redis_when_ready",
]

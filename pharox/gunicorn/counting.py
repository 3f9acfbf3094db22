"""Count a worker's requests, and record how it ends.

Code that runs in a signal handler only sets a flag or creates a file: the interrupted code may hold
a lock, which it could then never release.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

from prometheus_client import REGISTRY

from ..errors import InvalidInputError
from .environment import EnvironmentManager, RequestSettings
from .family import NO_SEAT, Family
from .process import process, store
from .requests import RequestMetrics

_SIGNALS = {signal.SIGABRT: "aborted", signal.SIGINT: "interrupted", signal.SIGTERM: "ended"}

_settings = RequestSettings()
_counting: tuple[int, RequestMetrics] | None = None


def remember(settings: RequestSettings) -> None:
    """Remember valid settings, for workers that are forked while the settings are not valid."""
    global _settings  # noqa: PLW0603 - workers inherit it from the master
    _settings = settings


def interrupted(worker: Any) -> None:
    """Note that the worker was interrupted."""
    process.exit = "interrupted"


def aborted(worker: Any) -> None:
    """Note that the worker was aborted."""
    process.exit = "aborted"


def count(worker: Any) -> RequestMetrics:
    """Start counting in this worker process; return the metrics of its requests."""
    global _counting  # noqa: PLW0603 - a process has one worker
    if _counting is not None and _counting[0] == os.getpid():
        return _counting[1]  # A hook and the worker's class may both ask.
    own = store()
    process.exit = "ended"
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(own.family.folder)
    metrics = RequestMetrics(REGISTRY, _request_settings(worker), _seat(own.family, worker))
    _counting = os.getpid(), metrics

    def begin(worker: Any) -> None:
        _begin(metrics, worker)

    add_hook(worker.cfg, "worker_int", interrupted)
    add_hook(worker.cfg, "worker_abort", aborted)
    add_hook(worker.cfg, "worker_exit", ended)
    add_hook(worker.cfg, "pre_request", metrics.begin)
    add_hook(worker.cfg, "post_request", metrics.end)
    add_hook(worker.cfg, "post_worker_init", begin)
    return metrics


def ended(server: Any, worker: Any) -> None:
    """Write the values that wait for room, and record how the worker ends."""
    if worker.pid != os.getpid():  # A master calls it too, for a worker that it finds gone.
        return
    if process.exit == "ended" and 0 < worker.max_requests <= worker.nr:
        process.exit = "max_requests"
    if waiting := store().flush():
        worker.log.warning("pharox: no room to write %s values of metrics", waiting)
    store().family.mark(process.exit)


def add_hook(cfg: Any, name: str, ours: Callable[..., None]) -> None:
    """Add our hook to the one in the configuration."""
    theirs = getattr(cfg, name)
    if theirs is not ours:
        cfg.set(name, _both(ours, theirs))


def _both(ours: Callable[..., None], theirs: Callable[..., None]) -> Callable[..., None]:
    """Return a hook that calls both, with our signature, which gunicorn checks."""

    @functools.wraps(ours)
    def both(*arguments: Any) -> None:
        try:
            theirs(*arguments)
        finally:
            ours(*arguments)

    return both


def _request_settings(worker: Any) -> RequestSettings:
    try:
        return EnvironmentManager().requests()
    except InvalidInputError as error:
        worker.log.warning("the former settings of request metrics stay in use: %s", error)
        return _settings


def _seat(family: Family, worker: Any) -> str:
    """Mark this process as a worker; return its seat."""
    try:
        seat = family.sit_down()
        family.mark("worker")  # After that: who is seen as a worker has its seat for good.
    except OSError as error:
        worker.log.warning(
            "pharox: this worker's counts stay in memory until its folder can be written: %s",
            error.strerror,
        )
        return NO_SEAT
    return seat


def _begin(metrics: RequestMetrics, worker: Any) -> None:
    """Finish the setup once the application is loaded and signals are handled."""
    if hasattr(worker, "asgi"):
        worker.asgi = metrics.watched(worker.asgi)
    if any(kind.__module__.startswith("uvicorn") for kind in type(worker).__mro__):
        # It ends itself by the signal once all is answered, without any hook.
        for number, how in _SIGNALS.items():
            signal.signal(number, functools.partial(_end_by_signal, how))


def _end_by_signal(how: str, number: int, frame: FrameType | None) -> None:
    """Record how the worker ends, then let the signal end it."""
    with contextlib.suppress(OSError):
        own = store()
        if own.lock.acquire(blocking=False):
            own.lock.release()
            own.flush()
        own.family.mark(how)
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)

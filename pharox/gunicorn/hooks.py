"""The hooks of gunicorn that count, serve and clear away.

Only hooks that gunicorn documents are used, and nothing of it is replaced. Those
that are called within a signal handler do no more than set a flag: a lock that the
interrupted code holds would never be released. Two failures end the start, since
they would make every figure wrong: settings that make no sense, and a folder that
was set too late. Any other costs a line in the log.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from prometheus_client import REGISTRY, values

from ..errors import InvalidInputError
from .environment import EnvironmentManager
from .family import Family
from .keeping import MetricsServerManager
from .requests import RequestMetrics
from .values import Store, value_class


@dataclass
class HookContext:
    """With what a hook is called.

    Parameters
    ----------
    server:
        Gunicorn's master, its ``Arbiter``.
    worker:
        The worker that it is about, if there is one.
    logger:
        Where to log; gunicorn's log if None.
    """

    server: Any
    worker: Any = None
    logger: logging.Logger | None = None

    @property
    def log(self) -> Any:
        """Return where to log."""
        return self.logger or (self.worker or self.server).log


class HookManager:
    """Runs what a hook does, so that its failure costs a line in the log and nothing else.

    Parameters
    ----------
    context:
        With what the hook is called.
    """

    def __init__(self, context: HookContext) -> None:
        self.context = context

    def safe_execute(self, function: Callable[..., Any], *arguments: Any) -> bool:
        """Call a function; return whether it succeeded."""
        try:
            function(*arguments)
        except Exception:
            name = getattr(function, "__name__", type(function).__name__)
            self.context.log.exception("pharox: %s failed; metrics may be missing", name)
            return False
        return True


@dataclass
class _Process:
    """What the hooks of this process know."""

    store: Store | None = None
    server: MetricsServerManager | None = None
    exit: str = "ended"
    is_left: bool = False


_process = _Process()


def prepare(*, is_late: bool = False) -> None:
    """Have this process, and those forked from it, count into the folder of this server.

    Within gunicorn the import of ``pharox.gunicorn`` does this. An application that
    runs gunicorn by itself does it before it makes any metric.

    Parameters
    ----------
    is_late:
        Whether metrics may have been made before.

    Raises
    ------
    InvalidInputError
        If they may, or the folder cannot be made.
    """
    if _process.store is not None:
        return
    if is_late:
        raise InvalidInputError(
            "prometheus_client was imported before pharox.gunicorn, so what its metrics count "
            "would be lost: import pharox.gunicorn first in the configuration file"
        )
    given = os.environ.get("PROMETHEUS_MULTIPROC_DIR") or None
    master = os.environ.get("GUNICORN_PID", "")
    family = Family.enter(given, int(master) if master.isdigit() else None)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(family.folder)
    store = _process.store = Store(family)
    values.ValueClass = value_class(store)
    os.register_at_fork(after_in_child=_forked)
    atexit.register(_leave_unless_started, os.getpid())


def _forked() -> None:
    if _process.store is not None:
        _process.store.family.forked()
        _process.store.forked()


def _leave_unless_started(pid: int) -> None:
    """Clear away where gunicorn only looked at its configuration, or failed to start."""
    if os.getpid() == pid and not _process.is_left:
        _leave()


def default_on_starting(server: Any) -> None:
    """Check the settings, and show this master in the folder (``on_starting``).

    Raises
    ------
    InvalidInputError
        If metrics could never be right: the server does not start then.
    """
    settings = EnvironmentManager().settings()
    settings.certificates.check()
    store = _store()
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR") != str(store.family.folder):
        raise InvalidInputError(
            "PROMETHEUS_MULTIPROC_DIR was set after pharox.gunicorn had been imported: set it "
            "before gunicorn starts, or above that import"
        )
    try:
        store.family.mark("master")
        store.family.give_to(server.cfg.uid, server.cfg.gid)
    except OSError as error:
        raise InvalidInputError(f"the folder for metrics cannot be used: {error}") from error


def default_when_ready(server: Any) -> None:
    """Begin to serve the metrics, in the background (``when_ready``)."""
    HookManager(HookContext(server)).safe_execute(_serve, server)


def redis_when_ready(server: Any) -> None:
    """Begin to serve the metrics together with those of other servers (``when_ready``).

    They are shared by way of Redis, unless ``REDIS_ENABLED`` says no.

    Raises
    ------
    InvalidInputError
        If the settings of Redis make no sense, or its client is not installed.
    """
    os.environ.setdefault("REDIS_ENABLED", "true")
    EnvironmentManager().settings()
    _check_redis()
    default_when_ready(server)


def default_post_fork(server: Any, worker: Any) -> None:
    """Count what this worker does (``post_fork``)."""
    run = HookManager(HookContext(server, worker)).safe_execute
    _process.exit = "ended"
    run(EnvironmentManager().carry, worker.cfg)
    run(_count, worker)


def default_worker_int(worker: Any) -> None:
    """Take note that the worker was interrupted (``worker_int``): a signal handler calls this."""
    _process.exit = "interrupted"


def default_worker_abort(worker: Any) -> None:
    """Take note that the worker was aborted (``worker_abort``): a signal handler calls this."""
    _process.exit = "aborted"


def default_worker_exit(server: Any, worker: Any) -> None:
    """Write what still waits for room, and how the worker ends (``worker_exit``)."""
    if worker.pid == os.getpid():  # A master calls it too, for a worker that it finds gone.
        HookManager(HookContext(server, worker)).safe_execute(_end, worker)


def default_on_exit(server: Any) -> None:
    """Stop serving, and clear away (``on_exit``)."""
    HookManager(HookContext(server)).safe_execute(_leave)


def _store() -> Store:
    """Return where this process counts."""
    if _process.store is None:
        raise InvalidInputError(
            "pharox.gunicorn was imported before gunicorn: call pharox.gunicorn.prepare() before "
            "any metric is made"
        )
    return _process.store


def _serve(server: Any) -> None:
    if EnvironmentManager().settings().redis is not None:
        _check_redis()
    family = _store().family
    family.mark("master")  # Again, for those who do without default_on_starting.
    _process.server = MetricsServerManager(
        family, server.log, user=(server.cfg.uid, server.cfg.gid)
    )
    _process.server.start()


def _check_redis() -> None:
    try:
        importlib.import_module("redis")
    except ModuleNotFoundError as error:
        raise InvalidInputError("redis is not installed: pip install 'pharox[gunicorn]'") from error


def _count(worker: Any) -> None:
    store = _store()
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(store.family.folder)
    try:
        store.family.mark("worker")
    except OSError as error:
        worker.log.warning(
            "pharox: what this worker counts stays in memory until its folder can be written: %s",
            error.strerror,
        )
    _add(worker.cfg, "worker_abort", default_worker_abort)
    _add(worker.cfg, "worker_exit", default_worker_exit)
    metrics = RequestMetrics(REGISTRY)
    _add(worker.cfg, "pre_request", metrics.begin)
    _add(worker.cfg, "post_request", metrics.end)


def _add(cfg: Any, name: str, ours: Callable[..., None]) -> None:
    """Have a hook of ours called beside what the configuration has."""
    theirs = getattr(cfg, name)
    if theirs is not ours:
        cfg.set(name, _both(ours, theirs))


def _both(ours: Callable[..., None], theirs: Callable[..., None]) -> Callable[..., None]:
    """Return a hook that does both; gunicorn looks at how many arguments one takes."""

    @functools.wraps(ours)
    def both(*arguments: Any) -> None:
        try:
            theirs(*arguments)
        finally:
            ours(*arguments)

    return both


def _end(worker: Any) -> None:
    store = _store()
    if _process.exit == "ended" and 0 < worker.max_requests <= worker.nr:
        _process.exit = "max_requests"
    if waiting := store.flush():
        worker.log.warning("pharox: there is no room for %s numbers of metrics", waiting)
    store.family.mark(_process.exit)


def _leave() -> None:
    _process.is_left = True
    if _process.server is not None:
        _process.server.stop()
    _store().family.leave()

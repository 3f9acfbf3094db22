"""The gunicorn hooks that count, serve and clean up, and the classes behind them.

They use only documented hooks and replace nothing in gunicorn. Two errors stop the start, because
every number would be wrong: settings that are not valid, and a folder that was set too late. Any
other error only logs a line.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import InvalidInputError
from .counting import aborted, count, ended, interrupted, remember
from .environment import EnvironmentManager, MetricsSettings, gunicorn_log
from .keeping import MetricsServerManager, ProcessManager
from .process import leave, prepare, process, store

__all__ = [
    "EnvironmentManager",
    "HookContext",
    "HookManager",
    "MetricsServerManager",
    "ProcessManager",
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

_HOOKS = ("on_starting", "post_fork", "worker_int", "on_exit")


@dataclass
class HookContext:
    """The arguments of a hook.

    Parameters
    ----------
    server:
        Gunicorn's master, its ``Arbiter``.
    worker:
        The worker that the hook is for, if any.
    logger:
        Where to log; gunicorn's log if None.
    """

    server: Any
    worker: Any = None
    logger: Any = None

    def __post_init__(self) -> None:
        if self.logger is None:  # Gunicorn's is no logging.Logger, but has its methods.
            self.logger = getattr(self.worker or self.server, "log", None) or gunicorn_log()


class HookManager:
    """Runs the code of a hook, so that an error in it only logs a line.

    Parameters
    ----------
    context:
        The hook's arguments, whose logger is used; gunicorn's logger if None.
    """

    def __init__(self, context: HookContext | None = None) -> None:
        self.context = context
        self.logger = gunicorn_log() if context is None else context.logger

    def get_logger(self) -> Any:
        """Return the logger."""
        return self.logger

    def safe_execute(self, func: Callable[..., Any], *arguments: Any, **named: Any) -> bool:
        """Call a function; return whether it succeeded."""
        try:
            func(*arguments, **named)
        except Exception:
            name = getattr(func, "__name__", type(func).__name__)
            self.logger.exception("pharox: %s failed; metrics may be missing", name)
            return False
        return True


@functools.cache
def _get_hook_manager() -> HookManager:
    """Return the manager of this process's hooks."""
    return HookManager()


@functools.cache
def _get_metrics_manager() -> MetricsServerManager:
    """Return the manager of this process's metrics server."""
    return MetricsServerManager(_get_hook_manager().get_logger())


@functools.cache
def _get_process_manager() -> ProcessManager:
    """Return a manager of another process."""
    return ProcessManager(_get_hook_manager().get_logger())


def default_on_starting(server: Any) -> None:
    """Check the settings, and add this master to the folder (``on_starting``).

    Raises
    ------
    InvalidInputError
        If the metrics would be wrong; the server then does not start.
    """
    _checked_settings()
    family = store().family
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR") != str(family.folder):
        raise InvalidInputError(
            "PROMETHEUS_MULTIPROC_DIR was set after pharox.gunicorn was imported: set it before "
            "gunicorn starts, or before that import"
        )
    try:
        family.mark("master")
        family.give_to(server.cfg.uid, server.cfg.gid)
    except OSError as error:
        raise InvalidInputError(f"the folder for metrics cannot be used: {error}") from error


def default_when_ready(server: Any) -> None:
    """Start to serve the metrics, in the background (``when_ready``)."""
    HookManager(HookContext(server)).safe_execute(_serve, server)


def redis_when_ready(server: Any) -> None:
    """Start to serve the metrics together with those of other servers (``when_ready``).

    They are shared through Redis, unless ``REDIS_ENABLED`` is false.

    Raises
    ------
    InvalidInputError
        If the settings of Redis are not valid, or its client is not installed.
    """
    os.environ.setdefault("REDIS_ENABLED", "true")
    EnvironmentManager().settings()
    _check_redis()
    default_when_ready(server)


def default_post_fork(server: Any, worker: Any) -> None:
    """Start to count in this worker (``post_fork``)."""
    run = HookManager(HookContext(server, worker)).safe_execute
    run(EnvironmentManager().update_from_cli, worker.cfg)
    run(count, worker)


def default_worker_int(worker: Any) -> None:
    """Note that the worker was interrupted (``worker_int``). A signal handler calls this."""
    interrupted(worker)


def default_worker_abort(worker: Any) -> None:
    """Note that the worker was aborted (``worker_abort``). A signal handler calls this."""
    aborted(worker)


def default_worker_exit(server: Any, worker: Any) -> None:
    """Write the values that wait for room, and record how the worker ends (``worker_exit``)."""
    HookManager(HookContext(server, worker)).safe_execute(ended, server, worker)


def default_on_exit(server: Any) -> None:
    """Stop serving, and remove the folder (``on_exit``)."""
    HookManager(HookContext(server)).safe_execute(leave)


def _checked_settings() -> MetricsSettings:
    settings = EnvironmentManager().settings()
    settings.certificates.check()
    remember(settings.requests)
    return settings


def _serve(server: Any) -> None:
    if _checked_settings().redis is not None:
        _check_redis()
    family = store().family
    user = server.cfg.uid, server.cfg.gid
    if not _is_ours(server.cfg, "on_starting"):
        family.mark("master")
        family.give_to(*user)
    manager = _get_metrics_manager()
    manager.logger = server.log
    process.before_leaving.append(manager.stop)
    manager.start(family, user)
    if missing := _missing(server):
        server.log.warning(missing)
        manager.expect_no_workers()


def _is_ours(cfg: Any, name: str) -> bool:
    """Return whether a hook is set. A hook of the user's is assumed to call ours."""
    return getattr(cfg, name) is not cfg.settings[name].default


def _missing(server: Any) -> str:
    """Return a warning about missing hooks, or "" if workers are counted."""
    cfg = server.cfg
    if _is_ours(cfg, "post_fork") or hasattr(server.worker_class, "counts_by_itself"):
        return ""
    lines = (
        f"from pharox.gunicorn import default_{name} as {name}"
        for name in _HOOKS
        if not _is_ours(cfg, name)
    )
    return (
        "gunicorn's workers are not counted, and gunicorn_workers is not shown: the configuration "
        "has no post_fork hook. Add to it: " + "; ".join(lines)
    )


def _check_redis() -> None:
    try:
        importlib.import_module("redis")
    except ModuleNotFoundError as error:
        raise InvalidInputError("redis is not installed: pip install 'pharox[gunicorn]'") from error

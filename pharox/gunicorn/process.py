"""Choose where this process stores its counts, before the first metric is created.

The master creates the folder, and every process forked from it adds itself there. Two errors stop
the start, because every number would be wrong: metrics that were created earlier, and a folder that
was set too late.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable
from dataclasses import dataclass, field

from prometheus_client import values

from ..errors import InvalidInputError
from .family import Family
from .values import Store, value_class


@dataclass
class Process:
    """The state of a process: where it counts, and how it ends."""

    store: Store | None = None
    exit: str = "ended"
    is_left: bool = False
    before_leaving: list[Callable[[], None]] = field(default_factory=list)


process = Process()


def prepare(*, is_late: bool = False) -> None:
    """Make this process, and those forked from it, count into the folder of this server.

    Within gunicorn, importing ``pharox.gunicorn`` calls this. An application that runs gunicorn
    itself calls it before it creates a metric.

    Parameters
    ----------
    is_late:
        Whether metrics may already exist.

    Raises
    ------
    InvalidInputError
        If metrics may already exist, or the folder cannot be created.
    """
    if process.store is not None:
        return
    if is_late:
        raise InvalidInputError(
            "prometheus_client was imported before pharox.gunicorn, so counts of its metrics would "
            "be lost: import pharox.gunicorn first in the configuration file"
        )
    given = os.environ.get("PROMETHEUS_MULTIPROC_DIR") or None
    master = os.environ.get("GUNICORN_PID", "")
    family = Family.enter(given, int(master) if master.isdigit() else None)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(family.folder)
    own = process.store = Store(family)
    values.ValueClass = value_class(own)
    os.register_at_fork(after_in_child=_forked)
    atexit.register(_leave_unless_started, os.getpid())


def store() -> Store:
    """Return the store of this process's counts.

    Raises
    ------
    InvalidInputError
        If this process does not count.
    """
    if process.store is None:
        raise InvalidInputError(
            "pharox.gunicorn was imported before gunicorn: call pharox.gunicorn.prepare() before "
            "you create a metric"
        )
    return process.store


def leave() -> None:
    """Stop serving metrics, and remove the folder."""
    process.is_left = True
    for stop in process.before_leaving:
        stop()
    store().family.leave()


def _forked() -> None:
    if process.store is not None:
        process.store.family.forked()
        process.store.forked()


def _leave_unless_started(pid: int) -> None:
    """Remove the folder if gunicorn only checked its configuration, or failed to start."""
    if os.getpid() == pid and not process.is_left:
        leave()

"""Where this process counts, from before the first metric is made.

The master makes the folder, and every process that is forked from it shows itself
there. Two things would make every figure wrong, so they end the start: metrics that
were made before, and a folder that was set too late.
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
    """What is known in this process of where it counts, and how it ends."""

    store: Store | None = None
    exit: str = "ended"
    is_left: bool = False
    before_leaving: list[Callable[[], None]] = field(default_factory=list)


process = Process()


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
    """Return where this process counts.

    Raises
    ------
    InvalidInputError
        If it does not.
    """
    if process.store is None:
        raise InvalidInputError(
            "pharox.gunicorn was imported before gunicorn: call pharox.gunicorn.prepare() before "
            "you create a metric"
        )
    return process.store


def leave() -> None:
    """Stop what serves the metrics, and clear away."""
    process.is_left = True
    for stop in process.before_leaving:
        stop()
    store().family.leave()


def _forked() -> None:
    if process.store is not None:
        process.store.family.forked()
        process.store.forked()


def _leave_unless_started(pid: int) -> None:
    """Clear away where gunicorn only looked at its configuration, or failed to start."""
    if os.getpid() == pid and not process.is_left:
        leave()

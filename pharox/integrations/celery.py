"""A lease, or a client that goes by one, for a task of Celery.

    @app.task(bind=True, autoretry_for=(httpx.HTTPError,))
    @leased_client("residential")
    def fetch(self, url, *, client):
        return client.get(url).text

The lease is kept alive while the task runs, and given back when it returns, raises, is retried or
runs into its soft time limit. A process that is killed, as the hard time limit does in the end, can
give nothing back: its lease runs out within its duration, a minute unless told otherwise.

A miss that may pass has the task retried, when the ledger says that a proxy may be free. Each
process of a worker has a manager of its own. Events are attributed to the task: its root id is
their correlation id, and its name the consumer.
"""

from __future__ import annotations

import logging
import math
import os
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from functools import partial, wraps
from inspect import signature
from typing import Any, Unpack

from ..connecting import connect
from ..errors import InvalidInputError, ProxyUnavailableError
from ..events.attribution import attributed
from ..manager.options import OnLost, PoolOptions
from ..manager.pool_handle import PoolHandle
from ..manager.proxy_manager import ProxyManager
from ..models import MissReason
from ._core import require

require("celery", "5.4")

from celery import current_task, signals  # noqa: E402 - after it is known to be there

Function = Callable[..., Any]

AGAIN_S = 30
"""When a task is tried again if nobody knows when a proxy is free."""

logger = logging.getLogger("pharox")

_turn = threading.Lock()
_own: list[ProxyManager] = []


def manager() -> ProxyManager:
    """Return this process's manager, of the ledger that ``PHAROX_DATABASE_URL`` names.

    It is connected when it is first needed, and closed when the process of the worker ends.
    """
    with _turn:
        if not _own:
            _own.append(ProxyManager(connect()))
        return _own[0]


def leased(
    pool: str,
    *,
    manager: ProxyManager | Callable[[], ProxyManager] = manager,
    retry_misses: bool = True,
    on_lost: OnLost = "cancel",
    **options: Unpack[PoolOptions],
) -> Callable[[Function], Function]:
    """Give a task a lease, as its parameter ``lease``.

    It stands below ``@app.task``. Who calls the task gives all other arguments. Say yourself what
    became of requests: ``manager().report(lease, outcome)``.

    Parameters
    ----------
    pool:
        The pool.
    manager:
        Who leases, or a function that returns it: the one of :func:`manager` unless given.
    retry_misses:
        Whether a miss that may pass has the task retried, as often as its ``max_retries`` says.
    on_lost, options:
        As for :meth:`pharox.ProxyManager.pool`. The consumer is the task's name unless given.

    Raises
    ------
    InvalidInputError
        If the function has no parameter ``lease``.
    """

    def held(handle: PoolHandle, chosen: PoolOptions) -> AbstractContextManager[Any]:
        return handle.lease(**chosen)

    opening = _Opening(pool, manager, on_lost, options, retry_misses)
    return partial(_with, "lease", opening, held)


def leased_client(
    pool: str,
    *,
    manager: ProxyManager | Callable[[], ProxyManager] = manager,
    retry_misses: bool = True,
    client_options: Mapping[str, Any] | None = None,
    report: bool = True,
    **options: Unpack[PoolOptions],
) -> Callable[[Function], Function]:
    """Give a task a client of httpx through a leased proxy, as its parameter ``client``.

    It reports what became of each request.

    Parameters
    ----------
    pool, manager, retry_misses, options:
        As for :func:`leased`.
    client_options, report:
        As for :meth:`pharox.ProxyManager.client`.
    """

    def held(handle: PoolHandle, chosen: PoolOptions) -> AbstractContextManager[Any]:
        return handle.client(client_options=client_options, report=report, **chosen)

    opening = _Opening(pool, manager, "cancel", options, retry_misses)
    return partial(_with, "client", opening, held)


class _Opening:
    """How a task's lease is opened."""

    def __init__(
        self,
        pool: str,
        manager: ProxyManager | Callable[[], ProxyManager],
        on_lost: OnLost,
        options: PoolOptions,
        retry_misses: bool,
    ) -> None:
        self._pool_name, self._manager, self._on_lost = pool, manager, on_lost
        self._options, self._retry_misses = options, retry_misses
        if isinstance(manager, ProxyManager):
            self.handle()  # It raises what is wrong with the options.
        elif not callable(manager):
            raise InvalidInputError("the manager must be a ProxyManager", value=manager)

    def handle(self) -> PoolHandle:
        """Return the pool's handle of this process."""
        known = self._manager
        found = known if isinstance(known, ProxyManager) else known()
        return found.pool(self._pool_name, on_lost=self._on_lost, **self._options)

    def chosen(self) -> PoolOptions:
        """Return what is the running task's own."""
        named = self._options.get("consumer") is not None
        return {} if named or not current_task else {"consumer": current_task.name}

    def missed(self, error: ProxyUnavailableError) -> BaseException:
        """Return what is raised for a miss: a retry if that may help."""
        may_pass = error.reason is None or MissReason(error.reason).may_pass
        if not self._retry_misses or not may_pass:
            return error
        if not current_task or current_task.request.called_directly:
            return error
        known_s = error.retry_after_seconds
        countdown = AGAIN_S if known_s is None else max(1, math.ceil(known_s))
        retry: BaseException = current_task.retry(exc=error, countdown=countdown, throw=False)
        return retry


def _with(
    parameter: str,
    opening: _Opening,
    held: Callable[[PoolHandle, PoolOptions], AbstractContextManager[Any]],
    function: Function,
) -> Function:
    """Return a task's function without a parameter, for which it leases."""
    whole = signature(function)
    if parameter not in whole.parameters:
        name = getattr(function, "__qualname__", repr(function))
        raise InvalidInputError(f"{name} needs a parameter {parameter!r} to be given it")

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with ExitStack() as stack:
            if current_task and current_task.request.id:
                request = current_task.request
                stack.enter_context(attributed(correlation_id=request.root_id or request.id))
            try:
                given = stack.enter_context(held(opening.handle(), opening.chosen()))
            except ProxyUnavailableError as error:
                raise opening.missed(error) from error
            return function(*args, **kwargs, **{parameter: given})

    # Celery checks the arguments of calls by it.
    others = [each for each in whole.parameters.values() if each.name != parameter]
    run.__signature__ = whole.replace(parameters=others)  # type: ignore[attr-defined]
    del run.__wrapped__
    return run


def _close(**_: Any) -> None:
    """Record what was counted, and close the connections of this process."""
    with _turn:
        closing, _own[:] = list(_own), []
    for each in closing:
        storage: Any = each.storage
        try:
            storage.close()
        except Exception:
            logger.exception("pharox.close.failed: as the worker's process ended")


def _forget() -> None:
    """Begin anew in a forked child: what its parent has is not the child's to use."""
    global _turn  # noqa: PLW0603 - another thread of the parent may have held it
    _turn = threading.Lock()
    _own.clear()


os.register_at_fork(after_in_child=_forget)
signals.worker_process_shutdown.connect(_close, weak=False)
signals.worker_shutdown.connect(_close, weak=False)

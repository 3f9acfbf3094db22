"""The managers of a fleet: those of a single ledger, routed (:mod:`.routing`)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, TypeVar, cast

from ..effects import Calls, call, call_async, run, run_async
from ..errors import InvalidInputError
from ..manager import AsyncProxyManager, ProxyManager
from ..manager.options import OnLost
from ..models import Lease, ProxyPool
from .merging import together, together_async
from .routing import Routing

if TYPE_CHECKING:
    from ..ledger.subscriptions import BoundSubscription
    from .fleets import AsyncFleet, Fleet

T = TypeVar("T")
_OF_ONE = (
    "a subscription reads the log of one ledger: give pool=, or subscribe with the manager of "
    "each, fleet.ledgers[name].manager"
)


class FleetManager(Routing, ProxyManager):
    """Leases proxies of all pools of a fleet, each in its ledger: ``fleet.manager``.

    It has the methods of :class:`pharox.ProxyManager`. Threads can share it.
    """

    def __init__(self, fleet: Fleet, **options: Any) -> None:
        super(ProxyManager, self).__init__(None, **options)
        self._route(fleet)

    def register_pool(self, pool: ProxyPool | str, ledger: str | None = None) -> ProxyPool:
        """Register a pool in a ledger, and have the directory say so.

        Parameters
        ----------
        pool:
            The pool, or the name of a new one. The settings of a known pool are changed; of a
            name that is known nothing is.
        ledger:
            Where. If None, where it is already, else in the home ledger.

        Returns
        -------
        ProxyPool
            The pool as it is registered.

        Raises
        ------
        ConflictError
            If it is in another ledger.
        """
        return run(self._registering(pool, ledger), call)

    def subscribe(
        self, name: str | None = None, *, pool: Any = None, **options: Any
    ) -> BoundSubscription:
        """Notify callbacks, from the log of a pool's ledger, of what every manager does there.

        As :meth:`pharox.ProxyManager.subscribe`. The ``pool`` is needed, by its name.
        """
        if not isinstance(pool, str):
            raise InvalidInputError(_OF_ONE)
        manager = run(self._of_pool(pool), call).manager
        return cast("ProxyManager", manager).subscribe(name, pool=pool, **options)

    def _perform(self, program: Calls[T]) -> T:
        return run(program, call)

    def _sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def _together(self, programs: Sequence[Calls[T]]) -> list[T | Exception]:
        return together(programs)


class AsyncFleetManager(Routing, AsyncProxyManager):
    """As :class:`FleetManager`, with the methods of :class:`pharox.AsyncProxyManager`."""

    def __init__(self, fleet: AsyncFleet, **options: Any) -> None:
        super(AsyncProxyManager, self).__init__(None, **options)
        self._running = set()
        self._route(fleet)

    async def register_pool(self, pool: ProxyPool | str, ledger: str | None = None) -> ProxyPool:
        """Do as :meth:`FleetManager.register_pool`."""
        return await run_async(self._registering(pool, ledger), call_async)

    async def subscribe(
        self, name: str | None = None, *, pool: Any = None, **options: Any
    ) -> BoundSubscription:
        """Do as :meth:`FleetManager.subscribe`."""
        if not isinstance(pool, str):
            raise InvalidInputError(_OF_ONE)
        manager = (await run_async(self._of_pool(pool), call_async)).manager
        return await cast("AsyncProxyManager", manager).subscribe(name, pool=pool, **options)

    def _held(
        self,
        held: Lease | list[Lease] | None,
        release: Callable[[Any], Awaitable[None]],
        on_lost: OnLost,
    ) -> AbstractAsyncContextManager[None]:
        leases = [held] if isinstance(held, Lease) else held or []
        ledger = self._guess_or_home(leases[0]) if leases else self._fleet.home
        return cast("AsyncProxyManager", ledger.manager)._held(held, release, on_lost)

    def _perform(self, program: Calls[T]) -> Awaitable[T]:
        return run_async(program, call_async)

    async def _sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def _together(self, programs: Sequence[Calls[T]]) -> list[T | Exception]:
        return await together_async(programs)

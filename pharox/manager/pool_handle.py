"""Handles of a pool: one worker's defaults for all that it leases.

A handle holds no lease and no connection, and never changes, so threads or tasks can share
one. It asks the ledger nothing before it leases. The manager's own methods return None for a
miss; here a miss raises :class:`pharox.ProxyUnavailableError`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, TypeVar, Unpack
from uuid import UUID

from ..effects import Calls, call, call_async, run, run_async
from ..errors import InvalidInputError
from ..models import DefaultSeconds, Lease, Outcome, Response, RetryConfig, check_pause
from ..storage.reports import Reported
from ..storage.requests import AcquireRequest
from .leasing import AcquireArguments, AcquireSetArguments, Leasing
from .options import WAIT_S, OnLost, PoolOptions, check_on_lost

if TYPE_CHECKING:
    from .async_proxy_manager import AsyncProxyManager  # noqa: F401 - a base's parameter
    from .clients import LeasedClient, OpeningClient
    from .proxy_manager import ProxyManager  # noqa: F401 - a base's parameter

M = TypeVar("M", bound=Leasing[Any])

_DEFAULTS: PoolOptions = {
    "consumer": None,
    "duration_seconds": DefaultSeconds(60),
    "filters": None,
    "selector": None,
    "keep_alive": True,
    "wait_seconds": WAIT_S,
    "target": None,
    "sticky": None,
    "fallback": (),
}


@dataclass(frozen=True, eq=False)
class Handle(Generic[M]):
    """What both kinds of handles share: the defaults, and the programs that use them.

    Attributes
    ----------
    pool_name:
        The pool.
    on_lost:
        What a block does if its lease is lost.
    options:
        All other defaults, by the names of :class:`pharox.PoolOptions`.
    """

    _manager: M = field(repr=False)
    pool_name: str
    on_lost: OnLost
    options: Mapping[str, Any]

    def __post_init__(self) -> None:
        check_on_lost(self.on_lost)
        defaults = (
            _DEFAULTS if self._manager.storage.can_wait else _DEFAULTS | {"wait_seconds": None}
        )
        options = {**defaults, **_checked(self.options)}
        AcquireRequest(  # It raises the errors of a lease with these options.
            self.pool_name,
            options["consumer"] or self._manager.DEFAULT_CONSUMER_NAME,
            options["duration_seconds"],
            options["filters"],
            options["selector"],
            target=options["target"],
            sticky=options["sticky"],
            fallback=options["fallback"],
        )
        object.__setattr__(self, "options", MappingProxyType(options))

    def _leasing(self, lease_id: UUID | None, options: PoolOptions) -> Calls[Lease]:
        """Lease a proxy, or raise the error for a miss."""
        arguments = AcquireArguments(lease_id=lease_id, **self._chosen(options))
        acquisition = yield from self._manager._acquiring(arguments)
        if acquisition.lease is None:
            raise (yield from self._manager._unavailable(arguments, acquisition))
        return acquisition.lease

    def _leasing_set(
        self,
        count: int,
        at_least: int | None,
        lease_ids: Sequence[UUID] | None,
        options: PoolOptions,
        *,
        distinct: bool,
    ) -> Calls[list[Lease]]:
        """Lease a set of proxies, or raise the error for a miss."""
        arguments = AcquireSetArguments(
            count=count,
            at_least=at_least,
            distinct=distinct,
            lease_ids=lease_ids,
            **self._chosen(options),
        )
        found = yield from self._manager._acquiring_set(arguments)
        if not found.acquisitions:
            raise (yield from self._manager._unavailable(arguments, found))
        return found.leases

    def _chosen(self, options: PoolOptions) -> dict[str, Any]:
        """Return the arguments of a call that every acquisition has, by name."""
        of_call = {**self.options, **_checked(options)}
        return {
            "pool_name": self.pool_name,
            "consumer_name": of_call.pop("consumer"),
            "duration_seconds": of_call.pop("duration_seconds"),
            "filters": of_call.pop("filters"),
            "selector": of_call.pop("selector"),
            **of_call,
        }

    def _on_lost(self, on_lost: OnLost | None) -> OnLost:
        """Return what a call's block does if its lease is lost."""
        if on_lost is None:
            return self.on_lost
        check_on_lost(on_lost)
        return on_lost


@dataclass(frozen=True, eq=False)
class PoolHandle(Handle["ProxyManager"]):
    """Leases from one pool, with a worker's defaults.

    Made by :meth:`pharox.ProxyManager.pool`. Threads can share it.
    """

    @contextmanager
    def lease(
        self,
        *,
        lease_id: UUID | None = None,
        on_lost: OnLost | None = None,
        **options: Unpack[PoolOptions],
    ) -> Iterator[Lease]:
        """Lease a proxy for a block.

        Parameters
        ----------
        lease_id:
            As for :meth:`pharox.ProxyManager.acquire_proxy`.
        on_lost:
            The handle's if None.
        options:
            What differs from the handle's defaults.

        Raises
        ------
        ProxyUnavailableError
            If nothing was free. ``reason`` says why, ``retry_after_seconds`` when the
            pool's next lease runs out.
        LeaseLostError
            At the end, if the lease was lost and the body did not raise.
        """
        then = self._on_lost(on_lost)
        lease = run(self._leasing(lease_id, options), call)
        with self._manager._held(lease, self._manager.release_proxy, then):
            yield lease

    @contextmanager
    def leases(
        self,
        count: int,
        *,
        at_least: int | None = None,
        distinct: bool = True,
        lease_ids: Sequence[UUID] | None = None,
        on_lost: OnLost | None = None,
        **options: Unpack[PoolOptions],
    ) -> Iterator[list[Lease]]:
        """Lease several proxies for a block; the list is never empty.

        Parameters
        ----------
        count, at_least, distinct, lease_ids:
            As for :meth:`pharox.ProxyManager.acquire_proxies`.
        on_lost, options:
            As for :meth:`lease`.

        Raises
        ------
        ProxyUnavailableError
            If too few were free. ``free`` says how many.
        LeaseLostError
            As for :meth:`lease`.
        """
        then = self._on_lost(on_lost)
        leases = run(
            self._leasing_set(count, at_least, lease_ids, options, distinct=distinct), call
        )
        # A copy: the block may change the list that it got.
        with self._manager._held([*leases], self._manager.release_proxies, then):
            yield leases

    def client(
        self,
        *,
        retry_config: RetryConfig | None = None,
        client_options: Mapping[str, Any] | None = None,
        report: bool = True,
        **options: Unpack[PoolOptions],
    ) -> LeasedClient:
        """Lease a proxy and return an HTTP client that goes through it.

        Parameters and errors are those of :meth:`pharox.ProxyManager.client`; options are
        those of :meth:`lease`.
        """
        if retry_config is not None:
            options = {"wait_seconds": None, **options}  # It asks again instead.
        return self._manager.client(
            retry_config=retry_config,
            client_options=client_options,
            report=report,
            **self._chosen(options),
        )

    def report(self, lease: Lease, outcome: Outcome | Response) -> Reported | None:
        """Record what became of a request, as :meth:`pharox.ProxyManager.report` does."""
        return self._manager.report(lease, outcome)


@dataclass(frozen=True, eq=False)
class AsyncPoolHandle(Handle["AsyncProxyManager"]):
    """Leases from one pool, with a worker's defaults, as :class:`pharox.PoolHandle` does.

    Made by :meth:`pharox.AsyncProxyManager.pool`. Tasks can share it.
    """

    @asynccontextmanager
    async def lease(
        self,
        *,
        lease_id: UUID | None = None,
        on_lost: OnLost | None = None,
        **options: Unpack[PoolOptions],
    ) -> AsyncIterator[Lease]:
        """Lease a proxy for a block.

        Parameters and errors are those of :meth:`pharox.PoolHandle.lease`. If the lease is
        lost, the task is cancelled where it waits, and the block raises ``LeaseLostError``.
        """
        then = self._on_lost(on_lost)
        lease = await run_async(self._leasing(lease_id, options), call_async)
        async with self._manager._held(lease, self._manager.release_proxy, then):
            yield lease

    @asynccontextmanager
    async def leases(
        self,
        count: int,
        *,
        at_least: int | None = None,
        distinct: bool = True,
        lease_ids: Sequence[UUID] | None = None,
        on_lost: OnLost | None = None,
        **options: Unpack[PoolOptions],
    ) -> AsyncIterator[list[Lease]]:
        """Lease several proxies for a block; the list is never empty.

        Parameters and errors are those of :meth:`pharox.PoolHandle.leases`.
        """
        then = self._on_lost(on_lost)
        leases = await run_async(
            self._leasing_set(count, at_least, lease_ids, options, distinct=distinct), call_async
        )
        # A copy: the block may change the list that it got.
        async with self._manager._held([*leases], self._manager.release_proxies, then):
            yield leases

    def client(
        self,
        *,
        retry_config: RetryConfig | None = None,
        client_options: Mapping[str, Any] | None = None,
        report: bool = True,
        **options: Unpack[PoolOptions],
    ) -> OpeningClient:
        """Lease a proxy and return an HTTP client that goes through it.

        Parameters and errors are those of :meth:`pharox.AsyncProxyManager.client`; options
        are those of :meth:`lease`.
        """
        if retry_config is not None:
            options = {"wait_seconds": None, **options}  # It asks again instead.
        return self._manager.client(
            retry_config=retry_config,
            client_options=client_options,
            report=report,
            **self._chosen(options),
        )

    async def report(self, lease: Lease, outcome: Outcome | Response) -> Reported | None:
        """Record what became of a request, as :meth:`pharox.AsyncProxyManager.report` does."""
        return await self._manager.report(lease, outcome)


def _checked(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return options if their names are known, and if the values are that no request checks."""
    if unknown := [name for name in options if name not in _DEFAULTS]:
        known = ", ".join([*_DEFAULTS, "on_lost"])
        raise TypeError(f"a pool's handle has no option {unknown[0]!r}; its options are {known}")
    if not isinstance(options.get("keep_alive", True), bool):
        raise InvalidInputError("keep_alive must be True or False", value=options["keep_alive"])
    if options.get("wait_seconds") is not None:
        check_pause(options["wait_seconds"], "wait_seconds")
    return options

"""ProxyManager: lease and release proxies and notify callbacks.

The logic is in :mod:`pharox.manager.leasing`; here it runs in the calling thread.
:class:`pharox.AsyncProxyManager` is the same for asyncio.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Unpack
from uuid import UUID

from ..effects import Calls, call, is_async, run
from ..errors import InvalidInputError
from ..models import (
    DEFAULT_DURATION_S,
    AcquireEventPayload,
    ExpireEventPayload,
    HealthCheckResult,
    HealthEventPayload,
    HealthPolicy,
    Lease,
    Outcome,
    ProxyFilters,
    ReleaseEventPayload,
    Response,
    RetryConfig,
    RevokeEventPayload,
    RotationAnswer,
    SelectorStrategy,
    StickySession,
)
from ..storage.interface import IStorage
from ..storage.reports import Reported
from ..storage.requests import HealthOutcome
from ..storage.validation import check_storage
from .keeper import Keeper, Keeping, keeper_of
from .leasing import (
    AcquireArguments,
    AcquireSetArguments,
    Leasing,
    fleet_subscriptions,
    if_given,
    lost_of,
    releasing_after,
)
from .options import LeaseOptions, OnLost, PoolOptions, check_on_lost, known_options
from .pool_handle import PoolHandle
from .reporting import REPORTED_FAILURES
from .retrying import checked_config, in_both_orders
from .rotator import Rotator, ThreadRotator, fetch_in_thread, rotator_of
from .ruling import OutcomeOf
from .tally import Tally, ThreadTally, tally_of

if TYPE_CHECKING:
    from ..ledger.subscriptions import BoundSubscription
    from .clients import LeasedClient

P = TypeVar("P")


class ProxyManager(Leasing[IStorage]):
    """Leases proxies of a storage's pools.

    Its only state is the registered callbacks, so threads can share one manager.

    Parameters
    ----------
    storage:
        Where the ledger is kept.
    reported_failures:
        When a proxy becomes inactive that holders report as failed: after three failed checks
        in a row, unless another policy is given. Sweeps count in the same row. None counts no
        reports.
        A pool's own ``reported_failures`` takes precedence.
    outcome_of:
        A function of a response and its lease that says what it means: an :class:`Outcome`, or
        None for the rules of the fleet, then the default ones. :meth:`client` and whoever
        reports a response ask it. It is called in the caller's thread.

    Raises
    ------
    InvalidInputError
        If it is not a storage, or one with coroutines.
    """

    def __init__(
        self,
        storage: IStorage,
        *,
        reported_failures: HealthPolicy | None = REPORTED_FAILURES,
        outcome_of: OutcomeOf | None = None,
    ) -> None:
        check_storage(storage, awaited=False)
        super().__init__(storage, reported_failures=reported_failures, outcome_of=outcome_of)

    def acquire_proxy(
        self,
        pool_name: str,
        consumer_name: str | None = None,
        duration_seconds: int = DEFAULT_DURATION_S,
        filters: ProxyFilters | None = None,
        selector: SelectorStrategy | None = None,
        *,
        lease_id: UUID | None = None,
        **options: Unpack[LeaseOptions],
    ) -> Lease | None:
        """Lease a proxy of a pool.

        Parameters
        ----------
        pool_name:
            The pool; an unknown one is a miss.
        consumer_name:
            Who leases, registered on first use; "default" if None.
        duration_seconds:
            How long the lease may last; in place of the default the pool's ``lease_seconds``
            is used, if it has one.
        filters:
            What the proxy must match.
        selector:
            Which of several; the pool's if None, else FIRST_AVAILABLE.
        lease_id:
            The lease's id, such as one of :func:`pharox.new_lease_id`; the ledger
            chooses one if None. However often one consumer asks with the same id, at
            most one lease is granted, and each call returns it.
        options:
            ``keep_alive=True`` renews the lease until it is released
            (:class:`pharox.LeaseOptions`).

        Returns
        -------
        Lease or None
            None if nothing was free; the ``AcquireMissed`` in the log says why.

        Raises
        ------
        InvalidLeaseError
            If the duration is not valid.
        InvalidInputError
            If a name is empty or cannot be stored.
        LeaseEndedError
            If the lease with this ``lease_id`` has ended.
        ConflictError
            If it belongs to another consumer or pool.
        OutcomeUnknownError
            If the connection to the database broke before the answer.
        """
        arguments = AcquireArguments(
            pool_name,
            consumer_name,
            duration_seconds,
            filters,
            selector,
            lease_id,
            **known_options("acquire_proxy", options),
        )
        return run(self._acquiring(arguments), call).lease

    def acquire_proxies(
        self,
        pool_name: str,
        count: int,
        consumer_name: str | None = None,
        duration_seconds: int = DEFAULT_DURATION_S,
        filters: ProxyFilters | None = None,
        selector: SelectorStrategy | None = None,
        *,
        at_least: int | None = None,
        distinct: bool = True,
        lease_ids: Sequence[UUID] | None = None,
        **options: Unpack[LeaseOptions],
    ) -> list[Lease]:
        """Lease several proxies of a pool at once, or none.

        Parameters
        ----------
        pool_name, consumer_name, duration_seconds, filters, selector:
            As for :meth:`acquire_proxy`.
        count:
            How many leases, from 1 to 1000.
        at_least:
            The smallest number to accept if fewer than ``count`` are free; ``count`` if None.
        distinct:
            No proxy is leased twice in the set.
        lease_ids:
            Ids of the leases, ``count`` different ones. However often one consumer asks
            with the same ids, at most one set is granted, and each call returns it.
        options:
            As for :meth:`acquire_proxy`.

        Returns
        -------
        list of Lease
            Empty if too few were free; the ``AcquireMissed`` in the log says how many.

        Raises
        ------
        InvalidLeaseError
            If the duration is not valid.
        InvalidInputError
            If another argument is not valid.
        LeaseEndedError
            If a lease with one of the ``lease_ids`` has ended.
        ConflictError
            If it belongs to another consumer or pool, or if fewer leases have these ids
            than the set needs.
        OutcomeUnknownError
            If the connection to the database broke before the answer.
        """
        arguments = AcquireSetArguments(
            pool_name,
            count,
            consumer_name,
            duration_seconds,
            filters,
            selector,
            at_least,
            distinct,
            lease_ids,
            **known_options("acquire_proxies", options),
        )
        return run(self._acquiring_set(arguments), call).leases

    @in_both_orders
    def acquire_proxy_with_retry(
        self,
        pool_name: str,
        consumer_name: str | None = None,
        duration_seconds: int = DEFAULT_DURATION_S,
        filters: ProxyFilters | None = None,
        selector: SelectorStrategy | None = None,
        retry_config: RetryConfig | None = None,
        sleep_fn: Callable[[float], None] | None = None,
        max_attempts: int = 3,
        backoff_seconds: float = 0.5,
        backoff_multiplier: float = 2.0,
        max_backoff_seconds: float | None = None,
        *,
        lease_id: UUID | None = None,
        **options: Unpack[LeaseOptions],
    ) -> Lease | None:
        """Lease a proxy, asking again after a pause while nothing is free.

        ``acquire_proxy`` with ``wait_seconds`` is sooner, and fair.

        A number in the place of ``retry_config`` is ``max_attempts``; the others then
        follow in the order of 0.11.0's reference: ``backoff_seconds``,
        ``backoff_multiplier``, ``max_backoff_seconds``, ``sleep_fn``.

        Parameters
        ----------
        pool_name, consumer_name, duration_seconds, filters, selector, lease_id, options:
            As for :meth:`acquire_proxy`.
        retry_config:
            How often and how long, instead of the four parameters below.
        sleep_fn:
            Waits for so many seconds; ``time.sleep`` if None.
        max_attempts:
            How often to ask at most.
        backoff_seconds:
            The first pause.
        backoff_multiplier:
            How much longer each further pause is.
        max_backoff_seconds:
            The longest pause.

        Raises
        ------
        ValueError
            If these are not valid.
        """
        config = checked_config(
            retry_config, max_attempts, backoff_seconds, backoff_multiplier, max_backoff_seconds
        )
        arguments = AcquireArguments(
            pool_name,
            consumer_name,
            duration_seconds,
            filters,
            selector,
            lease_id,
            **known_options("acquire_proxy_with_retry", options),
        )
        sleep = self._checked(sleep_fn or time.sleep)
        return run(self._acquiring_again(arguments, config, sleep), call)

    def renew_lease(self, lease: Lease, duration_seconds: float | None = None) -> Lease:
        """Extend a lease: it then lasts ``duration_seconds`` from now.

        ``lease`` itself gets the new ``expires_at``. Its id and fencing token stay.

        Parameters
        ----------
        lease:
            A lease that has not ended.
        duration_seconds:
            How long it lasts from now, by the storage's clock; as long as it was last
            granted for if None.

        Returns
        -------
        Lease
            The same object.

        Raises
        ------
        LeaseEndedError
            If the lease was released, taken back or has run out. The message says when.
        ConflictError
            If the lease with this id has another fencing token.
        InvalidLeaseError
            If the duration is not valid.
        OutcomeUnknownError
            If the connection to the database broke before the answer. Renew it again.
        """
        (renewed,) = run(self._renewing([lease], duration_seconds), call)
        return renewed

    def renew_leases(
        self, leases: Iterable[Lease], duration_seconds: float | None = None
    ) -> list[Lease]:
        """Extend leases, each as :meth:`renew_lease` does: up to 500 in one commit.

        All of them are tried. Errors are raised afterwards, several as an
        ``ExceptionGroup``.

        Parameters
        ----------
        leases:
            Leases that have not ended.
        duration_seconds:
            As for :meth:`renew_lease`.

        Returns
        -------
        list of Lease
            The same objects, in the same order.
        """
        return run(self._renewing(leases, duration_seconds), call)

    def release_proxy(self, lease: Lease, outcome: Outcome | Response | None = None) -> None:
        """Give a lease back.

        Only its id counts. ``lease`` gets the status and ``released_at`` that the
        ledger recorded. If it had ended before, nothing else happens, and a warning
        is logged.

        Parameters
        ----------
        lease:
            The lease that :meth:`acquire_proxy` returned.
        outcome:
            What became of the last request, or its response, recorded before the release, with
            the successes of :meth:`report`. What cannot be written is tried again for five minutes.

        Raises
        ------
        LeaseEndedError
            If there is an outcome, and no such lease.
        InvalidInputError
            If it is not an outcome: then nothing is done, the lease is still held. Or if the
            storage cannot record outcomes: the lease is given back, as with all other errors.

        Examples
        --------
        >>> from pharox import InMemoryStorage, Outcome, ProxyManager
        >>> from pharox import bootstrap_pool, bootstrap_proxy
        >>> storage = InMemoryStorage()
        >>> pool = bootstrap_pool(storage, name="residential")
        >>> proxy = bootstrap_proxy(storage, pool=pool, host="192.0.2.1", port=3128)
        >>> manager = ProxyManager(storage)
        >>> lease = manager.acquire_proxy("residential", "crawler-7")
        >>> outcome = Outcome.blocked("shop.example", status=403, retry_after=20)
        >>> manager.release_proxy(lease, outcome)
        """
        run(self._releasing(lease, outcome), call)

    def release_proxies(
        self, leases: Iterable[Lease], outcomes: Iterable[Outcome | Response | None] | None = None
    ) -> None:
        """Give leases back, each as :meth:`release_proxy` does.

        All of them are given back even if some fail. Errors are raised afterwards,
        several as an ``ExceptionGroup``.

        Parameters
        ----------
        leases:
            The leases, of :meth:`acquire_proxies` or any others.
        outcomes:
            An outcome or None for each lease, in the same order.

        Raises
        ------
        InvalidInputError
            If one is not an outcome, or there are more or fewer than leases: nothing is done.
        """
        run(self._releasing_all(leases, outcomes), call)

    def report(self, lease: Lease, outcome: Outcome | Response) -> Reported | None:
        """Record what became of a request, or of several alike, through a leased proxy.

        Successes are counted in this process and written together: with the lease's release,
        a renewal of a kept lease, another outcome of the proxy, or after ten seconds. A process
        that is killed loses them; :meth:`flush_reports` and closing the storage write them. All
        other outcomes are written at once.

        Parameters
        ----------
        lease:
            A lease, which may have ended. It stays as it is.
        outcome:
            What became of it, or the response: then ``outcome_of`` and the rules of the fleet
            say what it means. Without a target it is of the target that the lease is for.

        Returns
        -------
        Reported or None
            Until when proxy and target rest, and the streak; None for a success.

        Raises
        ------
        InvalidInputError
            If it is not a lease and an outcome, or the storage cannot record outcomes.
        LeaseEndedError
            If there is no such lease. For a success that is only logged.
        OutcomeUnknownError
            If the connection to the database broke before the answer.

        Notes
        -----
        A proxy that failed has failed a health check, too, if it was ever checked:
        ``reported_failures`` of the manager says when it becomes inactive.

        Examples
        --------
        >>> from pharox import InMemoryStorage, Outcome, ProxyManager
        >>> from pharox import bootstrap_pool, bootstrap_proxy
        >>> storage = InMemoryStorage()
        >>> pool = bootstrap_pool(storage, name="residential")
        >>> proxy = bootstrap_proxy(storage, pool=pool, host="192.0.2.1", port=3128)
        >>> manager = ProxyManager(storage)
        >>> with manager.with_lease("residential", "crawler-7") as lease:
        ...     manager.report(lease, Outcome.ok("shop.example", status=200))
        ...     manager.report(lease, Outcome.unclear("shop.example")).streak
        -1
        """
        return run(self._reporting(lease, outcome), call)

    def report_outcomes(
        self, reports: Iterable[tuple[Lease, Outcome | Response]]
    ) -> list[Reported]:
        """Record outcomes now, successes as well: up to 500 in one commit.

        All of them are tried. Errors are raised afterwards, several as an ``ExceptionGroup``.

        Parameters
        ----------
        reports:
            Pairs of a lease and an outcome, in order. Errors are those of :meth:`report`.

        Returns
        -------
        list of Reported
            What was recorded of each, in the same order.
        """
        return run(self._reporting_all(reports), call)

    def flush_reports(self) -> None:
        """Write the successes that are counted and not written yet, of all this storage's managers.

        What cannot be written is logged, and tried again for five minutes.
        """
        run(self._flushing_reports(), call)

    def revoke_lease(self, lease_id: UUID | str, reason: str) -> Lease:
        """End a lease of somebody else, whose proxy can then be leased.

        Its holder is not asked. A kept lease is lost to its holder with its next renewal, at
        once if this process holds it; :meth:`renew_lease` raises, and a release is ignored. If
        the lease has ended, or run out, nothing is recorded.

        Parameters
        ----------
        lease_id:
            The id of a lease, a UUID or its text.
        reason:
            Why, for the log and for the holder.

        Returns
        -------
        Lease
            The lease as it is recorded now.

        Raises
        ------
        LeaseEndedError
            If there is no such lease, or it was released, revoked, taken back or has run out. The
            message says when.
        InvalidInputError
            If there is no reason, or the storage cannot revoke leases.
        OutcomeUnknownError
            If the connection to the database broke before the answer. Revoke it again: an error
            that says that it was revoked is then an answer, too.
        """
        (revoked,) = run(self._revoking([lease_id], reason), call)
        return revoked

    def revoke_leases(self, lease_ids: Iterable[UUID | str], reason: str) -> list[Lease]:
        """End leases of others, each as :meth:`revoke_lease` does: up to 500 in one commit.

        All of them are tried. Errors are raised afterwards, several as an
        ``ExceptionGroup``.
        """
        return run(self._revoking(lease_ids, reason), call)

    def sessions(
        self,
        pool_name: str | None = None,
        *,
        after: StickySession | None = None,
        limit: int = 1000,
    ) -> list[StickySession]:
        """Return a page of the sticky sessions that live, ordered by the pool's id and key.

        Parameters
        ----------
        pool_name:
            Only sessions of this pool; of all pools if None.
        after:
            The last session of the page before; None for the first page.
        limit:
            How many to return at most. A shorter page is the last one.

        Examples
        --------
        >>> from pharox import InMemoryStorage, ProxyManager, Sticky
        >>> from pharox import bootstrap_pool, bootstrap_proxy
        >>> storage = InMemoryStorage()
        >>> pool = bootstrap_pool(storage, name="residential")
        >>> proxy = bootstrap_proxy(storage, pool=pool, host="192.0.2.1", port=3128)
        >>> manager = ProxyManager(storage)
        >>> with manager.with_lease("residential", sticky=Sticky("account-42")) as lease:
        ...     [session.key for session in manager.sessions("residential")]
        ['account-42']
        """
        return run(self._sessions(pool_name, after, limit), call)

    def rotate(self, lease: Lease) -> Lease:
        """Have a lease take another exit of its gateway: ``lease.proxy.url`` is for that one then.

        The proxy has to be a template with ``{session}``. If the lease has the exit of a sticky
        session, the session keeps the new one. Clients and connections that were opened before
        have the old one.

        Parameters
        ----------
        lease:
            A lease that has not ended. ``lease.exit`` gets the new session id.

        Returns
        -------
        Lease
            The same object.

        Raises
        ------
        LeaseEndedError
            If it has ended or run out.
        InvalidInputError
            If its proxy has no session id that could be changed, or the storage does not know
            templates.
        OutcomeUnknownError
            If the connection to the database broke before the answer. Rotate it again.
        """
        return run(self._rotating(lease), call)

    def rotate_proxy(
        self, proxy_id: UUID | str, *, within_seconds: float | None = None
    ) -> RotationAnswer:
        """Have a mobile proxy take another exit by its ``rotate_url``, and wait until it has.

        Nobody is granted the proxy meanwhile. If leases hold it, their ends are waited for, as the
        link is never called before. A link that fails is called again until the bound.

        Parameters
        ----------
        proxy_id:
            A proxy that was saved with a ``rotate_url``.
        within_seconds:
            How long to try at most; what its pool says if None, else 60.

        Returns
        -------
        RotationAnswer
            What came of it last: ``is_rotated``, or the ``failure``.

        Raises
        ------
        ProxyNotFoundError
            If there is no such proxy.
        ConflictError
            If its link may not be called in that time: ``retry_after_seconds`` says when.
        InvalidInputError
            If it has no link, or the storage does not know links.
        """
        program = self._rotating_proxy(proxy_id, within_seconds, fetch_in_thread, time.sleep)
        return run(program, call)

    def rotate_due(self) -> list[RotationAnswer]:
        """Call all links that are due now, of the whole ledger, and return what came of them.

        Those of leases that were released are called in the background by who released them. This
        is for what is left: leases that ran out or were revoked, and processes that died.
        `pharox sweep` does it, too.
        """
        return run(self._calling_due(fetch_in_thread), call)

    def forget_session(self, pool_name: str, key: str) -> bool:
        """End the binding of a sticky session's key, so that its next lease makes a new one.

        Returns
        -------
        bool
            Whether the key was bound.
        """
        return run(self._forgetting(pool_name, key), call)

    def inherit_session(self, pool_name: str, old: str, new: str) -> None:
        """Have the key ``new`` take over the binding of ``old``, which is then not bound.

        The binding ends when it would have ended.

        Raises
        ------
        SessionNotFoundError
            If the old key is not bound.
        ConflictError
            If the new key is bound itself.
        """
        run(self._inheriting(pool_name, old, new), call)

    def cleanup_expired_leases(self) -> int:
        """Expire all leases that have run out.

        Returns
        -------
        int
            How many leases this call ended.
        """
        return run(self._cleaning_up(), call)

    def record_health_checks(
        self, results: Sequence[HealthCheckResult], policy: HealthPolicy | None = None
    ) -> Sequence[HealthOutcome]:
        """Record health checks, those of one proxy in their order, and notify the callbacks.

        Parameters
        ----------
        results:
            Any number, of any proxies.
        policy:
            When results change a status; each one does if None.

        Returns
        -------
        Sequence of HealthOutcome
            What each came to; an unknown proxy is an outcome too.
        """
        return run(self._recording(results, policy), call)

    @contextmanager
    def with_lease(
        self,
        pool_name: str,
        consumer_name: str | None = None,
        duration_seconds: int = DEFAULT_DURATION_S,
        filters: ProxyFilters | None = None,
        selector: SelectorStrategy | None = None,
        *,
        lease_id: UUID | None = None,
        on_lost: OnLost = "cancel",
        **options: Unpack[LeaseOptions],
    ) -> Iterator[Lease | None]:
        """Lease a proxy for a block; yields None if nothing was free.

        Parameters are those of :meth:`acquire_proxy`, and ``on_lost`` is
        :data:`pharox.OnLost`. An exception of the block is never replaced by one
        of a callback.

        Raises
        ------
        LeaseLostError
            At the end, if a lease that is kept alive was lost and the body did not raise.
        """
        check_on_lost(on_lost)
        lease = self.acquire_proxy(
            pool_name,
            consumer_name,
            duration_seconds,
            filters,
            selector,
            **if_given(lease_id=lease_id),
            **known_options("with_lease", options),
        )
        with self._held(lease, self.release_proxy, on_lost):
            yield lease

    @contextmanager
    def with_leases(
        self,
        pool_name: str,
        count: int,
        consumer_name: str | None = None,
        duration_seconds: int = DEFAULT_DURATION_S,
        filters: ProxyFilters | None = None,
        selector: SelectorStrategy | None = None,
        *,
        at_least: int | None = None,
        distinct: bool = True,
        lease_ids: Sequence[UUID] | None = None,
        on_lost: OnLost = "cancel",
        **options: Unpack[LeaseOptions],
    ) -> Iterator[list[Lease]]:
        """Lease several proxies for a block; yields an empty list if too few were free.

        Parameters are those of :meth:`acquire_proxies` and :meth:`with_lease`. All leases
        are given back in the end. An exception of the block is never replaced by one of a callback.
        """
        check_on_lost(on_lost)
        leases = self.acquire_proxies(
            pool_name,
            count,
            consumer_name,
            duration_seconds,
            filters,
            selector,
            at_least=at_least,
            distinct=distinct,
            lease_ids=lease_ids,
            **known_options("with_leases", options),
        )
        # A copy: the block may change the list that it got.
        with self._held([*leases], self.release_proxies, on_lost):
            yield leases

    @in_both_orders
    @contextmanager
    def with_retrying_lease(
        self,
        pool_name: str,
        consumer_name: str | None = None,
        duration_seconds: int = DEFAULT_DURATION_S,
        filters: ProxyFilters | None = None,
        selector: SelectorStrategy | None = None,
        retry_config: RetryConfig | None = None,
        sleep_fn: Callable[[float], None] | None = None,
        max_attempts: int = 3,
        backoff_seconds: float = 0.5,
        backoff_multiplier: float = 2.0,
        max_backoff_seconds: float | None = None,
        *,
        lease_id: UUID | None = None,
        on_lost: OnLost = "cancel",
        **options: Unpack[LeaseOptions],
    ) -> Iterator[Lease | None]:
        """Lease a proxy for a block, with the retries of :meth:`acquire_proxy_with_retry`."""
        check_on_lost(on_lost)
        lease = self.acquire_proxy_with_retry(
            pool_name,
            consumer_name,
            duration_seconds,
            filters,
            selector,
            retry_config=retry_config,
            sleep_fn=sleep_fn,
            max_attempts=max_attempts,
            backoff_seconds=backoff_seconds,
            backoff_multiplier=backoff_multiplier,
            max_backoff_seconds=max_backoff_seconds,
            **if_given(lease_id=lease_id),
            **known_options("with_retrying_lease", options),
        )
        with self._held(lease, self.release_proxy, on_lost):
            yield lease

    def client(
        self,
        pool_name: str,
        consumer_name: str | None = None,
        duration_seconds: int = DEFAULT_DURATION_S,
        filters: ProxyFilters | None = None,
        selector: SelectorStrategy | None = None,
        *,
        retry_config: RetryConfig | None = None,
        client_options: Mapping[str, Any] | None = None,
        report: bool = True,
        **options: Unpack[LeaseOptions],
    ) -> LeasedClient:
        """Lease a proxy and return an HTTP client that goes through it.

        Parameters
        ----------
        pool_name, consumer_name, duration_seconds, filters, selector:
            As for :meth:`acquire_proxy`.
        retry_config:
            How often and how long to ask; once if None.
        client_options:
            Further arguments of ``httpx.Client``, such as ``timeout``.
        report:
            Whether every response and every transport error is reported, with the request's
            host as target, as :meth:`report` does but in the background. A response counts once
            its headers are here; each redirect counts as well.
        options:
            As for :meth:`acquire_proxy`, but ``keep_alive`` is True by default, and without
            a ``retry_config`` ``wait_seconds`` is 30. If the lease is lost, requests end with
            an error and no more are sent.

        Returns
        -------
        LeasedClient
            An ``httpx.Client`` that gives its lease back when it is closed.

        Raises
        ------
        ProxyUnavailableError
            If nothing was free; ``reason`` says why.
        InvalidInputError
            If ``client_options`` choose a proxy or transport.
        """
        from .clients import (  # noqa: PLC0415 - httpx takes a while to import
            LeasedClient,
            opening_client,
        )

        options = self._client_options(options, retry_config)
        request = AcquireArguments(
            pool_name,
            consumer_name,
            duration_seconds,
            filters,
            selector,
            None,
            **known_options("client", options),
        )
        program = opening_client(
            self, LeasedClient, request, retry_config, client_options, time.sleep, report=report
        )
        return run(program, call)

    def pool(
        self,
        pool_name: str,
        *,
        on_lost: OnLost = "cancel",
        **options: Unpack[PoolOptions],
    ) -> PoolHandle:
        """Return a handle of a pool, which holds a worker's defaults.

        Nothing is queried: the pool may not exist yet.

        Parameters
        ----------
        pool_name:
            The pool.
        on_lost:
            What a block does if its lease is lost.
        options:
            Who leases, how long, and what (:class:`pharox.PoolOptions`). By default a
            lease lasts 60 seconds and is kept alive.

        Returns
        -------
        PoolHandle
            ``pool.lease()``, ``pool.leases(count)`` and ``pool.client()``. Each may be given
            other options.

        Raises
        ------
        InvalidLeaseError
            If the duration is not valid.
        InvalidInputError
            If another value is not valid.
        TypeError
            If there is no option of this name.
        """
        return PoolHandle(self, pool_name, on_lost, options)

    def subscribe(
        self,
        name: str | None = None,
        *,
        on_acquire: Callable[[AcquireEventPayload], Any] | None = None,
        on_release: Callable[[ReleaseEventPayload], Any] | None = None,
        on_expire: Callable[[ExpireEventPayload], Any] | None = None,
        on_revoke: Callable[[RevokeEventPayload], Any] | None = None,
        on_health: Callable[[HealthEventPayload], Any] | None = None,
        start: Literal["beginning", "now"] | int = "now",
        pool: str | UUID | None = None,
    ) -> BoundSubscription:
        """Notify callbacks, from the log, of what every manager does.

        They get the payloads of registered callbacks, in the order of the log, with
        the pool's statistics exactly as they were. Times are those of the log,
        which does not know when an attempt began.

        Parameters
        ----------
        name:
            Name of the subscription; another process with this name continues where
            this one ended. If None, the subscription is forgotten when it ends.
        on_acquire, on_release, on_expire, on_revoke, on_health:
            What to call; coroutine functions need ``run_async``.
        start:
            Where a new subscription begins: "beginning", "now", or the seq of an event.
        pool:
            Only this pool, by its name, or its id as UUID.

        Returns
        -------
        BoundSubscription
            Nothing is read before ``with ...running():``, ``run()`` or ``run_async()``.

        Raises
        ------
        InvalidInputError
            If the storage is not in PostgreSQL, or there is no callback.
        """
        callbacks = {
            "on_acquire": on_acquire,
            "on_release": on_release,
            "on_expire": on_expire,
            "on_revoke": on_revoke,
            "on_health": on_health,
        }
        fleet = fleet_subscriptions()
        bound: BoundSubscription = fleet.fleet_subscription(
            self._storage, name, callbacks, start=start, pool=pool
        )
        return bound

    @contextmanager
    def _held(
        self,
        held: Lease | list[Lease] | None,
        release: Callable[[Any], None],
        on_lost: OnLost,
    ) -> Iterator[None]:
        """Release what is held when the block ends."""
        try:
            yield
        except BaseException as error:
            run(releasing_after(error, release, held), call)
            raise
        lost = lost_of(held)
        if held:
            release(held)
        if lost is not None and on_lost == "cancel":
            raise lost

    def _keeper(self) -> Keeping:
        return keeper_of(self._storage, Keeper)

    def _tally(self) -> Tally:
        return tally_of(self._storage, ThreadTally)

    def _rotator(self) -> Rotator:
        return rotator_of(self._storage, ThreadRotator)

    def _run_later(self, program: Calls[Any]) -> None:
        run(program, call)  # in the thread that found a lease lost, which has nothing else to do

    def _checked(self, callback: Callable[[P], Any]) -> Callable[[P], Any]:
        if is_async(callback):
            raise InvalidInputError(
                "a ProxyManager cannot await a coroutine function; use AsyncProxyManager"
            )
        return super()._checked(callback)

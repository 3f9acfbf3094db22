"""Which ledger a call of the fleet's manager is for. Everything else is that ledger's manager.

The methods of a manager run programs (:mod:`pharox.manager.leasing`). Here each program finds the
ledgers that it is for, by the names of pools, by leases or by proxies, and runs the programs of
their own managers. So it is written once for threads and asyncio, and keeps no lease alive, counts
no report and calls no callback itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any
from uuid import UUID

from ..effects import Calls
from ..errors import PoolMovedError, ProxyNotFoundError
from ..manager.leasing import outcomes_for
from ..manager.reporting import check_said, report_pair
from ..manager.rotator import Fetch, Pause, calling_due
from ..manager.tally import has_reports
from ..models import (
    HealthCheckResult,
    HealthPolicy,
    Lease,
    Outcome,
    ProxyPool,
    Response,
    RotationAnswer,
    StickySession,
)
from ..models.ids import NIL
from ..storage.reports import Reported
from ..storage.requests import HealthOutcome, RevokeRequest, check_lease
from ..storage.validation import id_from_text
from .chains import Chains
from .finding import has_lease
from .groups import grouped
from .ledgers import AnyLedger


class Routing(Chains):
    """The programs of a manager, each run by the managers of the ledgers that it is for."""

    def watch_requests(self, watcher: Callable[[str], Callable[[], None]]) -> None:
        """Call ``watcher`` when a request for a lease begins, as a single ledger's manager does."""
        for ledger in self._fleet.ledgers.values():
            ledger.manager.watch_requests(watcher)

    def _sessions(
        self, pool_name: str | None, after: StickySession | None, limit: int
    ) -> Calls[list[StickySession]]:
        if pool_name is not None:
            ledger = yield from self._of_pool(pool_name)
            return (yield from ledger.manager._sessions(pool_name, after, limit))
        pages = yield from self._in_all(lambda each: each.manager._sessions(None, after, limit))
        # Every ledger's page has this order, so the first ones of all are in the first pages.
        found = [session for page in pages for session in page]
        return sorted(found, key=lambda session: (session.pool_id, session.key))[:limit]

    def _forgetting(self, pool_name: str, key: str) -> Calls[bool]:
        ledger = yield from self._of_pool(pool_name)
        return (yield from ledger.manager._forgetting(pool_name, key))

    def _inheriting(self, pool_name: str, old: str, new: str) -> Calls[None]:
        ledger = yield from self._of_pool(pool_name)
        yield from ledger.manager._inheriting(pool_name, old, new)

    def _registering(self, pool: ProxyPool | str, ledger: str | None) -> Calls[ProxyPool]:
        """Place a pool, then register it there, unless it is."""
        wanted = pool if isinstance(pool, ProxyPool) else ProxyPool(name=pool)
        known = yield from self._fleet.directory.reading(wanted.name)
        name = known.name if ledger is None else ledger
        # The place comes first: whoever is killed in between leaves a place and not a second pool.
        yield from self._fleet.directory.placing(wanted.name, name)
        storage = self._fleet.ledgers[name].storage
        pools: Sequence[ProxyPool] = yield storage.list_pools
        for registered in pools:
            if registered.name == wanted.name:
                if not isinstance(pool, ProxyPool):
                    return registered
                wanted = wanted.model_copy(update={"id": registered.id})
        try:
            yield partial(storage.save_pool, wanted)
        except PoolMovedError:
            self._fleet.directory.forget(wanted.name, has_left=True)
            if ledger is not None or (yield from self._is_at(wanted.name, name)):
                raise
            return (yield from self._registering(pool, None))
        return wanted

    def _is_at(self, pool_name: str, ledger: str) -> Calls[bool]:
        """Return whether a pool is in a ledger, as the directory has it now."""
        return (yield from self._fleet.directory.reading(pool_name)).name == ledger

    def _judging(self, lease: Lease, said: Any) -> Calls[Any]:
        ledger = yield from self._of_lease(lease)
        return (yield from ledger.manager._judging(lease, said))

    def _judged(
        self, lease: Lease, response: Any, *, target: str | None, body: bytes | None
    ) -> Outcome:
        manager = self._guess_or_home(lease).manager
        outcome: Outcome = manager._judged(lease, response, target=target, body=body)
        return outcome

    def _reading_rules(self) -> Calls[None]:
        """Read the rules for targets of the ledgers that this process leases from."""
        self._wants_rules = True
        for name in tuple(self._used):
            yield from self._fleet.ledgers[name].manager._reading_rules()

    def _needs_body(self, target: str | None) -> bool:
        used = (self._fleet.ledgers[name] for name in tuple(self._used))
        return any(ledger.manager._needs_body(target) for ledger in used)

    def _storage_of(self, lease: Lease) -> Any:
        return self._guess_or_home(lease).storage

    def report_later(self, lease: Lease, outcome: Outcome) -> None:
        """Have an outcome recorded in the background, in the ledger of the lease.

        One that this process has not seen is looked for in the background, too; what is reported
        of its proxy meanwhile comes after it.
        """
        ledger = self._guess(lease) if self._has_seen(lease) else None
        if ledger is None or has_reports(self._storage, lease.proxy_id):
            super().report_later(lease, outcome)
        else:
            ledger.manager.report_later(lease, outcome)

    def _reporting(self, lease: Lease, said: Any) -> Calls[Reported | None]:
        ledger = yield from self._of_lease(lease)
        return (yield from self._said_by(ledger, ledger.manager._reporting(lease, said)))

    def _reporting_all(self, reports: Iterable[tuple[Lease, Any]]) -> Calls[list[Reported]]:
        pairs = [report_pair(each) for each in reports]
        return (
            yield from self._in_groups(
                pairs,
                (yield from self._of_leases([lease for lease, _ in pairs])),
                lambda ledger, some: ledger.manager._reporting_all(some),
            )
        )

    def _flushing_reports(self) -> Calls[None]:
        yield from super()._flushing_reports()  # Their ledgers are found first.
        yield from self._in_all(lambda ledger: ledger.manager._flushing_reports())

    def _renewing(
        self, leases: Iterable[Lease], duration_seconds: float | None
    ) -> Calls[list[Lease]]:
        given = [*leases]
        return (
            yield from self._in_groups(
                given,
                (yield from self._of_leases(given)),
                lambda ledger, some: ledger.manager._renewing(some, duration_seconds),
            )
        )

    def _returning(
        self, lease: Lease, reason: str | None = None, outcome: Outcome | Response | None = None
    ) -> Calls[list[BaseException]]:
        check_said(outcome)
        ledger = yield from self._of_lease(lease)
        program = ledger.manager._returning(lease, reason, outcome)
        errors: list[BaseException] = yield from self._said_by(ledger, program)
        return errors

    def _returning_all(
        self,
        leases: Iterable[Lease],
        reason: str | None = None,
        outcomes: Iterable[Outcome | Response | None] | None = None,
    ) -> Calls[list[BaseException]]:
        given = [*leases]
        for lease in given:
            check_lease(lease)
        pairs = [*zip(given, outcomes_for(given, outcomes), strict=True)]

        def returning(ledger: AnyLedger, some: list[Any]) -> Calls[list[BaseException]]:
            these, said = [lease for lease, _ in some], [each for _, each in some]
            return ledger.manager._returning_all(these, reason, said)

        groups = grouped(pairs, (yield from self._of_leases(given)))
        answers = yield from self._run_groups(groups, returning)
        return [
            error
            for answer in answers
            for error in ([answer] if isinstance(answer, Exception) else answer)
        ]

    def _rotating(self, lease: Lease) -> Calls[Lease]:
        ledger = yield from self._of_lease(lease)
        return (yield from self._said_by(ledger, ledger.manager._rotating(lease)))

    def _revoking(self, lease_ids: Iterable[UUID | str], reason: str) -> Calls[list[Lease]]:
        ids = RevokeRequest(tuple(lease_ids), reason).lease_ids  # type: ignore[arg-type]
        asked = yield from self._asking_all({*ids}, has_lease)
        return (
            yield from self._in_groups(
                ids,
                [asked.get(each, self._fleet.home) for each in ids],
                lambda ledger, some: ledger.manager._revoking(some, reason),
            )
        )

    def _recording(
        self, results: Sequence[HealthCheckResult], policy: HealthPolicy | None
    ) -> Calls[Sequence[HealthOutcome]]:
        given = [*results]
        outcomes = yield from self._recording_once(given, policy)
        # A proxy that is not where it was seen may have moved with its pool.
        places = [number for number, each in enumerate(outcomes) if not each.known]
        if (yield from self._are_seen_elsewhere({given[number].proxy_id for number in places})):
            again = yield from self._recording_once([given[number] for number in places], policy)
            for number, outcome in zip(places, again, strict=True):
                outcomes[number] = outcome
        return outcomes

    def _recording_once(
        self, given: Sequence[HealthCheckResult], policy: HealthPolicy | None
    ) -> Calls[list[HealthOutcome]]:
        return (
            yield from self._in_groups(
                given,
                (yield from self._of_proxies([each.proxy_id for each in given])),
                lambda ledger, some: ledger.manager._recording(some, policy),
            )
        )

    def _rotating_proxy(
        self, proxy_id: UUID | str, within_seconds: float | None, fetch: Fetch, pause: Pause
    ) -> Calls[RotationAnswer]:
        uuid = id_from_text(proxy_id) or NIL

        def rotating() -> Calls[RotationAnswer]:
            (ledger,) = yield from self._of_proxies([uuid])
            program = ledger.manager._rotating_proxy(proxy_id, within_seconds, fetch, pause)
            return (yield from self._said_by(ledger, program))

        try:
            return (yield from rotating())
        except ProxyNotFoundError:  # It may have moved with its pool.
            if not (yield from self._are_seen_elsewhere({uuid})):
                raise
        return (yield from rotating())

    def _cleaning_up(self) -> Calls[int]:
        counts = yield from self._in_all(lambda ledger: ledger.manager._cleaning_up())
        return sum(counts)

    def _calling_due(self, fetch: Fetch) -> Calls[list[RotationAnswer]]:
        answers = yield from self._in_all(lambda ledger: calling_due(ledger.storage, fetch))
        return [each for some in answers for each in some]

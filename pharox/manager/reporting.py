"""What a manager does about outcomes: they are recorded, and proxies that failed are checked off.

A success is counted and written later, by the storage's :mod:`.tally`; every other outcome is
written at once. An outcome given with a release is written before it. What is no outcome is refused
before anything is done; whatever else goes wrong with one, the lease is released.

PROXY_FAILED counts as a failed health check, in a row with those of sweeps: three make a proxy
inactive unless the manager has another policy. UNCLEAR counts if requests failed so at two targets
lately and none through the proxy has succeeded since; never if the lease had an exit of its own,
as the other exits of the gateway may be well. A proxy that was never checked is left alone, as
nothing would make it active again. A pool may say that its proxies are not counted.

Where a response is reported, or by the client, a function of the caller's says what it means, else
the rules of the fleet for its target, else the default rules.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID

from ..effects import Calls, is_async
from ..errors import InvalidInputError, PharoxError, PoolNotFoundError, raise_together
from ..models import (
    CheckFailure,
    HealthCheckResult,
    HealthPolicy,
    Lease,
    Outcome,
    OutcomeKind,
    ProxyStatus,
    body_of,
    is_response,
    outcome_by_rules,
    target_of_response,
)
from ..storage.defaults import CANNOT_REPORT
from ..storage.reports import Reported, ReportRequest, no_outcome
from .ruling import OutcomeOf, rules_of
from .tally import Report, Tally, can_report, known_tally

REPORTED_FAILURES = HealthPolicy(failures_before_inactive=3)
"""When proxies become inactive that holders report as failed, unless a manager has another."""

COUNTED_FAILURES = frozenset({OutcomeKind.PROXY_FAILED, OutcomeKind.UNCLEAR})
"""The kinds by which a proxy may have failed a health check."""

UNCLEAR_TARGETS = 2
"""At how many targets requests must have failed, nobody knows why, to count against a proxy."""

logger = logging.getLogger("pharox")


class Reporting(ABC):
    """The programs of a manager that report, and its policy for proxies that fail."""

    _storage: Any

    def __init__(
        self, reported_failures: HealthPolicy | None, outcome_of: OutcomeOf | None = None
    ) -> None:
        if reported_failures is not None and not isinstance(reported_failures, HealthPolicy):
            raise InvalidInputError(
                "reported_failures must be a HealthPolicy, or None", value=reported_failures
            )
        if outcome_of is not None and (not callable(outcome_of) or is_async(outcome_of)):
            raise InvalidInputError(
                "outcome_of must be a function of a response and a lease, without async",
                value=outcome_of,
            )
        self._reported_failures = reported_failures
        self._outcome_of = outcome_of

    @abstractmethod
    def _tally(self) -> Tally:
        """Return what counts the storage's reports."""

    @abstractmethod
    def _recording(
        self, results: Sequence[HealthCheckResult], policy: HealthPolicy | None
    ) -> Calls[Any]:
        """Record health checks and notify the callbacks."""

    def _judging(self, lease: Lease, said: Any) -> Calls[Any]:
        """Return the outcome that a response is, by rules that may be read first.

        An outcome is returned as it is, and so is what is neither.
        """
        if isinstance(said, Outcome) or not is_response(said) or not isinstance(lease, Lease):
            return said
        yield from self._reading_rules()
        return self._judged(lease, said, target=None, body=body_of(said))

    def _judged(
        self, lease: Lease, response: Any, *, target: str | None, body: bytes | None
    ) -> Outcome:
        """Return the outcome that a response is: by the caller's function, or by rules."""
        if self._outcome_of is not None:
            outcome = self._outcome_of(response, lease)
            if isinstance(outcome, Outcome):
                default = target or target_of_response(response)
                known = outcome.target or default
                return outcome.model_copy(update={"target": known})
            if outcome is not None:
                raise InvalidInputError(
                    "outcome_of must return an Outcome, or None for the fleet's rules, not a "
                    f"{type(outcome).__name__}",
                    value=outcome,
                )
        asked = target or target_of_response(response) or lease.target
        rules = rules_of(self._storage).of(asked)
        return outcome_by_rules(rules, response, target=target, body=body)

    def _reading_rules(self) -> Calls[None]:
        """Read the fleet's rules, if that is due."""
        yield from rules_of(self._storage).reading(self._storage)

    def _needs_body(self, target: str | None) -> bool:
        """Return whether a response of a target is judged by its body, too."""
        rules = rules_of(self._storage).of(target)
        return self._outcome_of is not None or bool(rules and rules.blocked_if_body)

    def _reporting(self, lease: Lease, said: Any) -> Calls[Reported | None]:
        """Count a success, or record another outcome now and return it as recorded."""
        outcome = yield from self._judging(lease, said)
        request = ReportRequest(lease, outcome)
        self._check_reports()
        if outcome.kind is OutcomeKind.OK:
            self._tally().note(self._report(request, is_kept=True))
            return None
        (reported,) = yield from self._recording_outcomes([request])
        return reported

    def _reporting_all(self, reports: Iterable[tuple[Lease, Any]]) -> Calls[list[Reported]]:
        """Record outcomes now, and raise the errors of those that could not be recorded."""
        requests = []
        for lease, said in map(report_pair, reports):
            requests.append(ReportRequest(lease, (yield from self._judging(lease, said))))
        self._check_reports()
        return (yield from self._recording_outcomes(requests)) if requests else []

    def _recording_outcomes(self, requests: Sequence[ReportRequest]) -> Calls[list[Reported]]:
        own = [self._report(request, is_kept=False) for request in requests]
        outcomes = yield from self._tally().writing(own)
        refused = [each for each in outcomes if isinstance(each, Exception)]
        raise_together(refused, "several outcomes could not be recorded")
        return [each for each in outcomes if isinstance(each, Reported)]

    def _reporting_at_the_end(
        self, leases: Sequence[Lease], outcomes: Sequence[Any]
    ) -> Calls[list[BaseException]]:
        """Record outcomes of leases that are to be released, and what waits of these leases.

        Return what went wrong: they are released nonetheless.
        """
        errors: list[BaseException] = []
        own: list[Report] = []
        for lease, outcome in zip(leases, outcomes, strict=False):
            if outcome is not None:
                try:
                    request = ReportRequest(lease, (yield from self._judging(lease, outcome)))
                    self._check_reports()
                    own.append(self._report(request, is_kept=True))
                except Exception as error:  # The caller's function may raise anything.
                    errors.append(error)
        tally = self._tally() if own else known_tally(self._storage)
        proxies = {lease.proxy_id for lease in leases}
        if tally is not None and (own or tally.has(proxies)):
            try:
                errors += yield from tally.ending(own, proxies)
            except asyncio.CancelledError as cancelled:  # What was not written waits.
                errors.append(cancelled)
        return errors

    def report_later(self, lease: Lease, outcome: Outcome) -> None:
        """Have an outcome recorded in the background, as HTTP clients of pharox do.

        It waits for nothing and never raises; what goes wrong is logged. What is reported of one
        proxy is written in its order. Of an asynchronous manager it is called in the event loop.
        """
        try:
            if can_report(self._storage):
                request = ReportRequest(lease, outcome)
                self._tally().note(self._report(request, is_kept=True))
        except Exception:
            logger.exception("pharox.report.failed: of lease %s", lease.id)

    def _flushing_reports(self) -> Calls[None]:
        """Record what waits, of all managers of the storage."""
        tally = known_tally(self._storage)
        if tally is not None:
            yield from tally.flushing_all()

    def _report(self, request: ReportRequest, *, is_kept: bool) -> Report:
        return Report.of(request, self._following, is_kept=is_kept)

    def _check_reports(self) -> None:
        if not can_report(self._storage):
            raise InvalidInputError(CANNOT_REPORT.format(type(self._storage).__name__))

    @abstractmethod
    def _notify_outcomes(self, reports: Sequence[tuple[ReportRequest, Reported]]) -> Calls[None]:
        """Notify the callbacks of outcomes that were recorded."""

    def _following(self, reports: Sequence[tuple[ReportRequest, Reported]]) -> Calls[None]:
        """Notify the callbacks, and count proxies that failed."""
        yield from self._notify_outcomes(reports)
        failed = [request for request, _ in reports if _may_count(request)]
        if failed:
            yield from self._counting_failures(failed)

    def _counting_failures(self, requests: Sequence[ReportRequest]) -> Calls[None]:
        """Count proxies that holders found failing as having failed a health check."""
        results: list[HealthCheckResult] = []
        try:
            counted = yield from self._pools_that_count(requests)
            for request in requests:
                if request.lease.pool_id not in counted:
                    continue
                proxy_id = request.lease.proxy_id
                last = yield partial(self._storage.get_last_health_result, proxy_id)
                if last is not None and (yield from self._is_proxys_fault(request)):
                    results.append(_failed_check(request, last))
            if results:
                yield from self._recording(results, self._reported_failures or REPORTED_FAILURES)
        except PharoxError as error:
            logger.warning(
                "pharox.report.failed: failures of proxies are reported, but not counted: %s", error
            )

    def _pools_that_count(self, requests: Sequence[ReportRequest]) -> Calls[set[UUID | None]]:
        """Return the pools whose proxies are counted: they say so, or leave it to the manager."""
        counted: set[UUID | None] = set()
        for pool_id in {request.lease.pool_id for request in requests}:
            wanted = None
            if pool_id is not None:
                with suppress(PoolNotFoundError):
                    pool = yield partial(self._storage.get_pool, str(pool_id))
                    wanted = pool.reported_failures
            if self._reported_failures is not None if wanted is None else wanted:
                counted.add(pool_id)
        return counted

    def _is_proxys_fault(self, request: ReportRequest) -> Calls[bool]:
        """Return whether a failure is the proxy's, as far as that is known of all targets."""
        if request.outcome.kind is OutcomeKind.PROXY_FAILED:
            return True
        unclear: int = yield partial(self._storage.count_unclear_targets, request.lease.proxy_id)
        return unclear >= UNCLEAR_TARGETS


def check_said(said: object) -> None:
    """Raise :class:`InvalidInputError` unless it is an outcome, a response or None."""
    if said is not None and not isinstance(said, Outcome) and not is_response(said):
        raise no_outcome(said)


def _may_count(request: ReportRequest) -> bool:
    """Return whether a failure may be that of the whole proxy."""
    kind, gateway_exit = request.outcome.kind, request.lease.exit
    if kind is OutcomeKind.UNCLEAR and gateway_exit is not None and gateway_exit.session:
        return False  # It may be that of one exit of many.
    return kind in COUNTED_FAILURES


def _failed_check(request: ReportRequest, last: HealthCheckResult) -> HealthCheckResult:
    """Return a reported failure as a health check. Its text is that of the outcome's note.

    It is dated right after the last check, so that FIRST_AVAILABLE, which begins with what was
    checked last, does not begin with what has just failed.
    """
    note = request.outcome.note
    return HealthCheckResult(
        proxy_id=request.lease.proxy_id,
        status=ProxyStatus.INACTIVE,
        latency_ms=0,
        protocol=last.protocol,
        checked_at=last.checked_at + timedelta(microseconds=1),
        error_message=f"a holder reported it{f': {note}' if note else ''}",
        failure=CheckFailure.REPORTED,
        status_code=request.outcome.status,
    )


def report_pair(report: object) -> tuple[Any, Any]:
    """Return a report as a lease and what is said of it; raises :class:`InvalidInputError`."""
    if not isinstance(report, tuple | list) or len(report) != 2:
        raise InvalidInputError("a report is a pair of a lease and its Outcome", value=report)
    return report[0], report[1]

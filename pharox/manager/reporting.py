"""What a manager does about outcomes: they are recorded, and proxies that failed are checked off.

A success is counted and written later, by the storage's :mod:`.tally`; every other outcome is
written at once. An outcome given with a release is written before it. Whatever is wrong with it,
the lease is released.

PROXY_FAILED counts as a failed health check, in a row with those of sweeps: three make a proxy
inactive unless the manager has another policy. A proxy that was never checked is left alone, as
nothing would make it active again.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from datetime import timedelta
from functools import partial
from typing import Any

from ..effects import Calls
from ..errors import InvalidInputError, PharoxError, raise_together
from ..models import (
    CheckFailure,
    HealthCheckResult,
    HealthPolicy,
    Lease,
    Outcome,
    OutcomeKind,
    ProxyStatus,
)
from ..storage.defaults import CANNOT_REPORT
from ..storage.reports import Reported, ReportRequest
from .tally import Report, Tally, can_report, known_tally

REPORTED_FAILURES = HealthPolicy(failures_before_inactive=3)
"""When proxies become inactive that holders report as failed, unless a manager has another."""

logger = logging.getLogger("pharox")


class Reporting(ABC):
    """The programs of a manager that report, and its policy for proxies that fail."""

    _storage: Any

    def __init__(self, reported_failures: HealthPolicy | None) -> None:
        if reported_failures is not None and not isinstance(reported_failures, HealthPolicy):
            raise InvalidInputError(
                "reported_failures must be a HealthPolicy, or None", value=reported_failures
            )
        self._reported_failures = reported_failures

    @abstractmethod
    def _tally(self) -> Tally:
        """Return what counts the storage's reports."""

    @abstractmethod
    def _recording(
        self, results: Sequence[HealthCheckResult], policy: HealthPolicy | None
    ) -> Calls[Any]:
        """Record health checks and notify the callbacks."""

    def _reporting(self, lease: Lease, outcome: Outcome) -> Calls[Reported | None]:
        """Count a success, or record another outcome now and return it as recorded."""
        request = ReportRequest(lease, outcome)
        self._check_reports()
        if outcome.kind is OutcomeKind.OK:
            self._tally().note(self._report(request, is_kept=True))
            return None
        (reported,) = yield from self._recording_outcomes([request])
        return reported

    def _reporting_all(self, reports: Iterable[tuple[Lease, Outcome]]) -> Calls[list[Reported]]:
        """Record outcomes now, and raise the errors of those that could not be recorded."""
        requests = [ReportRequest(*_pair(each)) for each in reports]
        self._check_reports()
        return (yield from self._recording_outcomes(requests)) if requests else []

    def _recording_outcomes(self, requests: Sequence[ReportRequest]) -> Calls[list[Reported]]:
        own = [self._report(request, is_kept=False) for request in requests]
        outcomes = yield from self._tally().writing(own)
        refused = [each for each in outcomes if isinstance(each, Exception)]
        raise_together(refused, "several outcomes could not be recorded")
        return [each for each in outcomes if isinstance(each, Reported)]

    def _reporting_at_the_end(
        self, leases: Sequence[Lease], outcomes: Sequence[Outcome | None]
    ) -> Calls[list[BaseException]]:
        """Record outcomes of leases that are to be released, and what waits of these leases.

        Return what went wrong: they are released nonetheless.
        """
        errors: list[BaseException] = []
        own: list[Report] = []
        for lease, outcome in zip(leases, outcomes, strict=False):
            if outcome is not None:
                try:
                    request = ReportRequest(lease, outcome)
                    self._check_reports()
                    own.append(self._report(request, is_kept=True))
                except InvalidInputError as error:
                    errors.append(error)
        tally = self._tally() if own else known_tally(self._storage)
        proxies = {lease.proxy_id for lease in leases}
        if tally is not None and (own or tally.has(proxies)):
            try:
                errors += yield from tally.ending(own, proxies)
            except asyncio.CancelledError as cancelled:  # What was not written waits.
                errors.append(cancelled)
        return errors

    def _note(self, lease: Lease, outcome: Outcome | None) -> None:
        """Have an outcome recorded in the background. The holder is told of nothing."""
        try:
            if outcome is not None and can_report(self._storage):
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
        return Report.of(request, self._counting_failures, is_kept=is_kept)

    def _check_reports(self) -> None:
        if not can_report(self._storage):
            raise InvalidInputError(CANNOT_REPORT.format(type(self._storage).__name__))

    def _counting_failures(self, requests: Sequence[ReportRequest]) -> Calls[None]:
        """Count proxies that holders found failing as having failed a health check."""
        policy = self._reported_failures
        if policy is None:
            return
        results: list[HealthCheckResult] = []
        try:
            for request in requests:
                proxy_id = request.lease.proxy_id
                last = yield partial(self._storage.get_last_health_result, proxy_id)
                if last is not None:
                    results.append(_failed_check(request, last))
            if results:
                yield from self._recording(results, policy)
        except PharoxError as error:
            logger.warning(
                "pharox.report.failed: failures of proxies are reported, but not counted: %s", error
            )


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


def _pair(report: object) -> tuple[Any, Any]:
    if not isinstance(report, tuple | list) or len(report) != 2:
        raise InvalidInputError("a report is a pair of a lease and its Outcome", value=report)
    return report[0], report[1]

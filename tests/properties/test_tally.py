"""Whatever is reported in whatever way is written once, and that of each proxy in its order."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from itertools import groupby
from typing import Any
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from pharox import DatabaseUnavailableError, InMemoryStorage, Lease, Outcome, ProxyManager
from pharox.manager.tally import known_tally
from pharox.storage.reports import ReportRequest
from tests.conftest import fill
from tests.leasing.test_reporting import reports

OUTCOMES = {
    "ok": Outcome.ok(status=200, bytes=3),
    "more": Outcome.ok(status=200, count=4),
    "blocked": Outcome.blocked(status=403),
    "failed": Outcome.proxy_failed(),
}
STEPS = st.one_of(
    st.tuples(
        st.sampled_from(["report", "note", "batch", "release"]),
        st.integers(0, 1),
        st.sampled_from(["a.example", "b.example"]),
        st.sampled_from(sorted(OUTCOMES)),
    ),
    st.tuples(st.sampled_from(["flush", "fail"])),
)
Runs = list[tuple[str, int]]


class Failing(InMemoryStorage):
    """A storage that is away for as many calls as it is told to."""

    failures = 0

    def report_outcomes(self, requests: Sequence[ReportRequest]) -> Any:
        if self.failures:
            self.failures -= 1
            raise DatabaseUnavailableError("away")
        return super().report_outcomes(requests)


class Work:
    """A manager with a lease of each proxy, and what it was told that is to be written."""

    def __init__(self) -> None:
        self.storage = Failing()
        _, self.proxies = fill(self.storage, 2)
        self.manager = ProxyManager(self.storage)
        leases = [self.manager.acquire_proxy("pool", "w") for _ in self.proxies]
        self.leases = [lease for lease in leases if lease is not None]
        self.expected: dict[tuple[UUID, str], Runs] = {}

    def do(self, how: str, proxy: int = 0, target: str = "", kind: str = "ok") -> None:
        """Report in one of the ways, or let something else happen."""
        if how == "flush":
            self.manager.flush_reports()
            return
        if how == "fail":
            self.storage.failures = 1
            return
        lease = self.leases[proxy]
        outcome = OUTCOMES[kind].model_copy(update={"target": target})
        with suppress(DatabaseUnavailableError):
            self._report(how, lease, outcome)
            run = outcome.kind.value, outcome.count
            self.expected.setdefault((lease.proxy_id, target), []).append(run)
        if how == "release":
            again = self.manager.acquire_proxy("pool", "w")
            assert again is not None
            self.leases[proxy] = again

    def _report(self, how: str, lease: Lease, outcome: Outcome) -> None:
        if how == "report":
            self.manager.report(lease, outcome)
        elif how == "note":
            self.manager.report_later(lease, outcome)
        elif how == "batch":
            self.manager.report_outcomes([(lease, outcome)])
        else:
            self.manager.release_proxy(lease, outcome)

    def written(self) -> dict[tuple[UUID, str], Runs]:
        """Return what the log has of each pair, in order."""
        found: dict[tuple[UUID, str], Runs] = {}
        for event in reports(self.storage):
            assert event.target is not None
            run = event.outcome.value, event.count
            found.setdefault((event.proxy_id, event.target), []).append(run)
        return found


def summed(runs: Runs) -> Runs:
    """Return runs with those of the same kind that follow each other together."""
    return [
        (kind, sum(count for _, count in group))
        for kind, group in groupby(runs, key=lambda run: run[0])
    ]


@given(st.lists(STEPS, max_size=40))
def test_each_report_is_written_once_and_in_its_order(steps: list[tuple[Any, ...]]) -> None:
    """Also where the storage is away at times: only what its caller was told of is missing."""
    work = Work()
    for step in steps:
        work.do(*step)
    work.storage.failures = 0
    work.manager.flush_reports()
    assert len(known_tally(work.storage) or ()) == 0
    written = work.written()
    assert {pair: summed(runs) for pair, runs in written.items()} == {
        pair: summed(runs) for pair, runs in work.expected.items()
    }
    assert work.storage.verify() == []

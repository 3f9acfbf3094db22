"""The rules of outcomes in Python and in SQL are the same rules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import patch
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import projections
from pharox import (
    CoolDown,
    InMemoryStorage,
    Lease,
    Outcome,
    OutcomeKind,
    PoolNotFoundError,
    ProxyNotFoundError,
    ProxyPool,
    TargetOutcomes,
    TargetSummary,
)
from pharox.models import PairRecord
from pharox.storage import reports as reports_of_storages
from pharox.storage.postgres import PostgresStorage
from pharox.storage.reports import CoolDownRequest, Reported, ReportRequest, report_rounds
from tests.conftest import AnyStorage, Clock, clock_of, proxies_of

NOW = datetime(2026, 1, 1, tzinfo=UTC)
AFTER = """
SELECT pharox.pair_after_v1(
    ROW(%(successes)s, %(failures)s, %(streak)s, %(cool_downs)s, %(cools_until)s, %(reported_at)s)
        ::pharox.pair_record,
    %(policy)s::jsonb, %(kind)s, %(count)s, %(status)s, %(asked_s)s, %(seed)s, %(at)s,
    %(is_troubled)s
)
"""

MOMENTS = st.integers(-100 * 86_400 * 10**6, 100 * 86_400 * 10**6).map(
    lambda microseconds: NOW + timedelta(microseconds=microseconds)
)
TIMES = st.one_of(st.none(), MOMENTS)
LENGTHS = st.one_of(st.sampled_from([0.0, 1.0, 30.0]), st.floats(0, 30 * 86_400.0))
COUNTED = st.one_of(st.just(0), st.integers(0, 10**12)).map(lambda millionths: millionths / 1e6)
RECORDS = st.builds(
    PairRecord,
    COUNTED,
    COUNTED,
    st.one_of(st.integers(-5, 5), st.sampled_from([2**31 - 1, 1 - 2**31])),
    st.integers(0, 100),
    TIMES,
    TIMES,
)
POLICIES = st.one_of(
    st.none(),
    st.builds(
        lambda **given: CoolDown.as_saved(given),  # Also such as is not made any more.
        base_seconds=LENGTHS,
        factor=st.floats(1, 100),
        max_seconds=LENGTHS,
        jitter=st.floats(0, 1),
        after=st.integers(1, 4),
    ),
)
OUTCOMES = st.builds(
    Outcome,
    kind=st.sampled_from(OutcomeKind),
    target=st.sampled_from(["shop.example", "münchen.example"]),
    status=st.one_of(st.none(), st.sampled_from([200, 403, 429, 503])),
    retry_after_seconds=st.one_of(st.none(), LENGTHS),
    count=st.one_of(st.integers(1, 5), st.just(2**31 - 1)),
)


def after_in_sql(
    connection: psycopg.Connection[Any],
    record: PairRecord,
    outcome: Outcome,
    policy: CoolDown | None,
    lease_id: UUID,
    *,
    is_troubled: bool,
) -> PairRecord:
    """Return the record after an outcome, as PostgreSQL works it out."""
    values = {
        **asdict(record),
        "policy": policy and policy.model_dump_json(),
        "kind": outcome.kind.value,
        "count": outcome.count,
        "status": outcome.status,
        "asked_s": outcome.retry_after_seconds,
        "seed": f"{lease_id}:{outcome.target}",
        "at": NOW,
        "is_troubled": is_troubled,
    }
    row = connection.execute(AFTER, values).fetchone()
    assert row is not None
    until = row[0].pop("cools_until", None)
    return PairRecord(**row[0], cools_until=until and datetime.fromisoformat(until))


def test_a_record_after_an_outcome_is_the_same_in_sql(postgres: PostgresStorage) -> None:
    """Whatever was known of a pair, whatever is reported and whatever the pool's policy."""

    @given(RECORDS, OUTCOMES, POLICIES, st.uuids(), st.sampled_from([False, False, True]))
    @settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
    def agree(
        record: PairRecord,
        outcome: Outcome,
        policy: CoolDown | None,
        lease_id: UUID,
        is_troubled: bool,
    ) -> None:
        ours = record.after(outcome, policy or CoolDown(), lease_id, NOW, is_troubled=is_troubled)
        theirs = after_in_sql(
            connection, record, outcome, policy, lease_id, is_troubled=is_troubled
        )
        assert not (is_troubled and ours.cool_downs > record.cool_downs)
        assert ours.successes == pytest.approx(theirs.successes, rel=1e-6, abs=1e-6)
        assert ours.failures == pytest.approx(theirs.failures, rel=1e-6, abs=1e-6)
        assert (ours.streak, ours.cool_downs) == (theirs.streak, theirs.cool_downs)
        assert (ours.cools_until is None) == (theirs.cools_until is None)
        if ours.cools_until is not None and theirs.cools_until is not None:
            apart = abs(ours.cools_until - theirs.cools_until)
            assert apart <= timedelta(microseconds=1)  # Each rounds once.

    with postgres._driver.connection() as connection:
        agree()


@given(RECORDS, st.lists(OUTCOMES, min_size=1, max_size=20), POLICIES, st.uuids())
def test_a_record_says_what_was_reported(
    record: PairRecord, outcomes: list[Outcome], policy: CoolDown | None, lease_id: UUID
) -> None:
    """A success ends all rests; a rest is no longer than the longest that may be asked for."""
    longest = timedelta(days=30)
    for number, outcome in enumerate(outcomes):
        now = NOW + timedelta(seconds=40 * number)
        before = record
        record = record.after(outcome, policy or CoolDown(), lease_id, now)
        assert record.reported_at == now
        assert min(record.successes, record.failures) >= 0
        if outcome.kind is OutcomeKind.OK:
            assert record.streak > 0
            assert (record.cool_downs, record.cools_until) == (0, None)
            continue
        assert record.cool_downs in (before.cool_downs, before.cool_downs + 1)
        if outcome.kind is OutcomeKind.PROXY_FAILED:
            assert record.cool_downs == before.cool_downs
        if record.cool_downs > before.cool_downs and record.cools_until is not None:
            # With jitter a rest is up to twice as long.
            assert timedelta(0) <= record.cools_until - now <= 2 * longest


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["report", "report", "report", "rest", "wait", "prune", "policy", "leave", "remove"]
        ),
        st.integers(0, 10**6),
        OUTCOMES,
    ),
    min_size=3,
    max_size=15,
)
NO_JITTER = (CoolDown(jitter=0), CoolDown(jitter=0, after=1, base_seconds=5), CoolDown(jitter=0.0))
"""Jitter is drawn from the lease's id, which each storage makes up for itself."""


class TwoLives:
    """Leads the same life in two storages, and compares what is listed after each step."""

    def __init__(self, both: Sequence[AnyStorage], clocks: Sequence[Clock]) -> None:
        self.both, self.clocks = both, clocks
        self.pool = ProxyPool(name=f"pool {uuid4()}", cool_down=NO_JITTER[0])
        self.proxies = proxies_of(self.pool, 3)
        self.leases: list[tuple[Lease, Lease]] = []
        for storage in self.both:
            storage.save_pool(self.pool)
            storage.add_proxies_bulk(self.proxies)
        for proxy in self.proxies:
            ours, theirs = (storage.create_lease(proxy, "worker", 300) for storage in self.both)
            self.leases.append((ours, theirs))

    def report(self, pick: int, outcome: Outcome) -> None:
        answers = [
            storage.report_outcomes([ReportRequest(lease, outcome)])
            for storage, lease in zip(self.both, self.leases[pick % 3], strict=True)
        ]
        (ours,), (theirs,) = answers
        assert type(ours) is type(theirs)
        if isinstance(ours, Reported) and isinstance(theirs, Reported):
            assert (ours.target, ours.streak) == (theirs.target, theirs.streak)
            assert (ours.cools_until is None) == (theirs.cools_until is None)

    def rest(self, pick: int, _: Outcome) -> None:
        seconds = (None, 1, 30, 5000.5)[pick // 3 % 4]
        request = CoolDownRequest(self.proxies[pick % 3].id, "shop.example", seconds)
        for storage in self.both:
            with suppress(ProxyNotFoundError):
                storage.set_cool_down(request)

    def wait(self, pick: int, _: Outcome) -> None:
        for clock in self.clocks:
            clock.advance((0.5, 61, 4000, 5_000_000)[pick % 4])

    def prune(self, pick: int, _: Outcome) -> None:
        before = self.clocks[0].now - timedelta(seconds=pick % 120)
        for storage, leases in zip(self.both, zip(*self.leases, strict=True), strict=True):
            storage.return_lease(leases[pick % 3])
            storage.prune_leases(before)

    def policy(self, pick: int, _: Outcome) -> None:
        if self.pool.name not in [pool.name for pool in self.both[0].list_pools()]:
            return
        self.pool = self.pool.model_copy(update={"cool_down": NO_JITTER[pick % 3]})
        for storage in self.both:
            storage.save_pool(self.pool)

    def leave(self, pick: int, _: Outcome) -> None:
        for storage in self.both:
            with suppress(ProxyNotFoundError):
                storage.delete_proxy(str(self.proxies[pick % 3].id))

    def remove(self, pick: int, _: Outcome) -> None:
        for storage in self.both:
            with suppress(PoolNotFoundError):
                if pick % 3 == 0:
                    storage.delete_pool(str(self.pool.id))

    def compare(self) -> None:
        name = self.pool.name
        for chosen in ({}, {"target": "shop.example", "cooling": True}, {"limit": 2}):
            ours, theirs = (s.list_target_outcomes(name, **chosen) for s in self.both)
            assert [_near(pair) for pair in ours] == [_near(pair) for pair in theirs]
        ours_summed, theirs_summed = (s.summarize_targets(name) for s in self.both)
        assert [_near(each) for each in ours_summed] == [_near(each) for each in theirs_summed]


def _near(listed: TargetOutcomes | TargetSummary) -> dict[str, Any]:
    """Return what is listed, with numbers and moments as near as they are worked out alike."""
    found = listed.model_dump()
    for name, value in found.items():
        if isinstance(value, float):
            found[name] = pytest.approx(value, rel=1e-6, abs=1e-3)
        if name in ("cools_until", "free_at") and value is not None:
            found[name] = round(value.timestamp(), 3)
    return found


def test_memory_postgres_and_the_fold_tell_the_same_of_pairs(postgres: PostgresStorage) -> None:
    """Whatever is reported, set by hand, pruned and removed."""
    clock = clock_of(postgres)

    @given(STEPS)
    @settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
    def agree(steps: list[tuple[str, int, Outcome]]) -> None:
        memory = InMemoryStorage()
        clocks = [clock_of(memory), clock]
        clocks[0].advance((clock.now - clocks[0].now).total_seconds())
        lives = TwoLives((memory, postgres), clocks)
        for name, pick, outcome in steps:
            getattr(lives, name)(pick, outcome)
            lives.compare()
        assert memory.verify() == []

    agree()
    assert postgres.verify() == []
    folded = projections.fold(postgres.events(), projections.ALL)
    assert postgres.live_states() == folded


TARGETS = st.sampled_from([None, "a.example", "b.example", "c.example"])


@given(st.lists(st.tuples(st.integers(0, 3), TARGETS, TARGETS), max_size=40), st.integers(1, 6))
def test_reports_of_a_pair_are_in_rounds_of_their_own(
    reports: list[tuple[int, str | None, str | None]], most: int
) -> None:
    """Each report is in one round; a round has no pair twice, and a pair keeps its order."""
    requests = [
        ReportRequest(
            Lease(
                proxy_id=UUID(int=proxy),
                consumer_id=UUID(int=1),
                acquired_at=NOW,
                expires_at=NOW,
                target=of_lease,
            ),
            Outcome.ok(target),
        )
        for proxy, target, of_lease in reports
    ]
    with patch.object(reports_of_storages, "REPORTS_AT_ONCE", most):
        rounds = report_rounds(requests)
    assert Counter(index for each in rounds for index in each) == Counter(range(len(requests)))
    assert all(0 < len(each) <= most for each in rounds)
    for each in rounds:
        pairs = [requests[index].pair for index in each]
        assert len(pairs) == len(set(pairs))
        assert each == sorted(each)
    in_order = [index for each in rounds for index in each]
    for pair in {request.pair for request in requests}:
        of_pair = [index for index in in_order if requests[index].pair == pair]
        assert of_pair == sorted(of_pair)

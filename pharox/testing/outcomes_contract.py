"""The contract of a storage for outcomes: what is reported, and how pairs rest.

A storage that cannot record outcomes says so, and has none to list.
"""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from ..errors import InvalidInputError, LeaseEndedError, PharoxError, ProxyNotFoundError
from ..models import CoolDown, Lease, Outcome, OutcomeKind, TargetOutcomes
from ..storage.interface import IStorage
from ..storage.reports import CoolDownRequest, Reported, ReportRequest
from .making import PassTime, lease_from, make_pool, make_proxy

SHOP = "shop.example"
QUICK = CoolDown(base_seconds=0.05, factor=3, max_seconds=0.1, jitter=0, after=2)
"""A pool's rule with rests that a test can wait for: 0.05 s, then 0.1 s."""


def report(storage: IStorage, lease: Lease, *outcomes: Outcome) -> list[Reported]:
    """Report outcomes of a lease one after the other; all must be recorded."""
    answers = storage.report_outcomes([ReportRequest(lease, outcome) for outcome in outcomes])
    recorded = [answer for answer in answers if isinstance(answer, Reported)]
    assert len(recorded) == len(outcomes)
    return recorded


def rest_of(storage: IStorage, **chosen: Any) -> float | None:
    """Return for how long the only pair rests since its last report, in seconds."""
    (pair,) = storage.list_target_outcomes(**chosen)
    if pair.cools_until is None or pair.reported_at is None:
        return None
    return (pair.cools_until - pair.reported_at).total_seconds()


class OutcomesContract:
    """What a storage must do that records outcomes. A part of ``StorageContract``."""

    @pytest.fixture
    def holder(self, storage: IStorage) -> Lease:
        """Return a lease of a pool whose pairs rest by ``QUICK``."""
        pool = make_pool(storage, cool_down=QUICK)
        make_proxy(storage, pool)
        return lease_from(storage, pool)

    def test_outcomes_are_recorded_or_refused(self, storage: IStorage, holder: Lease) -> None:
        """Each comes to a record of its pair; or the storage says that it cannot."""
        reports = [ReportRequest(holder, Outcome.ok(SHOP, status=200, bytes=7, count=3))]
        reports.append(ReportRequest(holder, Outcome.blocked(f"https://{SHOP}/a", status=403)))
        try:
            answers = storage.report_outcomes(reports)
        except InvalidInputError:
            assert storage.list_target_outcomes() == []
            assert storage.summarize_targets() == []
            with pytest.raises(InvalidInputError):
                storage.set_cool_down(CoolDownRequest(holder.proxy_id, SHOP, 60))
            return
        assert answers == [Reported(SHOP, None, 3), Reported(SHOP, None, -1)]
        (pair,) = storage.list_target_outcomes()
        assert (pair.pool_name, pair.proxy_id, pair.target) == ("pool", holder.proxy_id, SHOP)
        assert (pair.outcome, pair.status, pair.streak) == (OutcomeKind.BLOCKED, 403, -1)
        assert pair.successes == pytest.approx(3, abs=0.01)
        assert pair.failures == 1
        assert pair.address == holder.proxy.url
        (summary,) = storage.summarize_targets()
        assert (summary.target, summary.pairs, summary.cooling) == (SHOP, 1, 0)
        assert summary.success_share == pytest.approx(0.75, abs=0.01)
        assert (summary.refused_at, summary.free_at) == (pair.reported_at, None)

    @pytest.mark.parametrize(
        ("outcomes", "rest_s"),
        [
            ([Outcome.blocked(SHOP, status=403)], None),
            ([Outcome.blocked(SHOP, status=403)] * 2, 0.05),
            ([Outcome.blocked(SHOP, count=2)], 0.05),
            ([Outcome.blocked(SHOP), Outcome.ok(SHOP), Outcome.blocked(SHOP)], None),
            ([Outcome.blocked(SHOP), Outcome.unclear(SHOP)], 0.05),
            ([Outcome.blocked(SHOP, status=429)], 0.05),
            ([Outcome.blocked(SHOP, retry_after=20)], 20),
            ([Outcome.target_failed(SHOP, status=503)] * 5, None),
            ([Outcome.target_failed(SHOP, status=503, retry_after=20)], 20),
            ([Outcome.proxy_failed(SHOP, status=407, retry_after=20)] * 5, None),
            ([Outcome.blocked(SHOP, status=429), Outcome.ok(SHOP)], None),
        ],
    )
    def test_a_pair_rests_after_refusals(
        self, storage: IStorage, holder: Lease, outcomes: list[Outcome], rest_s: float | None
    ) -> None:
        """After several, after one 429, or for as long as the target asked, until a success."""
        if not records_outcomes(storage, holder):
            return
        report(storage, holder, *outcomes)
        found = rest_of(storage, target=SHOP)
        assert (found is None) == (rest_s is None)
        if rest_s is not None:
            assert found == pytest.approx(rest_s, abs=0.02)
        resting = storage.list_target_outcomes(target=SHOP, cooling=True)
        assert len(resting) == (rest_s is not None) or rest_s == QUICK.base_seconds

    def test_a_rest_grows_until_a_success(
        self, storage: IStorage, holder: Lease, pass_time: PassTime
    ) -> None:
        """Each rest in a row is ``factor`` times as long, up to ``max_seconds``."""
        if not records_outcomes(storage, holder):
            return
        for rest_s in (0.05, 0.1, 0.1):
            report(storage, holder, Outcome.blocked(SHOP, status=429))
            assert rest_of(storage, target=SHOP) == pytest.approx(rest_s, abs=1e-3)
            pass_time(0.12)
            assert storage.list_target_outcomes(cooling=True) == []
        (recorded,) = report(storage, holder, Outcome.ok(SHOP))
        assert (recorded.cools_until, recorded.streak) == (None, 1)
        report(storage, holder, Outcome.blocked(SHOP, status=429))
        assert rest_of(storage, target=SHOP) == pytest.approx(0.05, abs=1e-3)

    def test_a_rest_goes_on_as_it_was_begun(self, storage: IStorage, holder: Lease) -> None:
        """More refusals do not prolong it; a target that asks for a longer one does."""
        if not records_outcomes(storage, holder):
            return
        asked = [Outcome.blocked(SHOP, retry_after=seconds) for seconds in (20, 5, 60)]
        refused = Outcome.blocked(SHOP, status=429)
        first, shorter, again, longer = report(
            storage, holder, asked[0], asked[1], refused, asked[2]
        )
        assert first.cools_until == shorter.cools_until == again.cools_until
        assert first.cools_until is not None
        assert longer.cools_until is not None
        grown = (longer.cools_until - first.cools_until).total_seconds()
        assert grown == pytest.approx(40, abs=5)
        (pair,) = storage.list_target_outcomes(target=SHOP)
        assert (pair.cool_downs, pair.cools_until) == (1, longer.cools_until)

    def test_no_pair_rests_where_the_pool_says_so(self, storage: IStorage) -> None:
        """With ``base_seconds`` 0 nothing does, whatever the target asks for."""
        pool = make_pool(storage, cool_down=CoolDown(base_seconds=0))
        make_proxy(storage, pool)
        lease = lease_from(storage, pool)
        if not records_outcomes(storage, lease):
            return
        report(storage, lease, Outcome.blocked(SHOP, status=429, retry_after=60, count=9))
        assert rest_of(storage, target=SHOP) is None

    def test_a_person_has_a_pair_rest(self, storage: IStorage, holder: Lease) -> None:
        """Also one that nothing is known of, and ends that, which gives it a new start."""
        if not records_outcomes(storage, holder):
            return
        until = storage.set_cool_down(CoolDownRequest(holder.proxy_id, f"http://{SHOP}", 60, "why"))
        (pair,) = storage.list_target_outcomes(cooling=True)
        assert (pair.cools_until, pair.outcome, pair.reported_at) == (until, None, None)
        assert pair.remaining_seconds == pytest.approx(60, abs=10)
        report(storage, holder, Outcome.blocked(SHOP, count=5), Outcome.proxy_failed(SHOP))
        assert storage.set_cool_down(CoolDownRequest(holder.proxy_id, SHOP, None)) is None
        assert storage.list_target_outcomes(cooling=True) == []
        (recorded,) = report(storage, holder, Outcome.blocked(SHOP))
        assert (recorded.streak, recorded.cools_until) == (-1, None)
        with pytest.raises(ProxyNotFoundError):
            storage.set_cool_down(CoolDownRequest(uuid4(), SHOP, 60))
        for wrong in ({"target": ""}, {"seconds": -1}, {"seconds": float("nan")}):
            asked: dict[str, Any] = {"proxy_id": uuid4(), "target": SHOP, "seconds": 1, **wrong}
            with pytest.raises(InvalidInputError):
                CoolDownRequest(**asked)

    def test_reports_of_leases_that_are_not_held(self, storage: IStorage, holder: Lease) -> None:
        """An ended lease can be reported of; an unknown one is an error beside the others."""
        if not records_outcomes(storage, holder):
            return
        unknown = holder.model_copy(update={"id": uuid4()})
        storage.release_lease(holder)
        answers = storage.report_outcomes(
            [ReportRequest(lease, Outcome.ok(SHOP)) for lease in (holder, unknown, holder)]
        )
        assert [getattr(answer, "streak", None) for answer in answers] == [1, None, 2]
        assert isinstance(answers[1], LeaseEndedError)

    def test_an_outcome_without_a_target(self, storage: IStorage, holder: Lease) -> None:
        """It is recorded, and is of no pair."""
        if not records_outcomes(storage, holder):
            return
        assert report(storage, holder, Outcome.blocked(status=429)) == [Reported(None)]
        assert storage.list_target_outcomes() == []
        assert storage.report_outcomes([]) == []

    def test_many_are_reported_at_once(self, storage: IStorage) -> None:
        """A thousand, of few pairs and of many, each after the one before of its pair."""
        pool = make_pool(storage, cool_down=CoolDown(base_seconds=0))
        for _ in range(20):
            make_proxy(storage, pool)
        leases = [lease_from(storage, pool) for _ in range(20)]
        if not records_outcomes(storage, leases[0]):
            return
        answers = storage.report_outcomes(
            [ReportRequest(leases[n % 20], Outcome.ok(f"{n % 7}.example")) for n in range(700)]
            + [ReportRequest(leases[0], Outcome.unclear("slow.example"))] * 30
            + [ReportRequest(leases[1], Outcome.ok(f"{n}.other.example")) for n in range(270)]
        )
        streaks = [answer.streak for answer in answers if isinstance(answer, Reported)]
        assert streaks[:700] == [1 + n // 140 for n in range(700)]
        assert streaks[700:730] == list(range(-1, -31, -1))
        assert streaks[730:] == [1] * 270
        pairs = pages_of(storage, 64)
        assert len(pairs) == 140 + 1 + 270
        assert sum(pair.successes for pair in pairs) == pytest.approx(970, rel=0.02)
        places = [(pair.pool_id, pair.proxy_id, pair.target) for pair in pairs]
        assert places == sorted(places)
        targets = storage.summarize_targets(limit=3)
        assert len(storage.summarize_targets(after=targets[-1])) == 7 + 1 + 270 - 3
        assert [each.pairs for each in storage.summarize_targets(target="0.example")] == [20]

    def test_pairs_are_chosen(self, storage: IStorage, holder: Lease) -> None:
        """By pool, target, proxy and whether they rest; wrong wishes are refused."""
        if not records_outcomes(storage, holder):
            return
        other = make_pool(storage, "other")
        proxy = make_proxy(storage, other)
        report(storage, holder, Outcome.ok(SHOP), Outcome.blocked("b.example", retry_after=60))
        report(storage, lease_from(storage, other), Outcome.ok(SHOP))

        def count(*args: str, **chosen: Any) -> int:
            return len(storage.list_target_outcomes(*args, **chosen))

        assert (count(), count("pool"), count("other"), count("nowhere")) == (3, 2, 1, 0)
        assert (count(target=f"https://{SHOP}:443/x"), count("pool", target=SHOP)) == (2, 1)
        assert (count(proxy_id=proxy.id), count("pool", proxy_id=proxy.id)) == (1, 0)
        assert (count(cooling=True), count("other", cooling=True)) == (1, 0)
        storage.delete_proxy(str(proxy.id))
        assert [pair.address for pair in storage.list_target_outcomes("other")] == [None]
        storage.delete_pool(str(other.id))
        assert count() == 2
        for wrong in ({"limit": 0}, {"target": " "}, {"proxy_id": "x"}):
            with pytest.raises(InvalidInputError):
                count(**wrong)
        with pytest.raises(InvalidInputError):
            storage.summarize_targets(limit=0)


def records_outcomes(storage: IStorage, lease: Lease) -> bool:
    """Return whether a storage can record outcomes; what it cannot is tested elsewhere."""
    try:
        (answer,) = storage.report_outcomes([ReportRequest(lease, Outcome.ok())])
    except InvalidInputError:
        return False
    assert not isinstance(answer, PharoxError)
    return True


def pages_of(storage: IStorage, limit: int) -> list[TargetOutcomes]:
    """Return all pairs, read page by page."""
    found: list[TargetOutcomes] = []
    while page := storage.list_target_outcomes(after=found[-1] if found else None, limit=limit):
        found += page
    return found

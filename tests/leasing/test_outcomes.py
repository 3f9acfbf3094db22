"""Outcomes that many report at the same time: none of them is lost."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest

from pharox import CoolDown, Outcome, PharoxError, ProxyManager
from pharox.events import CoolDownSet, OutcomeReported
from pharox.storage.postgres import AsyncPostgresStorage
from pharox.storage.reports import CoolDownRequest, Reported, ReportRequest
from tests.conftest import AnyStorage, fill, for_tasks, threads

SHOP = "shop.example"


def test_reports_of_one_pair_at_the_same_time_add_up(any_storage: AnyStorage) -> None:
    """Eight threads report of one pair and of others, in batches and alone."""
    fill(any_storage, 2)
    leases = ProxyManager(any_storage).acquire_proxies("pool", 2)
    of_pair = [ReportRequest(leases[0], Outcome.ok(SHOP))]
    mixed = [ReportRequest(leases[n % 2], Outcome.ok(f"{n % 3}.example")) for n in range(12)]

    def reporting(number: int) -> None:
        for _ in range(3):
            any_storage.report_outcomes(of_pair * 2)
            any_storage.report_outcomes(mixed if number % 2 else mixed[::-1])

    threads(8, reporting)
    streaks = {
        (pair.proxy_id, pair.target): pair.streak for pair in any_storage.list_target_outcomes()
    }
    assert streaks.pop((leases[0].proxy_id, SHOP)) == 48
    assert set(streaks.values()) == {48}
    assert len(streaks) == 6
    assert any_storage.verify() == []
    reported = [event for event in any_storage.events() if isinstance(event, OutcomeReported)]
    assert len(reported) == 8 * 3 * 14


def test_a_person_and_holders_at_the_same_time(any_storage: AnyStorage) -> None:
    """Whoever comes last is right, and the log says the same."""
    fill(any_storage, 1)
    (lease,) = ProxyManager(any_storage).acquire_proxies("pool", 1)
    refused = [ReportRequest(lease, Outcome.blocked(SHOP, status=429))]

    def working(number: int) -> None:
        for place in range(4):
            if number % 2:
                any_storage.report_outcomes(refused)
            else:
                seconds = None if place % 2 else 60.0
                any_storage.set_cool_down(CoolDownRequest(lease.proxy_id, SHOP, seconds))

    threads(6, working)
    (pair,) = any_storage.list_target_outcomes()
    *_, last = (e for e in any_storage.events() if isinstance(e, OutcomeReported | CoolDownSet))
    assert (pair.streak, pair.cool_downs) == (last.streak, last.cool_downs)
    assert pair.cools_until == last.cools_until or last.cools_until is None
    assert any_storage.verify() == []


def test_tasks_report_at_the_same_time(any_storage: AnyStorage) -> None:
    """Fifty tasks report of one pair; what is no lease is told to its own task only."""
    fill(any_storage, 1)
    (lease,) = ProxyManager(any_storage).acquire_proxies("pool", 1)
    stray = lease.model_copy(update={"id": uuid4()})

    async def reporting() -> list[Reported | PharoxError]:
        storage = for_tasks(any_storage)

        async def report(number: int) -> Reported | PharoxError:
            whose = stray if number == 7 else lease
            (answer,) = await storage.report_outcomes([ReportRequest(whose, Outcome.ok(SHOP))])
            return answer

        found = await asyncio.gather(*map(report, range(50)))
        (pair,) = await storage.list_target_outcomes(target=SHOP)
        (summary,) = await storage.summarize_targets()
        assert (pair.streak, summary.pairs) == (49, 1)
        if isinstance(storage, AsyncPostgresStorage):
            await storage.close()
        return found

    answers = asyncio.run(reporting())
    assert sorted(a.streak for a in answers if isinstance(a, Reported)) == list(range(1, 50))
    assert isinstance(answers[7], PharoxError)


@pytest.mark.parametrize("policy", [CoolDown(), None])
def test_jitter_keeps_proxies_from_coming_back_together(
    any_storage: AnyStorage, policy: CoolDown | None
) -> None:
    """The first rest of twenty pairs is 30 s long, each up to a tenth longer or shorter."""
    pool, _ = fill(any_storage, 20)
    any_storage.save_pool(pool.model_copy(update={"cool_down": policy}))
    leases = ProxyManager(any_storage).acquire_proxies("pool", 20)
    refused = Outcome.blocked(SHOP, status=429)
    any_storage.report_outcomes([ReportRequest(lease, refused) for lease in leases])
    lengths = {
        (pair.cools_until - pair.reported_at).total_seconds()
        for pair in any_storage.list_target_outcomes(cooling=True)
        if pair.cools_until is not None and pair.reported_at is not None
    }
    assert len(lengths) == 20
    assert all(27 <= length <= 33 for length in lengths)

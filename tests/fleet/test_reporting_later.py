"""What is reported in the background reaches the ledger of its lease, whoever reports it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pharox import AsyncFleet, DatabaseUnavailableError, Fleet, InMemoryStorage, Outcome
from pharox.events import OutcomeReported
from pharox.manager import tally as tallies
from tests.fleet.conftest import another, memory_fleet, stocked
from tests.ledger.following import until

OK = Outcome.ok(target="x.example")


def counted(fleet: Fleet, ledger: str = "far") -> int:
    """Return how many outcomes a ledger has recorded."""
    events = fleet.ledgers[ledger].storage.events()
    return sum(event.count for event in events if isinstance(event, OutcomeReported))


def test_of_another_process_and_of_a_pool_that_was_never_seen(fleet: Fleet) -> None:
    """A lease that this process has not seen is looked for, and each success is counted."""
    stocked(fleet, "b", "far")
    lease = fleet.manager.acquire_proxy("b", "w")
    assert lease is not None
    other = another(fleet)
    for _ in range(3):
        other.manager.report_later(lease, OK)
    other.manager.flush_reports()
    assert counted(fleet) == 3
    other.manager.report_later(lease, OK)
    other.manager.release_proxy(lease)
    assert counted(fleet) == 4


def test_what_is_not_a_success_is_written_at_once(fleet: Fleet) -> None:
    """Nobody asks for it to be written."""
    stocked(fleet, "b", "far")
    lease = fleet.manager.acquire_proxy("b", "w")
    assert lease is not None
    another(fleet).manager.report_later(lease, Outcome.blocked(target="x.example", status=429))
    until(lambda: counted(fleet) == 1)


def test_a_pool_that_was_seen_elsewhere_is_not_the_leases_ledger(fleet: Fleet) -> None:
    """A process that knows the pool from before its move reports under a lease of after it."""
    stocked(fleet, "b", "near")
    other = another(fleet)
    before = other.manager.acquire_proxy("b", "w")
    assert before is not None
    other.manager.release_proxy(before)
    fleet.move("b", "far")
    lease = fleet.manager.acquire_proxy("b", "w")
    assert lease is not None
    other.manager.report_later(lease, OK)
    other.manager.flush_reports()
    assert counted(fleet) == 1


def test_while_a_ledger_is_down_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others are passed on meanwhile; what may be in the one that is down waits for it."""
    monkeypatch.setattr(tallies, "PERIOD_S", 0.01)
    fleet = memory_fleet()
    stocked(fleet, "a", "near")
    stocked(fleet, "b", "far")
    leases = [fleet.manager.acquire_proxy(pool, "w") for pool in ("a", "b")]
    asked = InMemoryStorage.get_lease
    is_down, tried = True, []

    def get_lease(storage: Any, lease_id: str) -> Any:
        if is_down and storage is fleet.ledgers["far"].storage:
            tried.append(lease_id)
            raise DatabaseUnavailableError("it is down")
        return asked(storage, lease_id)

    monkeypatch.setattr(InMemoryStorage, "get_lease", get_lease)
    other = another(fleet)
    for lease in leases:
        assert lease is not None
        other.manager.report_later(lease, OK)
    until(lambda: counted(fleet, "near") == 1)
    until(lambda: len(tried) > 2)
    assert counted(fleet) == 0
    is_down = False
    until(lambda: counted(fleet) == 1)
    other.close()
    assert [counted(fleet, name) for name in ("near", "far")] == [1, 1]


def test_what_waits_is_passed_on_when_a_fleet_is_closed(fleet: Fleet) -> None:
    """Within the process that reported it."""
    stocked(fleet, "b", "far")
    lease = fleet.manager.acquire_proxy("b", "w")
    assert lease is not None
    other = another(fleet)
    other.manager.report_later(lease, OK)
    other.close()
    assert counted(fleet) == 1


def test_tasks_do_the_same(urls: dict[str, str]) -> None:
    asyncio.run(_reported_by_tasks(urls))


async def _reported_by_tasks(urls: dict[str, str]) -> None:
    settings = {"home": "near", "ledgers": urls}
    with Fleet.connect(settings) as fleet:
        stocked(fleet, "b", "far")
        lease = fleet.manager.acquire_proxy("b", "w")
        assert lease is not None
        async with await AsyncFleet.connect(settings) as tasks:
            for _ in range(3):
                tasks.manager.report_later(lease, OK)
            await tasks.manager.release_proxy(lease)
        assert counted(fleet) == 3

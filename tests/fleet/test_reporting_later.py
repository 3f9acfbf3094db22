"""What is reported in the background reaches the ledger of its lease, whoever reports it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pharox import (
    AsyncFleet,
    AsyncInMemoryStorage,
    DatabaseUnavailableError,
    Fleet,
    InMemoryStorage,
    Lease,
    Outcome,
    SchemaError,
)
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


class Far:
    """The ledger "far", which may fail when it is asked for a lease."""

    def __init__(self, fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
        self.error: Exception | None = None
        self.asked = 0
        storage, get_lease = fleet.ledgers["far"].storage, InMemoryStorage.get_lease

        def asked(of: Any, lease_id: str) -> Any:
            if of is storage:
                self.asked += 1
                if self.error is not None:
                    raise self.error
            return get_lease(of, lease_id)

        monkeypatch.setattr(InMemoryStorage, "get_lease", asked)


@pytest.mark.parametrize("error", [SchemaError("it is old"), RuntimeError("it is broken")])
def test_what_was_passed_on_is_not_passed_on_again(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever error keeps other reports waiting; these are passed on once it is mended."""
    fleet = memory_fleet()
    leases = _leased(fleet)
    far = Far(fleet, monkeypatch)
    other = another(fleet)
    far.error = error
    for lease in leases:
        other.manager.report_later(lease, OK)
    for _ in range(3):
        other.manager.flush_reports()
    assert [counted(fleet, name) for name in ("near", "far")] == [1, 0]
    far.error = None
    other.manager.flush_reports()
    assert [counted(fleet, name) for name in ("near", "far")] == [1, 1]


def test_a_ledger_that_is_down_is_asked_once_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else each report would cost the time to connect."""
    fleet = memory_fleet()
    stocked(fleet, "b", "far", 3)
    leases = [fleet.manager.acquire_proxy("b", "w") for _ in range(3)]
    far = Far(fleet, monkeypatch)
    far.error = DatabaseUnavailableError("it is down")
    other = another(fleet)
    for lease in leases:
        assert lease is not None
        other.manager.report_later(lease, OK)
    other.manager.flush_reports()
    assert far.asked == 1


def test_a_task_that_is_cancelled_passes_on_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """While it looks for ledgers; afterwards each report is counted once."""
    ledgers = {name: AsyncInMemoryStorage() for name in ("near", "far")}
    memory = {name: each.memory for name, each in ledgers.items()}
    fleet = Fleet.connect({"home": "near", "ledgers": memory})
    leases = _leased(fleet)
    asyncio.run(_cancelled(ledgers, leases, monkeypatch))
    assert [counted(fleet, name) for name in ("near", "far")] == [1, 1]


async def _cancelled(
    ledgers: dict[str, AsyncInMemoryStorage], leases: list[Lease], monkeypatch: pytest.MonkeyPatch
) -> None:
    get_lease, is_asked, answers = AsyncInMemoryStorage.get_lease, asyncio.Event(), asyncio.Event()
    asked: list[str] = []

    async def late(storage: AsyncInMemoryStorage, lease_id: str) -> Any:
        asked.append(lease_id)
        if lease_id != asked[0]:  # The first may be found before another is looked for.
            is_asked.set()
            await answers.wait()
        return await get_lease(storage, lease_id)

    monkeypatch.setattr(AsyncInMemoryStorage, "get_lease", late)
    async with await AsyncFleet.connect({"home": "near", "ledgers": ledgers}) as tasks:
        for lease in leases:
            tasks.manager.report_later(lease, OK)
        flushing = asyncio.create_task(tasks.manager.flush_reports())
        await is_asked.wait()
        flushing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await flushing
        answers.set()
        await tasks.manager.flush_reports()


def _leased(fleet: Fleet) -> list[Lease]:
    """Return a lease in the ledger "near", and one in "far"."""
    stocked(fleet, "a", "near")
    stocked(fleet, "b", "far")
    leases = [fleet.manager.acquire_proxy(pool, "w") for pool in ("a", "b")]
    return [lease for lease in leases if lease is not None]


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

"""Tasks report outcomes, and are cancelled meanwhile."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import pytest

from pharox import (
    AsyncInMemoryStorage,
    AsyncProxyManager,
    InvalidInputError,
    Lease,
    LeaseEndedError,
    Outcome,
)
from pharox.manager import tally
from pharox.manager.tally import TaskTally, known_tally
from tests.aio.conftest import Kept
from tests.conftest import fill, types_of
from tests.leasing.test_reporting import BLOCKED, OK, SHOP, reports, told


async def leased(manager: AsyncProxyManager) -> Lease:
    lease = await manager.acquire_proxy("pool", "w", 60)
    assert lease is not None
    return lease


def test_what_is_no_outcome_is_refused_before_anything_is_released(kept: Kept) -> None:
    """Alone and in a batch."""
    fill(kept.blocking, 2)
    manager: Any = AsyncProxyManager(kept.storage)

    async def main() -> None:
        pair = [await leased(manager), await leased(manager)]
        with pytest.raises(InvalidInputError, match="an Outcome is needed"):
            await manager.release_proxy(pair[0], "blocked")
        with pytest.raises(InvalidInputError, match="an Outcome is needed"):
            await manager.release_proxies(pair, [OK, "blocked"])
        assert "LeaseReleased" not in types_of(kept.blocking)
        await manager.release_proxies(pair, [OK, None])

    kept.run(main())
    assert types_of(kept.blocking).count("LeaseReleased") == 2


def test_a_task_reports(kept: Kept) -> None:
    """Counted, written at once, in a batch, with releases, and by hand."""
    fill(kept.blocking, 3)
    manager = AsyncProxyManager(kept.storage)

    async def main() -> None:
        async with manager.pool("pool").lease() as lease:
            for _ in range(5):
                assert await manager.report(lease, OK) is None
            reported = await manager.pool("pool").report(lease, BLOCKED)
            assert reported is not None
            assert reported.streak == -1
            await manager.report(lease, OK)
            await manager.flush_reports()
            assert len(reports(kept.blocking)) == 3
            await manager.report(lease, Outcome.ok(SHOP))
        pair = [await leased(manager), await leased(manager)]
        recorded = await manager.report_outcomes([(lease, OK) for lease in pair])
        assert [each.streak for each in recorded] == [3, 1]
        await manager.release_proxies(pair, [BLOCKED, OK])
        lease = await leased(manager)
        await manager.release_proxy(lease, BLOCKED)

    kept.run(main())
    assert told(kept.blocking)[:4] == [
        ("ok", 200, 5, 5),
        ("blocked", 403, 1, -1),
        ("ok", 200, 1, 1),
        ("ok", None, 1, 2),
    ]
    assert types_of(kept.blocking)[-2:] == ["OutcomeReported", "LeaseReleased"]
    kept.assert_nothing_is_left()


def test_bad_input_is_refused(kept: Kept) -> None:
    """With the errors of the other manager."""
    fill(kept.blocking, 1)
    manager: Any = AsyncProxyManager(kept.storage)

    async def main() -> None:
        lease = await leased(manager)
        with pytest.raises(InvalidInputError):
            await manager.report(lease, "ok")
        with pytest.raises(LeaseEndedError):
            await manager.report(lease.model_copy(update={"id": uuid4()}), BLOCKED)
        await manager.release_proxy(lease)

    kept.run(main())
    kept.assert_nothing_is_left()


def test_the_loop_writes_what_waits(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a timer of the loop."""
    monkeypatch.setattr(tally, "PERIOD_S", 0.1)
    fill(kept.blocking, 1)
    manager = AsyncProxyManager(kept.storage)

    async def main() -> None:
        lease = await leased(manager)
        for count in (1, 2):
            await manager.report(lease, OK)
            async with asyncio.timeout(5):
                while len(reports(kept.blocking)) < count:
                    await asyncio.sleep(0.02)
        await manager.release_proxy(lease)

    kept.run(main())
    kept.assert_nothing_is_left()


@pytest.mark.parametrize("steps", range(12))
def test_a_cancelled_release_reports_and_releases(kept: Kept, steps: int) -> None:
    """Wherever it is cancelled, nothing is lost and nothing is written twice."""
    fill(kept.blocking, 2)
    manager = AsyncProxyManager(kept.storage)

    async def main() -> None:
        lease, other = await leased(manager), await leased(manager)
        await manager.report(lease, OK)
        releasing = asyncio.create_task(manager.release_proxy(lease, BLOCKED))
        both = asyncio.create_task(manager.release_proxies([other], [BLOCKED]))
        for _ in range(1 + steps):
            await asyncio.sleep(0)
        for task in (releasing, both):
            task.cancel()
        await asyncio.wait({releasing, both})
        await manager.flush_reports()

    kept.run(main())
    found = told(kept.blocking)
    assert sorted(found) == [("blocked", 403, 1, -1), ("blocked", 403, 1, -1), ("ok", 200, 1, 1)]
    kept.assert_nothing_is_left()


@pytest.mark.parametrize("steps", range(8))
def test_a_cancelled_report_is_written_once_or_not_at_all(kept: Kept, steps: int) -> None:
    """What was counted before it is not lost."""
    fill(kept.blocking, 1)
    manager = AsyncProxyManager(kept.storage)

    async def main() -> None:
        lease = await leased(manager)
        await manager.report(lease, OK)
        task = asyncio.create_task(manager.report(lease, BLOCKED))
        for _ in range(1 + steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        await manager.release_proxy(lease)

    kept.run(main())
    kinds = [each[0] for each in told(kept.blocking)]
    assert kinds in (["ok", "blocked"], ["ok"])
    kept.assert_nothing_is_left()


def test_tasks_write_one_proxy_in_order(kept: Kept) -> None:
    """Many report of one proxy at once: all is recorded, successes before later refusals."""
    fill(kept.blocking, 1, max_concurrency=None)
    manager = AsyncProxyManager(kept.storage)

    async def main() -> None:
        leases = [await leased(manager) for _ in range(5)]

        async def work(lease: Lease) -> None:
            await manager.report(lease, OK)
            await manager.report(lease, BLOCKED)
            await manager.report(lease, OK)
            await manager.release_proxy(lease)

        await asyncio.gather(*map(work, leases))

    kept.run(main())
    found = reports(kept.blocking)
    for lease_id in {each.lease_id for each in found}:
        of_lease = [each.outcome.value for each in found if each.lease_id == lease_id]
        assert of_lease == ["ok", "blocked", "ok"]
    kept.assert_nothing_is_left()


def test_closing_writes_what_is_left(kept: Kept) -> None:
    fill(kept.blocking, 1)
    manager = AsyncProxyManager(kept.storage)

    async def main() -> None:
        lease = await leased(manager)
        await manager.report(lease, OK)
        storage: Any = kept.storage
        await storage.close()
        assert told(kept.blocking) == [("ok", 200, 1, 1)]
        await manager.release_proxy(lease)

    kept.run(main())


def test_what_a_loop_counted_is_written_by_the_next() -> None:
    """A storage in memory may be used by several, one after the other."""
    storage = AsyncInMemoryStorage()
    fill(storage.memory, 1)
    manager = AsyncProxyManager(storage)
    lease = asyncio.run(leased(manager))
    asyncio.run(manager.report(lease, OK))
    counted = known_tally(storage)
    assert isinstance(counted, TaskTally)
    assert counted.is_over
    asyncio.run(manager.release_proxy(lease))
    assert told(storage.memory) == [("ok", 200, 1, 1)]

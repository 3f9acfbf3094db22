"""Requests for pools in several ledgers: one has moved, one is down, one is on its way."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pharox import (
    AsyncInMemoryStorage,
    DatabaseUnavailableError,
    Fleet,
    Lease,
    MoveTimeoutError,
    new_lease_id,
)
from pharox.fleet import AsyncFleet, move_pool
from tests.conftest import proxies_of
from tests.fleet.conftest import another, memory_fleet, stocked


def leased(fleet: Fleet, pool: str, **options: Any) -> Lease:
    """Lease a proxy of a pool that has one."""
    lease = fleet.manager.acquire_proxy(pool, "worker", **options)
    assert lease is not None
    return lease


def fail(*_: Any, **__: Any) -> Any:
    """Do as a ledger that is down."""
    raise DatabaseUnavailableError("down")


def test_a_pool_that_moved_is_looked_for_before_a_fallback_is_taken(fleet: Fleet) -> None:
    """Also by a process that knows where it was, with a fallback there or elsewhere."""
    stocked(fleet, "shop", "near", 3)
    stocked(fleet, "spare", "far")
    stocked(fleet, "beside", "near")
    olds = [another(fleet) for _ in range(2)]
    for old in olds:
        for pool in ("shop", "spare", "beside"):
            old.manager.release_proxy(leased(old, pool))
    fleet.move("shop", "far")
    assert leased(olds[0], "shop", fallback=["spare"]).pool_name == "shop"
    leased(olds[1], "shop", fallback=["beside"])  # of which the old ledger may grant the fallback
    assert leased(olds[1], "shop", fallback=["beside"]).pool_name == "shop"


def test_a_moved_fallback_is_found_if_the_first_pool_is_busy() -> None:
    """Though the miss itself is due to the first."""
    fleet = memory_fleet()
    stocked(fleet, "busy", "near")
    stocked(fleet, "shop", "far")
    old = another(fleet)
    leased(old, "busy")
    old.manager.release_proxy(leased(old, "shop"))
    fleet.move("shop", "near")
    assert leased(old, "busy", fallback=["shop"]).pool_name == "shop"


def test_a_dead_fallback_costs_no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first pool is waited for though the ledger of the next one does not answer."""
    fleet = memory_fleet()
    stocked(fleet, "busy", "near")
    stocked(fleet, "down", "far")
    held, near = leased(fleet, "busy"), fleet.ledgers["near"].storage
    acquire_lease = near.acquire_lease

    def freeing_for_who_waits(request: Any) -> Any:
        if request.wait_seconds == 5:
            fleet.manager.release_proxy(held)
        return acquire_lease(request)

    monkeypatch.setattr(near, "acquire_lease", freeing_for_who_waits)
    monkeypatch.setattr(fleet.ledgers["far"].storage, "acquire_lease", fail)
    with pytest.raises(DatabaseUnavailableError):
        leased(fleet, "busy", fallback=["down"])
    with pytest.raises(DatabaseUnavailableError):  # once it has waited
        leased(fleet, "busy", fallback=["down"], wait_seconds=0.01)
    assert leased(fleet, "busy", fallback=["down"], wait_seconds=5).pool_name == "busy"


def test_a_lease_is_found_by_its_id_though_a_ledger_is_down(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where nobody else has it, the ledger that is down may."""
    fleet, lease_id = memory_fleet(), new_lease_id()
    stocked(fleet, "shop", "near", 2)
    stocked(fleet, "down", "far")
    granted = leased(fleet, "shop", lease_id=lease_id)
    monkeypatch.setattr(fleet.ledgers["far"].storage, "get_lease", fail)
    assert leased(fleet, "down", lease_id=lease_id, fallback=["shop"]).id == granted.id
    with pytest.raises(DatabaseUnavailableError) as refused:
        leased(fleet, "shop", lease_id=new_lease_id(), fallback=["down"])
    assert refused.value.data["ledger"] == "far"
    assert len(fleet.leases()) == 1


@pytest.mark.parametrize("fallback", [(), ("empty",)])
def test_who_waits_follows_a_pool_that_moves(
    monkeypatch: pytest.MonkeyPatch, fallback: tuple[str, ...]
) -> None:
    """It is asked again after pauses, in its old ledger and then in the new one."""
    fleet = memory_fleet()
    stocked(fleet, "shop", "near")
    stocked(fleet, "empty", "far", 0)
    held = leased(fleet, "shop")
    with pytest.raises(MoveTimeoutError):
        fleet.move("shop", "far", timeout_seconds=0)
    waiting, pauses = another(fleet), list[float]()

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            fleet.manager.release_proxy(held)
            fleet.move("shop", "far")

    assert waiting.manager.acquire_proxy("shop", "worker", wait_seconds=0.01) is None
    monkeypatch.setattr(waiting.manager, "_sleep", sleep)
    with waiting.manager.pool("shop", wait_seconds=30, fallback=fallback).lease() as lease:
        assert (lease.pool_name, waiting.directory.known("shop")) == ("shop", "far")
    assert pauses == [0.05, 0.1, 0.2]


def test_who_waits_outlasts_a_directory_that_lags(monkeypatch: pytest.MonkeyPatch) -> None:
    """The old ledger may say that a pool has moved before the directory says where."""
    fleet = memory_fleet()
    stocked(fleet, "shop", "near")
    move_pool("shop", fleet.ledgers["near"], fleet.ledgers["far"])

    def sleep(_: float) -> None:
        fleet.place("shop", "far", instead_of="near")

    monkeypatch.setattr(fleet.manager, "_sleep", sleep)
    assert leased(fleet, "shop", wait_seconds=30).pool_name == "shop"


def test_a_task_that_waits_follows_a_pool_that_moves() -> None:
    """Meanwhile other tasks have their turns, such as the one that moves it."""
    asyncio.run(_wait_for_a_move())


async def _wait_for_a_move() -> None:
    ledgers = {"near": AsyncInMemoryStorage(), "far": AsyncInMemoryStorage()}
    async with await AsyncFleet.connect({"home": "near", "ledgers": ledgers}) as fleet:
        manager = fleet.manager
        pool = await manager.register_pool("shop", "near")
        await ledgers["near"].add_proxies_bulk(proxies_of(pool, 1))
        held = await manager.acquire_proxy("shop", "worker")
        assert held is not None
        with pytest.raises(MoveTimeoutError):
            await fleet.move("shop", "far", timeout_seconds=0)
        waiting = asyncio.create_task(manager.acquire_proxy("shop", "worker", wait_seconds=30))
        await asyncio.sleep(0)
        await manager.release_proxy(held)
        await fleet.move("shop", "far")
        lease = await waiting
        assert lease is not None
        assert fleet.directory.known("shop") == "far"

"""A directory that is wrong, as a mover was killed before it wrote the place, is corrected."""

from __future__ import annotations

import asyncio

import pytest

from pharox import AsyncInMemoryStorage, ConflictError, InMemoryStorage, ProxyPool
from pharox.fleet import AsyncFleet, Fleet, LedgerEnd, move_pool
from tests.conftest import proxies_of
from tests.fleet.conftest import another, memory_fleet, stocked


@pytest.fixture(params=["placed", "never placed"])
def wrong(fleet: Fleet, request: pytest.FixtureRequest) -> Fleet:
    """A fleet whose pool has moved from "near" to "far" without a word to the directory."""
    if request.param == "placed":
        stocked(fleet, "shop", "near", 2)
    else:
        pool, storage = ProxyPool(name="shop"), fleet.ledgers["near"].storage
        storage.save_pool(pool)
        storage.add_proxies_bulk(proxies_of(pool, 2))
    stocked(fleet, "rest", "near", 2)
    near, far = (LedgerEnd(name, fleet.ledgers[name].storage) for name in ("near", "far"))
    move_pool("shop", near, far)
    assert fleet.locate("shop") == "near"
    return fleet


def where(fleet: Fleet) -> str:
    """Return where the directory says that the pool is, as a new process reads it."""
    return another(fleet).locate("shop")


def test_who_wants_a_lease_gets_it_and_corrects_the_directory(wrong: Fleet) -> None:
    """A process that has seen nothing, and one that has leased of it before."""
    lease = another(wrong).manager.acquire_proxy("shop", "w")
    assert lease is not None
    assert where(wrong) == "far"
    assert wrong.manager.acquire_proxy("shop", "w") is not None


def test_who_falls_back_does_so_once(wrong: Fleet) -> None:
    """The pool was passed over where it was, and the next request finds it."""
    pools = [
        lease.pool_name
        for lease in (wrong.manager.acquire_proxy("shop", "w", fallback=["rest"]) for _ in range(2))
        if lease is not None
    ]
    assert pools == ["rest", "shop"]
    assert where(wrong) == "far"


def test_who_registers_the_pool_or_asks_for_its_sessions_corrects_it(wrong: Fleet) -> None:
    """A worker that starts with the name alone, and one that names the old ledger."""
    known = wrong.ledgers["far"].storage.get_pool_by_name("shop")
    assert known is not None
    assert another(wrong).manager.register_pool("shop").id == known.id
    assert where(wrong) == "far"
    assert len(wrong.ledgers["near"].storage.list_pools()) == 1


def test_sessions_of_a_moved_pool_are_found(wrong: Fleet) -> None:
    assert another(wrong).manager.sessions("shop") == []
    assert where(wrong) == "far"


def test_a_home_that_cannot_be_written_keeps_nobody_from_the_pool(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """This process knows where it is; the next one that hears of it tries to write it."""
    fleet = memory_fleet()
    stocked(fleet, "shop", "near", 2)
    near, far = (LedgerEnd(name, fleet.ledgers[name].storage) for name in ("near", "far"))
    move_pool("shop", near, far)

    def refuse(*_: object, **__: object) -> bool:
        raise ConflictError("somebody else writes it")

    with monkeypatch.context() as patched:
        patched.setattr(InMemoryStorage, "place_pool", refuse)
        assert fleet.manager.acquire_proxy("shop", "w") is not None
    assert where(fleet) == "near"
    assert another(fleet).manager.acquire_proxy("shop", "w") is not None
    assert where(fleet) == "far"


def test_tasks_correct_it_too() -> None:
    asyncio.run(_corrected_by_tasks())


async def _corrected_by_tasks() -> None:
    near, far = AsyncInMemoryStorage(), AsyncInMemoryStorage()
    fleet = memory_fleet_of(near, far)
    stocked(fleet, "shop", "near", 1)
    move_pool("shop", LedgerEnd("near", near.memory), LedgerEnd("far", far.memory))
    settings = {"home": "near", "ledgers": {"near": near, "far": far}}
    async with await AsyncFleet.connect(settings) as tasks:
        assert await tasks.manager.acquire_proxy("shop", "w") is not None
        assert await tasks.locate("shop") == "far"


def memory_fleet_of(near: AsyncInMemoryStorage, far: AsyncInMemoryStorage) -> Fleet:
    """Return the fleet of threads whose ledgers tasks use, too."""
    ledgers = {"near": near.memory, "far": far.memory}
    return Fleet.connect({"home": "near", "ledgers": ledgers})

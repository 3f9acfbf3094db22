"""The directory says once which ledger a pool is in, and costs little however many there are."""

from __future__ import annotations

import asyncio
import threading

import pytest

from pharox import (
    AsyncFleet,
    AsyncInMemoryStorage,
    ConflictError,
    Fleet,
    InMemoryStorage,
    InvalidInputError,
)
from pharox.fleet.known import Known
from tests.conftest import AnyStorage, threads, types_of


def test_a_place_is_recorded_once(any_storage: AnyStorage) -> None:
    """Another one is refused, unless the pool is known to leave it; the log has each change."""
    assert any_storage.place_pool("b", "east")
    assert not any_storage.place_pool("b", "east")
    with pytest.raises(ConflictError, match="'east'"):
        any_storage.place_pool("b", "west")
    with pytest.raises(ConflictError):
        any_storage.place_pool("b", "west", instead_of="north")
    assert any_storage.place_pool("b", "west", instead_of="east")
    assert not any_storage.place_pool("b", "west", instead_of="east")
    assert any_storage.place_pool("a", "east", instead_of="home")
    placed = [event for event in any_storage.events() if event.type == "PoolPlaced"]
    assert [(each.pool_name, each.ledger, each.ledger_before) for each in placed] == [
        ("b", "east", None),
        ("b", "west", "east"),
        ("a", "east", "home"),
    ]
    assert [each.pool_name for each in any_storage.list_places()] == ["a", "b"]
    (found,) = any_storage.list_places(["b", "c"])
    assert (found.ledger, found.placed_at) == ("west", placed[1].recorded_at)
    assert any_storage.list_places([]) == []
    assert any_storage.verify() == []
    for pool, ledger in (("", "east"), ("b", ""), ("b\0", "east")):
        with pytest.raises(InvalidInputError):
            any_storage.place_pool(pool, ledger)
    with pytest.raises(InvalidInputError):
        any_storage.list_places("b")


def test_of_two_who_place_a_pool_at_once_one_is_refused(any_storage: AnyStorage) -> None:
    """A pool is in one ledger, whoever registers it."""
    begin, refused = threading.Barrier(8), []

    def place(number: int) -> None:
        begin.wait()
        try:
            any_storage.place_pool("b", f"ledger{number}")
        except ConflictError as error:
            refused.append(error)

    threads(8, place)
    assert len(refused) == 7
    assert types_of(any_storage).count("PoolPlaced") == 1


def test_tasks_find_pools_too() -> None:
    """An AsyncFleet is the same for asyncio: places, leases, reads."""
    asyncio.run(_used_by_tasks())


async def _used_by_tasks() -> None:
    ledgers = {"near": AsyncInMemoryStorage(), "far": AsyncInMemoryStorage()}
    async with await AsyncFleet.connect({"home": "near", "ledgers": ledgers}) as fleet:
        pool = await fleet.manager.register_pool("b", "far")
        assert await fleet.locate("b") == "far"
        fleet.directory.note("b", "near")
        assert await fleet.manager.acquire_proxy("b", "worker") is None
        assert fleet.directory.known("b") == "far"
        assert [place.ledger for place in await fleet.places()] == ["far"]
        from pharox import Outcome
        from tests.conftest import proxies_of

        await ledgers["far"].add_proxies_bulk(proxies_of(pool, 2))
        async with fleet.manager.with_lease("b", "worker", keep_alive=True) as lease:
            assert lease is not None
            await fleet.manager.report(lease, Outcome.ok("shop.example"))
            assert [row.ledger for row in await fleet.leases()] == ["far"]
        async with fleet.manager.pool("b").lease() as lease:
            await fleet.manager.renew_leases([lease])
        assert [(row.ledger, row.value.total_leases) for row in await fleet.stats()] == [("far", 0)]
        assert await fleet.manager.cleanup_expired_leases() == 0
        assert [each.pools for each in await fleet.status()] == [0, 1]


def test_the_directory_is_asked_once_for_each_pool(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A process asks the home ledger for a pool when it first needs it, and then no more."""
    names = [f"ledger{number}" for number in range(100)]
    storages = {name: InMemoryStorage() for name in names}
    fleet = Fleet.connect({"home": names[0], "ledgers": storages})
    asked: list[str] = []
    listing = storages[names[0]].list_places

    def counted(pools: list[str] | None = None) -> object:
        asked.extend(pools or ["all"])
        return listing(pools)

    for name in names:
        fleet.manager.register_pool(f"pool of {name}", name)
    other = Fleet.connect({"home": names[0], "ledgers": storages})
    monkeypatch.setattr(storages[names[0]], "list_places", counted)
    for _ in range(3):
        for name in names:
            assert other.manager.acquire_proxy(f"pool of {name}", "worker") is None
    assert len(asked) == len(names)
    assert len(other.stats()) == len(names)


def test_what_a_process_knows_is_bounded() -> None:
    """Then what it has known for longest is forgotten."""
    known: Known[int] = Known(most=20)
    for number in range(100):
        known.note(number, "near")
    assert len(known) <= 20
    assert known.get(99) == "near"
    assert known.get(0) is None

"""A fleet moves its pools, its manager finds them, and a command does it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from pharox import (
    AsyncInMemoryStorage,
    ConflictError,
    Fleet,
    InvalidInputError,
    MoveStage,
    PoolMovedError,
    ProxyPool,
)
from pharox.fleet import AsyncFleet, cancel_move
from tests.cli.conftest import Outcome, run
from tests.fleet.conftest import stocked


class Stopped(Exception):
    """Ends a mover."""


def test_the_manager_of_a_fleet_follows_its_pools(fleet: Fleet) -> None:
    """There, back, and after a mover was cut off between the two ledgers."""
    stocked(fleet, "shop", "near", 2)
    manager, tokens = fleet.manager, list[int]()

    def lease() -> str:
        got = manager.acquire_proxy("shop", "w")
        assert got is not None
        tokens.append(got.fencing_token or 0)
        manager.release_proxy(got)
        return fleet.locate("shop")

    def stop(step: str) -> None:
        if step == "arrived":
            raise Stopped

    assert lease() == "near"
    with pytest.raises(Stopped):
        fleet.move("shop", "far", on_step=stop)
    assert fleet.move("shop", "far").stage is MoveStage.MOVED
    assert lease() == "far"
    assert fleet.move("shop", "far").stage is MoveStage.MOVED  # which does nothing
    with pytest.raises(PoolMovedError):
        fleet.ledgers["near"].storage.save_pool(ProxyPool(name="shop"))
    with pytest.raises(ConflictError, match="too late"):
        cancel_move("shop", fleet.ledgers["near"], fleet.ledgers["far"])
    assert fleet.move("shop", "near").stage is MoveStage.MOVED
    assert lease() == "near"
    assert tokens == sorted(set(tokens))
    with pytest.raises(InvalidInputError):
        fleet.move("shop", "nowhere")
    stocked(fleet, "other", "far")
    with pytest.raises(ConflictError):
        fleet.move("other", "far")


def test_a_fleet_for_tasks_moves_pools() -> None:
    asyncio.run(_move_and_back())


async def _move_and_back() -> None:
    ledgers = {"near": AsyncInMemoryStorage(), "far": AsyncInMemoryStorage()}
    async with await AsyncFleet.connect({"home": "near", "ledgers": ledgers}) as fleet:
        await fleet.manager.register_pool("shop", "near")
        assert (await fleet.move("shop", "far")).stage is MoveStage.MOVED
        assert await fleet.locate("shop") == "far"
        with pytest.raises(ConflictError):
            await fleet.cancel_move("shop")
        assert (await fleet.move("shop", "near")).stage is MoveStage.MOVED


def test_a_command_moves_a_pool_and_takes_that_back(
    urls: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "pharox.toml"
    named = [f'{name} = "{url}"' for name, url in urls.items()]
    file.write_text("\n".join(["[fleet]", 'home = "near"', "[fleet.ledgers]", *named]))
    pharox: Callable[..., Outcome] = lambda *words: run(capsys, "--fleet", file, *words)  # noqa: E731
    with Fleet.connect(file) as fleet:
        stocked(fleet, "shop", "near", 2)
        held = fleet.manager.acquire_proxy("shop", "w")
        assert held is not None
        left = pharox("fleet", "move", "shop", "--to", "far", "--timeout", "0")
        assert "1 leases of pool 'shop' are still held" in left.err
        assert "pool 'shop' stays" in (pharox("fleet", "move", "shop", "--back").err)
        moved = pharox("fleet", "move", "shop", "--to", "far", "--revoke-after", "0")
        assert "pool 'shop' is in the ledger 'far'" in moved.err
        assert fleet.locate("shop") == "far"
        assert "too late" not in moved.err
        assert "--to LEDGER" in pharox("fleet", "move", "shop").err
        moves = pharox("fleet", "moves", "shop", "--json").objects
        stages = {(each["in_ledger"], each["stage"], each["ledger"]) for each in moves}
        assert {("near", "moved", "far"), ("far", "arrived", "near")} <= stages
        told = pharox("log", "--type", "PoolDeparted", "--type", "PoolArrived")
        assert {"PoolDeparted", "PoolArrived"} <= set(told.out.split())

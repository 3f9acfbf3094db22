"""A mover is held up, or a ledger is down, between two steps: the directory is right at the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pharox import (
    ConflictError,
    DatabaseError,
    Fleet,
    InMemoryStorage,
    MoveStage,
    PoolMove,
)
from pharox.errors import AnswerTimeoutError, DatabaseUnavailableError
from pharox.fleet import move_pool
from pharox.storage.moving import FinishMove, ReadCargo, ReceivePool

POOL = "shop"


class Interrupted(InMemoryStorage):
    """A ledger in which something happens once, just before a step is carried out."""

    def __init__(self) -> None:
        super().__init__()
        self.before: dict[type, Callable[[], Any]] = {}
        self.is_down = False

    def carry_out_move(self, order: Any) -> Any:
        self.before.pop(type(order), lambda: None)()
        return super().carry_out_move(order)

    def place_pool(self, pool_name: str, ledger: str, *, instead_of: str | None = None) -> bool:
        self.before.pop(PoolMove, lambda: None)()
        return super().place_pool(pool_name, ledger, instead_of=instead_of)

    def list_pool_moves(self, pool_name: str | None = None) -> list[PoolMove]:
        if self.is_down:
            raise AnswerTimeoutError("no answer")
        return super().list_pool_moves(pool_name)


@pytest.fixture
def three() -> Fleet:
    """A fleet whose home is neither the ledger that the pool is in nor the next one."""
    ledgers = {name: Interrupted() for name in ("hub", "near", "far")}
    fleet = Fleet.connect({"home": "hub", "ledgers": ledgers})
    fleet.manager.register_pool(POOL, "near")
    return fleet


def before(fleet: Fleet, ledger: str, step: type, does: Callable[[], Any]) -> None:
    storage = fleet.ledgers[ledger].storage
    assert isinstance(storage, Interrupted)
    storage.before[step] = does


@pytest.mark.parametrize(
    ("ledger", "step"), [("near", ReadCargo), ("far", ReceivePool), ("near", FinishMove)]
)
def test_a_late_mover_leaves_the_directory_as_it_is(three: Fleet, ledger: str, step: type) -> None:
    """It is held up before a step while the pool goes there and comes back."""

    def there_and_back() -> None:
        three.move(POOL, "far")
        three.move(POOL, "near")

    before(three, ledger, step, there_and_back)
    late = three.move(POOL, "far")
    assert (late.stage, late.ledger) == (MoveStage.MOVED, "far")
    assert three.locate(POOL) == "near"
    assert [each.stage for each in _moves(three, "near")] == [MoveStage.ARRIVED, MoveStage.MOVED]


def test_one_who_cancels_too_late_ends_the_move(three: Fleet) -> None:
    before(three, "near", FinishMove, lambda: _raise(DatabaseUnavailableError("down")))
    with pytest.raises(DatabaseUnavailableError):
        three.move(POOL, "far")
    with pytest.raises(ConflictError, match="too late"):
        three.cancel_move(POOL)
    assert three.locate(POOL) == "far"


@pytest.mark.parametrize(("ledger", "step"), [("near", FinishMove), ("hub", PoolMove)])
def test_a_ledger_that_was_down_wedges_no_pool(three: Fleet, ledger: str, step: type) -> None:
    """The source before it is told of the arrival, or the home ledger before it is."""
    before(three, ledger, step, lambda: _raise(DatabaseUnavailableError("down")))
    with pytest.raises(DatabaseError, match="down"):
        three.move(POOL, "far")
    assert (_moves(three, "near")[0].stage is MoveStage.MOVED) is (ledger == "hub")
    assert three.move(POOL, "far").stage is MoveStage.MOVED
    assert three.locate(POOL) == "far"


def test_a_move_past_the_fleet_is_in_its_directory_once_it_is_repeated(three: Fleet) -> None:
    near, far = three.ledgers["near"], three.ledgers["far"]
    move_pool(POOL, near, far)
    assert three.locate(POOL) == "near"
    assert three.move(POOL, "far").stage is MoveStage.MOVED
    assert three.locate(POOL) == "far"
    move_pool(POOL, far, near)
    assert three.move(POOL, "hub").stage is MoveStage.MOVED
    assert _moves(three, "hub")[0].ledger == "near"
    assert _moves(three, "far")[0].ledger == "near"


def test_a_ledger_that_does_not_answer_keeps_no_other_pool_from_moving(three: Fleet) -> None:
    hub = three.ledgers["hub"].storage
    assert isinstance(hub, Interrupted)
    hub.is_down = True
    assert three.move(POOL, "far").stage is MoveStage.MOVED


def _moves(fleet: Fleet, ledger: str) -> list[PoolMove]:
    moves: list[PoolMove] = fleet.ledgers[ledger].storage.list_pool_moves(POOL)
    return moves


def _raise(error: Exception) -> None:
    raise error

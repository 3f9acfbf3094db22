"""A name that a move has freed is not taken again by who saved the pool at the same time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa

from pharox import (
    ConflictError,
    InMemoryStorage,
    MoveStage,
    PoolMovedError,
    PoolNotFoundError,
    ProxyPool,
)
from pharox.fleet import cancel_move, move_pool
from pharox.storage.moving import BeginMove, DrainMove
from pharox.storage.postgres import PostgresStorage
from pharox.storage.postgres import moving as postgres_moving
from tests.conftest import AnyStorage, run_sql
from tests.fleet.moving import Here
from tests.ledger.following import until
from tests.queueing import add_ticket, waiting_in

WAITING = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND wait_event_type = 'Lock'
"""


def begun(storage: AnyStorage, pool: str) -> Any:
    """Begin to move a pool."""
    return storage.carry_out_move(BeginMove(pool, "west", uuid4()))


def is_waiting(storage: PostgresStorage, number: int) -> bool:
    """Return whether so many sessions wait for a lock."""
    return run_sql(storage.engine, WAITING) == [(number,)]


def names(storage: AnyStorage) -> list[str]:
    """Return the names of the pools."""
    return [pool.name for pool in storage.list_pools()]


SHOP = ProxyPool(name="shop")


@pytest.mark.parametrize(
    "saved",
    [
        SHOP.model_copy(update={"description": "changed"}),
        SHOP.model_copy(update={"name": "other"}),
        ProxyPool(name="shop"),
    ],
    ids=["known", "renamed", "new"],
)
def test_of_a_save_and_a_move_at_once_one_comes_first(
    postgres: PostgresStorage, saved: ProxyPool
) -> None:
    """The move has hidden the pool and not committed yet: the save waits, and is told of it."""
    postgres.save_pool(SHOP)
    told: list[BaseException] = []

    def save() -> None:
        try:
            postgres.save_pool(saved)
        except PoolMovedError as error:
            told.append(error)

    threads = [
        threading.Thread(target=begun, args=(postgres, "shop")),
        threading.Thread(target=save),
    ]
    engine = postgres.engine.execution_options(isolation_level="READ COMMITTED")
    with engine.begin() as connection:
        connection.exec_driver_sql("SELECT FROM pharox.pools FOR UPDATE")  # The move waits here.
        for number, thread in enumerate(threads, 1):
            thread.start()
            until(partial(is_waiting, postgres, number))
    for thread in threads:
        thread.join()
    assert len(told) == 1
    assert names(postgres) == ["shop (moving to west)"]
    assert postgres.verify() == []


@pytest.fixture
def here(any_storage: AnyStorage) -> Here:
    """A ledger with a pool that is about to move to "west"."""
    any_storage.save_pool(ProxyPool(name="shop"))
    return Here("east", any_storage)


def test_a_pool_that_moves_cannot_be_saved(here: Here) -> None:
    """Neither by its name nor by its id, until the move is cancelled; and never as another's."""
    pool = here.storage.list_pools()[0]
    move = begun(here.storage, "shop")
    assert here.storage.carry_out_move(DrainMove(move)) == 0
    for saved in (pool, ProxyPool(name="shop"), pool.model_copy(update={"name": "other"})):
        with pytest.raises(PoolMovedError):
            here.storage.save_pool(saved)
    assert names(here.storage) == ["shop (moving to west)"]
    west = Here("west", InMemoryStorage())
    cancel_move("shop", here, west)
    here.storage.save_pool(pool.model_copy(update={"description": "changed"}))
    assert move_pool("shop", here, west).stage is MoveStage.MOVED
    with pytest.raises(PoolMovedError):
        here.storage.save_pool(pool.model_copy(update={"name": "other"}))
    west.storage.save_pool(pool.model_copy(update={"description": "there"}))
    assert names(here.storage) == []


def test_a_name_that_came_back_is_hidden_again(postgres: PostgresStorage) -> None:
    """As an older release could leave it: who goes on with the move hides it, without a loop."""
    postgres.save_pool(ProxyPool(name="shop"))
    move = begun(postgres, "shop")
    with postgres.engine.begin() as connection:
        connection.execute(sa.text("UPDATE pharox.pools SET name = 'shop'"))
    with pytest.raises(ConflictError):
        postgres.carry_out_move(BeginMove("shop", "elsewhere", uuid4()))
    assert begun(postgres, "shop") == move
    assert names(postgres) == ["shop (moving to west)"]


def test_a_pool_that_others_rename_all_the_time_is_an_error(
    postgres: PostgresStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried a few times, and then said."""
    postgres.save_pool(ProxyPool(name="shop"))
    tried: list[object] = []

    def renamed(*given: object) -> Iterator[None]:
        tried.append(given)
        yield from ()

    monkeypatch.setattr(postgres_moving, "_hidden", renamed)
    with pytest.raises(ConflictError, match="move it again"), suppress(PoolMovedError):
        begun(postgres, "shop")
    assert len(tried) == postgres_moving.ATTEMPTS


def test_who_waits_in_a_pool_that_was_renamed_goes_on_waiting(
    postgres: PostgresStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mover has found the pool by its old name: nothing moves, so nobody is sent away."""
    postgres.save_pool(SHOP)
    add_ticket(postgres, SHOP.id)
    hidden = postgres_moving._hidden

    def renamed(*given: Any) -> Any:
        postgres.save_pool(SHOP.model_copy(update={"name": "other"}))
        return (yield from hidden(*given))

    monkeypatch.setattr(postgres_moving, "_hidden", renamed)
    with pytest.raises(PoolNotFoundError):
        begun(postgres, "shop")
    assert waiting_in(postgres, "other") == 1

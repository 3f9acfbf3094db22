"""The accounts that the faults are held against can fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from pharox import InMemoryStorage, ProxyManager, new_lease_id
from pharox.storage.postgres import PostgresStorage
from tests.conftest import clock_of, fill, run_sql
from tests.faults.diary import DOUBTED, HELD, RELEASED, Account, Diary, _held_twice, account
from tests.faults.free import longest_free_s


def test_what_was_told_and_is_in_the_log_is_in_order(
    postgres: PostgresStorage, diaries: Path
) -> None:
    """Leases that are held, and such as were released, count as acknowledged."""
    fill(postgres, 2)
    manager, diary = ProxyManager(postgres), Diary(diaries / "one.diary")
    kept = manager.acquire_proxy("pool")
    assert kept is not None
    diary.note(HELD, kept.id)
    with manager.with_lease("pool") as lease:
        assert lease is not None
        diary.note(HELD, lease.id)
    diary.note(RELEASED, lease.id)
    diary.note(DOUBTED, None)
    found = account(postgres, diaries)
    assert found == Account(acknowledged=2)
    found.assert_clean()


@pytest.mark.parametrize("what", [HELD, RELEASED])
def test_what_the_log_lacks_is_lost(postgres: PostgresStorage, diaries: Path, what: str) -> None:
    """A lease or a release that a worker was told of, and of which no event is."""
    stray = new_lease_id()
    Diary(diaries / "one.diary").note(what, stray)
    found = account(postgres, diaries)
    assert (found.lost if what == HELD else found.unreleased) == [stray]
    with pytest.raises(AssertionError, match=str(stray)):
        found.assert_clean()


def test_a_read_model_that_is_wrong_is_found(postgres: PostgresStorage, diaries: Path) -> None:
    """Of the ledger itself, what ``verify`` finds counts."""
    fill(postgres)
    run_sql(postgres.engine, "UPDATE pharox.available_proxies SET current_leases = 1")
    with pytest.raises(AssertionError, match="available_proxies"):
        account(postgres, diaries).assert_clean()


def test_a_proxy_that_two_hold_is_found(postgres: PostgresStorage) -> None:
    """The log is looked through by itself, whatever the read models say."""
    fill(postgres)
    manager = ProxyManager(postgres)
    for _ in range(2):
        with manager.with_lease("pool"):
            pass
    events = list(postgres.events())
    assert _held_twice(events) == []
    without_an_end = [event for event in events if event.type != "LeaseReleased"]
    assert len(_held_twice(without_an_end)) == 1


def test_a_token_that_is_not_the_logs_is_found(postgres: PostgresStorage, diaries: Path) -> None:
    """A worker fences with what it was told."""
    fill(postgres)
    lease = ProxyManager(postgres).acquire_proxy("pool")
    assert lease is not None
    Diary(diaries / "one.diary").hold(lease.model_copy(update={"fencing_token": 1}))
    with pytest.raises(AssertionError, match="fencing token 1"):
        account(postgres, diaries).assert_clean()


@pytest.mark.parametrize(("waited_s", "free_s"), [(12, 5), (3, 3), (None, 0)])
def test_how_long_a_proxy_was_free_while_somebody_waited(waited_s: int | None, free_s: int) -> None:
    """A wait counts only while nobody held the proxy; a lease that ran out held it to its end."""
    storage = InMemoryStorage()
    clock = clock_of(storage)
    pool, _ = fill(storage)
    manager = ProxyManager(storage)
    manager.acquire_proxy("pool", duration_seconds=10)
    clock.advance(15)
    manager.acquire_proxy("pool")
    *events, granted = storage.events()
    waited_ms = None if waited_s is None else waited_s * 1000
    events.append(granted.model_copy(update={"waited_ms": waited_ms}))
    assert longest_free_s(events, pool.id) == free_s

"""Under an id of the caller's one lease at most is granted, however often it is asked for."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from pharox import (
    AsyncProxyManager,
    ConflictError,
    InMemoryStorage,
    InvalidInputError,
    Lease,
    LeaseEndedError,
    LeaseStatus,
    ProxyFilters,
    ProxyManager,
    new_lease_id,
)
from pharox.ledger.rebuild import rebuild
from pharox.models import utc_now
from pharox.models.ids import made_lease_id
from pharox.storage.interface import IStorage
from pharox.storage.postgres import AsyncPostgresStorage, PostgresStorage
from pharox.storage.postgres.batch import Batch, answers_of, command_of
from pharox.storage.requests import AcquireRequest
from projections.pool_stats import SLOTS
from tests.conftest import (
    SECRET_KEY,
    AnyStorage,
    clock_of,
    fill,
    open_async_engine,
    threads,
    types_of,
)


def test_asking_again_returns_the_same_lease(any_storage: AnyStorage) -> None:
    """Also where nothing else is free: it is granted once, and the log has it once."""
    fill(any_storage, 1)
    manager, mine = ProxyManager(any_storage), new_lease_id()
    first = manager.acquire_proxy("pool", "w", lease_id=mine)
    assert first is not None
    assert first.id == mine
    assert manager.acquire_proxy("pool", "w", lease_id=mine) == first
    assert manager.acquire_proxy("pool", "w") is None
    assert types_of(any_storage).count("LeaseAcquired") == 1
    assert any_storage.verify() == []


def test_callbacks_are_told_what_is_held(any_storage: AnyStorage) -> None:
    """An acquisition that finds its lease is a hit, with the pool's statistics as they are."""
    fill(any_storage, 2)
    manager, mine = ProxyManager(any_storage), new_lease_id()
    manager.acquire_proxy("pool", lease_id=mine)
    told: list[Any] = []
    manager.register_acquire_callback(told.append)
    with manager.with_lease("pool", lease_id=mine) as lease:
        assert lease is not None
    (payload,) = told
    assert payload.lease.id == mine
    assert payload.pool_stats.total_leases == 1


def test_after_a_miss_the_id_is_as_good_as_new(any_storage: AnyStorage) -> None:
    """A miss uses no id up."""
    fill(any_storage, 1)
    manager, mine = ProxyManager(any_storage), new_lease_id()
    with manager.with_lease("pool"):
        assert manager.acquire_proxy("pool", lease_id=mine) is None
        assert manager.acquire_proxy("nowhere", lease_id=mine) is None
    lease = manager.acquire_proxy_with_retry("pool", lease_id=mine)
    assert lease is not None
    assert lease.id == mine


def test_an_id_whose_lease_has_ended_is_used_up(any_storage: AnyStorage) -> None:
    """Released, expired or pruned: it is never granted again, and the error says why."""
    fill(any_storage, 2)
    clock, manager = clock_of(any_storage), ProxyManager(any_storage)
    released, expired = new_lease_id(), new_lease_id()
    lease = manager.acquire_proxy("pool", lease_id=released)
    assert lease is not None
    manager.release_proxy(lease)
    manager.acquire_proxy("pool", lease_id=expired, duration_seconds=60)
    clock.advance(61)
    with pytest.raises(LeaseEndedError, match="released"):
        manager.acquire_proxy("pool", lease_id=released)
    with pytest.raises(LeaseEndedError, match="expired") as ended:
        manager.acquire_proxy("pool", lease_id=expired)
    assert ended.value.lease_id == expired  # type: ignore[attr-defined]
    assert manager.cleanup_expired_leases() == 1
    clock.advance(3600)
    assert any_storage.prune_leases(clock.now - timedelta(minutes=5)) == 2
    with pytest.raises(LeaseEndedError, match="pruned"):
        manager.acquire_proxy("pool", lease_id=released)
    assert types_of(any_storage).count("LeaseAcquired") == 2


def test_the_lease_of_a_removed_pool_has_ended(any_storage: AnyStorage) -> None:
    """It was released with its pool."""
    pool, _ = fill(any_storage)
    manager, mine = ProxyManager(any_storage), new_lease_id()
    manager.acquire_proxy("pool", lease_id=mine)
    any_storage.delete_pool(str(pool.id))
    with pytest.raises(LeaseEndedError):
        manager.acquire_proxy("pool", lease_id=mine)


def test_an_id_is_for_one_consumer_and_pool(any_storage: AnyStorage) -> None:
    """Nobody is handed somebody else's lease, or one of another pool."""
    fill(any_storage, 2)
    fill(any_storage, 2, name="other")
    manager, mine = ProxyManager(any_storage), new_lease_id()
    manager.acquire_proxy("pool", "w", lease_id=mine)
    for pool, consumer in (("other", "w"), ("pool", "x")):
        with pytest.raises(ConflictError) as refused:
            manager.acquire_proxy(pool, consumer, lease_id=mine)
        assert refused.value.lease_id == mine  # type: ignore[attr-defined]


def test_only_a_uuid_is_an_id(any_storage: AnyStorage) -> None:
    """Or its text; any other is refused before anything is asked."""
    manager, mine = ProxyManager(any_storage), new_lease_id()
    for wrong in ("mine", 5):
        with pytest.raises(InvalidInputError, match="must be a UUID"):
            manager.acquire_proxy("pool", lease_id=wrong)  # type: ignore[arg-type]
    assert types_of(any_storage) == []
    fill(any_storage)
    lease = manager.acquire_proxy("pool", lease_id=str(mine))  # type: ignore[arg-type]
    assert lease is not None
    assert lease.id == mine


def test_attempts_at_once_get_one_lease(postgres: PostgresStorage) -> None:
    """Eight threads with one id get the same lease, whichever was first."""
    fill(postgres, 8)
    manager = ProxyManager(postgres)
    for mine in (new_lease_id() for _ in range(10)):
        told: list[Lease | None] = []

        def ask(_: int, mine: UUID = mine, told: list[Lease | None] = told) -> None:
            told.append(manager.acquire_proxy("pool", lease_id=mine))

        threads(8, ask)
        assert [lease and lease.id for lease in told] == [mine] * 8
        manager.release_proxy(told[0])  # type: ignore[arg-type]
    assert types_of(postgres).count("LeaseAcquired") == 10
    assert postgres.verify() == []


@pytest.mark.parametrize("filters", [None, ProxyFilters(predicate=lambda _: True)])
def test_attempts_at_once_in_two_pools_get_one_lease(
    postgres: PostgresStorage, filters: ProxyFilters | None
) -> None:
    """The id alone decides: the other pool's attempt is a conflict, and the log can be folded."""
    fill(postgres, 20, name="one")
    fill(postgres, 20, name="other")
    manager = ProxyManager(postgres)

    def ask(pool: str, lease_id: UUID) -> Lease | None:
        try:
            return manager.acquire_proxy(pool, "worker", filters=filters, lease_id=lease_id)
        except ConflictError:
            return None

    ids = [new_lease_id() for _ in range(20)]
    with ThreadPoolExecutor(2) as pool:
        for mine in ids:
            found = list(pool.map(ask, ["one", "other"], [mine, mine]))
            assert len([lease for lease in found if lease is not None]) == 1
    assert types_of(postgres).count("LeaseAcquired") == 20
    assert postgres.verify() == []
    rebuild(postgres, ["leases"])


def test_what_has_run_out_is_told_of_by_who_takes_it_back(any_storage: AnyStorage) -> None:
    """Asking again under its id takes nothing back that nobody would hear of."""
    fill(any_storage, 1)
    clock = clock_of(any_storage)
    manager, mine, told = ProxyManager(any_storage), new_lease_id(), list[UUID]()
    manager.register_expire_callback(lambda payload: told.append(payload.lease.id))
    manager.acquire_proxy("pool", lease_id=mine, duration_seconds=10)
    clock.advance(11)
    with pytest.raises(LeaseEndedError):
        manager.acquire_proxy("pool", lease_id=mine)
    assert manager.cleanup_expired_leases() == 1
    assert told == [mine]


def test_a_callback_that_fails_on_asking_again_ends_nothing(any_storage: AnyStorage) -> None:
    """The lease is the first call's."""
    fill(any_storage, 1)
    manager, mine = ProxyManager(any_storage), new_lease_id()
    lease = manager.acquire_proxy("pool", lease_id=mine)
    assert lease is not None

    def fail(_: object) -> None:
        raise ValueError("no")

    manager.register_acquire_callback(fail)
    with pytest.raises(ValueError, match="no"):
        manager.acquire_proxy("pool", lease_id=mine)
    found = any_storage.get_lease(str(lease.id))
    assert found is not None
    assert found.status is LeaseStatus.ACTIVE


@pytest.mark.parametrize("chosen", [True, False])
@pytest.mark.parametrize("proxies", [1, 2])
def test_an_attempt_that_commits_meanwhile_counts(
    postgres: PostgresStorage, proxies: int, chosen: bool
) -> None:
    """One that is asked while an earlier one is under way waits for it, and has its lease.

    So it is with the id of an unclear outcome that nobody chose, and others of the
    process are not kept waiting.
    """
    fill(postgres, proxies + 1)
    manager = ProxyManager(postgres)
    manager.storage.ensure_consumer("default")
    command = command_of(
        AcquireRequest("pool", "default", lease_id=new_lease_id() if chosen else None)
    )
    mine, query = command.lease_id, Batch((command,)).query(postgres.schema)
    slot = slot_of_nobody(postgres, 3)
    with ThreadPoolExecutor(1) as pool:
        with postgres.session() as session:
            (granted,) = session.rows(query.statement, **query.values, own_slot=slot)
            asked = pool.submit(manager.acquire_proxy, "pool", lease_id=mine)
            while not (waits_for_a_lock(postgres) or asked.done()):
                time.sleep(0.01)
            other = manager.acquire_proxy("pool")
            assert other is not None
        manager.release_proxy(other)
        lease = asked.result()
    assert lease is not None
    assert (lease.id, lease.proxy_id) == (mine, answers_of([list(granted)])[0].proxy_id)
    assert types_of(postgres).count("LeaseAcquired") == 2
    assert postgres.verify() == []


def slot_of_nobody(storage: PostgresStorage, connections: int) -> int:
    """Return a slot of pool_stats that none of so many pooled connections writes to.

    Who has the same slot as an open transaction waits for it, chosen id or not.
    """
    with ExitStack() as stack:
        opened = [stack.enter_context(storage.session()) for _ in range(connections)]
        taken = {session.connection.info.backend_pid % SLOTS for session in opened}
    return min(set(range(SLOTS)) - taken)


def waits_for_a_lock(storage: PostgresStorage) -> bool:
    """Return whether a session of the database waits for an advisory lock."""
    waiting = """
        SELECT count(*) FROM pg_locks JOIN pg_database AS own ON own.oid = pg_locks.database
        WHERE locktype = 'advisory' AND NOT granted AND own.datname = current_database()
    """
    with storage.session() as session:
        row = session.connection.execute(waiting).fetchone()
    return row is not None and row[0] > 0


def test_an_id_that_nobody_chose_is_used_up_as_well(any_storage: AnyStorage) -> None:
    """An attempt under the id of an ended lease says that it has ended, even if it was pruned."""
    fill(any_storage, 1)
    clock, manager = clock_of(any_storage), ProxyManager(any_storage)
    with manager.with_lease("pool") as lease:
        assert lease is not None
    clock.advance(3600)
    assert any_storage.prune_leases(clock.now - timedelta(minutes=5)) == 1
    with pytest.raises(LeaseEndedError, match="pruned"):
        manager.acquire_proxy("pool", lease_id=lease.id)


def test_the_ledger_knows_the_ids_that_it_makes(postgres: PostgresStorage) -> None:
    """They have a form, which Python gives and SQL recognises; others have it by chance only."""
    known = "SELECT pharox.is_made_v1(id) FROM unnest(%s::uuid[]) AS given (id)"
    with postgres.session() as session:
        made = session.connection.execute(known, ([made_lease_id() for _ in range(50)],))
        assert {row[0] for row in made} == {True}
        chosen = session.connection.execute(known, ([new_lease_id() for _ in range(50)],))
        assert False in {row[0] for row in chosen}


def test_a_conflict_takes_nothing_back(any_storage: AnyStorage) -> None:
    """Who may not have a lease looks for none, so what has run out is left to who does."""
    fill(any_storage, 1)
    fill(any_storage, 1, name="other")
    clock, manager = clock_of(any_storage), ProxyManager(any_storage)
    manager.acquire_proxy("other", duration_seconds=10)
    mine = new_lease_id()
    manager.acquire_proxy("pool", lease_id=mine)
    clock.advance(11)
    with pytest.raises(ConflictError):
        manager.acquire_proxy("other", lease_id=mine)
    assert manager.cleanup_expired_leases() == 1


def test_coroutines_ask_under_an_id_as_well(database_url: str) -> None:
    """The awaited manager has the same parameter, in each of its forms."""

    async def main() -> list[UUID]:
        engine = open_async_engine(database_url)
        async with AsyncPostgresStorage(engine, secret_keys=[SECRET_KEY]) as storage:
            fill(await storage.blocking(), 3)
            manager, mine = AsyncProxyManager(storage), new_lease_id()
            first = await manager.acquire_proxy("pool", lease_id=mine)
            again = await manager.acquire_proxy_with_retry("pool", lease_id=mine)
            async with manager.with_lease("pool", lease_id=mine) as held:
                assert first == again == held
            with pytest.raises(LeaseEndedError):
                await manager.acquire_proxy("pool", lease_id=mine)
            other = new_lease_id()
            async with manager.with_retrying_lease("pool", lease_id=other) as lease:
                assert lease is not None
            return [each.id for each in await storage.list_leases()] + [mine, other]

    leased = asyncio.run(main())
    assert leased[:2] == leased[2:]


def test_an_adapter_without_the_method_refuses_an_id() -> None:
    """The default asks two questions, so it cannot promise that, and says so."""
    storage = InMemoryStorage()
    fill(storage)
    request = AcquireRequest("pool", "w", lease_id=new_lease_id())
    with pytest.raises(InvalidInputError, match="cannot grant a lease under"):
        IStorage.acquire_lease(storage, request)
    assert storage.acquire_lease(request).lease is not None


def test_ids_are_ordered_by_time() -> None:
    """So they lie side by side in an index, as those do that the ledger chooses."""
    ids = [new_lease_id() for _ in range(50)]
    assert {each.version for each in ids} == {7}
    assert len(set(ids)) == 50
    assert abs((ids[-1].int >> 80) / 1000 - utc_now().timestamp()) < 60

"""A holder extends its lease; one that has ended is never raised from the dead."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

import projections
from pharox import (
    AsyncInMemoryStorage,
    AsyncProxyManager,
    ConflictError,
    InMemoryStorage,
    InvalidInputError,
    InvalidLeaseError,
    Lease,
    LeaseEndedError,
    LeaseStatus,
    ProxyManager,
    new_lease_id,
)
from pharox.events import LeaseRenewed
from pharox.history import audit
from pharox.ledger.rebuild import rebuild
from pharox.storage.async_interface import IAsyncStorage
from pharox.storage.interface import IStorage
from pharox.storage.postgres import PostgresStorage, renewing
from pharox.storage.requests import RenewRequest
from tests.conftest import (
    AnyStorage,
    clock_of,
    fill,
    for_tasks,
    threads,
    types_of,
)


def held(storage: AnyStorage, seconds: int = 60, **options: Any) -> Lease:
    """Fill a pool with a proxy, and lease it."""
    fill(storage, 1)
    lease = ProxyManager(storage).acquire_proxy("pool", "w", seconds, **options)
    assert lease is not None
    return lease


def recorded(storage: IStorage, lease: Lease) -> Lease:
    """Return a lease as the storage has it."""
    found = storage.get_lease(str(lease.id))
    assert found is not None
    return found


def test_a_renewed_lease_lasts_its_own_duration_from_now(any_storage: AnyStorage) -> None:
    """It outlives its first term, keeps id and token, and others get nothing meanwhile."""
    clock, manager = clock_of(any_storage), ProxyManager(any_storage)
    lease = held(any_storage)
    before = lease.model_copy()
    for _ in range(4):
        clock.advance(40)
        now = clock.now
        assert manager.renew_lease(lease) is lease
        assert lease.expires_at == now + timedelta(seconds=60)
        assert lease.renewed_at == now
        assert manager.acquire_proxy("pool") is None
    assert (lease.id, lease.fencing_token) == (before.id, before.fencing_token)
    assert lease.acquired_at == before.acquired_at
    assert recorded(any_storage, lease) == lease
    clock.advance(61)
    assert manager.acquire_proxy("pool") is not None


def test_the_duration_may_be_chosen(any_storage: AnyStorage) -> None:
    """It may be longer or shorter; the next renewal lasts as long unless it says otherwise."""
    clock, manager = clock_of(any_storage), ProxyManager(any_storage)
    lease = held(any_storage)
    for chosen, expected in ((600, 600), (None, 600), (0.5, 0.5), (30, 30), (None, 30)):
        manager.renew_lease(lease, chosen)
        assert lease.expires_at == clock.now + timedelta(seconds=expected)
        assert recorded(any_storage, lease).expires_at == lease.expires_at


def test_its_pool_bounds_how_long_it_is_held(any_storage: AnyStorage) -> None:
    """Renewals end there, and take nothing that it had; the bound of the pool now counts."""
    clock, manager = clock_of(any_storage), ProxyManager(any_storage)
    (pool, _), begun = fill(any_storage, 3), clock.now

    def bound(seconds: float | None) -> None:
        any_storage.save_pool(pool.model_copy(update={"max_held_seconds": seconds}))

    def lasts(lease: Lease) -> float:
        assert recorded(any_storage, lease) == lease
        return (lease.expires_at - begun).total_seconds()

    bound(100)
    short, long = (manager.acquire_proxy("pool", "w", seconds) for seconds in (60, 300))
    assert short is not None
    assert long is not None
    assert (lasts(short), lasts(long)) == (60, 300)
    clock.advance(30)
    manager.renew_leases([short, long])
    assert (lasts(short), lasts(long)) == (90, 300)
    clock.advance(30)
    manager.renew_lease(short)
    assert (lasts(short), short.renewed_at) == (100, clock.now)
    manager.renew_lease(long, 5)
    assert lasts(long) == 65
    bound(10)
    manager.renew_leases([short, long])
    assert (lasts(short), lasts(long)) == (100, 65)
    bound(None)
    manager.renew_lease(short, 1000)
    assert lasts(short) == 1060
    renewals = [event for event in any_storage.events() if isinstance(event, LeaseRenewed)]
    bounded = {(event.expires_at - begun).total_seconds() for event in renewals if event.reason}
    assert bounded == {100, 300}
    assert any_storage.verify() == []


def test_what_has_ended_is_not_renewed(any_storage: AnyStorage) -> None:
    """The error says how and when, the caller's lease is updated, and nothing is recorded."""
    clock, manager = clock_of(any_storage), ProxyManager(any_storage)
    lease = held(any_storage)
    stale = lease.model_copy()
    manager.release_proxy(lease)
    with pytest.raises(LeaseEndedError, match=rf"{lease.id} was released at "):
        manager.renew_lease(stale)
    assert stale.status is LeaseStatus.RELEASED
    assert stale.released_at == lease.released_at

    late = manager.acquire_proxy("pool", duration_seconds=10)
    assert late is not None
    clock.advance(10)
    with pytest.raises(LeaseEndedError, match="ran out at ") as ended:
        manager.renew_lease(late)
    assert ended.value.data["lease_id"] == late.id
    assert manager.cleanup_expired_leases() == 1
    with pytest.raises(LeaseEndedError, match=r"ran out at .* and was taken back at "):
        manager.renew_lease(late)
    assert late.status is LeaseStatus.EXPIRED
    unknown = late.model_copy(update={"id": new_lease_id()})
    with pytest.raises(LeaseEndedError, match="There is no lease"):
        manager.renew_lease(unknown)
    assert "LeaseRenewed" not in types_of(any_storage)


def test_another_token_renews_nothing(any_storage: AnyStorage) -> None:
    """A token guards the lease; without one its id is enough."""
    manager, lease = ProxyManager(any_storage), held(any_storage)
    token = lease.fencing_token
    assert token is not None
    forged = lease.model_copy(update={"fencing_token": token + 1})
    with pytest.raises(ConflictError, match=f"has the fencing token {token}, not {token + 1}"):
        manager.renew_lease(forged)
    assert "LeaseRenewed" not in types_of(any_storage)
    manager.renew_lease(lease.model_copy(update={"fencing_token": None}))
    assert types_of(any_storage).count("LeaseRenewed") == 1


def test_many_are_renewed_together(any_storage: AnyStorage) -> None:
    """Each for its own duration; those that ended raise afterwards, the others are renewed."""
    clock, manager = clock_of(any_storage), ProxyManager(any_storage)
    fill(any_storage, 6)
    leases = [
        *manager.acquire_proxies("pool", 3, duration_seconds=60),
        *manager.acquire_proxies("pool", 3, duration_seconds=90),
    ]
    clock.advance(30)
    assert manager.renew_leases(leases) == leases
    assert [(lease.expires_at - clock.now).total_seconds() for lease in leases] == [
        *[60] * 3,
        *[90] * 3,
    ]
    manager.release_proxies([leases[1].model_copy(), leases[4].model_copy()])
    with pytest.raises(ExceptionGroup) as failed:
        manager.renew_leases(leases, 600)
    errors = [error for error in failed.value.exceptions if isinstance(error, LeaseEndedError)]
    assert {error.data["lease_id"] for error in errors} == {
        leases[1].id,
        leases[4].id,
    }
    assert [lease.expires_at == clock.now + timedelta(seconds=600) for lease in leases] == [
        True,
        False,
        True,
        True,
        False,
        True,
    ]
    assert manager.renew_leases([]) == []


def test_one_that_is_named_twice_is_renewed_twice(any_storage: AnyStorage) -> None:
    """Each request has its own outcome, in their order."""
    clock, lease = clock_of(any_storage), held(any_storage)
    forged = lease.model_copy(update={"fencing_token": 10**9})
    requests = [RenewRequest(forged), RenewRequest(lease, 100), RenewRequest(lease, 50)]
    refused, first, second = any_storage.renew_leases(requests)
    assert isinstance(refused, ConflictError)
    assert first is second is lease
    assert lease.expires_at == clock.now + timedelta(seconds=50)
    assert types_of(any_storage).count("LeaseRenewed") == 2


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), "60", True])
def test_a_duration_must_make_sense(any_storage: AnyStorage, seconds: Any) -> None:
    """It is refused before anything is asked of the ledger."""
    lease = held(any_storage)
    before = types_of(any_storage)
    with pytest.raises((InvalidLeaseError, InvalidInputError)):
        ProxyManager(any_storage).renew_lease(lease, seconds)
    with pytest.raises(InvalidInputError, match="a lease is needed"):
        ProxyManager(any_storage).renew_lease("lease")  # type: ignore[arg-type]
    assert types_of(any_storage) == before


def test_the_log_tells_of_renewals(any_storage: AnyStorage) -> None:
    """The event has what a reader needs; the lease's story and the proxy's have it in order."""
    clock, manager, lease = clock_of(any_storage), ProxyManager(any_storage), held(any_storage)
    clock.advance(20)
    manager.renew_lease(lease)
    clock.advance(20)
    manager.renew_lease(lease)
    manager.release_proxy(lease)
    story = audit.of_lease(any_storage, lease.id)
    entries = list(story.entries)
    assert [entry.event.type for entry in entries] == [
        "LeaseAcquired",
        "LeaseRenewed",
        "LeaseRenewed",
        "LeaseReleased",
    ]
    first = entries[1].event
    assert isinstance(first, LeaseRenewed)
    assert (first.expires_at - first.recorded_at).total_seconds() == 60
    assert (first.consumer, first.pool_name, first.acquired_at) == ("w", "pool", lease.acquired_at)
    assert entries[1].address is not None
    totals = audit.Totals()
    for entry in audit.of_proxy(any_storage, lease.proxy_id).entries:
        totals.add(entry)
    assert (totals.acquired, totals.renewed, totals.released) == (1, 2, 1)


def test_the_past_knows_until_when_a_lease_was_granted(any_storage: AnyStorage) -> None:
    """As of each event, the lease ends when it was known to end then."""
    clock, manager, lease = clock_of(any_storage), ProxyManager(any_storage), held(any_storage)
    first = lease.expires_at
    clock.advance(20)
    manager.renew_lease(lease)
    log = list(any_storage.events())
    granted = next(event.seq for event in log if event.type == "LeaseAcquired")
    renewed = next(event.seq for event in log if event.type == "LeaseRenewed")
    for seq, expected in ((granted, first), (renewed, lease.expires_at)):
        state = any_storage.state_at(seq)
        (row,) = state["leases"].values()
        assert row.expires_at == expected
    folded = projections.fold(log, projections.registered())
    (row,) = folded["leases"].values()
    assert row.expires_at == lease.expires_at
    assert any_storage.verify() == []


def test_a_rebuild_keeps_the_last_of_many_renewals(postgres: PostgresStorage) -> None:
    """A range that has a lease's begin, renewals and end folds to what single events do."""
    clock, manager = clock_of(postgres), ProxyManager(postgres)
    fill(postgres, 9)
    leases = manager.acquire_proxies("pool", 9)
    for seconds in (100, 700, 50, 300):
        clock.advance(1)
        manager.renew_leases(leases, seconds)
    manager.release_proxies(leases[:3])
    assert postgres.verify() == []
    before = sorted(postgres.list_leases(), key=lambda lease: lease.id)
    rebuild(postgres)
    assert sorted(postgres.list_leases(), key=lambda lease: lease.id) == before
    assert {lease.expires_at for lease in before} == {clock.now + timedelta(seconds=300)}


def test_more_than_one_commit_takes(
    postgres: PostgresStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are renewed in several, in the order of their ids."""
    monkeypatch.setattr(renewing, "MOST", 4)
    fill(postgres, 10)
    manager = ProxyManager(postgres)
    leases = manager.acquire_proxies("pool", 10)
    manager.renew_leases(leases, 500)
    renewed = [event for event in postgres.events() if isinstance(event, LeaseRenewed)]
    assert [event.lease_id for event in renewed] == sorted(lease.id for lease in leases)


def test_renewing_waits_for_who_ends_a_lease_and_is_waited_for(postgres: PostgresStorage) -> None:
    """Renewals, releases and expiries at once: no error but LeaseEndedError, and no drift."""
    fill(postgres, 8)
    manager = ProxyManager(postgres)
    ended: list[LeaseEndedError] = []

    def work(number: int) -> None:
        for _ in range(15):
            lease = manager.acquire_proxy("pool", f"w{number}")
            assert lease is not None
            copies = [lease.model_copy() for _ in range(2)]

            def renew(copy: Lease) -> None:
                for _ in range(3):
                    try:
                        manager.renew_lease(copy)
                    except LeaseEndedError as error:
                        ended.append(error)

            threads(
                3,
                lambda n, lease=lease, copies=copies: (  # type: ignore[misc]
                    manager.release_proxy(lease) if n == 2 else renew(copies[n])
                ),
            )

    threads(4, work)
    assert ended
    assert types_of(postgres).count("LeaseReleased") == 60
    ends: dict[Any, int] = {}
    for event in postgres.events():
        if event.type == "LeaseReleased":
            ends[event.lease_id] = event.seq
        if event.type == "LeaseRenewed":
            assert event.lease_id not in ends, "a lease was renewed after its end"
    assert postgres.verify() == []


def test_a_storage_that_cannot_renew_says_so() -> None:
    """An adapter that was written for 0.11.0 has no such method."""

    class Plain(AsyncInMemoryStorage):
        renew_leases = IAsyncStorage.renew_leases

    class Blocking(InMemoryStorage):
        renew_leases = IStorage.renew_leases

    with pytest.raises(InvalidInputError, match="Plain cannot renew leases"):
        asyncio.run(Plain().renew_leases([]))
    with pytest.raises(InvalidInputError, match="Blocking cannot renew leases"):
        Blocking().renew_leases([])


def test_tasks_renew_as_threads_do(any_storage: AnyStorage) -> None:
    """The same from coroutines."""
    fill(any_storage, 2)

    async def renew() -> None:
        async with for_tasks(any_storage) as storage:
            manager = AsyncProxyManager(storage)
            leases = await manager.acquire_proxies("pool", 2)
            before = leases[0].expires_at
            assert await manager.renew_lease(leases[0], 900) is leases[0]
            assert leases[0].expires_at > before
            assert await manager.renew_leases(leases) == leases
            await manager.release_proxies(leases)
            with pytest.raises(LeaseEndedError):
                await manager.renew_lease(leases[0])

    asyncio.run(renew())
    assert types_of(any_storage).count("LeaseRenewed") == 3

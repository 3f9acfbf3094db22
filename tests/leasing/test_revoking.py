"""An operator ends the lease of somebody else: its holder is told, and nothing is told twice."""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import projections
from pharox import (
    AsyncInMemoryStorage,
    AsyncProxyManager,
    InMemoryStorage,
    InvalidInputError,
    Lease,
    LeaseEndedError,
    LeaseLostError,
    LeaseStatus,
    LostEventPayload,
    ProxyManager,
    RevokeEventPayload,
    new_lease_id,
)
from pharox.events import ENDED_STATUS, LeaseRevoked
from pharox.history import audit
from pharox.ledger.rebuild import rebuild
from pharox.storage.async_interface import IAsyncStorage
from pharox.storage.interface import IStorage
from pharox.storage.postgres import PostgresStorage, revoking
from pharox.storage.requests import RevokeRequest
from tests.conftest import (
    AnyStorage,
    clock_of,
    fill,
    for_tasks,
    threads,
    types_of,
)
from tests.database.test_fencing import REQUIRE, application
from tests.leasing.test_keeping import kept_by
from tests.leasing.test_renewal import held, recorded

WHY = "its subnet is banned"


def test_a_revoked_lease_has_ended(any_storage: AnyStorage) -> None:
    """Its proxy is free at once, and what is recorded says why."""
    clock, manager, lease = clock_of(any_storage), ProxyManager(any_storage), held(any_storage)
    clock.advance(20)
    revoked = manager.revoke_lease(lease.id, WHY)
    assert (revoked.id, revoked.status, revoked.revoke_reason) == (
        lease.id,
        LeaseStatus.REVOKED,
        WHY,
    )
    assert revoked.released_at == clock.now
    assert revoked.duration_ms == 20_000
    assert recorded(any_storage, lease) == revoked
    assert manager.acquire_proxy("pool") is not None
    assert any_storage.verify() == []


def test_its_holder_can_do_nothing_with_it(
    any_storage: AnyStorage, caplog: pytest.LogCaptureFixture
) -> None:
    """Renewing it raises, releasing it is ignored: both say when it was revoked, and why."""
    manager, lease = ProxyManager(any_storage), held(any_storage)
    manager.revoke_lease(lease.id, WHY)
    before = types_of(any_storage)
    at = recorded(any_storage, lease).released_at
    assert at is not None
    told = f"was revoked at {at.isoformat()}: {WHY}"
    copies = [lease.model_copy() for _ in range(3)]
    with pytest.raises(LeaseEndedError) as ended:
        manager.renew_lease(copies[0])
    assert str(ended.value) == f"Lease {lease.id} {told}."
    with caplog.at_level(logging.WARNING, "pharox"):
        manager.release_proxy(copies[1])
        manager.release_proxies([copies[2], held_again(manager)])
    ignored = [each.getMessage() for each in caplog.records if "ignored" in each.getMessage()]
    assert ignored == [f"pharox.release.ignored: lease {lease.id} {told}"] * 2
    for copy in copies:
        assert (copy.status, copy.released_at, copy.revoke_reason) == (
            LeaseStatus.REVOKED,
            at,
            WHY,
        )
    assert types_of(any_storage) == [*before, "LeaseAcquired", "LeaseReleased"]


def held_again(manager: ProxyManager) -> Lease:
    """Lease the only proxy of the pool again."""
    lease = manager.acquire_proxy("pool", "w")
    assert lease is not None
    return lease


def test_what_has_ended_is_not_revoked(any_storage: AnyStorage) -> None:
    """Twice, too late or without such a lease: the error says so, and nothing is recorded."""
    clock, manager, lease = clock_of(any_storage), ProxyManager(any_storage), held(any_storage)
    manager.revoke_lease(lease.id, WHY)
    released, late = held_again(manager), None
    manager.release_proxy(released)
    late = held_again(manager)
    clock.advance(301)
    before = types_of(any_storage)
    for lease_id, told in (
        (lease.id, rf"{lease.id} was revoked at .*: {WHY}\."),
        (released.id, "was released at"),
        (late.id, "ran out at"),
        (new_lease_id(), "There is no lease"),
    ):
        with pytest.raises(LeaseEndedError, match=told) as refused:
            manager.revoke_lease(lease_id, "again")
        assert refused.value.data["lease_id"] == lease_id
    assert types_of(any_storage) == before


def test_many_are_revoked_together(any_storage: AnyStorage) -> None:
    """Those that ended raise afterwards, one that is named twice too; the others are revoked."""
    manager = ProxyManager(any_storage)
    _, proxies = fill(any_storage, 2, max_concurrency=2)
    leases = manager.acquire_proxies("pool", 4, distinct=False)
    manager.release_proxy(leases[1])
    ids = [lease.id for lease in leases]
    with pytest.raises(ExceptionGroup) as failed:
        manager.revoke_leases([*ids, ids[0]], WHY)
    errors = [error for error in failed.value.exceptions if isinstance(error, LeaseEndedError)]
    assert [error.data["lease_id"] for error in errors] == [ids[1], ids[0]]
    assert types_of(any_storage).count("LeaseRevoked") == 3
    stats = any_storage.get_pool_stats("pool")
    assert stats is not None
    assert (stats.total_leases, stats.available_proxies) == (0, len(proxies))
    assert manager.revoke_leases([], WHY) == []
    assert any_storage.verify() == []


@pytest.mark.parametrize("reason", ["", "  ", "a\0b", None, 5])
def test_a_reason_is_needed(any_storage: AnyStorage, reason: Any) -> None:
    """Without one, or with one that cannot be stored, nothing is asked of the ledger."""
    lease = held(any_storage)
    with pytest.raises(InvalidInputError):
        ProxyManager(any_storage).revoke_lease(lease.id, reason)
    with pytest.raises(InvalidInputError, match="must be a UUID"):
        ProxyManager(any_storage).revoke_lease("its id", WHY)
    assert recorded(any_storage, lease).status is LeaseStatus.ACTIVE
    assert ProxyManager(any_storage).revoke_lease(str(lease.id), WHY).id == lease.id


def test_callbacks_are_told(any_storage: AnyStorage) -> None:
    """With the lease, the reason, and the pool as it was after each; of no release or expiry."""
    manager, told = ProxyManager(any_storage), list[RevokeEventPayload]()
    manager.register_revoke_callback(told.append)
    manager.register_release_callback(lambda _: pytest.fail("nothing was released"))
    manager.register_expire_callback(lambda _: pytest.fail("nothing ran out"))
    clock, _ = clock_of(any_storage), fill(any_storage, 3)
    leases = manager.acquire_proxies("pool", 3)
    clock.advance(5)
    revoked = manager.revoke_leases([lease.id for lease in leases], WHY)
    assert [payload.lease for payload in told] == revoked
    assert {payload.reason for payload in told} == {WHY}
    assert {payload.lease_duration_ms for payload in told} == {5000}
    assert [payload.revoked_at for payload in told] == [lease.released_at for lease in revoked]
    left = [payload.pool_stats and payload.pool_stats.total_leases for payload in told]
    assert left == [2, 1, 0]


def test_a_holder_elsewhere_finds_it_lost(any_storage: AnyStorage) -> None:
    """Its keeper hears of it with the next renewal, and says when and why."""
    fill(any_storage, 1)
    manager, told = ProxyManager(any_storage), list[LostEventPayload]()
    manager.register_lost_callback(told.append)

    def hold() -> None:
        with manager.with_lease("pool", "w", 1, keep_alive=True) as lease:
            assert lease is not None
            (outcome,) = any_storage.revoke_leases(RevokeRequest((lease.id,), WHY))
            assert not isinstance(outcome, Exception)
            deadline = time.monotonic() + 10
            while not lease.is_lost and time.monotonic() < deadline:
                time.sleep(0.01)

    with pytest.raises(LeaseLostError, match=rf"was revoked at .*: {WHY}\. Somebody else"):
        hold()
    (payload,) = told
    assert WHY in payload.reason
    assert payload.lease.status is LeaseStatus.REVOKED


def test_a_holder_of_the_same_process_finds_it_lost_at_once(any_storage: AnyStorage) -> None:
    """No renewal is needed to know it."""
    fill(any_storage, 1)
    manager = ProxyManager(any_storage)
    lease = manager.acquire_proxy("pool", "w", 3600, keep_alive=True)
    assert lease is not None
    manager.revoke_lease(lease.id, WHY)
    assert lease.is_lost
    assert kept_by(any_storage) == 0
    assert "LeaseRenewed" not in types_of(any_storage)


def test_the_log_tells_of_it(any_storage: AnyStorage) -> None:
    """The event has what a reader needs; the story of the lease ends with it."""
    clock, manager, lease = clock_of(any_storage), ProxyManager(any_storage), held(any_storage)
    clock.advance(20)
    manager.revoke_lease(lease.id, WHY)
    entries = list(audit.of_lease(any_storage, lease.id).entries)
    assert [entry.event.type for entry in entries] == ["LeaseAcquired", "LeaseRevoked"]
    event = entries[1].event
    assert isinstance(event, LeaseRevoked)
    assert (event.reason, event.consumer, event.acquired_at) == (WHY, "w", lease.acquired_at)
    assert (event.before.leases, event.after.leases) == (1, 0)
    totals = audit.Totals()
    for entry in entries:
        totals.add(entry)
    assert (totals.acquired, totals.revoked, totals.held_s) == (1, 1, 20)


def test_every_fold_has_the_reason(any_storage: AnyStorage) -> None:
    """Of the log in Python, and of a rebuild, which folds its begin and its end together."""
    manager, lease = ProxyManager(any_storage), held(any_storage)
    revoked = manager.revoke_lease(lease.id, WHY)
    folded = projections.fold(list(any_storage.events()), projections.registered())
    (row,) = folded["leases"].values()
    assert (row.status, row.revoke_reason) == ("revoked", WHY)
    if isinstance(any_storage, PostgresStorage):
        rebuild(any_storage)
        assert recorded(any_storage, lease) == revoked


def test_more_than_one_commit_takes(
    postgres: PostgresStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are revoked in several."""
    monkeypatch.setattr(revoking, "MOST", 4)
    fill(postgres, 10)
    manager = ProxyManager(postgres)
    leases = manager.acquire_proxies("pool", 10)
    assert len(manager.revoke_leases([lease.id for lease in leases], WHY)) == 10
    assert types_of(postgres).count("LeaseRevoked") == 10
    assert postgres.verify() == []


def test_what_is_locked_is_waited_for_alone(postgres: PostgresStorage, database_url: str) -> None:
    """A lease that another session has locked holds no other one up."""
    fill(postgres, 2)
    manager = ProxyManager(postgres)
    first, second = manager.acquire_proxies("pool", 2)
    with application(database_url) as other, ThreadPoolExecutor(1) as pool:
        other.execute(REQUIRE, (first.id, first.fencing_token))
        revoking_both = pool.submit(manager.revoke_leases, [first.id, second.id], WHY)
        deadline = time.monotonic() + 10
        while recorded(postgres, second).status is LeaseStatus.ACTIVE:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert not revoking_both.done()
        assert recorded(postgres, first).status is LeaseStatus.ACTIVE
        other.commit()
        assert [lease.id for lease in revoking_both.result(timeout=30)] == [first.id, second.id]
    assert recorded(postgres, first).status is LeaseStatus.REVOKED


def test_one_of_many_who_end_a_lease_does(postgres: PostgresStorage) -> None:
    """Revocations, releases and renewals at once: each lease ends once, and nothing drifts."""
    fill(postgres, 8)
    manager = ProxyManager(postgres)

    def work(number: int) -> None:
        for _ in range(10):
            lease = manager.acquire_proxy("pool", f"w{number}")
            assert lease is not None

            def compete(n: int, lease: Lease = lease) -> None:
                try:
                    if n == 0:
                        manager.release_proxy(lease.model_copy())
                    elif n == 1:
                        manager.renew_lease(lease.model_copy())
                    else:
                        manager.revoke_lease(lease.id, WHY)
                except LeaseEndedError:
                    pass

            threads(4, compete)

    threads(4, work)
    ends = [event.lease_id for event in postgres.events() if event.type in ENDED_STATUS]
    assert len(ends) == len(set(ends)) == 40
    assert postgres.verify() == []


def test_a_storage_that_cannot_revoke_says_so() -> None:
    """An adapter that was written for 0.11.0 has no such method."""

    class Plain(AsyncInMemoryStorage):
        revoke_leases = IAsyncStorage.revoke_leases

    class Blocking(InMemoryStorage):
        revoke_leases = IStorage.revoke_leases

    request = RevokeRequest((), WHY)
    with pytest.raises(InvalidInputError, match="Plain cannot revoke leases"):
        asyncio.run(Plain().revoke_leases(request))
    with pytest.raises(InvalidInputError, match="Blocking cannot revoke leases"):
        Blocking().revoke_leases(request)


def test_tasks_revoke_as_threads_do(any_storage: AnyStorage) -> None:
    """The same from coroutines, whose callbacks are awaited."""
    fill(any_storage, 2)
    told: list[RevokeEventPayload] = []

    async def tell(payload: RevokeEventPayload) -> None:
        await asyncio.sleep(0)
        told.append(payload)

    async def revoke() -> None:
        async with for_tasks(any_storage) as storage:
            manager = AsyncProxyManager(storage)
            manager.register_revoke_callback(tell)
            first, second = await manager.acquire_proxies("pool", 2)
            kept = await manager.acquire_proxy("pool", keep_alive=True)
            assert kept is None
            assert (await manager.revoke_lease(first.id, WHY)).revoke_reason == WHY
            kept = await manager.acquire_proxy("pool", keep_alive=True)
            assert kept is not None
            await manager.revoke_leases([second.id, kept.id], WHY)
            assert kept.is_lost
            with pytest.raises(LeaseEndedError, match="was revoked at"):
                await manager.renew_lease(first)

    asyncio.run(revoke())
    assert types_of(any_storage).count("LeaseRevoked") == len(told) == 3

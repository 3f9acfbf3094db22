"""A lease that is kept alive outlives its duration; one that cannot be kept is told as lost."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from pharox import (
    AsyncInMemoryStorage,
    AsyncProxyManager,
    DatabaseUnavailableError,
    ExpireEventPayload,
    InMemoryStorage,
    InvalidInputError,
    Lease,
    LeaseLostError,
    LeaseStatus,
    LostEventPayload,
    ProxyManager,
    new_lease_id,
    with_lease_async,
)
from pharox.manager.keeper import Keeper, keeper_of
from pharox.storage.interface import IStorage
from pharox.storage.requests import RevokeRequest
from tests.conftest import AnyStorage, fill, types_of
from tests.ledger.following import until


@contextmanager
def _silent_proxy(protocol: str) -> Iterator[tuple[int, threading.Event]]:
    """Run a proxy that takes requests and never answers; tell when it has one."""
    accepted, connections = threading.Event(), list[socket.socket]()

    def serve() -> None:
        with suppress(OSError):
            while True:
                connection = listener.accept()[0]
                connections.append(connection)
                if protocol == "socks5":
                    for answer in (b"\5\0", b"\5\0\0\1" + bytes(6)):
                        connection.recv(1000)
                        connection.sendall(answer)
                connection.recv(1000)
                accepted.set()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1], accepted
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for connection in connections:
                connection.close()


def renewals(storage: AnyStorage) -> int:
    """Return how many renewals the log has."""
    return types_of(storage).count("LeaseRenewed")


def kept_by(storage: Any) -> int:
    """Return how many leases a storage's keeper keeps."""
    return len(keeper_of(storage, Keeper))


def end(storage: AnyStorage, lease: Lease) -> None:
    """Release a lease as somebody else does."""
    storage.release_lease(lease.model_copy())


def test_a_block_keeps_its_lease(any_storage: AnyStorage) -> None:
    """A job three times as long as its lease keeps its proxy, and gives it back once."""
    fill(any_storage, 1)
    manager = ProxyManager(any_storage)
    with manager.with_lease("pool", "w", 1, keep_alive=True) as lease:
        assert lease is not None
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline:
            assert manager.acquire_proxy("pool", "greedy") is None
            assert not lease.is_lost
            time.sleep(0.02)
        assert kept_by(any_storage) == 1
    assert kept_by(any_storage) == 0
    assert not lease.is_lost
    assert lease.status is LeaseStatus.RELEASED
    types = types_of(any_storage)
    assert types.count("LeaseRenewed") >= 5
    assert (types.count("LeaseReleased"), types.count("LeaseExpired")) == (1, 0)
    assert any_storage.verify() == []


def test_leases_of_many_are_renewed_in_one_statement(
    any_storage: AnyStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The keeper is the storage's: leases of all its managers and threads go together."""
    fill(any_storage, 12)
    sizes: list[int] = []
    original = any_storage.renew_leases

    def counting(requests: Sequence[Any], **options: Any) -> Any:
        sizes.append(len(requests))
        return original(requests, **options)

    monkeypatch.setattr(any_storage, "renew_leases", counting)
    leases = [
        lease
        for n in range(4)
        for lease in ProxyManager(any_storage).acquire_proxies(
            "pool", 3, f"w{n}", 6, keep_alive=True
        )
    ]
    until(lambda: renewals(any_storage) >= 24, 30)
    assert max(sizes) > 3, "no statement renewed the leases of several managers"
    ProxyManager(any_storage).release_proxies(leases)
    assert kept_by(any_storage) == 0


def test_a_renewal_by_hand_counts_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kept lease that the keeper cannot renew is not lost if its holder renewed it."""
    storage = InMemoryStorage()
    fill(storage, 1)
    manager, original = ProxyManager(storage), storage.renew_leases
    lease = manager.acquire_proxy("pool", "w", 1, keep_alive=True)
    assert lease is not None

    def only_by_hand(requests: Sequence[Any], *, wait: bool = True) -> Any:
        if not wait:
            raise DatabaseUnavailableError("down")
        return original(requests, wait=wait)

    monkeypatch.setattr(storage, "renew_leases", only_by_hand)
    manager.renew_lease(lease, 60)
    time.sleep(1.3)
    assert not lease.is_lost
    assert kept_by(storage) == 1
    manager.renew_lease(lease, 0.2)
    until(lambda: lease.is_lost, 5)
    manager.release_proxy(lease)


def test_what_is_released_is_not_renewed(any_storage: AnyStorage) -> None:
    """Nor is what nobody refers to any more: it expires."""
    fill(any_storage, 2)
    manager = ProxyManager(any_storage)
    first = manager.acquire_proxy("pool", "w", 1, keep_alive=True)
    second = manager.acquire_proxy("pool", "w", 1, keep_alive=True)
    assert first is not None
    assert second is not None
    manager.release_proxy(first)
    lease_id = second.id
    del second
    gc.collect()
    time.sleep(1.2)
    assert renewals(any_storage) == 0
    assert manager.cleanup_expired_leases() == 1
    found = any_storage.get_lease(str(lease_id))
    assert found is not None
    assert found.status is LeaseStatus.EXPIRED
    until(lambda: kept_by(any_storage) == 0, 5)


@pytest.mark.parametrize("on_lost", ["cancel", "tell"])
def test_a_lost_lease_is_told(any_storage: AnyStorage, on_lost: Any) -> None:
    """Somebody else ended it: it is lost within a third, callbacks say so, the block raises."""
    fill(any_storage, 1)
    manager, told = ProxyManager(any_storage), list[LostEventPayload]()
    manager.register_lost_callback(told.append)
    ended: list[Lease] = []

    def hold() -> None:
        with manager.with_lease("pool", "w", 1, keep_alive=True, on_lost=on_lost) as lease:
            assert lease is not None
            ended.append(lease)
            end(any_storage, lease)
            until(lambda: lease.is_lost, 5)
            until(lambda: bool(told), 5)

    if on_lost == "cancel":
        with pytest.raises(LeaseLostError, match=r"was released at .* Somebody else may hold"):
            hold()
    else:
        hold()
    (lease,) = ended
    assert lease.is_lost
    assert [payload.lease.id for payload in told] == [lease.id]
    assert told[0].pool_name == "pool"
    assert "was released at" in told[0].reason
    assert kept_by(any_storage) == 0


def test_a_lease_is_kept_no_longer_than_its_pool_allows(any_storage: AnyStorage) -> None:
    """Then it is lost, and the reason is told."""
    pool, _ = fill(any_storage, 1)
    any_storage.save_pool(pool.model_copy(update={"max_held_seconds": 3}))
    manager, told = ProxyManager(any_storage), list[LostEventPayload]()
    manager.register_lost_callback(told.append)
    lease = manager.acquire_proxy("pool", "w", 2, keep_alive=True)
    assert lease is not None
    until(lambda: bool(told), 5)
    assert lease.is_lost
    assert "was held for as long as its pool allows" in told[0].reason
    assert (lease.expires_at - lease.acquired_at).total_seconds() == 3
    assert renewals(any_storage) <= 6
    until(lambda: ProxyManager(any_storage).cleanup_expired_leases() == 1, 5)
    again = manager.acquire_proxy("pool", "w", 2, keep_alive=True)
    assert again is not None


def test_leases_are_kept_without_more_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that may have no more threads renews, and tells of loss, by its timer alone."""
    storage, told = InMemoryStorage(), list[LostEventPayload]()
    fill(storage, 2)
    manager, original = ProxyManager(storage), threading.Thread.start

    def start(thread: threading.Thread) -> None:
        if thread.name in ("pharox-renewal", "pharox-lost", "pharox-expiry"):
            raise RuntimeError("can't start new thread")
        original(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    manager.register_lost_callback(told.append)
    lease = manager.acquire_proxy("pool", "w", 1, keep_alive=True)
    assert lease is not None
    until(lambda: renewals(storage) > 3, 10)
    assert not lease.is_lost
    end(storage, lease)
    until(lambda: bool(told), 10)


def test_at_its_bound_a_revocation_is_still_noticed(any_storage: AnyStorage) -> None:
    """A renewal that adds no time finds out, and the reason is the operator's."""
    pool, _ = fill(any_storage, 1)
    any_storage.save_pool(pool.model_copy(update={"max_held_seconds": 1}))
    manager, told = ProxyManager(any_storage), list[LostEventPayload]()
    manager.register_lost_callback(told.append)
    lease = manager.acquire_proxy("pool", "w", 9, keep_alive=True)
    assert lease is not None
    until(lambda: renewals(any_storage) == 1, 8)
    any_storage.revoke_leases(RevokeRequest((lease.id,), "it hung"))
    until(lambda: bool(told), 8)
    assert "it hung" in told[0].reason


def test_what_others_lost_is_taken_back_when_it_is_due(any_storage: AnyStorage) -> None:
    """In a pool where this process keeps a lease; its callbacks are told, as by a clean-up."""
    fill(any_storage, 3)
    manager, told = ProxyManager(any_storage), list[ExpireEventPayload]()
    manager.register_expire_callback(told.append)
    others = ProxyManager(any_storage)
    mine = manager.acquire_proxy("pool", "w", 60, keep_alive=True)
    leases = [others.acquire_proxy("pool", "dead", seconds) for seconds in (1, 2)]
    until(lambda: len(told) == 2, 30)
    assert {payload.lease.id for payload in told} == {lease.id for lease in leases if lease}
    assert mine is not None
    manager.release_proxy(mine)


def test_what_could_not_be_taken_back_is_looked_at_again_soon(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A lease that has run out and is locked is due: its next look is not one of ten seconds."""
    storage, looks = InMemoryStorage(), list[None]()
    fill(storage, 1)

    def seconds_to_next_expiry(pool_name: str | None = None) -> float:
        looks.append(None)
        return 0.0

    monkeypatch.setattr(storage, "seconds_to_next_expiry", seconds_to_next_expiry)
    lease = ProxyManager(storage).acquire_proxy("pool", "w", 60, keep_alive=True)
    until(lambda: len(looks) >= 4, 8)
    assert lease is not None


def test_the_bodys_error_comes_first(any_storage: AnyStorage) -> None:
    """A block whose body raised is not told by an error that its lease was lost."""
    fill(any_storage, 1)
    manager = ProxyManager(any_storage)

    def hold() -> None:
        with manager.with_lease("pool", "w", 1, keep_alive=True) as lease:
            assert lease is not None
            end(any_storage, lease)
            until(lambda: lease.is_lost, 5)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        hold()


def test_an_outage_is_survived(
    any_storage: AnyStorage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Renewals that fail are tried again; the lease is lost only when its time has run out."""
    fill(any_storage, 1)
    manager, original = ProxyManager(any_storage), any_storage.renew_leases
    failing = threading.Event()

    def renew(requests: Sequence[Any], **options: Any) -> Any:
        if failing.is_set():
            raise DatabaseUnavailableError("down")
        return original(requests, **options)

    monkeypatch.setattr(any_storage, "renew_leases", renew)

    def hold() -> None:
        with manager.with_lease("pool", "w", 2, keep_alive=True) as lease:
            assert lease is not None
            failing.set()
            time.sleep(1.5)
            assert not lease.is_lost
            failing.clear()
            until(lambda: renewals(any_storage) >= 1, 5)
            failing.set()
            until(lambda: lease.is_lost, 5)
            found = any_storage.get_lease(str(lease.id))
            assert found is not None
            assert found.status is LeaseStatus.ACTIVE, "nobody has taken it back"

    with pytest.raises(LeaseLostError, match="could not be renewed in time"):
        hold()
    assert any("pharox.renewal.failed" in record.message for record in caplog.records)
    until(lambda: any("pharox.lease.lost" in record.message for record in caplog.records), 5)


def test_a_renewal_that_hangs_hides_no_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """The timer does not wait for the database."""
    storage = InMemoryStorage()
    fill(storage, 1)
    hangs = threading.Event()

    def renew(*_: Any, **__: Any) -> Any:
        hangs.wait(20)
        raise DatabaseUnavailableError("down")

    monkeypatch.setattr(storage, "renew_leases", renew)
    manager, told = ProxyManager(storage), list[LostEventPayload]()
    manager.register_lost_callback(told.append)
    lease = manager.acquire_proxy("pool", "w", 1, keep_alive=True)
    assert lease is not None
    until(lambda: bool(told), 5)
    assert lease.is_lost
    hangs.set()


def test_a_block_that_outlives_its_lease_warns(caplog: pytest.LogCaptureFixture) -> None:
    """Without keep_alive nothing is renewed and nothing raised, as in 0.11.0."""
    storage = InMemoryStorage()
    fill(storage, 1)
    with ProxyManager(storage).with_lease("pool", "w", 1) as lease:
        assert lease is not None
        time.sleep(1.05)
        assert lease.is_lost
    assert any("pharox.lease.outlived" in record.message for record in caplog.records)
    assert renewals(storage) == 0


def test_asked_again_under_its_id_it_is_renewed_at_once(any_storage: AnyStorage) -> None:
    """Its first grant may be old: what is kept counts from now."""
    fill(any_storage, 1)
    manager, mine = ProxyManager(any_storage), new_lease_id()
    first = manager.acquire_proxy("pool", "w", 100, lease_id=mine)
    again = manager.acquire_proxy("pool", "w", 100, lease_id=mine, keep_alive=True)
    assert first is not None
    assert again is not None
    assert renewals(any_storage) == 1
    assert again.expires_at > first.expires_at
    manager.release_proxy(again)


def test_wrong_options_lease_nothing(any_storage: AnyStorage) -> None:
    """A typing error is told before anything is leased."""
    fill(any_storage, 1)
    manager = ProxyManager(any_storage)
    with (
        pytest.raises(InvalidInputError, match='"cancel" or "tell"'),
        manager.with_lease("pool", on_lost="cancle"),  # type: ignore[arg-type]
    ):
        pass
    with pytest.raises(TypeError, match="keepalive"):
        manager.acquire_proxy("pool", keepalive=True)  # type: ignore[call-arg]

    class Older(InMemoryStorage):
        renew_leases = IStorage.renew_leases

    older = Older()
    fill(older, 1)
    with pytest.raises(InvalidInputError, match="Older cannot keep leases alive"):
        ProxyManager(older).acquire_proxy("pool", keep_alive=True)
    assert "LeaseAcquired" not in types_of(any_storage)
    assert "LeaseAcquired" not in types_of(older)


def test_a_failing_lost_callback_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """It stops neither the other callbacks nor the keeper."""
    storage, told = InMemoryStorage(), list[Any]()
    fill(storage, 2)
    manager = ProxyManager(storage)

    def fail(_: object) -> None:
        raise ValueError("mine")

    manager.register_lost_callback(fail)
    manager.register_lost_callback(told.append)
    for _ in range(2):
        lease = manager.acquire_proxy("pool", "w", 1, keep_alive=True)
        assert lease is not None
        end(storage, lease)
        before = len(told)
        until(lambda before=before: len(told) > before, 5)  # type: ignore[misc]
    assert any("mine" in record.message for record in caplog.records)


def _children(results: Any) -> None:
    """Fork while a lease is kept, and see what the child keeps."""
    storage = InMemoryStorage()
    fill(storage, 2)
    manager = ProxyManager(storage)
    lease = manager.acquire_proxy("pool", "w", 1, keep_alive=True)
    assert lease is not None
    context = multiprocessing.get_context("fork")
    child = context.Process(target=_in_child, args=(storage, manager, results))
    child.start()
    child.join(30)
    results.append(("parent", kept_by(storage)))
    time.sleep(1.2)
    results.append(("still active", manager.cleanup_expired_leases()))


def _in_child(storage: InMemoryStorage, manager: ProxyManager, results: Any) -> None:
    results.append(("child", kept_by(storage)))
    own = manager.acquire_proxy("pool", "child", 1, keep_alive=True)
    assert own is not None
    until(lambda: renewals(storage) > 0, 10)
    renewed = {event.lease_id for event in storage.events() if event.type == "LeaseRenewed"}
    results.append(("child renews its own", renewed == {own.id}))


def test_a_forked_child_renews_only_its_own() -> None:
    """It drops what its parent keeps, and its own keeper works."""
    with multiprocessing.get_context("spawn").Manager() as shared:
        results = shared.list()
        process = multiprocessing.get_context("spawn").Process(target=_children, args=(results,))
        process.start()
        process.join(60)
        assert process.exitcode == 0
        assert list(results) == [
            ("child", 0),
            ("child renews its own", True),
            ("parent", 1),
            ("still active", 0),
        ]


def test_a_block_of_the_helpers_ends_as_well(any_storage: AnyStorage) -> None:
    """A blocking manager's lease, held by a task: the keeper's thread has the loop cancel it."""
    fill(any_storage, 1)
    manager = ProxyManager(any_storage)

    async def hold() -> None:
        async with with_lease_async(manager, "pool", "w", 1, keep_alive=True) as lease:
            assert lease is not None
            end(any_storage, lease)
            await asyncio.sleep(5)

    begun = time.monotonic()
    with pytest.raises(LeaseLostError, match="was released at"):
        asyncio.run(hold())
    assert time.monotonic() - begun < 4


# Clients


@pytest.mark.parametrize("protocol", ["http", "socks5"])
@pytest.mark.parametrize("is_async", [False, True])
def test_a_clients_requests_end_with_its_lease(is_async: bool, protocol: str) -> None:
    """What is in flight ends, and nothing more is sent: somebody else may use the proxy."""
    storage = AsyncInMemoryStorage()
    with _silent_proxy(protocol) as (port, accepted):
        _, (proxy,) = fill(storage.memory, 1)
        there = {"host": "127.0.0.1", "port": port, "protocol": protocol}
        storage.memory.save_proxy(proxy.model_copy(update=there))

        def lose(lease: Lease) -> None:
            until(accepted.is_set, 10)
            end(storage.memory, lease)

        def block() -> None:
            with ProxyManager(storage.memory).client("pool", "w", 1) as client:
                threading.Thread(target=lose, args=(client.lease,)).start()
                with pytest.raises(LeaseLostError):
                    client.get("http://192.0.2.1/", timeout=20)
                with pytest.raises(LeaseLostError):
                    client.get("http://192.0.2.1/")

        async def main() -> None:
            async with AsyncProxyManager(storage).client("pool", "w", 1) as client:
                threading.Thread(target=lose, args=(client.lease,)).start()
                with pytest.raises(LeaseLostError):
                    await client.get("http://192.0.2.1/", timeout=20)
                with pytest.raises(LeaseLostError):
                    await client.get("http://192.0.2.1/")

        begun = time.monotonic()
        asyncio.run(main()) if is_async else block()
        assert time.monotonic() - begun < 15

"""A pool moves from one ledger to another, and is there what it was."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest
from pydantic import SecretStr

from pharox import (
    ConflictError,
    CoolDown,
    HealthCheckResult,
    InvalidInputError,
    MissReason,
    MoveStage,
    MoveTimeoutError,
    Outcome,
    Pace,
    PoolLimits,
    PoolMovedError,
    PoolNotFoundError,
    Proxy,
    ProxyCredentials,
    ProxyFilters,
    ProxyManager,
    ProxyPool,
    ProxySource,
    ProxyStatus,
    SecretKeyError,
    SelectorStrategy,
    Sticky,
    attributed,
)
from pharox.fleet import MoveOptions, cancel_move, move_pool
from pharox.history.pool_names import find_pool
from pharox.history.why import why
from pharox.storage.moving import (
    BeginMove,
    CancelMove,
    DepartPool,
    ReadCargo,
    ReceivePool,
    RefusePool,
)
from pharox.storage.postgres import PostgresStorage
from pharox.storage.postgres import moving as postgres_moving
from pharox.storage.reports import CoolDownRequest, ReportRequest
from pharox.storage.requests import AcquireRequest
from tests import servers
from tests.conftest import AnyStorage, Clusters, proxies_of, run_sql

from .moving import Here, ends, state_of

PAIRS = ["memory memory", "postgres postgres", "memory postgres", "postgres memory"]
POOL = "shop"
ANY = ProxyFilters(predicate=lambda proxy: True)


@pytest.fixture(params=PAIRS[:2])
def two(request: pytest.FixtureRequest, clusters: Clusters) -> Iterator[tuple[Here, Here]]:
    """Two empty ledgers, in memory or on the first server."""
    with ends(request.param, clusters, servers.names()[0]) as both:
        yield both


def lived_in(storage: AnyStorage) -> tuple[ProxyPool, list[Proxy]]:
    """Register a pool, and have it be used in every way that leaves something behind."""
    pool = ProxyPool(
        name=POOL,
        description="of the shop",
        lease_slow=True,
        rest_after_release_seconds=600,
        cool_down=CoolDown(after=1),
        selector=SelectorStrategy.WEIGHTED,
        limits=PoolLimits(paces=(Pace(starts=50, seconds=900, per="consumer"),)),
        cost_per_gb=Decimal("1.25"),
    )
    storage.save_pool(pool)
    proxies = proxies_of(pool, 6, max_concurrency=2)
    proxies[0].credentials = ProxyCredentials(user="u", password=SecretStr("secret-0"))
    proxies[0].rotate_url = SecretStr("https://provider.example/rotate?key=1")
    proxies[1].credentials = ProxyCredentials(user="user-{session}", password=SecretStr("p"))
    proxies[2].weight, proxies[2].cost_per_lease = 5, Decimal("0.5")
    storage.add_proxies_bulk(proxies)
    storage.save_source(
        ProxySource(
            name="provider",
            pool_name=POOL,
            url=SecretStr("https://provider.example/list?token=t"),
            headers={"X-Key": SecretStr("k")},
        )
    )
    for selector in (SelectorStrategy.WEIGHTED, SelectorStrategy.ROUND_ROBIN):
        for key in ("one", "two"):
            asked = AcquireRequest(
                POOL, "w", 100, selector=selector, target="x.example", sticky=Sticky(key)
            )
            lease = storage.acquire_lease(asked).lease
            assert lease is not None
            said = Outcome.blocked(target="x.example", status=429, bytes=10**8)
            storage.report_outcomes([ReportRequest(lease, said)])
            storage.return_lease(lease)
    storage.set_status(proxies[3].id, ProxyStatus.BANNED, for_seconds=5000)
    storage.set_status(proxies[4].id, ProxyStatus.BANNED, reason="bad")
    storage.set_cool_down(CoolDownRequest(proxies[5].id, "y.example", 800))
    for proxy in proxies[:3]:
        storage.apply_health_check_result(
            HealthCheckResult(
                proxy_id=proxy.id,
                status=ProxyStatus.SLOW,
                latency_ms=500,
                protocol=proxy.protocol,
                exit_ip="198.51.100.7",
            )
        )
    return pool, proxies


@pytest.mark.parametrize("two", PAIRS, indirect=True)
def test_a_pool_is_the_same_in_its_next_ledger(two: tuple[Here, Here]) -> None:
    """Field by field, with its secrets; and in the first one again, when it comes back."""
    a, b = two
    pool, proxies = lived_in(a.storage)
    before, secrets = state_of(a.storage, pool.id), secrets_of(a.storage, proxies)
    assert all(before[name] for name in before if name not in ("troubled_targets", "rotations"))

    for source, target in ((a, b), (b, a), (a, b)):
        moved = move_pool(POOL, source, target)
        assert (moved.stage, moved.ledger) == (MoveStage.MOVED, target.name)
        assert state_of(target.storage, pool.id) == before
        assert secrets_of(target.storage, proxies) == secrets
        assert not any(state_of(source.storage, pool.id).values())
        assert a.storage.verify() == b.storage.verify() == []
    assert [move.stage for move in a.storage.list_pool_moves(POOL)] == [
        MoveStage.MOVED,
        MoveStage.ARRIVED,
        MoveStage.MOVED,
    ]
    assert move_pool(POOL, a, b) == moved  # which does nothing


def test_what_is_told_of_a_pool_that_moved(two: tuple[Here, Here]) -> None:
    """When a ban that it brought along ends; and that it is there again when it came back."""
    a, b = two
    with attributed(actor="ann", correlation_id="job-1"):
        banned, forever = _with_bans(a.storage)
    by_whom = _bans_told(a.storage)
    assert {each[1:] for each in by_whom} == {("ann", "bad"), ("ann", None)}
    for source, target in ((a, b), (b, a)):
        move_pool(POOL, source, target)
        assert ProxyManager(target.storage).acquire_proxy(POOL, "w") is None
        found = why(target.storage, "w")
        assert found is not None
        ends_at = {each.id: each.until for each in found.unusable}
        row = target.storage.get_proxy(str(banned.id))
        assert row is not None
        assert ends_at == {banned.id: row.banned_until, forever.id: None}
        assert row.banned_until is not None
        assert _bans_told(target.storage) == by_whom
        assert find_pool(target.storage, POOL).pool.removed is None
        assert find_pool(source.storage, POOL).pool.removed is not None
    move_pool(POOL, a, b)
    b.storage.set_status(forever.id, ProxyStatus.ACTIVE)
    with attributed(actor="bob"):
        b.storage.set_status(forever.id, ProxyStatus.BANNED, reason="worse")
    move_pool(POOL, b, a)
    assert {each[1:] for each in _bans_told(a.storage)} == {("ann", None), ("bob", "worse")}
    for proxy in (banned, forever):  # What happens later counts for more.
        a.storage.set_status(proxy.id, ProxyStatus.ACTIVE)
        a.storage.set_status(proxy.id, ProxyStatus.BANNED, for_seconds=50, reason="again")
    assert ProxyManager(a.storage).acquire_proxy(POOL, "w") is None
    found = why(a.storage, "w")
    assert found is not None
    assert [each.change and each.change.reason for each in found.unusable] == ["again"] * 2


def test_a_move_that_was_cancelled_keeps_what_the_pool_had_brought(two: tuple[Here, Here]) -> None:
    """Who banned its proxies elsewhere, whether it had left here or not."""
    a, b = two
    with attributed(actor="ann"):
        _with_bans(a.storage)
    by_whom = _bans_told(a.storage)
    move_pool(POOL, a, b)
    for leaves in (True, False):
        move = b.storage.carry_out_move(BeginMove(POOL, a.name, uuid4()))
        if leaves:
            assert b.storage.carry_out_move(DepartPool(move)).stage is MoveStage.DEPARTED
        b.storage.carry_out_move(CancelMove(move))
        assert _bans_told(b.storage) == by_whom
    move_pool(POOL, b, a)
    assert _bans_told(a.storage) == by_whom


def _bans_told(storage: AnyStorage) -> list[tuple[Any, ...]]:
    """Return when, by whom and why proxies were banned, as ``why`` tells it."""
    assert ProxyManager(storage).acquire_proxy(POOL, "w") is None
    found = why(storage, "w")
    assert found is not None
    changes = [each.change for each in found.unusable if each.change]
    told = [(each.recorded_at, each.actor, each.reason) for each in changes]
    return sorted(told, key=str)


def _with_bans(storage: AnyStorage) -> list[Proxy]:
    """Register a pool of two proxies, of which one is banned for a time and one for ever."""
    pool = ProxyPool(name=POOL)
    storage.save_pool(pool)
    proxies = proxies_of(pool, 2)
    storage.add_proxies_bulk(proxies)
    storage.set_status(proxies[0].id, ProxyStatus.BANNED, for_seconds=5000)
    storage.set_status(proxies[1].id, ProxyStatus.BANNED, reason="bad")
    return proxies


def secrets_of(storage: AnyStorage, proxies: list[Proxy]) -> list[Any]:
    """Return what a pool's proxies and its source keep secret."""
    kept = [storage.get_proxy(str(proxy.id)) for proxy in proxies]
    source = storage.get_source("provider")
    return [
        *((proxy.credentials, proxy.rotates) for proxy in kept if proxy is not None),
        source.url,
        source.headers,
    ]


def test_fencing_tokens_never_fall(two: tuple[Here, Here]) -> None:
    """However short the log of the next ledger is."""
    a, b = two
    pool = ProxyPool(name=POOL)
    a.storage.save_pool(pool)
    a.storage.add_proxies_bulk(proxies_of(pool, 1))
    tokens: list[int] = []
    for source, target in ((a, b), (b, a), (a, b), (b, a)):
        for _ in range(3):
            lease = source.storage.acquire_lease(AcquireRequest(POOL, "w", 60)).lease
            assert lease is not None
            tokens.append(lease.fencing_token or 0)
            source.storage.return_lease(lease)
        move_pool(POOL, source, target)
    assert tokens == sorted(set(tokens))


@pytest.mark.parametrize("two", PAIRS[1:2], indirect=True)
def test_positions_jump_without_partitions_in_between(two: tuple[Here, Here]) -> None:
    """And the log goes on: it is sealed, verified, and gets its next partition."""
    a, b = two
    assert isinstance(a.storage, PostgresStorage)
    assert isinstance(b.storage, PostgresStorage)
    run_sql(a.storage.engine, "SELECT pharox.advance_positions_v1(987654321)")
    pool = ProxyPool(name=POOL)
    a.storage.save_pool(pool)
    a.storage.add_proxies_bulk(proxies_of(pool, 1))
    b.storage.save_pool(ProxyPool(name="before"))
    moved = move_pool(POOL, a, b)
    bounds = "SELECT first_position, end_position FROM pharox.partitions ORDER BY first_position"
    for storage, first in ((a.storage, 987654322), (b.storage, moved.position)):
        (_, end), (after, _) = run_sql(storage.engine, bounds)
        assert (end, after) == (10_000_000, pytest.approx(first, abs=2))
    run_sql(
        b.storage.engine,
        "CREATE OR REPLACE FUNCTION pharox.partition_rows() RETURNS bigint LANGUAGE sql STABLE AS "
        "'SELECT 50::bigint'; "
        f"SELECT pharox.advance_positions_v1({after} + 9999998)",
    )
    for _ in range(3):
        lease = b.storage.acquire_lease(AcquireRequest(POOL, "w", 60)).lease
        assert lease is not None
        b.storage.return_lease(lease)
    assert len(run_sql(b.storage.engine, bounds)) == 3
    assert a.storage.verify() == b.storage.verify() == []


def test_both_logs_say_where_the_history_goes_on(two: tuple[Here, Here]) -> None:
    a, b = two
    lived_in(a.storage)
    move_pool(POOL, a, b)
    (left,) = (each for each in a.storage.events() if each.type == "PoolDeparted")
    (came,) = (each for each in b.storage.events() if each.type == "PoolArrived")
    assert (left.ledger, came.ledger, left.move_id) == ("b", "a", came.move_id)
    assert (left.last_seq, left.root) == (came.last_seq, came.root)
    assert [each.seq for each in a.storage.events()][left.last_seq - 1] == left.last_seq
    if isinstance(a.storage, PostgresStorage):
        assert left.root == root_at(a.storage, left.last_seq)
    assert came.position > left.position > came.last_position


def root_at(storage: PostgresStorage, seq: int) -> str:
    """Return the root of the tick that ended with an event."""
    with storage.session() as session:
        query = "SELECT encode(root, 'hex') FROM pharox.ticks WHERE last_seq = %s"
        (root,) = session.connection.execute(query, (seq,)).fetchone() or (None,)
    return str(root)


def test_who_asks_where_it_was_is_told_that_it_moved(two: tuple[Here, Here]) -> None:
    a, b = two
    pool = ProxyPool(name=POOL)
    a.storage.save_pool(pool)
    a.storage.add_proxies_bulk(proxies_of(pool, 2))
    held = a.storage.acquire_lease(AcquireRequest(POOL, "w", 60)).lease
    assert held is not None
    with pytest.raises(MoveTimeoutError, match="1 leases") as late:
        move_pool(POOL, a, b, MoveOptions(timeout_seconds=0))
    assert late.value.move.stage is MoveStage.BEGAN

    for asked in (
        AcquireRequest(POOL, "w", 60),
        AcquireRequest(POOL, "w", 60, target="x.example"),
        AcquireRequest(POOL, "w", 60, sticky=Sticky("k")),
        AcquireRequest(POOL, "w", 60, wait_seconds=60),
        AcquireRequest(POOL, "w", 60, filters=ANY),
    ):
        assert a.storage.acquire_lease(asked).miss_reason is MissReason.POOL_MOVING
    assert b.storage.acquire_lease(asked).miss_reason is MissReason.UNKNOWN_POOL
    with pytest.raises(PoolMovedError) as there:
        a.storage.save_pool(ProxyPool(name=POOL))
    assert there.value.ledger == "b"

    a.storage.return_lease(held)
    move_pool(POOL, a, b)
    assert a.storage.acquire_lease(asked).miss_reason is MissReason.POOL_MOVED
    assert b.storage.acquire_lease(AcquireRequest(POOL, "w", 60)).lease is not None
    assert POOL not in {pool.name for pool in a.storage.list_pools()}
    with pytest.raises(PoolMovedError):
        move_pool(POOL, a, Here("c", b.storage))
    assert a.storage.verify() == b.storage.verify() == []


def test_a_pool_that_moves_is_passed_over_in_a_chain(two: tuple[Here, Here]) -> None:
    """Wherever it is in it, while it moves and after, as one that has nothing free."""
    a, b = two
    for name in (POOL, "other"):
        pool = ProxyPool(name=name)
        a.storage.save_pool(pool)
        a.storage.add_proxies_bulk(proxies_of(pool, 1))
    held = a.storage.acquire_lease(AcquireRequest(POOL, "w", 60)).lease
    assert held is not None
    with pytest.raises(MoveTimeoutError):
        move_pool(POOL, a, b, MoveOptions(timeout_seconds=0))
    _check_passed_over(a.storage, MissReason.POOL_MOVING)
    a.storage.return_lease(held)
    move_pool(POOL, a, b)
    _check_passed_over(a.storage, MissReason.POOL_MOVED)
    assert a.storage.verify() == []


def _check_passed_over(storage: AnyStorage, reason: MissReason) -> None:
    first, last = (POOL, ("other",)), ("other", (POOL,))
    every: tuple[dict[str, Any], ...] = (
        {},
        {"target": "x.example"},
        {"sticky": Sticky("k")},
        {"filters": ANY},
    )
    for options in every:
        for pool, fallback in (first, last):
            asked = AcquireRequest(pool, "w", 60, fallback=fallback, **options)
            found = storage.acquire_lease(asked)
            assert found.lease is not None
            if "sticky" not in options:
                assert [each.reason for each in found.missed_in] == [reason] * (pool == POOL)
            missed = storage.acquire_lease(asked)
            reasons = {each.pool_name: each.reason for each in missed.missed_in}
            assert reasons == {POOL: reason, "other": MissReason.AT_CAPACITY}
            # A key that is bound in a pool is for that pool first.
            assert missed.missed_in[0].pool_name == ("other" if "sticky" in options else pool)
            assert missed.miss_reason is missed.missed_in[0].reason
            waits = replace(asked, wait_seconds=0.05)
            assert storage.acquire_lease(waits).missed_in == missed.missed_in
            storage.return_lease(found.lease)
        unknown = AcquireRequest("other", "w", 60, fallback=(POOL, "nowhere"), **options)
        assert storage.acquire_lease(unknown).miss_reason is MissReason.UNKNOWN_POOL


@pytest.mark.parametrize("two", PAIRS[1:2], indirect=True)
def test_a_large_pool_is_carried_in_pages(
    two: tuple[Here, Here], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one that is too large stays, until its move is cancelled."""
    a, b = two
    pool, _ = lived_in(a.storage)
    before = state_of(a.storage, pool.id)
    monkeypatch.setattr(postgres_moving, "MOST_BYTES", 4000)
    with pytest.raises(ConflictError, match="too large"):
        move_pool(POOL, a, b)
    assert cancel_move(POOL, a, b).stage is MoveStage.CANCELLED
    assert state_of(a.storage, pool.id) == before
    monkeypatch.undo()
    monkeypatch.setattr(postgres_moving, "PAGE_BYTES", 1000)
    move_pool(POOL, a, b)
    assert state_of(b.storage, pool.id) == before
    assert a.storage.verify() == b.storage.verify() == []


def test_who_waits_is_told_at_once(two: tuple[Here, Here]) -> None:
    a, b = two
    pool = ProxyPool(name=POOL)
    a.storage.save_pool(pool)
    a.storage.add_proxies_bulk(proxies_of(pool, 1))
    held = a.storage.acquire_lease(AcquireRequest(POOL, "w", 60)).lease
    assert held is not None
    found: list[Any] = []

    def wait() -> None:
        asked = AcquireRequest(POOL, "waits", 60, wait_seconds=100)
        found.append(a.storage.acquire_lease(asked))

    waiting = threading.Thread(target=wait)
    waiting.start()
    while not a.storage.queue_stats(POOL):
        waiting.join(0.01)
    with pytest.raises(MoveTimeoutError):
        move_pool(POOL, a, b, MoveOptions(timeout_seconds=0))
    waiting.join(50)
    assert found[0].miss_reason is MissReason.POOL_MOVING
    assert found[0].waited_ms is not None


def test_leases_are_revoked_if_asked(two: tuple[Here, Here]) -> None:
    a, b = two
    pool = ProxyPool(name=POOL)
    a.storage.save_pool(pool)
    a.storage.add_proxies_bulk(proxies_of(pool, 2))
    lease = a.storage.acquire_lease(AcquireRequest(POOL, "w", 600)).lease
    assert lease is not None
    move_pool(POOL, a, b, MoveOptions(revoke_after_seconds=0))
    recorded = a.storage.get_lease(str(lease.id))
    assert recorded is not None
    assert recorded.revoke_reason == "pool moves to b"


STEPS = ["began", "drained", "departed", "arrived"]


class _Killed(BaseException):
    """What ends a mover as a kill would: no step follows."""


@pytest.mark.parametrize("goes_on", [True, False])
def test_a_move_that_was_cut_off_goes_on_or_back(two: tuple[Here, Here], goes_on: bool) -> None:
    """After each step, and any number of times."""
    a, b = two
    pool, proxies = lived_in(a.storage)
    before, secrets = state_of(a.storage, pool.id), secrets_of(a.storage, proxies)
    for step in STEPS:

        def die(done: str, at: str = step) -> None:
            if done == at:
                raise _Killed

        with pytest.raises(_Killed):
            move_pool(POOL, a, b, MoveOptions(on_step=die))
        if goes_on or step == "arrived":
            continue
        cancelled = cancel_move(POOL, a, b)
        assert cancelled.stage is MoveStage.CANCELLED
        assert cancel_move(POOL, a, b) == cancelled
        assert state_of(a.storage, pool.id) == before
        assert secrets_of(a.storage, proxies) == secrets
        assert a.storage.verify() == b.storage.verify() == []
    if not goes_on:
        with pytest.raises(ConflictError, match="too late"):
            cancel_move(POOL, a, b)
    assert move_pool(POOL, a, b).stage is MoveStage.MOVED
    assert state_of(b.storage, pool.id) == before
    assert secrets_of(b.storage, proxies) == secrets
    assert a.storage.verify() == b.storage.verify() == []


def test_a_refused_pool_is_never_taken_later(two: tuple[Here, Here]) -> None:
    """A mover that was held up while somebody cancelled comes to nothing."""
    a, b = two
    pool, _ = lived_in(a.storage)
    (inspected, move_id) = pool.id, pool.id
    move = a.storage.carry_out_move(BeginMove(POOL, "b", move_id))
    move = a.storage.carry_out_move(DepartPool(move))
    cargo = a.storage.carry_out_move(ReadCargo(move))
    assert cancel_move(POOL, a, b).stage is MoveStage.CANCELLED
    late = b.storage.carry_out_move(ReceivePool(cargo, "a"))
    assert late.stage is MoveStage.CANCELLED
    assert not any(state_of(b.storage, inspected).values())
    again = move_pool(POOL, a, b)
    assert again.move_id != move.move_id
    assert b.storage.carry_out_move(RefusePool(again, "a")).stage is MoveStage.ARRIVED


def test_two_movers_do_each_step_once(two: tuple[Here, Here]) -> None:
    a, b = two
    pool, _ = lived_in(a.storage)
    before = state_of(a.storage, pool.id)
    moved: list[Any] = []
    movers = [
        threading.Thread(target=lambda: moved.append(move_pool(POOL, a, b))) for _ in range(4)
    ]
    for mover in movers:
        mover.start()
    for mover in movers:
        mover.join(60)
    assert [each.stage for each in moved] == [MoveStage.MOVED] * 4
    assert len({each.move_id for each in moved}) == 1
    assert state_of(b.storage, pool.id) == before
    assert a.storage.verify() == b.storage.verify() == []


@pytest.mark.parametrize("two", PAIRS[1:2], indirect=True)
def test_a_pool_whose_name_was_taken_cannot_stay(two: tuple[Here, Here]) -> None:
    a, b = two
    pool, other = ProxyPool(name=POOL), ProxyPool(name="other")
    a.storage.save_pool(pool)
    a.storage.save_pool(other)
    a.storage.carry_out_move(BeginMove(POOL, "b", pool.id))
    assert isinstance(a.storage, PostgresStorage)
    run_sql(a.storage.engine, f"UPDATE pharox.pools SET name = '{POOL}' WHERE id = '{other.id}'")
    with pytest.raises(ConflictError, match="cannot stay"):
        cancel_move(POOL, a, b)


def test_what_cannot_be_moved_stays(two: tuple[Here, Here]) -> None:
    """And nothing is begun."""
    a, b = two
    with pytest.raises(PoolNotFoundError):
        move_pool(POOL, a, b)
    with pytest.raises(InvalidInputError):
        MoveOptions(timeout_seconds=-1)
    pool, _ = lived_in(a.storage)
    with pytest.raises(ConflictError):
        move_pool(POOL, a, Here("a", b.storage))
    if isinstance(b.storage, PostgresStorage):
        keyless = PostgresStorage(b.storage.engine, secret_keys=[])
        with pytest.raises(SecretKeyError):
            move_pool(POOL, a, Here("b", keyless))
    b.storage.save_pool(ProxyPool(name=POOL))
    with pytest.raises(ConflictError, match="already"):
        move_pool(POOL, a, b)
    assert a.storage.list_pool_moves() == []
    assert a.storage.get_pool(str(pool.id)).name == POOL

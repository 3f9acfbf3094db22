"""A call of the fleet's manager reaches the ledger that it is for, in memory and on two servers."""

from __future__ import annotations

from uuid import uuid4

import pytest

from pharox import (
    ConflictError,
    Fleet,
    InvalidInputError,
    Lease,
    LeaseEndedError,
    LeaseStatus,
    MissReason,
    MoveTimeoutError,
    Outcome,
    ProxyManager,
    ProxyPool,
    ProxyUnavailableError,
    Sticky,
    new_lease_id,
)
from pharox.testing import checked
from tests.conftest import types_of
from tests.fleet.conftest import another, stocked


def leased(fleet: Fleet, pool: str, **options: object) -> Lease:
    """Lease a proxy of a pool that has one."""
    lease = fleet.manager.acquire_proxy(pool, "worker", **options)  # type: ignore[arg-type]
    assert lease is not None
    return lease


def test_each_pool_is_in_its_ledger(fleet: Fleet) -> None:
    """It is registered there once, the home ledger says where, and no other ledger has it."""
    stocked(fleet, "a", "near")
    stocked(fleet, "b", "far")
    assert [(place.pool_name, place.ledger) for place in fleet.places()] == [
        ("a", "near"),
        ("b", "far"),
    ]
    assert [pool.name for pool in fleet.ledgers["far"].storage.list_pools()] == ["b"]
    with pytest.raises(ConflictError) as refused:
        fleet.manager.register_pool("b", "near")
    assert refused.value.data["ledger"] == "far"
    assert [pool.name for pool in fleet.home.storage.list_pools()] == ["a"]
    again = fleet.manager.register_pool(ProxyPool(name="b", description="changed"))
    assert fleet.ledgers["far"].storage.list_pools() == [again]


def test_leases_of_two_ledgers_are_used_as_one(fleet: Fleet) -> None:
    """They are granted, renewed, reported and given back together, each in its own log."""
    stocked(fleet, "a", "near")
    stocked(fleet, "b", "far")
    leases = [leased(fleet, "b"), leased(fleet, "a")]
    before = [lease.expires_at for lease in leases]
    assert fleet.manager.renew_leases(leases, 900) == leases
    assert all(lease.expires_at > old for lease, old in zip(leases, before, strict=True))
    reports = [(lease, Outcome.blocked("shop.example")) for lease in leases]
    assert len(fleet.manager.report_outcomes(reports)) == 2
    found = fleet.leases(consumer_name="worker")
    assert {(row.ledger, row.value.pool_name) for row in found} == {("far", "b"), ("near", "a")}
    fleet.manager.release_proxies(leases)
    assert [lease.status for lease in leases] == [LeaseStatus.RELEASED] * 2
    for ledger in fleet.ledgers.values():
        log = types_of(ledger.storage)
        assert log[-4:] == ["LeaseAcquired", "LeaseRenewed", "OutcomeReported", "LeaseReleased"]
    assert not fleet.leases().rows


def test_a_lease_of_another_process_is_found(fleet: Fleet) -> None:
    """All ledgers are asked for it once; what nobody has ended is refused as one ledger does."""
    stocked(fleet, "b", "far", 2)
    manager = ProxyManager(fleet.ledgers["far"].storage)
    theirs = manager.acquire_proxy("b", "worker")
    other = manager.acquire_proxy("b", "worker")
    assert theirs is not None
    assert other is not None
    fleet.manager.release_proxy(theirs)
    assert theirs.status is LeaseStatus.RELEASED
    assert fleet.manager.revoke_lease(other.id, "too long").id == other.id
    with pytest.raises(LeaseEndedError):
        fleet.manager.renew_lease(theirs.model_copy(update={"id": uuid4(), "pool_id": uuid4()}))


def test_a_wrong_guess_is_corrected_by_the_answer(fleet: Fleet) -> None:
    """A pool that is somewhere else than this process knows is looked up, and asked for again."""
    stocked(fleet, "b", "far")
    fleet.directory.note("b", "near")
    assert leased(fleet, "b").pool_name == "b"
    assert fleet.directory.known("b") == "far"


def test_what_was_seen_before_a_move_is_found_after_it(fleet: Fleet) -> None:
    """A process that knows where a pool was gives back, renews and reports what another leased."""
    (proxy,) = stocked(fleet, "shop", "near")
    old = another(fleet)
    old.manager.release_proxy(leased(old, "shop"))
    fleet.move("shop", "far")
    lease = leased(fleet, "shop")
    assert old.manager.renew_lease(lease, 900) is lease
    assert len(old.manager.report_outcomes([(lease, Outcome.ok("shop.example"))])) == 1
    (outcome,) = old.manager.record_health_checks([checked(proxy)])
    assert (outcome.known, outcome.pool_name) == (True, "shop")
    old.manager.release_proxy(lease)
    assert lease.status is LeaseStatus.RELEASED
    assert not fleet.leases().rows
    old.manager._ledger_of_proxy.note(proxy.id, "near")
    with pytest.raises(InvalidInputError, match="no rotate_url"):  # which its own ledger says
        old.manager.rotate_proxy(proxy.id)


def test_what_nobody_knows_is_not_taken_to_be_at_home(fleet: Fleet) -> None:
    """A lease and a proxy that come to be after they were asked for are found."""
    (proxy,) = stocked(fleet, "b", "far")
    late, lease_id = another(fleet), new_lease_id()
    lease = leased(fleet, "b", lease_id=lease_id)
    unknown = lease.model_copy(update={"id": uuid4(), "proxy_id": uuid4(), "pool_id": uuid4()})
    unheard = checked(proxy.model_copy(update={"id": unknown.proxy_id}))
    assert not late.manager.record_health_checks([unheard])[0].known
    with pytest.raises(LeaseEndedError):
        late.manager.renew_lease(unknown)
    fleet.ledgers["far"].storage.add_proxies_bulk(
        [proxy.model_copy(update={"id": unknown.proxy_id, "host": "203.0.113.77"})]
    )
    assert late.manager.record_health_checks([unheard])[0].known
    again = leased(fleet, "b", lease_id=unknown.id)
    assert late.manager.renew_lease(again) is again


def test_a_pool_that_was_never_placed_is_at_home(fleet: Fleet) -> None:
    """A ledger that was alone becomes a fleet without a word; a pool of nobody is a miss there."""
    pool = ProxyPool(name="old")
    fleet.home.storage.save_pool(pool)
    fleet.home.storage.add_proxies_bulk(
        [each.model_copy(update={"pool_id": pool.id}) for each in stocked(fleet, "b", "far")]
    )
    assert leased(fleet, "old").pool_id == pool.id
    for place in (fleet.place, fleet.manager.register_pool):
        with pytest.raises(ConflictError) as refused:
            place("old", "far")
        assert refused.value.data["ledger"] == "near"
    assert not fleet.ledgers["far"].storage.get_pool_by_name("old")
    with pytest.raises(MoveTimeoutError):  # while it drains, it has another name
        fleet.move("old", "far", timeout_seconds=0)
    with pytest.raises(ConflictError):
        fleet.manager.register_pool("old", "far")
    fleet.cancel_move("old")
    assert fleet.manager.register_pool("old", "near").id == pool.id
    assert fleet.manager.acquire_proxy("nobody", "worker") is None
    assert types_of(fleet.home.storage)[-1] == "AcquireMissed"
    with pytest.raises(ProxyUnavailableError) as missed:
        fleet.manager.pool("nobody").lease().__enter__()
    assert missed.value.reason is MissReason.UNKNOWN_POOL


def test_a_request_falls_back_across_ledgers(fleet: Fleet) -> None:
    """In order, each ledger in a transaction of its own; the error names all pools."""
    stocked(fleet, "a", "near")
    stocked(fleet, "b", "far")
    stocked(fleet, "c", "far")
    chain = {"fallback": ["b", "c"]}
    assert [leased(fleet, "a", **chain).pool_name for _ in range(3)] == ["a", "b", "c"]
    assert fleet.manager.acquire_proxy("a", "worker", fallback=["b", "c"]) is None
    with pytest.raises(ProxyUnavailableError) as missed:
        fleet.manager.pool("a", fallback=["b", "c"], wait_seconds=0.05).lease().__enter__()
    message = str(missed.value)
    assert all(f"'{name}'" in message for name in "abc")
    assert missed.value.retry_after_seconds is not None
    assert fleet.manager.acquire_proxies("a", 2, "worker", fallback=["b"]) == []


def test_one_id_gets_one_lease_in_all_ledgers(fleet: Fleet) -> None:
    """A request that is repeated finds its lease in the ledger that granted it."""
    stocked(fleet, "a", "near")
    stocked(fleet, "b", "far")
    holder = leased(fleet, "a")
    lease_id = new_lease_id()
    first = leased(fleet, "a", lease_id=lease_id, fallback=["b"])
    fleet.manager.release_proxy(holder)
    again = leased(fleet, "a", lease_id=lease_id, fallback=["b"])
    assert (first.id, first.pool_name) == (again.id, again.pool_name) == (lease_id, "b")


def test_callbacks_sessions_and_keeping_work_in_every_ledger(fleet: Fleet) -> None:
    """What a manager does besides leasing is done by the manager of the lease's ledger."""
    stocked(fleet, "a", "near")
    stocked(fleet, "b", "far")
    seen: list[tuple[str, str | None]] = []
    fleet.manager.register_acquire_callback(lambda each: seen.append(("got", each.pool_name)))
    fleet.manager.register_release_callback(lambda each: seen.append(("gave", each.pool_name)))
    for pool in ("a", "b"):
        with fleet.manager.with_lease(pool, "worker", keep_alive=True, sticky=Sticky(f"of {pool}")):
            pass
    assert seen == [("got", "a"), ("gave", "a"), ("got", "b"), ("gave", "b")]
    assert {session.key for session in fleet.manager.sessions()} == {"of a", "of b"}
    assert fleet.manager.forget_session("b", "of b")
    assert not fleet.manager.forget_session("b", "of b")
    fleet.manager.inherit_session("a", "of a", "new")
    assert [session.key for session in fleet.manager.sessions("a")] == ["new"]


def test_what_is_said_of_a_proxy_reaches_its_ledger(fleet: Fleet) -> None:
    """Also if this process has leased none of it; the answers are in the order of the checks."""
    near, far = stocked(fleet, "a", "near"), stocked(fleet, "b", "far")
    results = [checked(proxy) for proxy in (*far, *near)]
    outcomes = fleet.manager.record_health_checks(results)
    assert [outcome.pool_name for outcome in outcomes] == ["b", "a"]


def test_the_log_of_a_fleet_is_merged_by_time(fleet: Fleet) -> None:
    """Each ledger's events in their order, with its name; so is what a consumer did."""
    stocked(fleet, "a", "near")
    stocked(fleet, "b", "far")
    for pool in "abab":
        fleet.manager.release_proxy(leased(fleet, pool))
    events, missing = fleet.log()
    rows = list(events)
    assert not missing
    for name, ledger in fleet.ledgers.items():
        own = [row.value.seq for row in rows if row.ledger == name]
        assert own == [event.seq for event in ledger.storage.events()]
    entries, missing = fleet.audit_consumer("worker")
    acquired = [e.ledger for e in entries if e.value.event.type == "LeaseAcquired"]
    assert sorted(acquired) == ["far", "far", "near", "near"]
    assert not missing
    assert [(row.value.pool_name, row.ledger) for row in fleet.stats()] == [
        ("a", "near"),
        ("b", "far"),
    ]


def test_a_subscription_is_of_one_pools_ledger(far_fleet: Fleet) -> None:
    """It needs the pool, and reads where that is."""
    stocked(far_fleet, "b", "far")
    with pytest.raises(InvalidInputError, match="of one ledger"):
        far_fleet.manager.subscribe("all", on_acquire=print)
    seen: list[str] = []
    bound = far_fleet.manager.subscribe(
        "of-b", pool="b", on_acquire=lambda each: seen.append(str(each.pool_name))
    )
    assert bound is not None

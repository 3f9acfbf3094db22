"""A batch means what its commands would mean one after another. In PostgreSQL, see the machine."""

from __future__ import annotations

from typing import Any

import pytest

from pharox import ConflictError, InMemoryStorage, LeaseEndedError, ProxyFilters, new_lease_id
from pharox.storage.requests import (
    AcquireRequest,
    AcquireSetRequest,
    Acquisition,
    Command,
    ReleaseRequest,
    ReleaseResult,
    SetAcquisition,
)
from tests.conftest import clock_of, fill, types_of


@pytest.fixture
def storage() -> InMemoryStorage:
    return InMemoryStorage()


def lease_of(outcome: object) -> Any:
    assert isinstance(outcome, Acquisition)
    assert outcome.lease is not None
    return outcome.lease


def expired_of(storage: InMemoryStorage, *commands: Command) -> list[list[str | None]]:
    """Return whose expired leases each answer tells of."""
    outcomes = storage.run_batch(commands)
    told = [
        outcome.data.get("expired", ())  # type: ignore[attr-defined]
        if isinstance(outcome, Exception)
        else outcome.expired
        for outcome in outcomes
    ]
    return [[ended.lease.consumer_name for ended in each] for each in told]


def test_events_come_in_the_order_of_the_batchs_meaning(storage: InMemoryStorage) -> None:
    """Consumers, what is due, releases in their order, acquisitions in theirs; at one moment."""
    fill(storage, 4)
    clock = clock_of(storage)
    due = lease_of(storage.acquire_lease(AcquireRequest("pool", "due", 5)))
    one = lease_of(storage.acquire_lease(AcquireRequest("pool", "one")))
    two = lease_of(storage.acquire_lease(AcquireRequest("pool", "two")))
    clock.advance(6)
    before = len(types_of(storage))
    outcomes = storage.run_batch(
        [
            AcquireRequest("pool", "new"),
            ReleaseRequest(two),
            AcquireSetRequest("pool", "new", 9),
            ReleaseRequest(one),
            AcquireRequest("pool", "newer"),
        ]
    )
    events = list(storage.events(after=before))
    assert [event.type for event in events] == [
        "ConsumerRegistered",
        "ConsumerRegistered",
        "LeaseExpired",
        "LeaseReleased",
        "LeaseReleased",
        "LeaseAcquired",
        "AcquireMissed",
        "LeaseAcquired",
    ]
    assert [event.lease_id for event in events[2:5]] == [due.id, two.id, one.id]
    assert [event.lease_id for event in events[5:]] == [
        lease_of(outcomes[0]).id,
        None,
        lease_of(outcomes[4]).id,
    ]
    assert {event.recorded_at for event in events} == {clock.now}
    assert storage.verify() == []


def test_statistics_are_those_after_each_commands_own_event(storage: InMemoryStorage) -> None:
    """The k-th answer counts what came before it in the batch, and nothing that came after."""
    fill(storage, 3)
    held = lease_of(storage.acquire_lease(AcquireRequest("pool", "w")))
    outcomes = storage.run_batch(
        [
            AcquireRequest("pool", "w", with_stats=True),
            AcquireSetRequest("pool", "w", 2, with_stats=True),
            ReleaseRequest(held, with_stats=True),
        ]
    )
    single, pair, released = outcomes
    assert isinstance(single, Acquisition)
    assert isinstance(pair, SetAcquisition)
    assert isinstance(released, ReleaseResult)
    assert released.ending is not None
    stats = [released.ending.stats, single.stats, *(each.stats for each in pair.acquisitions)]
    assert [each and each.total_leases for each in stats] == [0, 1, 2, 3]


def test_an_expired_lease_is_told_of_once(storage: InMemoryStorage) -> None:
    """Of each pool the first command that has an answer tells of what ran out in it."""
    fill(storage, 2)
    fill(storage, 2, name="other")
    clock = clock_of(storage)
    for pool in ("pool", "other", "other"):
        storage.acquire_lease(AcquireRequest(pool, f"in {pool}", 5))
    clock.advance(6)
    told = expired_of(
        storage,
        AcquireRequest("nowhere", "w"),
        AcquireRequest("other", "w"),
        AcquireRequest("pool", "w"),
        AcquireRequest("other", "w"),
    )
    assert told == [[], ["in other", "in other"], ["in pool"], []]


def test_a_release_tells_of_an_expired_lease_before_an_acquisition(
    storage: InMemoryStorage,
) -> None:
    """What is carried out first tells of it, and that is a release, wherever it stands."""
    fill(storage, 3)
    clock = clock_of(storage)
    storage.acquire_lease(AcquireRequest("pool", "forgotten", 5))
    held = lease_of(storage.acquire_lease(AcquireRequest("pool", "w", 60)))
    clock.advance(6)
    told = expired_of(storage, AcquireRequest("pool", "w"), ReleaseRequest(held))
    assert told == [[], ["forgotten"]]


def test_an_error_does_not_swallow_an_expired_lease(storage: InMemoryStorage) -> None:
    """Leases that ran out in the pool of a failed command are reported by the next command."""
    fill(storage, 1)
    clock = clock_of(storage)
    storage.acquire_lease(AcquireRequest("pool", "late", 5))
    clock.advance(6)

    def breaks(_: object) -> bool:
        raise ZeroDivisionError

    broken = AcquireRequest("pool", "w", filters=ProxyFilters(predicate=breaks))
    outcomes = storage.run_batch([broken, AcquireRequest("pool", "w")])
    assert isinstance(outcomes[0], ZeroDivisionError)
    assert isinstance(outcomes[1], Acquisition)
    assert len(outcomes[1].expired) == 1


def test_an_error_of_ours_tells_of_an_expired_lease(storage: InMemoryStorage) -> None:
    """If no other command is of its pool, the error carries what ran out there."""
    fill(storage, 1)
    fill(storage, 1, name="other")
    clock, mine = clock_of(storage), new_lease_id()
    storage.acquire_lease(AcquireRequest("other", "late", 5))
    clock.advance(6)
    told = expired_of(
        storage,
        AcquireRequest("pool", "w", lease_id=mine),
        AcquireRequest("other", "w", lease_id=mine),
    )
    assert told == [[], ["late"]]


def test_a_late_release_takes_back_what_is_due(storage: InMemoryStorage) -> None:
    """It ends nothing itself, and tells of every lease that ran out in its pool."""
    fill(storage, 3)
    clock = clock_of(storage)
    late = lease_of(storage.acquire_lease(AcquireRequest("pool", "late", 5)))
    storage.acquire_lease(AcquireRequest("pool", "forgotten", 5))
    clock.advance(6)
    (told,) = expired_of(storage, ReleaseRequest(late))
    assert sorted(map(str, told)) == ["forgotten", "late"]
    assert late.status == "expired"


def test_a_release_in_time_takes_nothing_back(storage: InMemoryStorage) -> None:
    """What ran out in the pool waits for who looks for a proxy there."""
    fill(storage, 2)
    clock = clock_of(storage)
    storage.acquire_lease(AcquireRequest("pool", "forgotten", 5))
    held = lease_of(storage.acquire_lease(AcquireRequest("pool", "w", 60)))
    clock.advance(6)
    assert expired_of(storage, ReleaseRequest(held)) == [[]]
    assert types_of(storage).count("LeaseExpired") == 0


def test_a_lease_is_given_back_once(storage: InMemoryStorage) -> None:
    """Of two releases of one lease in a batch the second finds that it has ended."""
    fill(storage, 1, max_concurrency=2)
    held = lease_of(storage.acquire_lease(AcquireRequest("pool", "w")))
    storage.acquire_lease(AcquireRequest("pool", "w"))
    returned = storage.return_leases([held, held])
    assert [each.ending is not None for each in returned] == [True, False]
    assert types_of(storage).count("LeaseReleased") == 1


def test_an_id_is_leased_once_in_a_batch(storage: InMemoryStorage) -> None:
    """The second command under an id finds the lease of the first; a third cannot have it."""
    fill(storage, 3)
    mine = new_lease_id()
    first, second, third = storage.run_batch(
        [
            AcquireRequest("pool", "w", lease_id=mine),
            AcquireRequest("pool", "w", lease_id=mine),
            AcquireRequest("pool", "x", lease_id=mine),
        ]
    )
    assert lease_of(first) == lease_of(second)
    assert isinstance(first, Acquisition)
    assert isinstance(second, Acquisition)
    assert (first.is_new, second.is_new) == (True, False)
    assert isinstance(third, ConflictError)
    assert types_of(storage).count("LeaseAcquired") == 1


def test_an_id_that_is_used_up_is_one_commands_error(storage: InMemoryStorage) -> None:
    """A lease that the batch gives back has ended for who asks for it in the same batch."""
    fill(storage, 2)
    mine = new_lease_id()
    held = lease_of(storage.acquire_lease(AcquireRequest("pool", "w", lease_id=mine)))
    asked, released, other = storage.run_batch(
        [
            AcquireRequest("pool", "w", lease_id=mine),
            ReleaseRequest(held),
            AcquireRequest("pool", "w"),
        ]
    )
    assert isinstance(asked, LeaseEndedError)
    assert isinstance(released, ReleaseResult)
    assert released.ending is not None
    assert lease_of(other).id != mine

"""A pool as it was, its changes, and what differs between two moments."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import projections
from pharox import (
    InMemoryStorage,
    InvalidInputError,
    Outcome,
    PoolNotFoundError,
    ProxyManager,
    ProxyPool,
    ProxyStatus,
)
from pharox.events import Event
from pharox.history import replay
from pharox.history.replay import PoolMoment, ProxyMoment, Replay, pool_at
from pharox.history.sealed_log import last_seq, seq_of
from pharox.storage.postgres import PostgresStorage
from pharox.storage.reports import CoolDownRequest, ReportRequest
from tests.conftest import AnyStorage, clock_of, fill

from .lives import COMMANDS, Command, Life

PICK = st.integers(0, 10**6)


def folded(events: list[Event], pool_id: UUID) -> dict[str, dict[Any, Any]]:
    """Fold events with nothing but the projections, and keep what is of one pool."""
    states: dict[str, dict[Any, Any]] = {p.name: {} for p in projections.ALL}
    for part in (part for event in events for part in event.parts()):
        for projection in projections.ALL:
            projection.apply(states[projection.name], part)
    owner = {"pools": "id", "consumers": "name"}
    return {
        name: {
            key: row
            for key, row in rows.items()
            if getattr(row, owner.get(name, "pool_id")) == pool_id
        }
        for name, rows in states.items()
    }


def check_against_fold(moment: PoolMoment, events: list[Event]) -> None:
    """Fail unless a moment says of its pool what the fold of the first events says."""
    assert [event.seq for event in events] == list(range(1, moment.seq + 1))
    assert moment.recorded_at == events[-1].recorded_at
    states = folded(events, moment.pool.id)
    assert [moment.pool] == list(states["pools"].values())
    assert [moment.counts] == list(states["pool_stats"].values())
    assert list(moment.cursors) == list(states["selector_cursors"].values())
    assert {p.proxy.id: p.proxy for p in moment.proxies} == {
        row.id: row for row in states["proxies"].values()
    }
    assert {p.proxy.id: p.availability for p in moment.proxies} == {
        row.proxy_id: row for row in states["available_proxies"].values()
    }
    assert {p.proxy.id: p.health for p in moment.proxies if p.health} == {
        row.proxy_id: row for row in states["proxy_health"].values()
    }
    assert moment.leases == {
        row.id: row for row in states["leases"].values() if row.status == "active"
    }
    for proxy in moment.proxies:
        assert len(proxy.holders) == proxy.availability.current_leases
        assert all(held.proxy_id == proxy.proxy.id for held in proxy.holders)


def there(storage: AnyStorage, pool: UUID, seq: int) -> PoolMoment | None:
    try:
        return replay.pool_at(storage, pool, seq)
    except PoolNotFoundError:
        return None


def check_replay(storage: AnyStorage, first: int, picks: tuple[int, int]) -> None:
    """Fail unless every pool, at two seqs from ``first`` on, is what the log folds to."""
    events = list(storage.events())
    a, b = sorted(first + pick % (len(events) - first + 1) for pick in picks)
    for pool_id in {event.pool_id for event in events[first:] if event.type == "PoolRegistered"}:
        was, becomes = there(storage, pool_id, a), there(storage, pool_id, b)
        for moment in filter(None, (was, becomes)):
            check_against_fold(moment, events[: moment.seq])
            assert not replay.difference(moment, moment)
        played = Replay.at(storage, pool_id, a)
        steps = list(played.forward(b))
        expected = [event for event in events[a:b] if event.pool_id == pool_id]
        assert [step.event for step in steps] == expected
        for step in steps[:: max(1, len(steps) // 5)]:
            counts = folded(events[: step.event.seq], pool_id)["pool_stats"]
            assert [step.counts] == (list(counts.values()) or [None])
        if becomes is not None:
            assert played.moment() == becomes
        if was is not None and becomes is not None:
            check_difference(was, becomes)


def known(proxy: ProxyMoment) -> dict[str, Any]:
    """Return the attributes of a proxy that are not None."""
    return {name: value for name, value in proxy.attributes().items() if value is not None}


def attributes_of(moment: PoolMoment) -> dict[UUID, dict[str, Any]]:
    return {proxy.proxy.id: known(proxy) for proxy in moment.proxies}


def check_difference(a: PoolMoment, b: PoolMoment) -> None:
    """Fail unless what ``a`` becomes with the difference put in is ``b``."""
    found = replay.difference(a, b)
    assert bool(found) == (replace(a, seq=b.seq, recorded_at=b.recorded_at) != b)
    facts, held = attributes_of(a), a.leases
    for gone in found.removed:
        del facts[gone.proxy.id]
    for new in found.added:
        facts[new.proxy.id] = known(new)
    for change in found.changed:
        for name, (was, becomes) in change.attributes.items():
            assert facts[change.id].pop(name, None) == was != becomes
            if becomes is not None:
                facts[change.id][name] = becomes
    assert facts == attributes_of(b)
    for lease in found.ended:
        del held[lease.id]
    held.update({lease.id: lease for lease in (*found.begun, *found.renewed)})
    assert held == b.leases


@given(commands=COMMANDS, picks=st.tuples(PICK, PICK))
@settings(max_examples=60)
def test_any_moment_in_memory_is_the_fold_of_the_log(
    commands: list[Command], picks: tuple[int, int]
) -> None:
    """pool_at is the fold of the first events; changes lead from one moment to the other."""
    storage = InMemoryStorage()
    Life(storage, clock_of(storage)).lead(commands)
    check_replay(storage, 0, picks)


def test_any_moment_in_postgres_is_the_fold_of_the_log(postgres: PostgresStorage) -> None:
    """The same of a database, in which one history follows the other."""
    clock = clock_of(postgres)

    @given(commands=COMMANDS, picks=st.tuples(PICK, PICK))
    @settings(max_examples=12)
    def check(commands: list[Command], picks: tuple[int, int]) -> None:
        first = last_seq(postgres)
        Life(postgres, clock).lead(commands)
        check_replay(postgres, first, picks)

    check()


class Scene:
    """A pool of three, of which a worker holds two, one is banned and one lease has ended."""

    def __init__(self, storage: AnyStorage) -> None:
        self.storage = storage
        self.clock = clock_of(storage)
        self.pool, self.proxies = fill(storage, 3, name="a pool", country="AR")
        self.clock.advance(10)
        self.filled = last_seq(storage)
        manager = ProxyManager(storage)
        leases = [manager.acquire_proxy("a pool", consumer_name=f"w{n}") for n in range(3)]
        self.held = [lease for lease in leases if lease is not None]
        self.clock.advance(10)
        manager.release_proxy(self.held[0])
        self.clock.advance(10)
        banned = {"status": ProxyStatus.BANNED}
        storage.save_proxy(storage.get_proxy(str(self.held[0].proxy_id)).model_copy(update=banned))
        self.last = last_seq(storage)


@pytest.fixture
def scene(any_storage: AnyStorage) -> Scene:
    """The same in each storage."""
    return Scene(any_storage)


class TestPoolAt:
    def test_a_moment_is_a_seq_or_a_time(self, scene: Scene) -> None:
        """A time is the last event recorded until then, whether or not it is of the pool."""
        begin = datetime(2026, 1, 1, tzinfo=UTC)
        moment = replay.pool_at(scene.storage, "a pool", begin + timedelta(seconds=9))
        assert moment == replay.pool_at(scene.storage, scene.pool.id, scene.filled)
        assert (moment.seq, moment.recorded_at) == (scene.filled, begin)
        assert [len(proxy.holders) for proxy in moment.proxies] == [0, 0, 0]

    def test_it_tells_who_held_what(self, scene: Scene) -> None:
        """Each proxy has its holders, its status and its address as they were."""
        moment = replay.pool_at(scene.storage, str(scene.pool.id), scene.last)
        by_id = {proxy.proxy.id: proxy for proxy in moment.proxies}
        assert [by_id[lease.proxy_id].availability.status for lease in scene.held] == [
            "banned",
            "active",
            "active",
        ]
        assert [[held.id for held in by_id[lease.proxy_id].holders] for lease in scene.held] == [
            [],
            [scene.held[1].id],
            [scene.held[2].id],
        ]
        assert sorted(proxy.address for proxy in moment.proxies) == [
            f"http://10.0.0.{n}:8000" for n in range(3)
        ]
        assert (moment.counts.available_proxies, moment.counts.total_leases) == (0, 2)

    def test_a_quiet_time_is_as_the_last_event_left_it(self, any_storage: AnyStorage) -> None:
        """A pool in which nothing has happened since can still be asked for."""
        fill(any_storage, 1)
        moment = replay.pool_at(any_storage, "pool", datetime.now(UTC))
        assert moment.seq == last_seq(any_storage)

    def test_a_name_is_that_of_the_moment(self, any_storage: AnyStorage) -> None:
        """Of two pools that bore a name, it is the one that bore it then."""
        first, _ = fill(any_storage, 1, name="p")
        seq = last_seq(any_storage)
        any_storage.delete_pool(str(first.id))
        second, _ = fill(any_storage, 2, name="p")
        assert replay.pool_at(any_storage, "p", seq).pool.id == first.id
        assert replay.pool_at(any_storage, "p", last_seq(any_storage)).pool.id == second.id

    def test_a_pool_is_known_by_its_later_name_too(self, any_storage: AnyStorage) -> None:
        """A renamed pool is found by the name it has now, at a moment at which it had another."""
        pool, _ = fill(any_storage, 1, name="old")
        seq = last_seq(any_storage)
        any_storage.save_pool(ProxyPool(id=pool.id, name="new"))
        moment = replay.pool_at(any_storage, "new", seq)
        assert (moment.pool.id, moment.pool.name) == (pool.id, "old")

    def test_before_and_after_its_life_a_pool_is_not_there(self, any_storage: AnyStorage) -> None:
        """The error tells when it was registered, or removed."""
        any_storage.ensure_consumer("somebody")
        pool, _ = fill(any_storage, 1, name="p")
        any_storage.delete_pool(str(pool.id))
        last = last_seq(any_storage)
        with pytest.raises(PoolNotFoundError, match="registered later, by event 2"):
            replay.pool_at(any_storage, "p", 1)
        with pytest.raises(PoolNotFoundError, match=f"had been removed, by event {last}"):
            replay.pool_at(any_storage, "p", last)

    def test_what_never_was_is_told(self, any_storage: AnyStorage) -> None:
        """Neither a name nor an id that no pool ever had can be asked for."""
        fill(any_storage, 1)
        for unknown in ("other", uuid4()):
            with pytest.raises(PoolNotFoundError, match="never was"):
                replay.pool_at(any_storage, unknown, 1)

    @pytest.mark.parametrize(
        ("at", "told"),
        [
            (-1, "is not a seq of the log"),
            (5, "ends at 3"),
            (2**80, "ends at 3"),
            (datetime(2999, 1, 1, tzinfo=UTC), "in the future"),
            (datetime(2026, 1, 1), "needs a time zone"),
        ],
    )
    def test_the_log_reaches_only_so_far(
        self, any_storage: AnyStorage, at: int | datetime, told: str
    ) -> None:
        """A seq that the log does not have, and a time to come, are told to be that."""
        fill(any_storage, 2)
        with pytest.raises(InvalidInputError, match=told):
            replay.pool_at(any_storage, "pool", at)

    def test_a_storage_whose_clock_is_ahead_is_believed(self) -> None:
        """What was recorded is no future, whatever this machine's clock says."""
        ahead = datetime.now(UTC) + timedelta(days=3)
        storage = InMemoryStorage(clock=lambda: ahead)
        fill(storage, 1)
        assert seq_of(storage, ahead) == 2


def test_a_moment_has_the_targets_that_proxies_rested_for(any_storage: AnyStorage) -> None:
    """Those whose rest had begun and was not over, of each proxy, also after they are over."""
    clock = clock_of(any_storage)
    _, proxies = fill(any_storage, 2)
    (lease,) = ProxyManager(any_storage).acquire_proxies("pool", 1)
    for target in ("shop.example", "news.example"):
        refused = Outcome.blocked(target, retry_after=60)
        any_storage.report_outcomes([ReportRequest(lease, refused)])
        clock.advance(10)
    (other,) = (proxy for proxy in proxies if proxy.id != lease.proxy_id)
    any_storage.set_cool_down(CoolDownRequest(other.id, "shop.example", 5))
    clock.advance(45)
    any_storage.ensure_consumer("somebody")

    def resting(back: int) -> dict[UUID, list[str]]:
        moment = pool_at(any_storage, "pool", last_seq(any_storage) - back)
        return {each.proxy.id: [pair.target for pair in each.cooling] for each in moment.proxies}

    both = ["news.example", "shop.example"]
    assert resting(1) == {lease.proxy_id: both, other.id: ["shop.example"]}
    assert resting(0) == {lease.proxy_id: ["news.example"], other.id: []}
    assert resting(4) == {lease.proxy_id: [], other.id: []}
    first, second = (pool_at(any_storage, "pool", last_seq(any_storage) - back) for back in (3, 2))
    (change,) = replay.difference(first, second).changed
    assert change.id == lease.proxy_id
    assert change.attributes["news.example outcome"] == (None, "blocked")


def test_a_renewed_lease_is_a_difference(any_storage: AnyStorage) -> None:
    clock_of(any_storage)
    fill(any_storage, 1)
    manager = ProxyManager(any_storage)
    lease = manager.acquire_proxy("pool", "w", 60)
    assert lease is not None
    renewed = manager.renew_lease(lease, 600)
    was, becomes = (pool_at(any_storage, "pool", last_seq(any_storage) - back) for back in (1, 0))
    (found,) = replay.difference(was, becomes).renewed
    assert (found.id, found.expires_at) == (lease.id, renewed.expires_at)


class TestChanges:
    def test_statistics_come_with_each_change(self, scene: Scene) -> None:
        """A step has the event, what it is about, and the pool in numbers after it."""
        steps = list(replay.changes(scene.storage, "a pool", scene.filled, scene.last))
        assert [step.event.type for step in steps] == [
            *["LeaseAcquired"] * 3,
            "LeaseReleased",
            "ProxyChanged",
        ]
        available = [step.counts and step.counts.available_proxies for step in steps]
        assert available == [2, 1, 0, 1, 0]
        assert {step.pool for step in steps} == {"a pool"}
        assert steps[0].address == steps[3].address == steps[4].address

    def test_a_pool_can_be_watched_from_before_its_birth_to_its_end(
        self, any_storage: AnyStorage
    ) -> None:
        """Playing can begin at event 0, and ends without statistics where the pool ends."""
        pool, _ = fill(any_storage, 1, name="p")
        any_storage.delete_pool(str(pool.id))
        steps = list(replay.changes(any_storage, "p", 0, last_seq(any_storage)))
        assert [step.event for step in steps] == list(any_storage.events())
        assert steps[-1].counts is None
        assert steps[-2].address == steps[1].address == "http://10.0.0.0:8000"

    def test_the_end_cannot_lie_before_the_beginning(self, scene: Scene) -> None:
        """Time runs one way; nothing is read before that is said."""
        with pytest.raises(InvalidInputError, match="before the beginning"):
            replay.changes(scene.storage, "a pool", scene.last, scene.filled)

    def test_what_a_step_says_stays_so(self, scene: Scene) -> None:
        """Steps and moments are of their time, and do not move on with the replay."""
        played = Replay.at(scene.storage, "a pool", scene.filled)
        before = played.moment()
        list(played.forward(scene.last))
        assert before == replay.pool_at(scene.storage, "a pool", scene.filled)


class TestDifference:
    def test_it_names_what_changed(self, scene: Scene) -> None:
        """Proxies, leases and statistics that differ are in it, with both values."""
        storage = scene.storage
        a = replay.pool_at(storage, "a pool", scene.last - 2)
        storage.delete_proxy(str(scene.held[1].proxy_id))
        _, (new,) = fill(InMemoryStorage(), 1, status=ProxyStatus.SLOW)
        storage.save_proxy(new.model_copy(update={"pool_id": scene.pool.id, "host": "10.9.9.9"}))
        found = replay.difference(a, replay.pool_at(storage, "a pool", last_seq(storage)))
        assert [proxy.address for proxy in found.added] == ["http://10.9.9.9:8000"]
        assert [proxy.proxy.id for proxy in found.removed] == [scene.held[1].proxy_id]
        (changed,) = found.changed
        assert changed.id == scene.held[0].proxy_id
        assert changed.attributes["status"] == ("active", "banned")
        assert changed.attributes["current_leases"] == (1, 0)
        assert {lease.id for lease in found.ended} == {lease.id for lease in scene.held[:2]}
        assert found.begun == ()
        assert found.statistics["total_leases"] == (3, 1)
        assert found.pool == {}

"""The stories of leases, proxies, consumers and pools."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pharox import (
    ConsumerNotFoundError,
    HealthCheckResult,
    InMemoryStorage,
    InvalidInputError,
    Lease,
    PharoxError,
    PoolNotFoundError,
    ProxyFilters,
    ProxyManager,
    ProxyNotFoundError,
    ProxyPool,
    ProxyProtocol,
    ProxyStatus,
    SelectorStrategy,
)
from pharox.errors import ArchivedError
from pharox.events import Event
from pharox.history import audit
from pharox.history.audit import Entry, Story, Totals
from pharox.history.past_counts import PastCounts
from pharox.history.replay import Step, changes
from pharox.history.sealed_log import last_seq
from pharox.ledger.archive import archive
from pharox.ledger.archive.reading import WithArchive
from pharox.log import Extract
from pharox.models.ids import NIL
from pharox.storage.postgres import PostgresStorage
from tests.conftest import AnyStorage, clock_of, fill

from .full_parts import full_parts
from .lives import COMMANDS, Command, Life

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


class Scene:
    """One proxy of two is leased, checked while it is, and given back; somebody gets nothing."""

    def __init__(self, storage: AnyStorage) -> None:
        self.storage = storage
        self.clock = clock_of(storage)
        self.pool, (self.proxy, self.other) = fill(storage, 2, name="a pool", country="AR")
        self.manager = ProxyManager(storage)
        self.lease = self._acquire("crawler", filters=ProxyFilters(country="AR"))
        self.clock.advance(10)
        self.check(ProxyStatus.SLOW)
        self._acquire("other", seconds=20)
        assert self.manager.acquire_proxy("a pool", consumer_name="crawler") is None
        assert self.manager.acquire_proxy("typo", consumer_name="crawler") is None
        self.clock.advance(20)
        self.manager.release_proxy(self.lease)
        self.check(ProxyStatus.ACTIVE)
        self.clock.advance(20)
        storage.cleanup_expired_leases()

    def _acquire(
        self, consumer: str, seconds: int = 100, filters: ProxyFilters | None = None
    ) -> Lease:
        lease = self.manager.acquire_proxy(
            "a pool",
            consumer_name=consumer,
            duration_seconds=seconds,
            filters=filters,
            selector=SelectorStrategy.ROUND_ROBIN,
        )
        assert lease is not None
        return lease

    def check(self, status: ProxyStatus) -> None:
        self.storage.apply_health_check_result(
            HealthCheckResult(
                proxy_id=self.lease.proxy_id,
                status=status,
                latency_ms=2500,
                protocol=ProxyProtocol.HTTP,
                checked_at=self.clock.now,
            )
        )


@pytest.fixture
def scene(any_storage: AnyStorage) -> Scene:
    """The same in each storage."""
    return Scene(any_storage)


def types(story: Story) -> list[str]:
    return [entry.event.type for entry in story.entries]


def totals(story: Story) -> Totals:
    sums = Totals()
    for entry in story.entries:
        sums.add(entry)
    return sums


class TestOfLease:
    def test_it_has_the_health_of_the_proxy_while_it_was_held(self, scene: Scene) -> None:
        """Acquisition, what became of the proxy meanwhile, end; not what came before or after."""
        entries = list(audit.of_lease(scene.storage, scene.lease.id).entries)
        assert [entry.event.type for entry in entries] == [
            "LeaseAcquired",
            "HealthChecked",
            "LeaseReleased",
        ]
        assert [entry.held_s for entry in entries] == [None, None, 30]
        assert {entry.pool for entry in entries} == {"a pool"}
        (address,) = {entry.address for entry in entries}
        assert address in {f"http://10.0.0.{n}:8000" for n in range(2)}

    def test_a_lease_that_is_held_has_no_end(self, scene: Scene) -> None:
        """The story of the proxy goes on to now."""
        held = scene.manager.acquire_proxy("a pool", consumer_name="late")
        assert held is not None
        scene.storage.save_proxy(
            scene.storage.get_proxy(str(held.proxy_id)).model_copy(
                update={"status": ProxyStatus.BANNED}
            )
        )
        assert types(audit.of_lease(scene.storage, str(held.id))) == [
            "LeaseAcquired",
            "ProxyChanged",
        ]

    def test_a_pruned_lease_still_has_its_story(self, scene: Scene) -> None:
        """The log keeps what the read model forgot."""
        scene.clock.advance(3600)
        scene.storage.prune_leases(scene.clock.now - timedelta(seconds=60))
        assert scene.storage.get_lease(str(scene.lease.id)) is None
        assert types(audit.of_lease(scene.storage, scene.lease.id))[-1] == "LeaseReleased"

    @pytest.mark.parametrize("unknown", ["x", "", str(NIL), uuid4()])
    def test_an_unknown_one_is_told(self, scene: Scene, unknown: str | UUID) -> None:
        """Neither a text that is no id nor the id of something else is a lease."""
        with pytest.raises(PharoxError, match="never was a lease"):
            audit.of_lease(scene.storage, unknown)
        with pytest.raises(PharoxError, match="never was a lease"):
            audit.of_lease(scene.storage, scene.proxy.id)


class TestOfProxy:
    def test_it_has_all_that_happened_to_it(self, scene: Scene) -> None:
        """Registration, holders, health, removal."""
        scene.storage.delete_proxy(str(scene.lease.proxy_id))
        story = audit.of_proxy(scene.storage, scene.lease.proxy_id)
        entries = list(story.entries)
        assert [entry.event.type for entry in entries] == [
            "ProxyRegistered",
            "LeaseAcquired",
            "HealthChecked",
            "LeaseReleased",
            "HealthChecked",
            "ProxyRemoved",
        ]
        assert {entry.pool for entry in entries} == {"a pool"}

    def test_it_notices_a_change_of_address(self, scene: Scene) -> None:
        """Each entry has the address that the proxy had then."""
        moved = scene.storage.get_proxy(str(scene.other.id)).model_copy(update={"host": "::1"})
        scene.storage.save_proxy(moved)
        entries = list(audit.of_proxy(scene.storage, str(scene.other.id)).entries)
        assert entries[0].address == "http://10.0.0.1:8000"
        assert entries[-1].address == "http://[::1]:8000"

    def test_it_is_found_by_each_address_that_it_had(self, scene: Scene) -> None:
        """The story is named by the last one, also when the proxy is gone."""
        moved = scene.storage.get_proxy(str(scene.other.id)).model_copy(update={"host": "::1"})
        scene.storage.save_proxy(moved)
        scene.storage.delete_proxy(str(moved.id))
        for address in ("10.0.0.1:8000", "[::1]:8000", "http://[::1]:8000"):
            story = audit.of_proxy(scene.storage, address)
            assert (story.id, story.name) == (moved.id, "http://[::1]:8000")
        for address in ("10.0.0.1:800", "0.0.1:8000", "socks5://10.0.0.1:8000", ":", "10.0.0.1"):
            with pytest.raises(ProxyNotFoundError, match="never was a proxy"):
                audit.of_proxy(scene.storage, address)

    def test_an_unknown_one_is_told(self, scene: Scene) -> None:
        """A lease's id is no proxy's."""
        with pytest.raises(ProxyNotFoundError, match="never was a proxy"):
            audit.of_proxy(scene.storage, scene.lease.id)


class TestOfConsumer:
    def test_a_miss_says_what_the_pool_had(self, scene: Scene) -> None:
        """Leases and misses are listed, and a miss has the pool's statistics."""
        entries = list(audit.of_consumer(scene.storage, "crawler").entries)
        assert [entry.event.type for entry in entries] == [
            "ConsumerRegistered",
            "LeaseAcquired",
            "AcquireMissed",
            "AcquireMissed",
            "LeaseReleased",
        ]
        full, typo = entries[2:4]
        assert full.pool_had is not None
        assert (full.pool_had.total_proxies, full.pool_had.active_proxies) == (2, 1)
        assert (full.pool_had.available_proxies, full.pool_had.total_leases) == (0, 2)
        assert (typo.pool, typo.pool_had) == ("typo", None)

    def test_it_adds_up(self, scene: Scene) -> None:
        """The totals count leases, misses by reason, and the seconds held."""
        sums = totals(audit.of_consumer(scene.storage, "crawler"))
        assert sums == Totals(1, 1, 0, 30, sums.missed)
        assert sums.missed == {"at_capacity": 1, "unknown_pool": 1}
        assert totals(audit.of_consumer(scene.storage, "other")) == Totals(1, 0, 1, 40)

    def test_its_id_will_do(self, scene: Scene) -> None:
        """A consumer is found by the id that its leases have."""
        story = audit.of_consumer(scene.storage, str(scene.lease.consumer_id))
        assert (story.name, story.id) == ("crawler", scene.lease.consumer_id)
        assert len(types(story)) == 5

    @pytest.mark.parametrize("unknown", ["nobody", uuid4()])
    def test_an_unknown_one_is_told(self, scene: Scene, unknown: str | UUID) -> None:
        """A name that never leased has no story."""
        with pytest.raises(ConsumerNotFoundError, match="never was a consumer"):
            audit.of_consumer(scene.storage, unknown)


class TestOfPool:
    def test_it_has_everything(self, scene: Scene) -> None:
        """All events of the pool, by name and by id, also when it is gone."""
        fill(scene.storage, 1, name="another")
        expected = [e for e in scene.storage.events() if e.pool_id == scene.pool.id]
        for name in ("a pool", scene.pool.id, str(scene.pool.id)):
            entries = list(audit.of_pool(scene.storage, name).entries)
            assert [entry.event for entry in entries] == expected
        scene.storage.delete_pool(str(scene.pool.id))
        assert types(audit.of_pool(scene.storage, "a pool"))[-1] == "PoolRemoved"

    def test_of_namesakes_it_is_the_last(self, scene: Scene) -> None:
        """The pools that bore the name before are named; an id picks one of them."""
        scene.storage.delete_pool(str(scene.pool.id))
        second, _ = fill(scene.storage, 1, name="a pool")
        story = audit.of_pool(scene.storage, "a pool")
        assert story.id == second.id
        assert [life.id for life in story.namesakes] == [scene.pool.id]
        assert story.namesakes[0].removed is not None
        assert audit.of_pool(scene.storage, scene.pool.id).namesakes == ()

    def test_a_name_can_come_back(self, any_storage: AnyStorage) -> None:
        """The last to bear a name may be the first that bore it."""
        pools = [ProxyPool(name=name) for name in ("p", "other")]
        for pool, name in zip((*pools, *pools, *pools), "pqrpst", strict=True):
            any_storage.save_pool(ProxyPool(id=pool.id, name=name))
        assert audit.of_pool(any_storage, "p").id == pools[1].id
        any_storage.save_pool(ProxyPool(id=pools[0].id, name="p"))
        story = audit.of_pool(any_storage, "p")
        assert story.id == pools[0].id
        assert [life.id for life in story.namesakes] == [pools[1].id]

    def test_a_window_of_time_has_what_was_recorded_in_it(self, scene: Scene) -> None:
        """From the first moment on, and before the second; statistics are right all the same."""
        since, until = BEGIN + timedelta(seconds=10), BEGIN + timedelta(seconds=30)
        story = audit.of_pool(scene.storage, "a pool", since=since, until=until)
        entries = list(story.entries)
        assert [entry.event.type for entry in entries] == [
            "HealthChecked",
            "LeaseAcquired",
            "AcquireMissed",
        ]
        assert entries[2].pool_had is not None
        assert entries[2].pool_had.total_leases == 2

    def test_a_window_may_be_told_in_seqs(self, scene: Scene) -> None:
        """The first is its first event, the second its last; either may be a moment."""
        whole = [entry.event for entry in audit.of_pool(scene.storage, "a pool").entries]
        begin, end = whole[2], whole[-2]
        story = audit.of_pool(scene.storage, "a pool", since=begin.seq, until=end.seq)
        assert [entry.event for entry in story.entries] == whole[2:-1]
        story = audit.of_pool(scene.storage, "a pool", since=begin.seq, until=BEGIN)
        assert list(story.entries) == []
        assert types(audit.of_pool(scene.storage, "a pool", since=0, until=0)) == []

    def test_a_window_that_makes_no_sense_is_refused(self, scene: Scene) -> None:
        """It ends after it begins, and its moments have time zones."""
        with pytest.raises(InvalidInputError, match="before the beginning"):
            audit.of_pool(scene.storage, "a pool", since=BEGIN, until=BEGIN - timedelta(1))
        with pytest.raises(InvalidInputError, match="time zone"):
            audit.of_pool(scene.storage, "a pool", since=BEGIN.replace(tzinfo=None))
        with pytest.raises(InvalidInputError, match="before the beginning"):
            audit.of_pool(scene.storage, "a pool", since=5, until=3)
        for ahead in (10**6, datetime(2999, 1, 1, tzinfo=UTC)):
            with pytest.raises(InvalidInputError, match=r"yet|in the future"):
                audit.of_pool(scene.storage, "a pool", since=ahead)

    def test_an_unknown_one_is_told(self, scene: Scene) -> None:
        """A pool that was only asked for never was."""
        with pytest.raises(PoolNotFoundError, match="never was a pool 'typo'"):
            audit.of_pool(scene.storage, "typo")

    def test_one_that_was_asked_for_is_told_with_who_asked(self, scene: Scene) -> None:
        """The first few names stand in the sentence, all in the error."""
        names = [f"worker-{number}" for number in range(7)]
        for name in names:
            scene.manager.acquire_proxy("nowhere", consumer_name=name)
        with pytest.raises(PoolNotFoundError, match=r"7 consumers .*worker-4, \.\.\.$") as error:
            audit.of_pool(scene.storage, "nowhere")
        assert list(error.value.data["asked_by"]) == names


def check_stories(storage: AnyStorage, first: int) -> None:
    """Fail unless every story has the events that it is about, and what the replay has of them."""
    events = list(storage.events())[first:]
    named = {event.pool_id for event in events if event.type == "PoolRegistered"}
    played: dict[int, Step] = {}
    for pool_id in named:
        steps = changes(storage, pool_id, first, first + len(events))
        played.update((step.event.seq, step) for step in steps)

    def check(story: Story, expected: list[Event]) -> None:
        entries = [entry for entry in story.entries if entry.event.seq > first]
        assert [entry.event for entry in entries] == expected
        for entry in entries:
            if entry.event.pool_id in named:
                agrees(entry)

    def address_before(event: Event) -> str | None:
        own = (e.seq for e in events if e.proxy_id == event.proxy_id and e.seq < event.seq)
        return played[max(own)].address

    def agrees(entry: Entry) -> None:
        step = played[entry.event.seq]
        if step.event.type == "ProxiesChecked" != entry.event.type:
            assert entry.address == address_before(entry.event)
        else:
            assert entry.address == step.address
        missed = entry.event.type == "AcquireMissed"
        assert entry.pool_had == (step.counts if missed else None)

    for pool_id in named:
        check(audit.of_pool(storage, pool_id), [e for e in events if e.pool_id == pool_id])
    for consumer in {event.consumer for event in events if event.consumer}:
        check(audit.of_consumer(storage, consumer), [e for e in events if e.consumer == consumer])
    for proxy_id in {event.proxy_id for event in events if event.proxy_id}:
        extract = Extract(proxy_id=proxy_id)
        own = [extract.part(event) for event in events if extract.holds(event)]
        check(audit.of_proxy(storage, proxy_id), own)
    for lease_id in {event.lease_id for event in events if event.type == "LeaseAcquired"}:
        own = [event for event in events if event.lease_id == lease_id]
        told = [entry.event for entry in audit.of_lease(storage, lease_id).entries]
        assert [event for event in told if event.lease_id == lease_id] == own
        assert [event.seq for event in told] == sorted(event.seq for event in told)
        assert {event.proxy_id for event in told} == {own[0].proxy_id}


@given(commands=COMMANDS)
@settings(max_examples=40)
def test_stories_in_memory_agree_with_the_replay(commands: list[Command]) -> None:
    """Each event is in the stories of all that it is about, with the facts of that moment."""
    storage = InMemoryStorage()
    Life(storage, clock_of(storage)).lead(commands)
    check_stories(storage, 0)


def test_stories_in_postgres_agree_with_the_replay(postgres: PostgresStorage) -> None:
    """The same of a database, in which one history follows the other."""
    clock = clock_of(postgres)

    @given(commands=COMMANDS)
    @settings(max_examples=6)
    def check(commands: list[Command]) -> None:
        first = last_seq(postgres)
        Life(postgres, clock).lead(commands)
        check_stories(postgres, first)

    check()


@given(
    commands=COMMANDS,
    places=st.sets(st.integers(0, 10**6), min_size=3),
    page=st.integers(1, 9),
    leap=st.integers(0, 9),
)
@settings(max_examples=80)
def test_past_counts_are_the_same_by_any_way(
    commands: list[Command], places: set[int], page: int, leap: int
) -> None:
    """Folding on, and asking for a state ahead, come to the same statistics and holders."""
    storage = InMemoryStorage()
    life = Life(storage, clock_of(storage))
    life.lead(commands)
    last = last_seq(storage)
    for pool in life.pools:
        every = PastCounts(storage, page=page, leap=leap)
        one = PastCounts(storage, pool.id, page=page, leap=leap)
        for seq in sorted(place % (last + 1) for place in places):
            state = storage.state_at(seq)
            expected = state["pool_stats"].get((pool.id,))
            leases = [row for row in state["leases"].values() if row.pool_id == pool.id]
            holders = Counter(lease.consumer_name for lease in leases)
            for counts in (every, one):
                assert counts.of(pool.id, seq) == expected
                assert Counter(dict(counts.holders_of(pool.id))) == holders


class TestArchived:
    """Audits of a log whose beginning was archived."""

    @pytest.fixture
    def archived(self, postgres: PostgresStorage, tmp_path: Path) -> datetime:
        """Archive a part, and lease once more; the moment is between the two."""
        clock = full_parts(postgres)
        assert archive(postgres, clock.now, tmp_path, drop=True).archived
        moment = clock.now
        manager = ProxyManager(postgres)
        for _ in range(4):
            manager.acquire_proxy("pool", consumer_name="worker-1")
        return moment

    def test_a_story_of_late_has_what_was_told_early(
        self, postgres: PostgresStorage, archived: datetime
    ) -> None:
        """Names, addresses and statistics are known though their events have left."""
        story = audit.of_consumer(postgres, "worker-1", since=archived)
        *leased, missed = story.entries
        addresses = {entry.address for entry in leased}
        assert addresses == {f"http://10.0.0.{n}:8000" for n in range(3)}
        assert missed.pool_had is not None
        assert (missed.pool_had.total_proxies, missed.pool_had.available_proxies) == (3, 0)
        by_id = audit.of_consumer(postgres, story.id, since=archived)
        assert by_id.name == "worker-1"
        in_pool = audit.of_pool(postgres, "pool", since=archived)
        assert types(in_pool)[-4:] == [*["LeaseAcquired"] * 3, "AcquireMissed"]
        proxy_id = leased[0].event.proxy_id
        lease_id = leased[0].event.lease_id
        assert proxy_id is not None
        assert lease_id is not None
        for proxy in (proxy_id, str(leased[0].address)):
            (entry,) = audit.of_proxy(postgres, proxy, since=archived).entries
            assert entry == leased[0]
        (entry,) = audit.of_lease(postgres, lease_id).entries
        assert entry == leased[0]

    def test_a_story_that_would_be_cut_is_refused(
        self, postgres: PostgresStorage, archived: datetime
    ) -> None:
        """Nobody takes the rest of a story for all of it."""
        for story in (audit.of_consumer(postgres, "worker-1"), audit.of_pool(postgres, "pool")):
            with pytest.raises(ArchivedError):
                types(story)

    def test_with_the_archive_it_is_whole(
        self, postgres: PostgresStorage, archived: datetime, tmp_path: Path
    ) -> None:
        """Read along, the archive has the rest."""
        story = audit.of_pool(WithArchive(postgres, tmp_path), "pool")
        assert types(story)[0] == "PoolRegistered"

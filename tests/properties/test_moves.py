"""A pool that moves is what it would be if it had stayed, whatever is done with it in between."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple
from uuid import UUID, uuid4

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pharox import (
    CoolDown,
    HealthCheckResult,
    InMemoryStorage,
    Lease,
    Outcome,
    OutcomeKind,
    Pace,
    PharoxError,
    PoolLimits,
    ProxyNotFoundError,
    ProxyPool,
    ProxyStatus,
    SelectorStrategy,
    Sticky,
)
from pharox.fleet import MoveOptions, cancel_move, move_pool
from pharox.storage.reports import CoolDownRequest, ReportRequest
from pharox.storage.requests import AcquireRequest
from tests import servers
from tests.conftest import AnyStorage, Clock, Clusters, clock_of, proxies_of
from tests.fleet.moving import Here, ends, state_of

POOLS: tuple[dict[str, Any], ...] = (
    # Jitter is drawn from the ids of leases, which each storage makes up for itself.
    {"lease_slow": True, "cool_down": CoolDown(jitter=0)},
    {
        "cool_down": CoolDown(jitter=0, after=1),
        "limits": PoolLimits(paces=(Pace(starts=4, seconds=300, per="consumer"),)),
        "cost_per_lease": "0.25",
        "cost_per_gb": "2",
        "rest_after_release_seconds": 30,
    },
)
ASKED = st.fixed_dictionaries(
    {
        "selector": st.sampled_from(SelectorStrategy),
        "target": st.sampled_from([None, "shop.example", "else.example"]),
        "sticky": st.sampled_from([None, None, Sticky("k"), Sticky("l", shared=True)]),
    }
)
OUTCOMES = st.builds(
    Outcome,
    kind=st.sampled_from([*OutcomeKind, OutcomeKind.BLOCKED]),
    target=st.sampled_from(["shop.example", "else.example"]),
    bytes=st.sampled_from([None, 10**9, 123_456]),
)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                *["acquire"] * 5,
                *["release", "release", "report", "report", "wait"],
                *["check", "ban", "status", "rest", "weigh", "remove", "drain"],
                *["move", "move", "cancel"],
            ]
        ),
        st.integers(0, 10**6),
        ASKED,
        OUTCOMES,
    ),
    min_size=6,
    max_size=30,
)


class _Stopped(Exception):
    """Ends a mover after a step."""


class World(NamedTuple):
    """Two ledgers, between which the pool moves; it stays in the first if they are one."""

    ledgers: tuple[Here, Here]
    clocks: tuple[Clock, ...]

    @property
    def moves(self) -> bool:
        """Whether the pool ever moves here."""
        return self.ledgers[0] is not self.ledgers[1]


class Lives:
    """Leads the same life in each world. Only where the pool is differs."""

    def __init__(self, worlds: list[World], settings: dict[str, Any]) -> None:
        self.worlds, self.place = worlds, 0
        self.pool = ProxyPool(name=f"pool {uuid4()}", **settings)
        self.proxies = proxies_of(self.pool, 4, max_concurrency=2)
        self.held: list[list[Lease]] = []
        self.each(lambda storage: storage.save_pool(self.pool))
        self.each(lambda storage: storage.add_proxies_bulk(self.proxies))

    def storages(self) -> list[AnyStorage]:
        return [world.ledgers[self.place].storage for world in self.worlds]

    def each(self, act: Callable[[AnyStorage], Any]) -> list[Any]:
        """Return what each says, or the kind of its error."""
        return [_outcome(act, storage) for storage in self.storages()]

    def acquire(self, pick: int, asked: dict[str, Any], _: Outcome) -> None:
        request = AcquireRequest(self.pool.name, f"w{pick % 2}", 100, **asked)
        found = self.each(lambda storage: storage.acquire_lease(request))
        assert len({(each.miss_reason, each.lease and each.lease.proxy_id) for each in found}) == 1
        if found[0].lease is not None:
            self.held.append([each.lease for each in found])

    def _end(self, leases: list[Lease]) -> None:
        for storage, lease in zip(self.storages(), leases, strict=True):
            storage.return_lease(lease)

    def release(self, pick: int, *_: Any) -> None:
        if self.held:
            self._end(self.held.pop(pick % len(self.held)))

    def report(self, pick: int, _: Any, outcome: Outcome) -> None:
        if self.held:
            leases = self.held[pick % len(self.held)]
            for storage, lease in zip(self.storages(), leases, strict=True):
                storage.report_outcomes([ReportRequest(lease, outcome)])

    def wait(self, pick: int, *_: Any) -> None:
        for clock in {id(each): each for world in self.worlds for each in world.clocks}.values():
            clock.advance((3, 40, 101)[pick % 3])

    def _proxy(self, pick: int) -> UUID:
        return self.proxies[pick % len(self.proxies)].id

    def check(self, pick: int, *_: Any) -> None:
        result = HealthCheckResult(
            proxy_id=self._proxy(pick),
            status=(ProxyStatus.ACTIVE, ProxyStatus.SLOW, ProxyStatus.INACTIVE)[pick % 3],
            latency_ms=pick % 900,
            protocol=self.proxies[0].protocol,
            checked_at=self.worlds[0].clocks[0].now,
            exit_ip=(None, "198.51.100.4")[pick % 2],
        )
        self.each(lambda storage: storage.apply_health_check_result(result))

    def ban(self, pick: int, *_: Any) -> None:
        proxy_id, seconds = self._proxy(pick), (None, 60)[pick % 2]
        self.each(
            lambda storage: storage.set_status(proxy_id, ProxyStatus.BANNED, for_seconds=seconds)
        )

    def status(self, pick: int, *_: Any) -> None:
        proxy_id = self._proxy(pick)
        self.each(lambda storage: storage.set_status(proxy_id, ProxyStatus.ACTIVE))

    def rest(self, pick: int, *_: Any) -> None:
        request = CoolDownRequest(self._proxy(pick), "shop.example", (None, 50)[pick % 2])
        self.each(lambda storage: storage.set_cool_down(request))

    def weigh(self, pick: int, *_: Any) -> None:
        proxy = self.proxies[pick % 4].model_copy(update={"weight": 1 + pick % 3})
        for storage in self.storages():
            with suppress(ProxyNotFoundError):
                storage.get_proxy(str(proxy.id))
                storage.change_proxy(proxy)

    def remove(self, pick: int, *_: Any) -> None:
        proxy = self.proxies[pick % 4]
        if self.held or pick % 3:
            return
        for storage in self.storages():
            try:
                storage.delete_proxy(str(proxy.id))
            except ProxyNotFoundError:
                storage.save_proxy(proxy)

    def drain(self, pick: int, *_: Any) -> None:
        proxy_id = self._proxy(pick)
        if not pick % 4:
            self.each(lambda storage: storage.drain_proxy(proxy_id))

    def _let_go(self) -> None:
        """Give everything back. What is over ends when a pool is looked at, as a move does."""
        asked = {"selector": SelectorStrategy.FIRST_AVAILABLE, "target": None, "sticky": None}
        self.acquire(0, asked, Outcome.ok())
        while self.held:
            self._end(self.held.pop())

    def move(self, *_: Any) -> None:
        """Move to the other ledger, with all leases given back."""
        self._let_go()
        self._moving(lambda source, target: move_pool(self.pool.name, source, target))
        self.place = 1 - self.place

    def cancel(self, pick: int, *_: Any) -> None:
        """Begin to move, and take it back after one step or another."""
        self._let_go()
        last = ("began", "drained", "departed")[pick % 3]

        def stop(step: str) -> None:
            if step == last:
                raise _Stopped

        def there_and_back(source: Here, target: Here) -> None:
            with suppress(_Stopped):
                move_pool(self.pool.name, source, target, MoveOptions(on_step=stop))
            cancel_move(self.pool.name, source, target)

        self._moving(there_and_back)

    def _moving(self, act: Callable[[Here, Here], Any]) -> None:
        # What is due is taken back by a move. In the world that stays, it is so too.
        for world in self.worlds:
            if world.moves:
                act(world.ledgers[self.place], world.ledgers[1 - self.place])
            else:
                world.ledgers[0].storage.cleanup_expired_leases()

    def compare(self) -> None:
        ours, *others = [state_of(storage, self.pool.id) for storage in self.storages()]
        for theirs in others:
            for name in ours:
                differ = [row for row in theirs[name] if row not in ours[name]]
                assert differ == [row for row in ours[name] if row not in theirs[name]], name


def _outcome(act: Callable[[AnyStorage], Any], storage: AnyStorage) -> Any:
    try:
        return act(storage)
    except PharoxError as error:
        return type(error)


def test_a_pool_that_moves_is_as_one_that_stays(clusters: Clusters) -> None:
    """In memory and in PostgreSQL, with leases, outcomes, rests, bans, turns, paces and costs."""
    with ends("postgres postgres", clusters, servers.names()[0]) as in_postgres:
        clocks = tuple(clock_of(end.storage) for end in in_postgres)

        @given(STEPS, st.sampled_from(POOLS))
        @settings(
            max_examples=15,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        def agree(steps: list[tuple[str, int, Any, Outcome]], pool: dict[str, Any]) -> None:
            staying = Here("a", InMemoryStorage())
            in_memory = (Here("a", InMemoryStorage()), Here("b", InMemoryStorage()))
            worlds = [
                World((staying, staying), (_clock(staying, clocks),)),
                World(in_memory, tuple(_clock(end, clocks) for end in in_memory)),
                World(in_postgres, clocks),
            ]
            lives = Lives(worlds, pool)
            for name, pick, asked, outcome in steps:
                getattr(lives, name)(pick, asked, outcome)
                if name in ("move", "cancel"):
                    lives.compare()
            lives.compare()
            assert [end.storage.verify() for end in (staying, *in_memory)] == [[], [], []]

        agree()
        assert [end.storage.verify() for end in in_postgres] == [[], []]


def _clock(end: Here, known: tuple[Clock, ...]) -> Clock:
    clock = clock_of(end.storage)
    clock.advance((known[0].now - clock.now).total_seconds())
    return clock

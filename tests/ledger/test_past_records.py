"""What a page shows of the past, beside who held what, is the fold of the log."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from uuid import UUID

import pytest

import projections
from pharox import (
    CoolDown,
    LeaseEndedError,
    Outcome,
    Proxy,
    ProxyManager,
    ProxyPool,
    ProxyStatus,
    Sticky,
)
from pharox.events import CoolDownSet, Event, OutcomeReported, SessionBound
from pharox.fleet import move_pool
from pharox.history.past import past_of, records
from pharox.history.past.plain import records_in
from pharox.history.past.shapes import Records
from pharox.models import Lease
from pharox.storage.postgres import PostgresStorage
from pharox.storage.reports import CoolDownRequest
from pharox.testing import checked
from projections import TargetOutcomesRow
from tests import servers
from tests.conftest import AnyStorage, Clusters, clock_of, proxies_of
from tests.fleet.moving import ends
from tests.fleet.test_moving import lived_in

TARGETS = ("shop.example", "news.example", "maps.example")
KEYS = ("a", "b", "Z", "é", "k")
MANY = 100


class Life:
    """A pool that is used at random in every way that leaves something behind."""

    def __init__(self, storage: AnyStorage, seed: int) -> None:
        self.storage, self.clock = storage, clock_of(storage)
        self.choose = random.Random(seed)
        self.manager = ProxyManager(storage)
        self.pool = ProxyPool(name="pool", cool_down=CoolDown(after=1))
        storage.save_pool(self.pool)
        self.proxies = proxies_of(self.pool, 5, max_concurrency=2)
        storage.add_proxies_bulk(self.proxies)
        self._held: list[Lease] = []

    def play(self, acts: int) -> None:
        ways: list[tuple[Callable[[], object], int]] = [
            (self._lease, 10),
            (self._release, 8),
            (self._check, 4),
            (self._sweep, 1),
            (self._wait, 6),
            (self._cool, 2),
            (self._forget, 2),
            (self._inherit, 1),
            (self._ban, 1),
            (self._replace, 1),
            (self._prune, 1),
            (self._change, 1),
        ]
        acting, weights = zip(*ways, strict=True)
        for act in self.choose.choices(acting, weights, k=acts):
            act()

    def _one(self) -> Proxy:
        return self.choose.choice(self.proxies)

    def _lease(self) -> None:
        sticky = Sticky(self.choose.choice(KEYS), seconds=self.choose.choice((50, 5000)))
        lease = self.manager.acquire_proxy(
            "pool",
            "worker",
            self.choose.choice((40, 900)),
            target=self.choose.choice((*TARGETS, None)),
            sticky=self.choose.choice((None, sticky)),
        )
        if lease is not None:
            self._held.append(lease)

    def _release(self) -> None:
        if not self._held:
            return
        lease = self._held.pop(self.choose.randrange(len(self._held)))
        target = lease.target or self.choose.choice(TARGETS)
        outcome = self.choose.choice(
            (Outcome.ok(target), Outcome.blocked(target=target, status=429), None)
        )
        with suppress(LeaseEndedError):  # it expired, and was pruned
            self.manager.release_proxy(lease, outcome=outcome)

    def _check(self) -> None:
        age = timedelta(seconds=self.choose.choice((0, 0, 300)))
        status = self.choose.choice((ProxyStatus.ACTIVE, ProxyStatus.SLOW, ProxyStatus.INACTIVE))
        self.storage.record_health_checks(
            [checked(self._one(), status=status, checked_at=self.clock.now - age)]
        )

    def _sweep(self) -> None:
        some = self.choose.sample(self.proxies, 3)
        rows = {proxy.id: proxy for proxy in self.storage.list_proxies(str(self.pool.id))}
        self.storage.record_health_checks(
            [
                checked(
                    proxy,
                    status=rows[proxy.id].status,
                    latency_ms=self.choose.randrange(900),
                    checked_at=self.clock.now,
                )
                for proxy in some
                if rows[proxy.id].status is not ProxyStatus.BANNED
            ]
        )

    def _wait(self) -> None:
        self.clock.advance(self.choose.choice((1, 30, 200)))
        self.manager.cleanup_expired_leases()

    def _cool(self) -> None:
        seconds = self.choose.choice((None, 20, 2000))
        asked = CoolDownRequest(self._one().id, self.choose.choice(TARGETS), seconds)
        self.storage.set_cool_down(asked)

    def _forget(self) -> None:
        self.storage.forget_session("pool", self.choose.choice(KEYS))

    def _inherit(self) -> None:
        living = {each.key for each in self.storage.list_sessions("pool")}
        if living and (free := set(KEYS) - living):
            self.storage.inherit_session("pool", min(living), min(free))

    def _ban(self) -> None:
        self.storage.set_status(self._one().id, self.choose.choice([*ProxyStatus]))

    def _replace(self) -> None:
        """Remove a proxy, and bring it back under the same id."""
        proxy = self._one()
        self._held = [lease for lease in self._held if lease.proxy_id != proxy.id]
        self.storage.delete_proxy(str(proxy.id))
        self.storage.add_proxies_bulk([proxy])

    def _prune(self) -> None:
        self.storage.prune_leases(self.clock.now - timedelta(seconds=600))

    def _change(self) -> None:
        rest = self.choose.choice((None, 15.0, 400.0))
        self.pool = self.pool.model_copy(update={"rest_after_release_seconds": rest})
        self.storage.save_pool(self.pool)


def truth(events: list[Event], life: Life, seq: int, at: datetime) -> Records:
    states = projections.fold(events[:seq], projections.registered())
    return records_in(states, life.pool.id, [proxy.id for proxy in life.proxies], at, MANY)


def places(events: list[Event], choose: random.Random) -> list[tuple[int, datetime]]:
    """Return some seqs and moments up to which all of their events were recorded."""
    seqs = [*sorted(choose.sample(range(1, len(events) + 1), 25)), len(events)]
    return [(seq, events[seq - 1].recorded_at) for seq in seqs]


def as_compared(found: Records) -> tuple[object, ...]:
    pairs = {each: sorted(rows, key=lambda row: row.target) for each, rows in found.pairs.items()}
    return found.rests, found.checks, pairs, found.sessions


@pytest.mark.parametrize("seed", range(3))
def test_what_is_found_is_the_fold(any_storage: AnyStorage, seed: int) -> None:
    """Rests, checks, outcomes and sessions, on both storages."""
    life = Life(any_storage, seed)
    life.play(250)
    events, past = list(any_storage.events()), past_of(any_storage)
    ids = [proxy.id for proxy in life.proxies]
    for seq, at in places(events, life.choose):
        found = past.records(life.pool.id, ids, seq, at, sessions=MANY)
        assert as_compared(found) == as_compared(truth(events, life, seq, at))
        assert found.looked_from is None
        few = past.records(life.pool.id, ids[:1], seq, at, sessions=1)
        assert few.sessions == found.sessions[:1]
        assert few.checks.keys() <= {ids[0]}


def test_in_a_long_log_nothing_is_wrong_and_what_is_missing_is_old(
    storage: PostgresStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what was recorded before the events that were looked at, and again since."""
    monkeypatch.setattr(records, "LOOKED", 40)
    monkeypatch.setattr(records, "_GROWTH", 2)
    life = Life(storage, 5)
    life.play(300)
    events, past = list(storage.events()), past_of(storage)
    ids = [proxy.id for proxy in life.proxies]
    unchanged = 0
    for seq, at in places(events, life.choose):
        found = past.records(life.pool.id, ids, seq, at, sessions=MANY)
        meant = truth(events, life, seq, at)
        looked_at = events[(found.looked_from or 1) - 1 : seq]
        assert found.checks == meant.checks
        for proxy_id in ids:
            known, whole = by_target(found, proxy_id), by_target(meant, proxy_id)
            lately = {e.target for e in of_pairs(looked_at) if e.proxy_id == proxy_id}
            assert known.items() <= whole.items()
            assert whole.keys() & lately <= known.keys()
            unchanged += len(known.keys() - lately)
        assert found.rests.items() <= meant.rests.items()
        ended = {e.proxy_id for e in looked_at if e.type == "LeaseReleased"}
        assert meant.rests.keys() & ended <= found.rests.keys()
        bound = {e.key for e in looked_at if isinstance(e, SessionBound)}
        bound &= {each.key for each in meant.sessions}
        assert set(found.sessions) <= set(meant.sessions)
        assert {each.key for each in meant.sessions} & bound <= {
            each.key for each in found.sessions
        }
    assert unchanged > 0


def of_pairs(events: list[Event]) -> Iterator[OutcomeReported | CoolDownSet]:
    return (each for each in events if isinstance(each, OutcomeReported | CoolDownSet))


def by_target(found: Records, proxy_id: UUID) -> dict[str, TargetOutcomesRow]:
    return {row.target: row for row in found.pairs.get(proxy_id, ())}


@pytest.mark.parametrize("kinds", ["memory memory", "postgres postgres"])
def test_a_pool_that_moved_has_what_it_brought_along(
    kinds: str, clusters: Clusters, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the other ledger, and in the first one again when it came back; also further back."""
    with ends(kinds, clusters, servers.names()[0]) as (a, b):
        pool, proxies = lived_in(a.storage)
        ids = [proxy.id for proxy in proxies]
        move_pool(pool.name, a, b)
        move_pool(pool.name, b, a)
        for storage in (b.storage, a.storage):
            events, past = list(storage.events()), past_of(storage)
            at = events[-1].recorded_at
            for seq in range(1, len(events) + 1):
                states = projections.fold(events[:seq], projections.registered())
                meant = records_in(states, pool.id, ids, at, MANY)
                found = past.records(pool.id, ids, seq, at, sessions=MANY)
                assert as_compared(found) == as_compared(meant)
        assert found.rests
        assert found.pairs
        assert found.sessions
        monkeypatch.setattr(records, "LOOKED", 2)
        again = past.records(pool.id, ids, seq, at, sessions=MANY)
        assert again.checks == found.checks != {}

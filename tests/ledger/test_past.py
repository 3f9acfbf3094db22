"""A pool at a moment of the past is the fold of the log, whichever way it is reached."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any, cast
from uuid import UUID, uuid4

import pytest

import projections
from pharox.history.past import keyframes
from pharox.history.past.plain import PlainPast, pool_in
from pharox.history.past.postgres import PostgresPast
from pharox.history.past.shapes import Past, PoolThen, Step
from pharox.storage.postgres import PostgresStorage
from pharox.storage.requests import AcquireRequest
from tests.ledger.incident_story import Incident


class Ways:
    """Counts by which way a past was read, and how many events each step had."""

    def __init__(self, past: PostgresPast) -> None:
        self.last_stored = past.last_stored
        self.began: Counter[str] = Counter()
        self.lengths: list[int] = []
        self._past = past

    def now(self, pool_id: UUID, seq: int) -> PoolThen:
        self.began["now"] += 1
        return self._past.now(pool_id, seq)

    def stored(self, pool_id: UUID, seq: int) -> PoolThen | None:
        self.began["stored"] += 1
        return self._past.stored(pool_id, seq)

    def step(self, pool_id: UUID, begin: int, end: int) -> Step:
        self.began["step"] += 1
        self.lengths.append(abs(end - begin))
        return self._past.step(pool_id, begin, end)


def test_every_way_to_a_moment_is_the_fold(
    storage: PostgresStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Back from the present, from a stored state, forward and back from other moments."""
    incident = Incident(storage)
    incident.play(10)
    events, pool_id = list(storage.events()), incident.pool.id
    last = events[-1].seq
    storage.take_snapshot(last // 2)
    choose = random.Random(7)
    places = sorted({choose.randint(0, last) for _ in range(20)} | {0, 1, last // 2, last})
    truth = {
        seq: pool_in(projections.fold(events[:seq], projections.registered()), pool_id, seq)
        for seq in places
    }
    past, meaning = PostgresPast(storage), PlainPast(storage)
    for seq in places:
        assert past.now(pool_id, seq) == truth[seq]
        other = choose.choice(places)
        assert truth[other].after(past.step(pool_id, other, seq), seq) == truth[seq]
    assert past.stored(pool_id, last) == truth[last // 2]
    # As if the log were long: by every way, in pieces, and with some of what was kept forgotten.
    sizes = {"FROM_NOW": 10, "FROM_STORED": 10, "PIECE": last // 5, "KEPT_ROWS": 60}
    for name, size in sizes.items():
        monkeypatch.setattr(keyframes, name, size)
    seen = Ways(past)
    kept = keyframes.Keyframes(cast("Past", seen))
    for seq in choose.choices(places, k=60):
        assert kept.at(pool_id, seq, last) == truth[seq]
    assert min(seen.began["now"], seen.began["stored"], seen.began["step"]) > 0
    assert max(seen.lengths) == last // 5
    then = truth[places[-4]]
    assert then.leases
    of_then = pool_id, list(then.leases), then.seq
    assert past.details(*of_then) == meaning.details(*of_then)
    of_then = pool_id, list(then.proxies), then.seq
    assert past.addresses(*of_then) == meaning.addresses(*of_then)


def test_states_of_empty_pools_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many pools are looked at, of which one has nothing: the last used ones are kept."""

    class Empty:
        def now(self, pool_id: UUID, seq: int) -> PoolThen:
            return PoolThen(seq)

    monkeypatch.setattr(keyframes, "KEPT_ROWS", 10)
    kept = keyframes.Keyframes(cast("Any", Empty()))
    for seq in range(100):
        kept.at(uuid4(), seq, seq)
    assert len(kept._kept) == len(kept._places) == 10


def test_what_is_not_sealed_yet_is_undone(storage: PostgresStorage) -> None:
    """Events of the present that have no seq are taken back as well."""
    incident = Incident(storage)
    incident.play(3)
    seq = storage.seal()
    truth = PlainPast(storage).now(incident.pool.id, seq)
    while storage.acquire_lease(AcquireRequest(incident.pool.name, "late", 60)).lease:
        pass
    assert PostgresPast(storage).now(incident.pool.id, seq) == truth

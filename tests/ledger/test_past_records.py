"""What a page shows of the past, beside who held what, is the fold of the log."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from uuid import UUID

import pytest

import projections
from pharox.events import CoolDownSet, Event, OutcomeReported, SessionBound
from pharox.fleet import move_pool
from pharox.history.past import past_of, records
from pharox.history.past.plain import records_in
from pharox.history.past.shapes import Records
from pharox.ledger.archive import archive
from pharox.storage.postgres import PostgresStorage
from projections import TargetOutcomesRow
from tests import servers
from tests.conftest import AnyStorage, Clusters, run_sql
from tests.fleet.moving import ends
from tests.fleet.test_moving import lived_in
from tests.ledger.full_parts import small_parts
from tests.ledger.used_pool import UsedPool

MANY = 100


def truth(events: list[Event], used: UsedPool, seq: int, at: datetime) -> Records:
    states = projections.fold(events[:seq], projections.registered())
    return records_in(states, used.pool.id, [proxy.id for proxy in used.proxies], at, MANY)


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
    used = UsedPool(any_storage, seed)
    used.play(250)
    events, past = list(any_storage.events()), past_of(any_storage)
    ids = [proxy.id for proxy in used.proxies]
    for seq, at in places(events, used.choose):
        found = past.records(used.pool.id, ids, seq, at, sessions=MANY)
        assert as_compared(found) == as_compared(truth(events, used, seq, at))
        assert found.looked_from is None
        few = past.records(used.pool.id, ids[:1], seq, at, sessions=1)
        assert few.sessions == found.sessions[:1]
        assert few.checks.keys() <= {ids[0]}


def test_in_a_long_log_nothing_is_wrong_and_what_is_missing_is_old(
    storage: PostgresStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what was recorded before the events that were looked at, and again since."""
    monkeypatch.setattr(records, "LOOKED", 40)
    monkeypatch.setattr(records, "_GROWTH", 2)
    used = UsedPool(storage, 5)
    used.play(300)
    events, past = list(storage.events()), past_of(storage)
    ids = [proxy.id for proxy in used.proxies]
    unchanged = 0
    for seq, at in places(events, used.choose):
        found = past.records(used.pool.id, ids, seq, at, sessions=MANY)
        meant = truth(events, used, seq, at)
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


def test_what_is_archived_is_said_to_be_missing(storage: PostgresStorage, tmp_path: Path) -> None:
    """What the rest of the log has is right; the page says that there was more."""
    small_parts(storage, 60)
    used = UsedPool(storage, 4)
    for _ in range(10):
        used.play(30)
        storage.seal()
        run_sql(storage.engine, "SELECT pharox.complete_tick()")
        used.clock.advance(1)
    events = list(storage.events())
    archived = archive(storage, used.clock.now, tmp_path).archived[-1].last_seq
    assert archived is not None
    past, ids = past_of(storage), [proxy.id for proxy in used.proxies]
    for event in events[archived:]:
        found = past.records(used.pool.id, ids, event.seq, event.recorded_at, sessions=MANY)
        meant = truth(events, used, event.seq, event.recorded_at)
        assert found.looked_from == archived + 1
        assert found.checks.items() <= meant.checks.items()
        assert found.rests.items() <= meant.rests.items()
        assert set(found.sessions) <= set(meant.sessions)
        for proxy_id in ids:
            assert by_target(found, proxy_id).items() <= by_target(meant, proxy_id).items()


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

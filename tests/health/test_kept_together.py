"""Checks of a sweep that change no status are one event, and nothing that each says is lost."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import psycopg
import pytest

import projections
from pharox import (
    CheckFailure,
    HealthCheckResult,
    HealthEventPayload,
    HealthPolicy,
    Proxy,
    ProxyManager,
    ProxyStatus,
)
from pharox.events import Event, HealthChecked, ProxiesChecked
from pharox.history import audit
from pharox.ledger.archive import archive
from pharox.ledger.archive import reading as archived
from pharox.ledger.archive_check import check as check_archive
from pharox.ledger.rebuild import rebuild
from pharox.ledger.subscriptions import Delivery, Subscription
from pharox.log import Extract
from pharox.storage.postgres import PostgresStorage
from pharox.testing import checked
from tests.conftest import AnyStorage, Clock, clock_of, fill, run_sql, types_of
from tests.ledger.following import until
from tests.ledger.full_parts import small_parts

GOOD, SLOW, BAD = ProxyStatus.ACTIVE, ProxyStatus.SLOW, ProxyStatus.INACTIVE


def results_of(proxies: list[Proxy], now: datetime) -> list[HealthCheckResult]:
    """Return a result for each proxy that leaves its status as it is, each unlike the others."""
    return [
        checked(
            proxy,
            status=BAD if number % 3 == 2 else GOOD,
            latency_ms=100 + number,
            attempts=1 + number % 2,
            status_code=407 if number % 3 == 2 else 200,
            failure=CheckFailure.PROXY_AUTHENTICATION if number % 3 == 2 else None,
            error_message="asks for a password" if number % 3 == 2 else None,
            checked_at=now - timedelta(microseconds=number * 1_234_567),
        )
        for number, proxy in enumerate(proxies)
    ]


def swept(
    storage: AnyStorage, clock: Clock, count: int = 6
) -> tuple[list[Proxy], list[HealthCheckResult]]:
    """Fill a pool, some of it leased, and sweep it without a change; return proxies and results."""
    _, proxies = fill(storage, count, source="list", max_concurrency=3)
    for number in range(2, count, 3):
        storage.set_status(proxies[number].id, BAD)
    storage.create_lease(proxies[0], "worker", 60)
    results = results_of(proxies, clock.now)
    storage.record_health_checks(results)
    return proxies, results


def together(storage: AnyStorage) -> list[ProxiesChecked]:
    return [event for event in storage.events() if isinstance(event, ProxiesChecked)]


def alone(storage: AnyStorage) -> list[HealthChecked]:
    return [event for event in storage.events() if isinstance(event, HealthChecked)]


def test_a_sweep_that_changes_nothing_is_one_event(any_storage: AnyStorage) -> None:
    """And the read models are those of as many checks."""
    proxies, results = swept(any_storage, clock_of(any_storage))
    (event,) = together(any_storage)
    assert alone(any_storage) == []
    assert set(event.proxy_ids) == {proxy.id for proxy in proxies}
    assert len(event.groups) == 4  # well or not, with one attempt or two
    for proxy, result in zip(proxies, results, strict=True):
        assert any_storage.get_last_health_result(proxy.id) == result
    assert any_storage.verify() == []


def test_each_check_says_what_it_would_say_alone(any_storage: AnyStorage) -> None:
    """Every fact of a HealthChecked, and the place of the event that it is kept in."""
    proxies, results = swept(any_storage, clock_of(any_storage))
    (event,) = together(any_storage)
    for proxy, result in zip(proxies, results, strict=True):
        found = event.part_of(proxy.id)
        assert found is not None
        stays, leases = result.status, int(proxy is proxies[0])
        assert (found.seq, found.position, found.recorded_at) == (
            event.seq,
            event.position,
            event.recorded_at,
        )
        assert found.before == found.after
        assert (found.after.status, found.after.leases) == (stays, leases)
        assert found.after.max_concurrency == 3
        assert (found.applied, found.reachable, found.lease_ids) == (True, result.healthy, ())
        assert (found.status, found.latency_ms) == (result.status, result.latency_ms)
        assert found.mean_latency_ms == (result.latency_ms if result.healthy else None)
        assert (found.attempts, found.status_code) == (result.attempts, result.status_code)
        assert (found.failure, found.error) == (result.failure, result.error_message)
        assert (found.checked_at, found.source) == (result.checked_at, "list")
        assert found.streak == (1 if result.healthy else -1)
        assert found == HealthChecked.model_validate(found.model_dump())
    assert event.part_of(uuid4()) is None


def test_what_changes_something_is_an_event_of_its_own(any_storage: AnyStorage) -> None:
    """As is the only check that does not."""
    _, (one, two, three) = fill(any_storage, 3)
    any_storage.record_health_checks([checked(one), checked(two, status=SLOW)])
    assert types_of(any_storage)[-2:] == ["HealthChecked", "HealthChecked"]
    any_storage.record_health_checks([checked(one), checked(two, status=BAD), checked(three)])
    assert types_of(any_storage)[-2:] == ["ProxiesChecked", "HealthChecked"]
    assert [event.proxy_id for event in alone(any_storage)][-1] == two.id


def test_a_check_that_came_too_late_is_kept_and_changes_nothing(any_storage: AnyStorage) -> None:
    """Together with those that are in time."""
    clock = clock_of(any_storage)
    _, proxies = fill(any_storage, 3)
    any_storage.record_health_checks([checked(proxy, checked_at=clock.now) for proxy in proxies])
    late = checked(proxies[0], status=BAD, checked_at=clock.now - timedelta(days=400))
    clock.advance(5)
    others = [checked(proxy, checked_at=clock.now) for proxy in proxies[1:]]
    outcomes = any_storage.record_health_checks([late, *others])
    assert [outcome.applied for outcome in outcomes] == [False, True, True]
    event = together(any_storage)[-1]
    (found,) = (check for check in event.checks() if check.proxy_id == proxies[0].id)
    assert (found.applied, found.status, found.checked_at) == (False, BAD, late.checked_at)
    assert any_storage.verify() == []


def test_the_history_of_a_proxy_has_its_own_checks(any_storage: AnyStorage) -> None:
    """Whoever asks for one proxy is shown its check alone, as a HealthChecked."""
    clock = clock_of(any_storage)
    proxies, results = swept(any_storage, clock)
    clock.advance(60)
    any_storage.record_health_checks(results_of(proxies, clock.now))
    for proxy, result in zip(proxies, results, strict=True):
        newest, older = any_storage.list_health_records(proxy.id)
        assert (older.latency_ms, older.checked_at) == (result.latency_ms, result.checked_at)
        assert newest.checked_at == older.checked_at + timedelta(seconds=60)
        assert newest.id != older.id
        for types in (None, ("HealthChecked",)):
            extract = Extract(proxy_id=proxy.id, types=types)
            shown = [e for e in any_storage.history(extract) if isinstance(e, HealthChecked)]
            assert [(e.proxy_id, e.latency_ms) for e in shown] == [
                (proxy.id, result.latency_ms)
            ] * 2
        story = [entry.event.type for entry in audit.of_proxy(any_storage, proxy.id).entries]
        assert story.count("HealthChecked") == 2
    assert len(any_storage.list_health_records(proxies[0].id, limit=1)) == 1
    assert any_storage.list_health_records(uuid4()) == []
    found = list(any_storage.history(Extract(types=("HealthChecked",))))
    assert [event.type for event in found] == ["ProxiesChecked"] * 2


def test_a_lease_has_the_checks_of_its_proxy(any_storage: AnyStorage) -> None:
    """Also those that are kept together with others."""
    _, proxies = fill(any_storage, 3)
    lease = any_storage.create_lease(proxies[1], "worker", 600)
    any_storage.record_health_checks([checked(proxy) for proxy in proxies])
    story = [entry.event for entry in audit.of_lease(any_storage, lease.id).entries]
    assert [event.type for event in story] == ["LeaseAcquired", "HealthChecked"]
    assert story[1].proxy_id == proxies[1].id


def test_results_of_one_proxy_are_in_different_events(any_storage: AnyStorage) -> None:
    """Two of each: the second is judged by the first, so they are never one event."""
    clock = clock_of(any_storage)
    _, proxies = fill(any_storage, 3)
    results = [
        checked(proxy, status=BAD, checked_at=clock.now - timedelta(seconds=age))
        for age in (2, 1)
        for proxy in proxies
    ]
    any_storage.record_health_checks(results, HealthPolicy(failures_before_inactive=3))
    assert [[check.streak for check in event.checks()] for event in together(any_storage)] == [
        [-1, -1, -1],
        [-2, -2, -2],
    ]


def test_subscribers_are_told_of_each_check(storage: PostgresStorage) -> None:
    """Callbacks once a check; a subscription by type of the event, one of a proxy of its check."""
    _, proxies = fill(storage, 3)
    told: list[HealthEventPayload] = []
    events: list[Event] = []
    of_one: list[Event] = []

    def note(delivery: Delivery) -> None:
        events.append(delivery.event)

    def note_one(delivery: Delivery) -> None:
        of_one.append(delivery.event)

    by_type = Subscription("by-type", note, types=("HealthChecked",))
    by_proxy = Subscription("by-proxy", note_one, start="now", proxy_id=proxies[1].id)
    results = [checked(proxy, latency_ms=n) for n, proxy in enumerate(proxies)]
    fleet = ProxyManager(storage).subscribe(on_health=told.append)
    with by_type.running(storage), by_proxy.running(storage), fleet.running():
        storage.record_health_checks(results)
        until(lambda: len(told) == 3 and bool(events) and bool(of_one))
    assert {payload.result.proxy_id: payload.result.latency_ms for payload in told} == {
        proxy.id: n for n, proxy in enumerate(proxies)
    }
    assert {payload.pool_stats and payload.pool_stats.active_proxies for payload in told} == {3}
    assert [event.type for event in events] == ["ProxiesChecked"]
    assert [(event.type, event.proxy_id) for event in of_one] == [("HealthChecked", proxies[1].id)]


def test_they_outlast_the_archive(postgres: PostgresStorage, tmp_path: Path) -> None:
    """From the files each proxy has its check, and the digests are those that were sealed."""
    small_parts(postgres, 12)
    clock = clock_of(postgres)
    proxies, results = swept(postgres, clock, 5)
    for _ in range(30):
        clock.advance(1)
        postgres.record_health_checks([checked(proxies[0], checked_at=clock.now)])
    clock.advance(3600)
    postgres.seal()
    run_sql(postgres.engine, "SELECT pharox.complete_tick()")
    live = list(postgres.events())
    extracts = [Extract(proxy_id=proxy.id, types=("HealthChecked",)) for proxy in proxies]
    last = archive(postgres, clock.now, tmp_path).archived[-1].last_seq
    assert last is not None
    assert list(archived.history(tmp_path, Extract())) == live[:last]
    for extract, result in zip(extracts, results, strict=True):
        first = next(archived.history(tmp_path, extract))
        assert isinstance(first, HealthChecked)
        assert (first.proxy_id, first.latency_ms) == (result.proxy_id, result.latency_ms)
    assert check_archive(tmp_path).differences == []
    assert postgres.verify() == []


def test_a_rebuild_folds_them(postgres: PostgresStorage) -> None:
    """One by one, also where a check of its own follows in the same range."""
    clock = clock_of(postgres)
    proxies, _ = swept(postgres, clock)
    clock.advance(1)
    postgres.record_health_checks([checked(proxies[0], checked_at=clock.now)])
    before = postgres.live_states()
    assert rebuild(postgres).findings == ()
    assert postgres.live_states() == before
    assert projections.fold(postgres.events(), projections.ALL) == before


BROKEN = {
    "no proxies": "event.proxy_ids := '{}'",
    "an unknown proxy": "event.proxy_ids[1] := NULL",
    "too few latencies": "event.data := jsonb_set(event.data, '{latency_ms}', '[1]')",
    "a group that is none": "event.data := jsonb_set(event.data, '{group,0}', '7')",
    "a group of no status": "event.data := event.data #- '{groups,0,status}'",
    "an unknown status": "event.data := jsonb_set(event.data, '{groups,0,stays}', '\"no\"')",
    "a group that is no object": "event.data := jsonb_set(event.data, '{groups,0}', '7')",
    "half a group": "event.data := jsonb_set(event.data, '{group,0}', '0.5')",
    "a group that is no number": "event.data := jsonb_set(event.data, '{group,0}', '\"0\"')",
    "fewer than no leases": "event.data := jsonb_set(event.data, '{leases,0}', '-1')",
    "no number of leases": "event.data := jsonb_set(event.data, '{leases,0}', 'null')",
    "a proxy twice": "event.proxy_ids[2] := event.proxy_ids[1]",
    "proxies from 0 on": "event.proxy_ids := ('[0:' || cardinality(event.proxy_ids) - 1 || ']='"
    " || event.proxy_ids::text)::uuid[]",
    "no streaks": "event.data := event.data - 'streak'",
    "no array": "event.data := jsonb_set(event.data, '{leases}', '0')",
    "a proxy as well": "event.proxy_id := event.proxy_ids[1]",
    "another type": "event.type := 'LeasesPruned'; event.data := '{\"ended_before\": 1}'",
}


@pytest.mark.parametrize("change", BROKEN.values(), ids=BROKEN)
def test_what_is_not_whole_is_not_taken(postgres: PostgresStorage, change: str) -> None:
    """The log refuses an event whose checks could not be taken apart."""
    swept(postgres, clock_of(postgres))
    log = list(postgres.events())
    with pytest.raises(psycopg.errors.CheckViolation, match="none that the log takes"):
        run_sql(
            postgres.engine,
            f"""DO $$
            DECLARE
                event pharox.event_v1;
            BEGIN
                SELECT * INTO event FROM pharox.events WHERE type = 'ProxiesChecked';
                {change};
                PERFORM pharox.append_v1(ARRAY[event], 0::smallint);
            END $$""",
        )
    assert list(postgres.events()) == log


def test_an_event_that_is_not_whole_cannot_be_read() -> None:
    """Python refuses what the log refuses."""
    facts = {
        "recorded_at": "2026-01-01T00:00:00Z",
        "checked_at": "2026-01-01T00:00:00Z",
        "proxy_ids": [UUID(int=1)],
        "groups": [],
        **{key: [0] for key in ("group", "age_us", "leases", "streak")},
        **{key: [None] for key in ("latency_ms", "mean_latency_ms")},
    }
    with pytest.raises(ValueError, match="has no group"):
        ProxiesChecked.model_validate(facts)
    with pytest.raises(ValueError, match="differs in length"):
        ProxiesChecked.model_validate({**facts, "streak": []})

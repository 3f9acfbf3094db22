"""What becomes of a result: a status, a streak, a latency to go by, and a fact in the log."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import projections
from pharox import (
    CheckFailure,
    HealthEventPayload,
    HealthPolicy,
    InMemoryStorage,
    InvalidInputError,
    Proxy,
    ProxyHealthRecord,
    ProxyManager,
    ProxyNotFoundError,
    ProxyStatus,
    SelectorStrategy,
)
from pharox.events import HealthChecked, ProxiesChecked, ProxyChanged
from pharox.models import utc_now
from pharox.storage.interface import IStorage
from pharox.storage.postgres import PostgresStorage
from pharox.storage.requests import HealthOutcome
from pharox.testing import checked
from tests import servers
from tests.conftest import AnyStorage, Clusters, clock_of, fill, ledger, new_database, threads

BATCH = ProxiesChecked.MOST

GOOD, SLOW, BAD, BANNED = (
    ProxyStatus.ACTIVE,
    ProxyStatus.SLOW,
    ProxyStatus.INACTIVE,
    ProxyStatus.BANNED,
)

moments = (datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=n) for n in count())
"""Each later than the one before, and all in the past."""


def record(
    storage: IStorage, proxy: Proxy, *statuses: ProxyStatus, policy: HealthPolicy | None = None
) -> list[HealthOutcome]:
    """Record results one after the other, and return what each came to."""
    outcomes: list[HealthOutcome] = []
    for status in statuses:
        result = checked(proxy, status=status, checked_at=next(moments))
        outcomes += storage.record_health_checks([result], policy)
    return outcomes


def checks(storage: AnyStorage) -> list[HealthChecked]:
    parts = (part for event in storage.events() for part in event.parts())
    return [part for part in parts if isinstance(part, HealthChecked)]


# Where it is from


def test_a_check_tells_who_provided_the_proxy(any_storage: AnyStorage) -> None:
    """As it was then: in the event, in the outcome and in what callbacks are told."""
    _, (proxy,) = fill(any_storage, source="a list")
    told: list[HealthEventPayload] = []
    manager = ProxyManager(any_storage)
    manager.register_health_callback(told.append)
    for source in ("a list", None):
        any_storage.save_proxy(proxy.model_copy(update={"source": source}))
        (outcome,) = manager.record_health_checks([checked(proxy, checked_at=next(moments))])
        assert outcome.source == source
    assert [payload.source for payload in told] == ["a list", None]
    assert [event.source for event in checks(any_storage)] == ["a list", None]


# Flapping


def statuses_after(outcomes: Sequence[HealthOutcome]) -> str:
    return "".join(o.status_after.value[0] if o.status_after else "?" for o in outcomes)


def test_every_result_decides_by_default(any_storage: AnyStorage) -> None:
    _, (proxy,) = fill(any_storage)
    outcomes = record(any_storage, proxy, BAD, GOOD, SLOW, BAD)
    assert statuses_after(outcomes) == "iasi"


def test_failures_in_a_row_make_a_proxy_inactive(any_storage: AnyStorage) -> None:
    """One success in between, and the count begins anew; a slow one is a success."""
    _, (proxy,) = fill(any_storage)
    policy = HealthPolicy(failures_before_inactive=3)
    outcomes = record(any_storage, proxy, BAD, BAD, SLOW, BAD, BAD, BAD, GOOD, policy=policy)
    assert statuses_after(outcomes) == "aasssia"
    assert [event.streak for event in checks(any_storage)] == [-1, -2, 1, -1, -2, -3, 1]
    assert any_storage.verify() == []


def test_successes_in_a_row_bring_a_proxy_back(any_storage: AnyStorage) -> None:
    _, (proxy,) = fill(any_storage, status=BAD)
    policy = HealthPolicy(successes_before_active=2)
    outcomes = record(any_storage, proxy, GOOD, BAD, GOOD, SLOW, GOOD, policy=policy)
    assert statuses_after(outcomes) == "iiisa"


def test_a_result_that_comes_late_is_not_counted(any_storage: AnyStorage) -> None:
    _, (proxy,) = fill(any_storage)
    policy = HealthPolicy(failures_before_inactive=2)
    now = utc_now()
    late = checked(proxy, status=BAD, checked_at=now - timedelta(hours=1))
    new = checked(proxy, status=BAD, checked_at=now - timedelta(minutes=1))
    outcomes = any_storage.record_health_checks([new, late, late, new], policy)
    assert [outcome.applied for outcome in outcomes] == [True, False, False, False]
    assert statuses_after(outcomes) == "aaaa"
    assert [event.streak for event in checks(any_storage)] == [-1, -1, -1, -1]


def test_a_persons_decision_begins_the_count_anew(any_storage: AnyStorage) -> None:
    """Whoever makes a proxy ACTIVE by hand gets as many failures as the policy says."""
    _, (proxy,) = fill(any_storage)
    policy = HealthPolicy(failures_before_inactive=2)
    assert statuses_after(record(any_storage, proxy, BAD, BAD, BAD, policy=policy)) == "aii"
    any_storage.set_status(proxy.id, GOOD)
    assert statuses_after(record(any_storage, proxy, BAD, BAD, policy=policy)) == "ai"
    assert any_storage.verify() == []


def test_an_observation_made_elsewhere_is_not_counted(any_storage: AnyStorage) -> None:
    _, (proxy,) = fill(any_storage)
    policy = HealthPolicy(failures_before_inactive=2)
    seen = ProxyHealthRecord(
        proxy_id=proxy.id,
        reachable=False,
        protocol=proxy.protocol,
        status_after=BAD,
        status_code=403,
        attempts=2,
        failure=CheckFailure.UNEXPECTED_STATUS,
        checked_at=next(moments),
    )
    any_storage.save_health_record(seen)
    (kept,) = any_storage.list_health_records(proxy.id)
    assert (kept.status_code, kept.attempts, kept.failure) == (403, 2, seen.failure)
    assert statuses_after(record(any_storage, proxy, BAD, policy=policy)) == "a"


@pytest.mark.parametrize("bad", [0, -1, 1001, 1.5, True, None, "3"])
def test_a_policy_that_makes_no_sense_is_refused(bad: Any) -> None:
    for name in ("failures_before_inactive", "successes_before_active", "latency_window"):
        with pytest.raises(InvalidInputError, match=name):
            HealthPolicy(**{name: bad})


# The latency to go by


def test_lowest_latency_goes_by_the_latest(any_storage: AnyStorage) -> None:
    _, (one, other) = fill(any_storage, 2)
    for latency_one, latency_other, wanted in [(50, 40, other), (30, 40, one)]:
        now = next(moments)
        any_storage.record_health_checks(
            [
                checked(one, latency_ms=latency_one, checked_at=now),
                checked(other, latency_ms=latency_other, checked_at=now),
            ]
        )
        offered = any_storage.find_available_proxy("pool", None, SelectorStrategy.LOWEST_LATENCY)
        assert offered is not None
        assert offered.id == wanted.id


def test_a_window_smooths_the_latency(any_storage: AnyStorage) -> None:
    """One bad moment of a quick proxy does not put it behind one that is always slower."""
    _, (quick, steady) = fill(any_storage, 2)
    policy = HealthPolicy(latency_window=9)
    for latency in [50] * 5 + [200]:
        now = next(moments)
        any_storage.record_health_checks(
            [
                checked(quick, latency_ms=latency, checked_at=now),
                checked(steady, latency_ms=100, checked_at=now),
            ],
            policy,
        )
    # 50 + (200 - 50) * 2 / (9 + 1)
    means = [e.mean_latency_ms for e in checks(any_storage) if e.proxy_id == quick.id]
    assert means[-2:] == [50, 80]
    offered = any_storage.find_available_proxy("pool", None, SelectorStrategy.LOWEST_LATENCY)
    assert offered is not None
    assert offered.id == quick.id


def test_the_longest_latencies_can_be_averaged(any_storage: AnyStorage) -> None:
    _, (proxy,) = fill(any_storage)
    longest = 2**31 - 1
    for latency in (longest, 0, longest):
        now = next(moments)
        result = checked(proxy, latency_ms=latency, checked_at=now)
        any_storage.record_health_checks([result], HealthPolicy(latency_window=1000))
    assert 0 < (checks(any_storage)[-1].mean_latency_ms or 0) <= longest


# Clocks


def test_a_result_from_the_future_is_dated_now_and_blocks_nothing(any_storage: AnyStorage) -> None:
    """A prober whose clock is an hour ahead does not silence the others for an hour."""
    _, (proxy,) = fill(any_storage)
    clock = clock_of(any_storage)
    ahead = checked(proxy, status=BAD, checked_at=clock.now + timedelta(hours=1))
    (outcome,) = any_storage.record_health_checks([ahead])
    assert outcome.result.checked_at == clock.now
    clock.advance(1)
    (outcome,) = any_storage.record_health_checks([checked(proxy, checked_at=clock.now)])
    assert (outcome.applied, outcome.status_after) == (True, GOOD)


# Leases


def test_a_drop_names_the_leases_that_are_held(any_storage: AnyStorage) -> None:
    """The log and the callbacks tell whose proxy has just become unleasable; once."""
    _, (proxy,) = fill(any_storage, max_concurrency=None)
    manager = ProxyManager(any_storage)
    told: list[HealthEventPayload] = []
    manager.register_health_callback(told.append)
    gone, *held = [manager.acquire_proxy("pool", f"worker-{n}") for n in range(3)]
    assert gone is not None
    manager.release_proxy(gone)
    now = utc_now()
    for age, status in [(3, SLOW), (2, BAD), (1, BAD)]:
        result = checked(proxy, status=status, checked_at=now - timedelta(seconds=age))
        manager.record_health_checks([result])
    assert [event.lease_ids for event in checks(any_storage)] == [
        (),
        tuple(lease.id for lease in held if lease),
        (),
    ]
    assert [payload.lease_ids for payload in told] == [e.lease_ids for e in checks(any_storage)]
    assert [payload.leases for payload in told] == [2, 2, 2]
    assert (told[1].status_before, told[1].status_after) == (SLOW, BAD)
    assert told[1].pool_stats is not None
    assert (told[1].pool_stats.active_proxies, told[1].pool_stats.total_leases) == (0, 2)


def test_a_health_callback_that_raises_keeps_nothing_from_being_recorded(
    any_storage: AnyStorage,
) -> None:
    _, proxies = fill(any_storage, 3)
    manager = ProxyManager(any_storage)
    told: list[HealthEventPayload] = []

    def fail(_: HealthEventPayload) -> None:
        raise RuntimeError("broken")

    manager.register_health_callback(fail)
    manager.register_health_callback(told.append)
    with pytest.raises(ExceptionGroup) as caught:
        manager.record_health_checks([checked(proxy, status=BAD) for proxy in proxies])
    assert len(caught.value.exceptions) == len(told) == len(checks(any_storage)) == 3


# Unknown proxies, and bad input


def test_unknown_proxies_are_an_outcome(any_storage: AnyStorage) -> None:
    """The rest of the batch is recorded, and no callback gets them."""
    _, (proxy,) = fill(any_storage)
    stray = checked(proxy.model_copy(update={"id": uuid4()}))
    manager = ProxyManager(any_storage)
    told: list[HealthEventPayload] = []
    manager.register_health_callback(told.append)
    outcomes = manager.record_health_checks([stray, checked(proxy, status=BAD), stray])
    assert [outcome.known for outcome in outcomes] == [False, True, False]
    assert (outcomes[0].status_before, outcomes[0].status_after) == (None, None)
    assert [payload.result.proxy_id for payload in told] == [proxy.id]
    assert len(checks(any_storage)) == 1


def test_a_proxy_removed_meanwhile_is_unknown(any_storage: AnyStorage) -> None:
    _, (proxy, other) = fill(any_storage, 2)
    any_storage.delete_proxy(str(proxy.id))
    outcomes = any_storage.record_health_checks([checked(proxy), checked(other)])
    assert [outcome.known for outcome in outcomes] == [False, True]


def test_no_results_are_no_outcomes(any_storage: AnyStorage) -> None:
    assert list(any_storage.record_health_checks([])) == []


def test_a_bad_result_is_refused_before_anything_is_recorded(any_storage: AnyStorage) -> None:
    _, (proxy,) = fill(any_storage)
    broken = checked(proxy)
    broken.latency_ms = -1
    with pytest.raises(InvalidInputError, match="latency_ms"):
        any_storage.record_health_checks([checked(proxy), broken])
    assert checks(any_storage) == []


def test_a_sweep_of_any_size_is_recorded(storage: PostgresStorage) -> None:
    """More results than one transaction takes, from several pools, some proxies twice."""
    _, many = fill(storage, BATCH + 7)
    _, few = fill(storage, 3, name="other")
    now = utc_now()
    results = [
        checked(proxy, status=status, checked_at=now - timedelta(seconds=age))
        for age, status in [(2, BAD), (1, GOOD)]
        for proxy in [*many, *few]
    ]
    outcomes = storage.record_health_checks(results)
    assert statuses_after(outcomes) == "i" * (BATCH + 10) + "a" * (BATCH + 10)
    assert [o.pool_name for o in outcomes[-4:]] == ["pool", "other", "other", "other"]
    assert storage.verify() == []


# A person's decisions


def test_set_status_lifts_and_lays_a_ban(any_storage: AnyStorage) -> None:
    """The decision is an event with its reason; deciding the same again is none."""
    _, (proxy,) = fill(any_storage, country="AR")
    for _ in range(2):
        banned = any_storage.set_status(proxy.id, BANNED, reason="429 from the target")
        assert banned == proxy.model_copy(update={"status": BANNED})
    assert record(any_storage, proxy, GOOD)[0].status_after is BANNED
    assert any_storage.set_status(proxy.id, GOOD).status is GOOD
    changes = [event for event in any_storage.events() if isinstance(event, ProxyChanged)]
    assert [event.reason for event in changes] == ["429 from the target", None]
    assert changes[0].country == "AR"
    assert any_storage.verify() == []


def test_set_status_refuses_what_makes_no_sense(any_storage: AnyStorage) -> None:
    _, (proxy,) = fill(any_storage)
    with pytest.raises(ProxyNotFoundError):
        any_storage.set_status(uuid4(), BANNED)
    with pytest.raises(InvalidInputError):
        any_storage.set_status(proxy.id, "broken")  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError):
        any_storage.set_status(proxy.id, BANNED, reason="a\x00b")
    assert any_storage.get_proxy(str(proxy.id)).status is GOOD


def test_a_decision_loses_no_change_made_meanwhile(storage: PostgresStorage) -> None:
    """Decisions, probes and edits of one proxy at once: what was edited last stands."""
    _, (proxy,) = fill(storage)

    def work(number: int) -> None:
        for turn in range(25):
            if number == 0:
                storage.save_proxy(proxy.model_copy(update={"country": f"country {turn}"}))
            elif number == 1:
                storage.record_health_checks([checked(proxy, status=BAD)])
            else:
                storage.set_status(proxy.id, BANNED if turn % 2 else GOOD)

    threads(4, work)
    assert storage.get_proxy(str(proxy.id)).country == "country 24"
    assert storage.verify() == []


# Any order, any number of times


@pytest.fixture(scope="module")
def database(clusters: Clusters) -> Iterator[PostgresStorage]:
    """A database for all examples of a property, as making one for each takes longer."""
    server_url, template = clusters.get(servers.names()[0])
    with (
        new_database(server_url, f"pharox_{uuid4().hex[:12]}", template) as url,
        ledger(url) as storage,
    ):
        yield storage


@settings(max_examples=30, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**32))
def test_statuses_are_those_of_the_newest_results(
    database: PostgresStorage, data: st.DataObject, seed: int
) -> None:
    """Sweeps whose results come reordered, repeated and cut anyhow: the newest decides."""
    shuffle = random.Random(seed)
    memory = InMemoryStorage()
    name = f"pool-{uuid4().hex}"
    pool, proxies = fill(database, data.draw(st.integers(1, 4)), name=name)
    memory.save_pool(pool)
    memory.add_proxies_bulk(proxies)
    now = utc_now() - timedelta(hours=1)
    results = [
        checked(
            proxy,
            status=data.draw(st.sampled_from([GOOD, SLOW, BAD])),
            latency_ms=data.draw(st.integers(0, 2000)),
            checked_at=now + timedelta(seconds=moment),
        )
        for moment in range(data.draw(st.integers(1, 5)))
        for proxy in proxies
    ]
    told = results + shuffle.choices(results, k=data.draw(st.integers(0, 10)))
    shuffle.shuffle(told)
    size = data.draw(st.integers(1, 7))
    for start in range(0, len(told), size):
        for storage in (database, memory):
            storage.record_health_checks(told[start : start + size])
    newest = {result.proxy_id: result for result in sorted(results, key=lambda r: r.checked_at)}
    for storage in (database, memory):
        for proxy in storage.list_proxies(str(pool.id)):
            assert proxy.status is newest[proxy.id].status
            assert storage.get_last_health_result(proxy.id) == newest[proxy.id]
    log = list(database.events())
    assert database.live_states() == projections.fold(log, projections.ALL)
    assert memory.verify() == []


@pytest.mark.stress
def test_proxies_that_come_and_go_under_a_sweep_leave_a_clean_ledger(
    storage: PostgresStorage,
) -> None:
    """One removed and registered again, under the same id, is not judged without its lock."""
    _, proxies = fill(storage, 20, max_concurrency=2)
    fleeting = proxies[-4:]
    over = threading.Event()

    def work(number: int) -> None:
        own = random.Random(number)
        if number == 0:
            for _ in range(100):
                proxy = own.choice(fleeting)
                storage.delete_proxy(str(proxy.id))
                storage.save_proxy(proxy)
            over.set()
        manager = ProxyManager(storage)
        while not over.is_set():
            if number % 2:
                batch = own.choices(proxies, k=40)
                manager.record_health_checks(
                    [checked(p, status=own.choice([GOOD, BAD])) for p in batch]
                )
            else:
                manager.acquire_proxy("pool", duration_seconds=1)

    threads(5, work)
    assert storage.verify() == []


@pytest.mark.stress
def test_sweeps_at_once_beside_leasing_leave_a_clean_ledger(storage: PostgresStorage) -> None:
    """Batches that overlap in any order never deadlock, and nobody leases what is inactive."""
    _, proxies = fill(storage, 40, max_concurrency=2)
    over = threading.Event()

    def work(number: int) -> None:
        own = random.Random(number)
        manager = ProxyManager(storage)
        if number < 3:
            for _ in range(40):
                batch = own.choices(proxies, k=25)
                manager.record_health_checks(
                    [checked(p, status=own.choice([GOOD, GOOD, SLOW, BAD])) for p in batch],
                    HealthPolicy(failures_before_inactive=2, latency_window=3),
                )
            over.set()
        while not over.is_set():
            with manager.with_lease("pool", f"worker-{number}"):
                pass

    threads(8, work)
    assert storage.verify() == []
    dropped = [event for event in checks(storage) if event.lease_ids]
    assert dropped, "no proxy ever dropped while it was leased"
    for event in dropped:
        assert len(event.lease_ids) == event.before.leases

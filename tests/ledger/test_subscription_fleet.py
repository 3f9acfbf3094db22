"""``manager.subscribe``: what any manager did, with payloads as the manager's own callbacks get."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import projections
from pharox import (
    AcquireEventPayload,
    ExpireEventPayload,
    HealthCheckResult,
    HealthEventPayload,
    InMemoryStorage,
    InvalidInputError,
    Lease,
    ProxyFilters,
    ProxyManager,
    ProxyProtocol,
    ProxyStatus,
    ReleaseEventPayload,
    RevokeEventPayload,
    SelectorStrategy,
)
from pharox.events import Event
from pharox.ledger.subscriptions import fleet, subscriptions
from pharox.ledger.subscriptions.fleet import Payloads
from pharox.log import Extract
from pharox.storage.postgres import PostgresStorage
from projections.pool_stats import COUNTS
from tests.conftest import DatabaseClock, fill, ledger
from tests.ledger.following import is_level, until

TOLD = ("LeaseAcquired", "AcquireMissed", "LeaseReleased", "LeaseExpired", "HealthChecked")
TIMES = {"started_at", "completed_at", "duration_ms"}
"""What a log cannot know of an attempt."""


def check(proxy_id: Any, status: ProxyStatus = ProxyStatus.SLOW) -> HealthCheckResult:
    return HealthCheckResult(
        proxy_id=proxy_id,
        status=status,
        latency_ms=1200,
        protocol=ProxyProtocol.HTTP,
        attempts=2,
        status_code=200,
        error_message="late",
    )


def test_payloads_are_those_of_the_callbacks(storage: PostgresStorage, database_url: str) -> None:
    """A subscription tells what the callbacks of another process's manager were told."""
    clock = DatabaseClock(storage)
    fill(storage, 2, country="AR")
    told: list[Any] = []
    heard: list[Any] = []
    with ledger(database_url) as other:
        manager = ProxyManager(other)
        manager.register_acquire_callback(told.append)
        manager.register_release_callback(told.append)
        manager.register_expire_callback(told.append)
        manager.register_revoke_callback(told.append)
        whole_fleet = ProxyManager(storage).subscribe(
            on_acquire=heard.append,
            on_release=heard.append,
            on_expire=heard.append,
            on_revoke=heard.append,
        )
        with whole_fleet.running():
            filters = ProxyFilters(country="AR", any_of=[ProxyFilters(city="x"), ProxyFilters()])
            least_used = SelectorStrategy.LEAST_USED
            lease = manager.acquire_proxy("pool", "worker", 60, filters, least_used)
            assert lease is not None
            clock.advance(5)
            manager.release_proxy(lease)
            manager.acquire_proxy("pool", "worker", 60)
            other_lease = manager.acquire_proxy("pool", "other", 600)
            assert other_lease is not None
            assert manager.acquire_proxy("pool", "third") is None
            assert manager.acquire_proxy("nowhere", "third") is None
            clock.advance(61)
            assert manager.cleanup_expired_leases() == 1
            manager.revoke_lease(other_lease.id, "why")
            until(lambda: len(heard) == 8)
    assert len(told) == 8
    for one, another in zip(told, heard, strict=True):
        assert type(one) is type(another)
        assert plain(one) == plain(another)
    assert {type(payload) for payload in heard} == {
        AcquireEventPayload,
        ReleaseEventPayload,
        ExpireEventPayload,
        RevokeEventPayload,
    }


def plain(payload: Any) -> dict[str, Any]:
    """Return what must be the same; the manager's lease object goes on with its lease."""
    facts: dict[str, Any] = payload.model_dump(exclude=TIMES)
    if isinstance(payload, AcquireEventPayload) and payload.lease is not None:
        facts["lease"] = payload.lease.model_dump(exclude={"status", "released_at"})
    return facts


def test_a_health_check_is_told(storage: PostgresStorage) -> None:
    """With the result, what became of the proxy, and how many leases it has."""
    _, (proxy,) = fill(storage, 1)
    manager = ProxyManager(storage)
    manager.acquire_proxy("pool")
    result = check(proxy.id)
    heard: list[HealthEventPayload] = []
    with manager.subscribe(on_health=heard.append).running():
        storage.apply_health_check_result(result)
        until(lambda: heard)
    (payload,) = heard
    assert payload.result == result
    assert (payload.status_before, payload.status_after) == (ProxyStatus.ACTIVE, ProxyStatus.SLOW)
    assert (payload.pool_name, payload.applied, payload.leases) == ("pool", True, 1)
    assert payload.pool_stats is not None
    assert payload.pool_stats.active_proxies == 0


def test_coroutine_functions_are_awaited(storage: PostgresStorage) -> None:
    """Callbacks may be ``async def``, beside plain ones."""
    import asyncio

    fill(storage, 1)
    manager = ProxyManager(storage)
    heard: list[str] = []
    stop = asyncio.Event()

    async def on_acquire(payload: AcquireEventPayload) -> None:
        heard.append(payload.pool_name)

    def on_release(payload: ReleaseEventPayload) -> None:
        heard.append(str(payload.reason))
        stop.set()

    both = manager.subscribe(
        "fleet", on_acquire=on_acquire, on_release=on_release, start="beginning"
    )
    with manager.with_lease("pool"):
        pass
    asyncio.run(both.run_async(stop))
    assert heard == ["pool", "None"]
    with pytest.raises(InvalidInputError, match="run_async"):
        both.run()


def test_a_name_is_durable_and_none_is_forgotten(storage: PostgresStorage) -> None:
    """With a name another run goes on behind the first; without one nothing is left."""
    fill(storage, 2)
    manager = ProxyManager(storage)
    heard: list[Lease | None] = []
    stop = threading.Event()

    def on_acquire(payload: AcquireEventPayload) -> None:
        heard.append(payload.lease)
        stop.set()

    leases = [manager.acquire_proxy("pool"), manager.acquire_proxy("pool")]
    for _ in leases:
        stop.clear()
        manager.subscribe("named", on_acquire=on_acquire, start="beginning").run(stop)
    with manager.subscribe(on_acquire=on_acquire).running():
        assert len(subscriptions(storage)) == 2
    assert [status.name for status in subscriptions(storage)] == ["named"]
    assert heard == leases


def test_a_callback_that_raises_is_called_again(storage: PostgresStorage) -> None:
    """Delivered again, an event has the same payload."""
    fill(storage, 2)
    manager = ProxyManager(storage)
    heard: list[AcquireEventPayload] = []

    def on_acquire(payload: AcquireEventPayload) -> None:
        heard.append(payload)
        if len(heard) < 3:
            raise ValueError

    with manager.subscribe("named", on_acquire=on_acquire).running():
        manager.acquire_proxy("pool")
        manager.acquire_proxy("pool")
        until(lambda: is_level(storage, "named"))
    assert heard[0] == heard[1] == heard[2]
    assert [payload.pool_stats and payload.pool_stats.leased_proxies for payload in heard[2:]] == [
        1,
        2,
    ]


def test_what_cannot_be_subscribed_is_refused(storage: PostgresStorage) -> None:
    """Not without a callback, and not where there is no database."""
    with pytest.raises(InvalidInputError, match="on_expire, on_revoke, on_health"):
        ProxyManager(storage).subscribe()
    with pytest.raises(InvalidInputError, match="PostgreSQL"):
        ProxyManager(InMemoryStorage()).subscribe(on_acquire=print)


class _Clock:
    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


def history(steps: list[tuple[str, int]]) -> InMemoryStorage:
    """Return a ledger in which these things happened to two pools."""
    clock = _Clock()
    storage = InMemoryStorage(clock=clock)
    proxies = [proxy for name in ("a", "b") for proxy in fill(storage, 3, name=name)[1]]
    manager = ProxyManager(storage)
    held: list[Lease] = []
    for step, number in steps:
        clock.now += timedelta(seconds=1)
        proxy = proxies[number % len(proxies)]
        match step:
            case "acquire":
                lease = manager.acquire_proxy(("a", "b", "c")[number % 3], duration_seconds=5)
                held += [lease] if lease else []
            case "release" if held:
                manager.release_proxy(held.pop(number % len(held)))
            case "wait":
                clock.now += timedelta(seconds=number)
                manager.cleanup_expired_leases()
            case "check":
                status = (ProxyStatus.ACTIVE, ProxyStatus.SLOW, ProxyStatus.INACTIVE)[number % 3]
                result = check(proxy.id, status).model_copy(update={"checked_at": clock.now})
                storage.apply_health_check_result(result)
            case "remove" if storage.get_proxy_by_id(proxy.id) is not None:
                storage.delete_proxy(str(proxy.id))
            case "remove pool" if (pool := storage.get_pool_by_name("b")) is not None:
                storage.delete_pool(str(pool.id))
    return storage


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["acquire", "acquire", "release", "wait", "check", "remove", "remove pool"]
        ),
        st.integers(0, 8),
    ),
    max_size=40,
)


@settings(max_examples=60)
@given(steps=STEPS, order=st.randoms(use_true_random=False), start=st.integers(0, 20))
def test_statistics_are_exact_at_each_event(
    monkeypatch: pytest.MonkeyPatch, steps: list[tuple[str, int]], order: Any, start: int
) -> None:
    """For any history, from any event on, delivered again in any order: as folded up to there."""
    monkeypatch.setattr(fleet, "KEPT", 8)
    monkeypatch.setattr(fleet, "AHEAD", 5)
    log = history(steps)
    events = [event for event in log.events(after=start) if event.type in TOLD]
    payloads = Payloads(log, TOLD)
    again = order.sample(events, len(events))
    for event in [*events, *again]:
        for payload, part in zip(payloads.of(event), event.parts(), strict=True):
            check_payload(payload, part, log)


def check_payload(payload: Any, event: Event, log: InMemoryStorage) -> None:
    state = log.state_at(event.seq)
    pool = state["pools"].get((event.pool_id,))
    if pool is None:
        assert payload.pool_stats is None
    else:
        counts = state["pool_stats"][(event.pool_id,)]
        assert payload.pool_stats.pool_name == pool.name
        assert payload.pool_stats.collected_at == event.recorded_at
        assert {name: getattr(payload.pool_stats, name) for name in COUNTS} == {
            name: getattr(counts, name) for name in COUNTS
        }
    if event.lease_id is not None:
        extract = Extract(upto=event.seq)
        leases = projections.fold(log.history(extract), [projections.LEASES])["leases"]
        row = leases[event.lease_id, event.pool_id]
        assert payload.lease == Lease.model_validate(row, from_attributes=True)

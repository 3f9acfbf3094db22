"""Sweeps record their results in batches, before they return them, while leasing goes on."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from pharox import (
    AcquisitionRate,
    AsyncInMemoryStorage,
    ExpireEventPayload,
    HealthChecker,
    HealthCheckOptions,
    HealthCheckOrchestrator,
    HealthCheckResult,
    HealthCheckStrategy,
    HealthEventPayload,
    HealthOutcome,
    HealthPolicy,
    InMemoryStorage,
    InvalidInputError,
    Proxy,
    ProxyManager,
    ProxyProtocol,
    ProxyStatus,
    SweepSummary,
    attributed,
)
from pharox.events import HealthChecked
from pharox.storage.postgres import PostgresStorage
from pharox.testing import checked
from tests.conftest import AnyStorage, clock_of, fill, types_of

GOOD, BAD = ProxyStatus.ACTIVE, ProxyStatus.INACTIVE


class Scripted(HealthCheckStrategy):
    """Finds what ``verdict`` says, after so many seconds."""

    def __init__(
        self,
        verdict: Callable[[Proxy], ProxyStatus] = lambda _: GOOD,
        delay_s: Callable[[Proxy], float] = lambda _: 0,
    ) -> None:
        self.verdict, self.delay_s = verdict, delay_s
        self.begun = 0

    async def check(self, proxy: Proxy, options: HealthCheckOptions) -> HealthCheckResult:
        self.begun += 1
        await asyncio.sleep(self.delay_s(proxy))
        return checked(proxy, status=self.verdict(proxy))


def checker_with(strategy: HealthCheckStrategy) -> HealthChecker:
    return HealthChecker(strategies=dict.fromkeys(ProxyProtocol, strategy))


def sweep(orchestrator: HealthCheckOrchestrator, *args: Any, **options: Any) -> list[HealthOutcome]:
    """Run a sweep to its end."""

    async def whole() -> list[HealthOutcome]:
        return [outcome async for outcome in orchestrator.sweep(*args, **options)]

    return asyncio.run(whole())


def port_is_even(proxy: Proxy) -> ProxyStatus:
    return GOOD if proxy.id.int % 2 == 0 else BAD


def test_a_sweep_records_what_it_finds(any_storage: AnyStorage) -> None:
    """Whatever is due is checked once; the read models are the fold of the log afterwards."""
    _, proxies = fill(any_storage, 30)
    orchestrator = HealthCheckOrchestrator(any_storage, checker_with(Scripted(port_is_even)))
    outcomes = sweep(orchestrator)
    assert Counter(outcome.result.proxy_id for outcome in outcomes) == Counter(
        proxy.id for proxy in proxies
    )
    for proxy in proxies:
        assert any_storage.get_proxy(str(proxy.id)).status is port_is_even(proxy)
    assert any_storage.verify() == []


def test_results_are_recorded_before_they_are_yielded(any_storage: AnyStorage) -> None:
    fill(any_storage, 20)

    async def check() -> None:
        orchestrator = HealthCheckOrchestrator(any_storage, checker_with(Scripted()))
        proxies = any_storage.load_proxies_for_healthchecks()
        async for result in orchestrator.stream_health_checks(proxies, concurrency=3):
            assert any_storage.get_last_health_result(result.proxy_id) == result

    asyncio.run(check())


def test_what_comes_fast_is_recorded_in_batches(
    storage: PostgresStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one batch is being written the next gathers: far fewer commits than results."""
    fill(storage, 400)
    sizes: list[int] = []
    record = storage.record_health_checks

    def counted(*args: Any) -> Sequence[HealthOutcome]:
        sizes.append(len(args[0]))
        return record(*args)

    monkeypatch.setattr(storage, "record_health_checks", counted)
    sweep(HealthCheckOrchestrator(storage, checker_with(Scripted())))
    assert sum(sizes) == 400
    assert len(sizes) < 100


def test_a_sweep_takes_back_what_ran_out_first(any_storage: AnyStorage) -> None:
    """The manager's expire callbacks are called too."""
    fill(any_storage, 1)
    manager = ProxyManager(any_storage)
    told: list[ExpireEventPayload] = []
    manager.register_expire_callback(told.append)
    clock = clock_of(any_storage)
    assert manager.acquire_proxy("pool", duration_seconds=10) is not None
    clock.advance(11)
    sweep(HealthCheckOrchestrator(manager=manager, checker=checker_with(Scripted())))
    assert types_of(any_storage)[-2:] == ["LeaseExpired", "HealthChecked"]
    assert len(told) == 1


def test_a_callback_may_ask_whose_proxy_has_dropped(any_storage: AnyStorage) -> None:
    fill(any_storage, 2, max_concurrency=None)
    manager = ProxyManager(any_storage)
    lost: list[str] = []

    def note(payload: HealthEventPayload) -> None:
        for lease_id in payload.lease_ids:
            lease = any_storage.get_lease(str(lease_id))
            assert lease is not None
            lost.append(str(lease.consumer_name))

    manager.register_health_callback(note)
    for n in range(4):
        manager.acquire_proxy("pool", f"worker-{n}")
    held = {str(lease.proxy_id) for lease in any_storage.list_leases()}
    gone = min(held)
    strategy = Scripted(lambda proxy: BAD if str(proxy.id) == gone else GOOD)
    sweep(HealthCheckOrchestrator(manager=manager, checker=checker_with(strategy)))
    holders = [x.consumer_name for x in any_storage.list_leases() if str(x.proxy_id) == gone]
    assert sorted(lost) == sorted(filter(None, holders))
    assert lost


def test_the_policy_is_followed(any_storage: AnyStorage) -> None:
    fill(any_storage)
    orchestrator = HealthCheckOrchestrator(
        any_storage,
        checker_with(Scripted(lambda _: BAD)),
        policy=HealthPolicy(failures_before_inactive=3),
    )
    found = [sweep(orchestrator)[0].status_after for _ in range(3)]
    assert found == [GOOD, GOOD, BAD]
    kept = [event.streak for event in any_storage.events() if isinstance(event, HealthChecked)]
    assert kept == [-1, -2, -3]


def test_unknown_proxies_end_no_sweep(any_storage: AnyStorage) -> None:
    _, proxies = fill(any_storage, 3)
    strangers = [proxy.model_copy(update={"id": uuid4()}) for proxy in proxies]
    orchestrator = HealthCheckOrchestrator(any_storage, checker_with(Scripted()))
    outcomes = sweep(orchestrator, [*proxies, *strangers])
    known = Counter(outcome.known for outcome in outcomes)
    assert known == {True: 3, False: 3}


def test_attribution_reaches_the_log(any_storage: AnyStorage) -> None:
    """Although results are recorded in another thread."""
    fill(any_storage, 1)
    with attributed(actor="nightly", correlation_id="run-7"):
        sweep(HealthCheckOrchestrator(any_storage, checker_with(Scripted())))
    event = list(any_storage.events())[-1]
    assert (event.type, event.actor, event.correlation_id) == ("HealthChecked", "nightly", "run-7")


# One at a time


def test_one_proxy_is_checked_and_recorded(any_storage: AnyStorage) -> None:
    _, (proxy,) = fill(any_storage)
    orchestrator = HealthCheckOrchestrator(any_storage, checker_with(Scripted(lambda _: BAD)))
    result = asyncio.run(orchestrator.check_proxy(proxy))
    assert any_storage.get_last_health_result(proxy.id) == result
    later = checked(proxy, checked_at=result.checked_at + timedelta(microseconds=1))
    applied = orchestrator.apply_result(later)
    assert applied is not None
    assert applied.status is GOOD
    stray = checked(proxy.model_copy(update={"id": uuid4()}))
    assert orchestrator.apply_result(stray) is None
    assert asyncio.run(orchestrator.apply_result_async(stray)) is None
    again = asyncio.run(orchestrator.apply_result_async(later))
    assert again == applied


def test_a_storage_is_needed() -> None:
    with pytest.raises(InvalidInputError, match="storage"):
        HealthCheckOrchestrator()
    with pytest.raises(InvalidInputError, match="storage"):
        HealthCheckOrchestrator(InMemoryStorage(), manager=ProxyManager(InMemoryStorage()))
    with pytest.raises(InvalidInputError, match="pause_when"):
        HealthCheckOrchestrator(InMemoryStorage(), pause_when=5)  # type: ignore[arg-type]


# A storage with coroutines


class Async(AsyncInMemoryStorage):
    """A storage whose methods are coroutines that wait."""

    async def record_health_checks(
        self, results: Sequence[HealthCheckResult], policy: HealthPolicy | None = None
    ) -> Sequence[HealthOutcome]:
        await asyncio.sleep(0)
        return await super().record_health_checks(results, policy)

    async def load_proxies_for_healthchecks(
        self, *args: Any, **choice: Any
    ) -> AsyncIterator[Proxy]:
        async for proxy in super().load_proxies_for_healthchecks(*args, **choice):
            await asyncio.sleep(0)
            yield proxy


class Plain(Async):
    """One whose loading is a plain function that returns an async iterator."""

    def load_proxies_for_healthchecks(self, *args: Any, **choice: Any) -> AsyncIterator[Proxy]:
        return super().load_proxies_for_healthchecks(*args, **choice)


@pytest.mark.parametrize("kind", [Async, Plain])
def test_a_storage_with_coroutines_is_awaited(kind: type[Async]) -> None:
    storage = kind()
    _, proxies = fill(storage.memory, 20)
    orchestrator = HealthCheckOrchestrator(storage, checker_with(Scripted(port_is_even)))
    assert len(sweep(orchestrator)) == 20
    for proxy in proxies:
        assert storage.memory.get_proxy(str(proxy.id)).status is port_is_even(proxy)
    with pytest.raises(TypeError, match="apply_result_async"):
        orchestrator.apply_result(checked(proxies[0]))
    applied = asyncio.run(orchestrator.apply_result_async(checked(proxies[0], status=BAD)))
    assert applied is not None
    assert applied.status is BAD


# Leaving


def test_leaving_early_leaves_nothing_behind(any_storage: AnyStorage) -> None:
    """No task, no thread; what was yielded is recorded, and nothing that was not checked."""
    fill(any_storage, 200)

    async def leave() -> None:
        before = asyncio.all_tasks()
        strategy = Scripted(delay_s=lambda proxy: (proxy.id.int % 7) / 200)
        orchestrator = HealthCheckOrchestrator(any_storage, checker_with(strategy))
        swept = orchestrator.sweep(concurrency=20)
        async with aclosing(swept):
            async for outcome in swept:
                assert any_storage.get_last_health_result(outcome.result.proxy_id) is not None
                break
        assert asyncio.all_tasks() == before
        assert strategy.begun < 200

    asyncio.run(leave())
    for thread in threading.enumerate():
        if thread.name.startswith("pharox-health"):
            thread.join(10)
            assert not thread.is_alive()
    assert any_storage.verify() == []


def test_a_cancelled_sweep_leaves_nothing_behind(any_storage: AnyStorage) -> None:
    fill(any_storage, 100)

    async def cancel() -> None:
        before = asyncio.all_tasks()
        strategy = Scripted(delay_s=lambda _: 0.01)
        orchestrator = HealthCheckOrchestrator(any_storage, checker_with(strategy))

        async def work() -> None:
            async for _ in orchestrator.sweep(concurrency=5):
                pass

        task = asyncio.create_task(work())
        while strategy.begun < 20:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asyncio.all_tasks() == before

    asyncio.run(cancel())
    assert any_storage.verify() == []


def test_an_error_of_the_storage_ends_the_sweep_and_its_checks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    storage = InMemoryStorage()
    fill(storage, 50)

    def fail(*_: Any) -> Sequence[HealthOutcome]:
        raise RuntimeError("the disk is full")

    monkeypatch.setattr(storage, "record_health_checks", fail)

    async def check() -> None:
        before = asyncio.all_tasks()
        orchestrator = HealthCheckOrchestrator(storage, checker_with(Scripted()))
        with pytest.raises(RuntimeError, match="disk is full"):
            async for _ in orchestrator.sweep():
                pass
        assert asyncio.all_tasks() == before

    asyncio.run(check())


# Pauses


def test_a_sweep_pauses_while_it_is_asked_to(any_storage: AnyStorage) -> None:
    """What is under way goes on; nothing new begins until the pause is over."""
    fill(any_storage, 10)
    strategy = Scripted()
    asked: list[int] = []

    def busy() -> bool:
        asked.append(strategy.begun)
        return len(asked) <= 2

    orchestrator = HealthCheckOrchestrator(any_storage, checker_with(strategy), pause_when=busy)
    assert len(sweep(orchestrator)) == 10
    assert asked[:3] == [0, 0, 0]


def test_a_pause_may_be_asked_for_by_a_coroutine() -> None:
    storage = InMemoryStorage()
    fill(storage, 3)
    answers = iter([True, False])

    async def busy() -> bool:
        await asyncio.sleep(0)
        return next(answers, False)

    orchestrator = HealthCheckOrchestrator(storage, checker_with(Scripted()), pause_when=busy)
    assert len(sweep(orchestrator)) == 3
    assert next(answers, None) is None


def test_many_acquisitions_are_told_from_few() -> None:
    """More than so many within a second are many; a second later they are none."""
    seconds = 100.0
    rate = AcquisitionRate(3, clock=lambda: seconds)
    assert not rate.is_high()
    for _ in range(3):
        rate.note()
    assert not rate.is_high()
    rate.note()
    assert rate.is_high()
    seconds += 1
    assert not rate.is_high()
    for bad in (0, -1, True):
        with pytest.raises(InvalidInputError):
            AcquisitionRate(bad)


def test_a_rate_counts_a_managers_acquisitions() -> None:
    storage = InMemoryStorage()
    fill(storage, 1)
    manager = ProxyManager(storage)
    rate = AcquisitionRate(2)
    manager.register_acquire_callback(rate.note)
    for _ in range(3):
        manager.acquire_proxy("pool")
    assert rate.is_high()


# A slow storage, and a source that blocks


def test_a_blocking_source_and_storage_do_not_stop_the_checks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both run beside the event loop: a probe is not late because a page is being read."""
    storage = InMemoryStorage()
    fill(storage, 30)
    load, record = storage.load_proxies_for_healthchecks, storage.record_health_checks
    gaps: list[float] = []

    def slow_load(*args: Any, **choice: Any) -> Iterator[Proxy]:
        for proxy in load(*args, **choice):
            time.sleep(0.01)
            yield proxy

    def slow_record(*args: Any) -> Sequence[HealthOutcome]:
        time.sleep(0.3)
        return record(*args)

    monkeypatch.setattr(storage, "load_proxies_for_healthchecks", slow_load)
    monkeypatch.setattr(storage, "record_health_checks", slow_record)

    async def tick() -> None:
        while True:
            began = time.monotonic()
            await asyncio.sleep(0.01)
            gaps.append(time.monotonic() - began)

    async def check() -> None:
        ticking = asyncio.create_task(tick())
        orchestrator = HealthCheckOrchestrator(storage, checker_with(Scripted()))
        assert len([outcome async for outcome in orchestrator.sweep()]) == 30
        ticking.cancel()

    asyncio.run(check())
    # 0.3 s twice and 0.01 s thirty times would show as few and long gaps.
    assert sorted(gaps)[len(gaps) // 2] < 0.1
    assert len(gaps) > 20


# In numbers


def test_a_summary_counts_what_a_sweep_found(any_storage: AnyStorage) -> None:
    pool, proxies = fill(any_storage, 6, country="AR", source="list")
    any_storage.set_status(proxies[0].id, BAD)
    manager = ProxyManager(any_storage)
    leases = [manager.acquire_proxy("pool", f"worker-{n}") for n in range(5)]
    assert all(leases)
    dropped = proxies[1].id
    summary = SweepSummary()
    orchestrator = HealthCheckOrchestrator(
        any_storage,
        checker_with(Scripted(lambda proxy: BAD if proxy.id == dropped else GOOD)),
    )
    due = any_storage.load_proxies_for_healthchecks(pool.name)
    stray = proxies[0].model_copy(update={"id": uuid4()})
    for outcome in sweep(orchestrator, summary.watch([*due, stray])):
        summary.add(outcome)
    assert (summary.checked, summary.unknown) == (7, 1)
    assert (summary.recovered, summary.dropped, summary.dropped_leases) == (1, 1, 1)
    assert summary.statuses == {GOOD: 5, BAD: 1}
    assert summary.by["country"] == {"AR": {GOOD: 5, BAD: 1}}
    assert summary.by["protocol"] == {"http": {GOOD: 5, BAD: 1}}
    assert summary.by["source"] == {"list": {GOOD: 5, BAD: 1}}

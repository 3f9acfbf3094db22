"""What a manager does, counted for Prometheus."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from pharox import (
    AcquireEventPayload,
    AsyncInMemoryStorage,
    AsyncProxyManager,
    CheckFailure,
    InMemoryStorage,
    InvalidInputError,
    Outcome,
    PrometheusMetricsRecorder,
    ProxyManager,
    ProxyStatus,
    bootstrap_pool,
    register_prometheus_metrics,
)
from pharox.scraping.bounded_label import BoundedLabel
from pharox.testing import checked
from tests.conftest import clock_of, fill

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def samples(registry: CollectorRegistry) -> dict[tuple[str, tuple[str, ...]], float]:
    """Return every sample of a registry, as a scrape has it, by name and sorted label values."""
    text = generate_latest(registry).decode()
    lines = [line for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(lines) == len(set(lines))
    return {
        (sample.name, tuple(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def test_everything_is_counted() -> None:
    """Hits, misses with their reason, durations, expiry, health, and the pool in numbers."""
    storage = InMemoryStorage()
    clock = clock_of(storage)
    _, proxies = fill(storage, 2)
    manager = ProxyManager(storage)
    registry = CollectorRegistry()
    recorder = register_prometheus_metrics(manager, registry=registry)
    assert isinstance(recorder, PrometheusMetricsRecorder)
    lease = manager.acquire_proxy("pool", "crawler", duration_seconds=100)
    assert lease is not None
    manager.acquire_proxy("pool", "slow", duration_seconds=5)
    assert manager.acquire_proxy("pool", "crawler") is None
    assert manager.acquire_proxy("nowhere", "crawler") is None
    clock.advance(7)
    manager.cleanup_expired_leases()
    manager.release_proxy(lease)
    revoked = manager.acquire_proxy("pool", "revoked")
    assert revoked is not None
    clock.advance(3)
    manager.revoke_lease(revoked.id, "why")
    slow = checked(proxies[0], status=ProxyStatus.SLOW, latency_ms=1500, checked_at=clock.now)
    manager.record_health_checks([slow])
    manager.register_acquire_callback(_fail)
    with pytest.raises(ZeroDivisionError):
        manager.acquire_proxy("pool", "crawler")

    found = samples(registry)
    asked = ("crawler", "pool", "first_available")
    assert found["pharox_acquire_total", (*asked, "hit")] == 2
    assert found["pharox_acquire_total", (*asked, "miss")] == 1
    assert found["pharox_acquire_total", ("crawler", "other", asked[2], "miss")] == 1
    assert found["pharox_acquire_duration_seconds_count", (*asked, "hit")] == 2
    assert found["pharox_acquire_misses_total", ("crawler", "pool", "at_capacity", asked[2])] == 1
    misspelled = ("crawler", "other", "unknown_pool", asked[2])
    assert found["pharox_acquire_misses_total", misspelled] == 1
    assert found["pharox_release_total", ("pool",)] == 2
    assert found["pharox_expired_total", ("pool",)] == 1
    assert found["pharox_revoked_total", ("pool",)] == 1
    assert found["pharox_lease_duration_seconds_sum", ("revoked", "pool")] == 3
    assert found["pharox_lease_duration_seconds_sum", ("expired", "pool")] == 7
    assert found["pharox_lease_duration_seconds_bucket", ("released", "10.0", "pool")] == 2
    assert found["pharox_health_checks_total", ("", "pool", "http", "", "slow")] == 1
    assert found["pharox_health_check_duration_seconds_sum", ("pool", "http", "")] == 1.5
    assert found["pharox_callback_failures_total", ("acquire",)] == 1
    assert found["pharox_callback_failures_total", ("release",)] == 0
    gauges = ("total_proxies", "active_proxies", "available_proxies", "leased_proxies", "leases")
    assert [found[f"pharox_pool_{name}", ("pool",)] for name in gauges] == [2, 1, 1, 0, 0]


def _fail(payload: Any) -> None:
    raise ZeroDivisionError


def test_what_threads_count_at_once_is_counted() -> None:
    """Also while each of them is the first to meet a series."""
    payload = {"lease": None, "pool_name": "pool", "started_at": NOW, "completed_at": NOW}
    registry = CollectorRegistry()
    recorder = PrometheusMetricsRecorder(registry=registry)
    ready = threading.Barrier(8)

    def count() -> None:
        ready.wait()
        for number in range(50):
            recorder.handle_acquire(
                AcquireEventPayload(**payload, consumer_name=f"worker-{number}", duration_ms=1)
            )

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = samples(registry)
    assert {v for (name, _), v in found.items() if name == "pharox_acquire_total"} == {8}
    assert sum(v for (name, _), v in found.items() if name == "pharox_acquire_total") == 400


def test_checks_are_counted_by_provider_and_failure() -> None:
    """The proxy's source and why the check failed; beyond the first sources they are other."""
    storage = InMemoryStorage()
    known = [fill(storage, name=name, source=name)[1][0] for name in ("one", "two", "three")]
    manager = ProxyManager(storage)
    registry = CollectorRegistry()
    register_prometheus_metrics(manager, registry=registry, max_sources=2)
    failed = {"status": ProxyStatus.INACTIVE, "failure": CheckFailure.TIMEOUT, "latency_ms": 4000}
    manager.record_health_checks([checked(proxy, latency_ms=20) for proxy in known])
    manager.record_health_checks([checked(proxy, **failed) for proxy in known])
    found = samples(registry)
    for name, source in (("one", "one"), ("two", "two"), ("three", "other")):
        assert found["pharox_health_checks_total", ("", name, "http", source, "active")] == 1
        failures = ("timeout", name, "http", source, "inactive")
        assert found["pharox_health_checks_total", failures] == 1
        took = "pharox_health_check_duration_seconds"
        assert found[f"{took}_sum", (name, "http", source)] == 4.02
        assert found[f"{took}_bucket", ("0.025", name, "http", source)] == 1


def test_names_beyond_the_first_are_other() -> None:
    """Who invents names all the time cannot make the registry grow."""
    storage = InMemoryStorage()
    fill(storage, 1)
    manager = ProxyManager(storage)
    registry = CollectorRegistry()
    register_prometheus_metrics(manager, registry=registry, max_consumers=2, max_pools=1)
    for number in range(50):
        bootstrap_pool(storage, name=f"pool-{number}")
        with manager.with_lease("pool", f"worker-{number}"):
            manager.acquire_proxy(f"pool-{number}", f"worker-{number}")
    found = samples(registry)
    hits = {k[1][0]: v for k, v in found.items() if k[0] == "pharox_acquire_total" if "hit" in k[1]}
    assert hits == {"worker-0": 1, "worker-1": 1, "other": 48}
    missed = {k[1][1] for k in found if k[0] == "pharox_acquire_misses_total"}
    assert missed == {"other"}
    with pytest.raises(ValueError, match="non-negative"):
        BoundedLabel(-1)


def test_managers_of_a_process_share_their_metrics() -> None:
    """Each manager may have a recorder; other options for the same names are refused."""
    registry = CollectorRegistry()
    awaited = AsyncInMemoryStorage()
    fill(awaited.memory, 2)
    one, other = ProxyManager(awaited.memory), AsyncProxyManager(awaited)
    for manager in (one, other):
        register_prometheus_metrics(manager, registry=registry)
    one.acquire_proxy("pool")
    asyncio.run(other.acquire_proxy("pool"))
    found = samples(registry)
    assert found["pharox_acquire_total", ("default", "pool", "first_available", "hit")] == 2
    with pytest.raises(InvalidInputError, match="other options"):
        PrometheusMetricsRecorder(registry=registry, acquire_buckets=[1])
    PrometheusMetricsRecorder(registry=registry, namespace="theirs", acquire_buckets=[1])
    fresh = CollectorRegistry()
    with pytest.raises(InvalidInputError, match="are not valid"):
        PrometheusMetricsRecorder(registry=fresh, acquire_buckets=[2, 1])
    PrometheusMetricsRecorder(registry=fresh, acquire_buckets=[1, 2])
    taken = CollectorRegistry()
    Counter("pharox_release_total", "theirs", registry=taken)
    with pytest.raises(InvalidInputError, match="already"):
        PrometheusMetricsRecorder(registry=taken)


def test_what_0_11_0_took_is_taken() -> None:
    """Summaries count and sum; quantiles are for the server to compute."""
    registry = CollectorRegistry()
    storage = InMemoryStorage()
    fill(storage)
    manager = ProxyManager(storage)
    register_prometheus_metrics(
        manager, registry=registry, enable_summaries=True, quantiles=[0.5], lease_buckets=[1, 2]
    )
    with manager.with_lease("pool"):
        pass
    found = samples(registry)
    assert found["pharox_acquire_duration_summary_seconds_count", ("pool", "hit")] == 1
    assert found["pharox_lease_duration_summary_seconds_count", ("pool",)] == 1
    with pytest.raises(TypeError, match="manager"):
        register_prometheus_metrics(storage)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ['a"b', "a\\b", "a\nb", "a{b}", "ünïcode", "\u202ertl"])
def test_names_are_inert_in_a_scrape(name: str) -> None:
    """A scrape with a hostile name in it is still one that can be read."""
    storage = InMemoryStorage()
    fill(storage, name=name)
    manager = ProxyManager(storage)
    registry = CollectorRegistry()
    register_prometheus_metrics(manager, registry=registry)
    manager.acquire_proxy(name, name)
    assert samples(registry)["pharox_acquire_total", (name, name, "first_available", "hit")] == 1


def test_outcomes_are_counted_once_recorded() -> None:
    """By pool and kind, never by target; a success counts when it is written."""
    storage = InMemoryStorage()
    fill(storage, 1)
    manager, registry = ProxyManager(storage), CollectorRegistry()
    register_prometheus_metrics(manager, registry=registry)
    lease = manager.acquire_proxy("pool", "crawler", target="shop.example")
    assert lease is not None
    manager.report(lease, Outcome.ok(count=3))
    assert ("pharox_outcomes_total", ("ok", "pool")) not in samples(registry)
    manager.report(lease, Outcome.blocked(status=403))
    manager.release_proxy(lease, Outcome.ok())
    found = samples(registry)
    assert found["pharox_outcomes_total", ("ok", "pool")] == 4
    assert found["pharox_outcomes_total", ("blocked", "pool")] == 1

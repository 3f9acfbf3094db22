"""What the guides of 0.11.0 say runs as they say it: their code, and their example."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from pydantic import AnyHttpUrl

from pharox import (
    AcquireEventPayload,
    HealthChecker,
    HealthCheckOptions,
    HealthCheckOrchestrator,
    HealthCheckResult,
    InMemoryStorage,
    Proxy,
    ProxyFilters,
    ProxyManager,
    ProxyProtocol,
    ProxyStatus,
    ReleaseEventPayload,
)
from pharox.storage.postgres import PostgresStorage
from tests.conftest import SECRET_KEY, fill, run_python
from tests.health.zoo import Zoo

EXAMPLE = (
    Path(__file__).parents[1] / "docs" / "examples" / "health-sweeps" / "run_proxy_health_checks.py"
)


class Client:
    """A client of some metrics' server, which notes what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def timing(self, name: str, value: float, tags: dict[str, str]) -> None:
        self.told.append((name, value >= 0, tags["pool"]))

    def gauge(self, name: str, value: float, tags: dict[str, str]) -> None:
        self.told.append((name, value, tags["status"]))

    def record_latency(self, proxy_id: object, latency_ms: int) -> None:
        self.told.append((proxy_id, latency_ms >= 0))


@pytest.fixture
def checker(zoo: Zoo) -> HealthChecker:
    """The guide's, with a page on loopback for its targets."""
    checker = HealthChecker(
        default_options=HealthCheckOptions(
            target_url=AnyHttpUrl(zoo.target("/status/204")),
            expected_status_codes=[204],
            timeout=5.0,
            attempts=2,
            slow_threshold_ms=1500,
        )
    )
    checker.set_protocol_options(
        ProxyProtocol.SOCKS5,
        HealthCheckOptions(
            target_url=AnyHttpUrl(zoo.target("/ok")),
            expected_status_codes=[200],
            timeout=8.0,
            attempts=3,
            slow_threshold_ms=2500,
        ),
    )
    return checker


@pytest.fixture
def proxies(zoo: Zoo) -> list[Proxy]:
    return [
        zoo.proxy("pproxy-http", "http"),
        zoo.proxy("pproxy-socks5", "socks5"),
        zoo.proxy("closes", "http"),
    ]


class TestHealthChecksAtScale:
    def test_stream_results(self, checker: HealthChecker, proxies: list[Proxy]) -> None:
        """Of any iterable, each with a status to go by."""
        well: list[HealthCheckResult] = []
        quarantined: list[HealthCheckResult] = []

        async def sweep(proxies: list[Proxy]) -> None:
            async for result in checker.stream_health_checks(proxies):
                if result.status in {ProxyStatus.ACTIVE, ProxyStatus.SLOW}:
                    well.append(result)
                else:
                    quarantined.append(result)

        asyncio.run(sweep(proxies))
        assert {result.proxy_id for result in well} == {proxy.id for proxy in proxies[:2]}
        assert [result.proxy_id for result in quarantined] == [proxies[2].id]

    def test_persist_outcomes(self, checker: HealthChecker, proxies: list[Proxy]) -> None:
        """With the orchestrator, of what the storage says is to be checked."""
        my_storage, metrics_client = InMemoryStorage(), Client()
        pool, _ = fill(my_storage, 0)
        my_storage.add_proxies_bulk(
            [proxy.model_copy(update={"pool_id": pool.id, "id": uuid4()}) for proxy in proxies]
        )
        orchestrator = HealthCheckOrchestrator(storage=my_storage, checker=checker)

        async def sweep_and_update() -> None:
            proxies = my_storage.load_proxies_for_healthchecks()
            async for result in orchestrator.stream_health_checks(proxies):
                metrics_client.record_latency(result.proxy_id, result.latency_ms)

        asyncio.run(sweep_and_update())
        assert len(metrics_client.told) == 3
        assert (
            len(list(my_storage.load_proxies_for_healthchecks(statuses=[ProxyStatus.ACTIVE]))) == 2
        )


class TestLifecycleHooks:
    def test_emit_metrics_and_lines(self, caplog: pytest.LogCaptureFixture) -> None:
        """The payloads have what the guide's callbacks read, and it can be written as JSON."""
        metrics, logger = Client(), logging.getLogger("guide")

        def on_acquire(event: AcquireEventPayload) -> None:
            tags = {
                "pool": event.pool_name,
                "consumer": event.consumer_name,
                "selector": event.selector.value,
                "status": "hit" if event.lease else "miss",
            }
            metrics.timing("pharox.acquire.duration_ms", event.duration_ms, tags)
            available = event.pool_stats.available_proxies if event.pool_stats else None
            if available is not None:
                metrics.gauge("pharox.pool.available", available, tags)
            logger.info(
                "pharox.acquire",
                extra={
                    "pool": event.pool_name,
                    "consumer": event.consumer_name,
                    "duration_ms": event.duration_ms,
                    "filters": event.filters.model_dump() if event.filters else None,
                    "lease_id": event.lease.id if event.lease else None,
                    "selector": event.selector.value,
                    "available": available,
                },
            )

        def on_release(event: ReleaseEventPayload) -> None:
            tags = {"pool": event.pool_name or "unknown"}
            metrics.timing("pharox.lease.duration_ms", event.lease_duration_ms or 0, tags)

        storage = InMemoryStorage()
        fill(storage, 1)
        manager = ProxyManager(storage=storage)
        manager.register_acquire_callback(on_acquire)
        manager.register_release_callback(on_release)
        with caplog.at_level(logging.INFO, logger="guide"):
            odd = ProxyFilters(predicate=lambda proxy: proxy.port == 8000)
            with manager.with_lease("pool", filters=odd) as lease:
                assert lease is not None
                assert manager.acquire_proxy("pool") is None
        assert metrics.told == [
            ("pharox.acquire.duration_ms", True, "pool"),
            ("pharox.pool.available", 0, "hit"),
            ("pharox.acquire.duration_ms", True, "pool"),
            ("pharox.pool.available", 0, "miss"),
            ("pharox.lease.duration_ms", True, "pool"),
        ]
        (hit, miss) = (vars(line) for line in caplog.records)
        assert "lambda" in json.loads(json.dumps(hit["filters"]))["predicate"]
        assert (hit["lease_id"], miss["filters"]) == (lease.id, None)

    def test_acquire_callback_records_miss(self) -> None:
        """The guide's own test."""
        storage = InMemoryStorage()
        manager = ProxyManager(storage=storage)
        events: list[AcquireEventPayload] = []
        manager.register_acquire_callback(events.append)
        lease = manager.acquire_proxy(pool_name="nope")
        assert lease is None
        assert len(events) == 1
        payload = events[0]
        assert payload.lease is None
        assert payload.pool_name == "nope"


def run(database_url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_python(
        str(EXAMPLE), *arguments, PHAROX_DATABASE_URL=database_url, PHAROX_SECRET_KEY=SECRET_KEY
    )


class TestExample:
    def test_it_sweeps_a_pool_and_tells_by_provider(
        self, postgres: PostgresStorage, database_url: str, zoo: Zoo
    ) -> None:
        """What it found is in the ledger; a page of a proxy's own is found out by the text."""
        pool, _ = fill(postgres, 0)
        honest, own, closing = (
            zoo.proxy(name, "http").model_copy(
                update={"pool_id": pool.id, "id": uuid4(), "source": source}
            )
            for name, source in (
                ("pproxy-http", "good"),
                ("http-answers", "bad"),
                ("http-closes", "bad"),
            )
        )
        postgres.add_proxies_bulk([honest, own, closing])
        text = ("--expect-text", "served by the target")
        done = run(database_url, "pool", "--target", zoo.target("/marked"), *text)
        assert (done.returncode, done.stderr) == (0, "")
        *told, bad, good, sums = done.stdout.splitlines()
        assert {line.partition(":")[0] for line in told} == {str(own.id), str(closing.id)}
        assert bad.startswith("bad: 2 checked, median ")
        assert "'unexpected_content': 1" in bad
        assert "'disconnected': 1" in bad
        assert good.startswith("good: 1 checked")
        assert good.endswith("failed: none")
        assert sums == "1 proxies can be leased"
        assert postgres.get_proxy(str(own.id)).status == ProxyStatus.INACTIVE
        assert postgres.get_proxy(str(honest.id)).status == ProxyStatus.ACTIVE

    def test_it_says_what_is_missing(self, postgres: PostgresStorage, database_url: str) -> None:
        """A target, or the pool; then it asks nobody."""
        fill(postgres)
        for arguments, told in (
            (("pool",), "PHAROX_CHECK_URL"),
            (("nope", "--target", "http://target.example/"), "Pool 'nope' not found."),
            (("pool", "--target", "target.example"), "target_url"),
        ):
            done = run(database_url, *arguments)
            assert (done.returncode, done.stdout) == (2, "")
            assert told in done.stderr

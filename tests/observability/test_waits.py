"""How long requests wait: in the metrics of a process and of the fleet, and in lines."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from pharox import (
    InMemoryStorage,
    ProxyManager,
    StructuredLogger,
    register_prometheus_metrics,
)
from pharox.observability.fleet import FleetServer
from pharox.storage.postgres import PostgresStorage
from tests.conftest import clock_of, fill
from tests.observability.test_fleet import level, scraped
from tests.observability.test_metrics import samples
from tests.queueing import live_with_waits, waiting


def test_a_process_counts_its_waits() -> None:
    """By pool and outcome; who was answered at once has not waited."""
    storage, registry = InMemoryStorage(), CollectorRegistry()
    fill(storage)
    manager = ProxyManager(storage)
    register_prometheus_metrics(manager, registry=registry)
    live_with_waits(manager, clock_of(storage).advance)
    found = samples(registry)
    granted, missed = ("granted", "pool"), ("missed", "pool")
    assert found["pharox_wait_seconds_sum", granted] == 0.9
    assert found["pharox_wait_seconds_bucket", ("0.5", "granted", "pool")] == 0
    assert found["pharox_wait_seconds_bucket", ("1.0", "granted", "pool")] == 1
    assert found["pharox_wait_seconds_count", granted] == 1
    assert found["pharox_wait_seconds_count", missed] == 1


def test_a_line_has_the_wait(caplog: pytest.LogCaptureFixture) -> None:
    """In milliseconds; None of who was answered at once."""
    caplog.set_level(logging.INFO)
    storage = InMemoryStorage()
    fill(storage)
    manager = ProxyManager(storage)
    StructuredLogger().register(manager)
    live_with_waits(manager, clock_of(storage).advance)
    lines: list[Any] = [r for r in caplog.records if r.getMessage() == "pharox.acquire"]
    waits = {line.consumer: line.waited_ms for line in lines}
    assert waits == {"early": None, "late": 900, "vain": 0}


def test_the_fleet_shows_who_waits(storage: PostgresStorage) -> None:
    """The queue as it is, also where nobody waits, and the waits that the log has."""
    clock = clock_of(storage)
    fill(storage)
    fill(storage, name="quiet")
    manager = ProxyManager(storage)
    with FleetServer(storage, port=0) as server:
        held = manager.acquire_proxy("pool", "early", 600)
        assert held is not None
        with waiting(manager):
            clock.advance(4)
            found = scraped(server.port)
            assert found["waiting", ("pool",)] == 1
            assert found["longest_wait_seconds", ("pool",)] == 4
            assert found["waiting", ("quiet",)] == found["longest_wait_seconds", ("quiet",)] == 0
            manager.release_proxy(held)
        assert manager.acquire_proxy("pool", "vain", wait_seconds=0.01) is None
        storage.seal()
        found = level(server, len(list(storage.events())))
    assert found["waiting", ("pool",)] == found["longest_wait_seconds", ("pool",)] == 0
    assert found["wait_seconds_sum", ("granted", "pool")] == 4
    buckets = {"2.5": 0, "5.0": 1, "+Inf": 1}
    for bound, count in buckets.items():
        assert found["wait_seconds_bucket", (bound, "granted", "pool")] == count
    assert found["wait_seconds_count", ("missed", "pool")] == 1

"""A line an event, with the fields of the event as keys."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from structlog.testing import LogCapture

from pharox import (
    AsyncInMemoryStorage,
    AsyncProxyManager,
    InMemoryStorage,
    LostEventPayload,
    Proxy,
    ProxyCredentials,
    ProxyFilters,
    ProxyManager,
    ProxyPool,
    ProxyProtocol,
    ProxyStatus,
    StructuredLogger,
    attributed,
    register_structured_logging,
)
from pharox.testing import checked
from tests.conftest import clock_of, fill

PASSWORD = "open sesame"


@pytest.fixture
def lines() -> Iterator[list[Any]]:
    """What structlog is given, in an application that has configured it."""
    capture = LogCapture()
    structlog.configure(processors=[structlog.contextvars.merge_contextvars, capture])
    yield capture.entries
    structlog.reset_defaults()


def noticed(caplog: pytest.LogCaptureFixture) -> ProxyManager:
    """Return a manager with a proxy to lease, and have caplog keep lines of INFO."""
    caplog.set_level(logging.INFO)
    storage = InMemoryStorage()
    fill(storage)
    return ProxyManager(storage)


def prepared(storage: InMemoryStorage) -> tuple[ProxyManager, Proxy]:
    pool = ProxyPool(name="pool")
    storage.save_pool(pool)
    proxy = Proxy(
        host="192.0.2.1",
        port=80,
        protocol=ProxyProtocol.HTTP,
        pool_id=pool.id,
        status=ProxyStatus.ACTIVE,
        max_concurrency=1,
        country="AR",
        credentials=ProxyCredentials.model_validate({"user": "alice", "password": PASSWORD}),
    )
    storage.save_proxy(proxy)
    return ProxyManager(storage), proxy


def live(manager: ProxyManager, proxy: Proxy) -> None:
    """Do each thing once: hit, miss, release, expiry, check, and a callback that fails."""
    clock = clock_of(manager.storage)
    with attributed(actor="nightly", correlation_id="run-7"):
        with manager.with_lease("pool", "crawler", filters=ProxyFilters(country="AR")):
            manager.acquire_proxy("pool", "late")
        manager.acquire_proxy("pool", "slow", duration_seconds=1)
        clock.advance(2)
        manager.cleanup_expired_leases()
        held = manager.acquire_proxy("pool")
        assert held is not None
        banned = checked(proxy, status=ProxyStatus.INACTIVE, checked_at=clock.now)
        manager.record_health_checks([banned])
        manager.register_release_callback(_fail)
        with pytest.raises(ZeroDivisionError):
            manager.release_proxy(held)


def _fail(payload: Any) -> None:
    raise ZeroDivisionError(PASSWORD)


def test_each_thing_is_a_line(lines: list[Any]) -> None:
    """Hit, miss, release, expiry, health check and a failed callback, with who and which job."""
    manager, proxy = prepared(InMemoryStorage())
    register_structured_logging(manager)
    live(manager, proxy)
    assert [line["event"].removeprefix("pharox.") for line in lines] == [
        "acquire",
        "acquire",
        "release",
        "acquire",
        "expire",
        "acquire",
        "health",
        "release",
        "callback_failed",
    ]
    assert all(line["correlation_id"] == "run-7" and line["actor"] == "nightly" for line in lines)
    hit, miss, released, _, expired, _, health, _, failed = lines
    assert (hit["status"], hit["consumer"], hit["pool"]) == ("hit", "crawler", "pool")
    assert (hit["filters"], hit["selector"]) == ({"country": "AR"}, "first_available")
    assert hit["pool_stats"]["available_proxies"] == 0
    assert (miss["status"], miss["miss_reason"], miss["lease_id"]) == ("miss", "at_capacity", None)
    assert released["lease_id"] == hit["lease_id"]
    assert (expired["status"], expired["lease_duration_ms"]) == ("expired", 2000)
    assert (health["status_before"], health["status_after"]) == ("active", "inactive")
    assert len(health["lease_ids"]) == 1
    assert (failed["log_level"], failed["callback"]) == ("error", "_fail")
    assert (failed["told"], failed["error_type"]) == ("release", "ZeroDivisionError")
    assert PASSWORD not in json.dumps(lines)
    assert "alice" not in json.dumps(lines)


def test_a_lost_lease_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """Also where structlog is not configured."""
    manager = noticed(caplog)
    lease = manager.acquire_proxy("pool", "crawler")
    assert lease is not None
    StructuredLogger().handle_lost(LostEventPayload(lease=lease, reason="it could not be renewed"))
    record: Any = caplog.records[-1]
    assert (record.getMessage(), record.levelname) == ("pharox.lease_lost", "WARNING")
    assert (record.lease_id, record.reason) == (str(lease.id), "it could not be renewed")


def test_a_revocation_is_a_line(lines: list[Any]) -> None:
    """It says whose lease it was, when and why."""
    manager, _ = prepared(InMemoryStorage())
    register_structured_logging(manager)
    lease = manager.acquire_proxy("pool", "crawler")
    assert lease is not None
    manager.revoke_lease(lease.id, "its subnet is banned")
    line = lines[-1]
    assert line["event"] == "pharox.revoke"
    assert (line["consumer"], line["reason"]) == ("crawler", "its subnet is banned")
    assert (line["status"], line["lease_id"]) == ("revoked", str(lease.id))
    assert "revoked_at" in line


@pytest.mark.parametrize("given", [None, logging.getLogger("their.own")])
def test_the_standard_library_gets_records(
    given: logging.Logger | None, caplog: pytest.LogCaptureFixture
) -> None:
    """Where structlog is not configured, or to the logger that is given: fields are attributes."""
    caplog.set_level(logging.INFO)
    manager, proxy = prepared(InMemoryStorage())
    StructuredLogger(logger=given, include_pool_stats=False).register(manager)
    live(manager, proxy)
    ours = [r for r in caplog.records if r.name == ("their.own" if given else "pharox")]
    first: Any = ours[0]
    assert (first.getMessage(), first.levelname) == ("pharox.acquire", "INFO")
    assert (first.event, first.status, first.consumer) == ("pharox.acquire", "hit", "crawler")
    assert not hasattr(first, "pool_stats")
    assert [r.levelname for r in ours if r.getMessage() == "pharox.callback_failed"] == ["ERROR"]
    assert PASSWORD not in str([vars(r) for r in ours])


def test_all_lines_of_a_lease_are_sampled_or_none(lines: list[Any]) -> None:
    """A part of the leases, whole; what should not happen is always there."""
    storage = InMemoryStorage()
    _, proxies = fill(storage, 1)
    manager = ProxyManager(storage)
    StructuredLogger(sample_rate=0.25).register(manager)
    for _ in range(400):
        with manager.with_lease("pool"):
            pass
    told = Counter(line["lease_id"] for line in lines)
    assert set(told.values()) == {2}
    assert 40 < len(told) < 160
    lines.clear()
    manager.acquire_proxy("misspelled")
    lease = manager.acquire_proxy("pool")
    manager.record_health_checks([checked(proxies[0], status=ProxyStatus.INACTIVE)])
    assert lease is not None
    always = [line["event"] for line in lines if line.get("lease_id") is None]
    assert always == ["pharox.acquire", "pharox.health"]


def test_a_sample_may_be_drawn_by_hand(lines: list[Any]) -> None:
    """``random_fn`` decides line by line, as in 0.11.0; a rate beyond 0 and 1 is refused."""
    storage = InMemoryStorage()
    fill(storage)
    manager = ProxyManager(storage)
    drawn = iter([0.4, 0.6])
    StructuredLogger(sample_rate=0.5, random_fn=lambda: next(drawn)).register(manager)
    with manager.with_lease("pool"):
        pass
    assert [line["event"] for line in lines] == ["pharox.acquire"]
    for rate in (-0.1, 1.1):
        with pytest.raises(ValueError, match="sample_rate"):
            StructuredLogger(sample_rate=rate)


def test_an_awaited_manager_is_logged_as_well(lines: list[Any]) -> None:
    """The context of the task is that of the line."""
    storage = AsyncInMemoryStorage()
    fill(storage.memory)
    manager = AsyncProxyManager(storage)
    register_structured_logging(manager)

    async def main() -> None:
        structlog.contextvars.bind_contextvars(request_id="r-1")
        async with manager.with_lease("pool"):
            pass

    asyncio.run(main())
    assert [(line["event"], line["request_id"]) for line in lines] == [
        ("pharox.acquire", "r-1"),
        ("pharox.release", "r-1"),
    ]


def test_a_failing_failure_callback_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, and the caller gets what the first one raised."""
    storage = InMemoryStorage()
    fill(storage)
    manager = ProxyManager(storage)
    manager.register_acquire_callback(_fail)
    manager.register_failure_callback(_fail)
    with pytest.raises(ZeroDivisionError):
        manager.acquire_proxy("pool")
    assert "notified of a failure" in caplog.text


def test_what_the_application_has_bound_costs_no_lease(caplog: pytest.LogCaptureFixture) -> None:
    """A name that a record of the standard library needs for itself is told with a dash behind."""
    manager = noticed(caplog)
    register_structured_logging(manager)
    with structlog.contextvars.bound_contextvars(name="alice", args=1, request_id="r-1"):
        assert manager.acquire_proxy("pool") is not None
    (record,) = caplog.records
    line: Any = record
    assert (line.name, line.name_, line.args_, line.request_id) == ("pharox", "alice", 1, "r-1")


def test_an_adapter_keeps_its_own_fields(caplog: pytest.LogCaptureFixture) -> None:
    """A LoggerAdapter of the standard library adds what it adds to all lines."""
    manager = noticed(caplog)
    adapter = logging.LoggerAdapter(logging.getLogger("theirs"), {"app": "crawler"})
    StructuredLogger(logger=adapter).register(manager)
    manager.acquire_proxy("pool")
    (record,) = caplog.records
    line: Any = record
    assert (line.name, line.app, line.event) == ("theirs", "crawler", "pharox.acquire")


def test_a_line_says_its_own_fields_whatever_is_bound(caplog: pytest.LogCaptureFixture) -> None:
    """An adapter comes before structlog's context, and the line itself before both."""
    manager = noticed(caplog)
    adapter = logging.LoggerAdapter(
        logging.getLogger("theirs"), {"pool": "adapter", "app": "adapter", "module": "adapter"}
    )
    StructuredLogger(logger=adapter).register(manager)
    with structlog.contextvars.bound_contextvars(pool="context", event="context", app="context"):
        manager.acquire_proxy("pool")
    (record,) = caplog.records
    line: Any = record
    assert (line.pool, line.event, line.app) == ("pool", "pharox.acquire", "adapter")
    assert (line.module_, record.getMessage()) == ("adapter", "pharox.acquire")


def test_a_logger_that_takes_no_such_lines_gets_none(caplog: pytest.LogCaptureFixture) -> None:
    """Its level decides, also if it was set after the manager was registered."""
    manager = noticed(caplog)
    register_structured_logging(manager)
    manager.acquire_proxy("pool")
    caplog.set_level(logging.ERROR, logger="pharox")
    manager.register_acquire_callback(_fail)
    with pytest.raises(ZeroDivisionError):
        manager.acquire_proxy("pool")
    assert [(r.getMessage(), r.levelname) for r in caplog.records] == [
        ("pharox.acquire", "INFO"),
        ("pharox.callback_failed", "ERROR"),
    ]


def test_structlog_may_be_configured_later(caplog: pytest.LogCaptureFixture) -> None:
    """From then on lines go where the application's others go."""
    manager = noticed(caplog)
    register_structured_logging(manager)
    with manager.with_lease("pool"):
        pass
    capture = LogCapture()
    structlog.configure(processors=[capture])
    try:
        manager.acquire_proxy("pool")
    finally:
        structlog.reset_defaults()
    assert len(caplog.records) == 2
    assert [line["event"] for line in capture.entries] == ["pharox.acquire"]

"""Spans with the times at which things were done."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from pharox import InMemoryStorage, ProxyManager, ProxyStatus, TracingRecorder, register_tracing
from pharox.observability import tracing
from pharox.testing import checked
from tests.conftest import clock_of, fill


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracer(spans: InMemorySpanExporter) -> Any:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    return provider.get_tracer("tests")


def by_name(spans: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in spans.get_finished_spans()}


def test_a_release_is_linked_to_its_acquisition(spans: InMemorySpanExporter, tracer: Any) -> None:
    """Both begin and end when it was done, and belong to what the caller was doing."""
    storage = InMemoryStorage()
    fill(storage)
    manager = ProxyManager(storage)
    register_tracing(manager, tracer=tracer)
    told: list[Any] = []
    manager.register_acquire_callback(told.append)
    with tracer.start_as_current_span("crawl") as crawl, manager.with_lease("pool", "crawler"):
        pass
    found = by_name(spans)
    acquired, released = found["pharox.acquire"], found["pharox.release"]
    assert acquired.parent is not None
    assert acquired.parent.span_id == crawl.get_span_context().span_id
    assert acquired.start_time == tracing._nanoseconds(told[0].started_at)
    assert acquired.end_time == tracing._nanoseconds(told[0].completed_at)
    assert [link.context for link in released.links] == [acquired.get_span_context()]
    assert acquired.end_time <= (released.start_time or 0) <= (released.end_time or 0)
    facts = dict(acquired.attributes or {})
    assert facts["pharox.consumer"] == "crawler"
    assert facts["pharox.hit"] is True
    assert "pharox.miss_reason" not in facts


def test_misses_expiries_and_checks_are_spans_too(spans: InMemorySpanExporter, tracer: Any) -> None:
    """A miss says why; an expiry is as long as the lease was overdue, a check as its latency."""
    storage = InMemoryStorage()
    clock = clock_of(storage)
    _, (proxy,) = fill(storage)
    manager = ProxyManager(storage)
    TracingRecorder(tracer=tracer).register(manager)
    manager.acquire_proxy("pool", duration_seconds=5)
    manager.acquire_proxy("pool")
    clock.advance(8)
    manager.cleanup_expired_leases()
    revoked = manager.acquire_proxy("pool")
    assert revoked is not None
    manager.revoke_lease(revoked.id, "why")
    manager.record_health_checks([checked(proxy, checked_at=clock.now, latency_ms=250)])
    found = by_name(spans)
    assert dict(found["pharox.revoke"].attributes or {})["pharox.reason"] == "why"
    assert len(found["pharox.revoke"].links) == 1
    hit, miss, _ = (s for s in spans.get_finished_spans() if s.name == "pharox.acquire")
    assert dict(miss.attributes or {})["pharox.miss_reason"] == "at_capacity"
    expired, check = found["pharox.expire"], found["pharox.health_check"]
    assert [link.context for link in expired.links] == [hit.get_span_context()]
    assert (expired.end_time or 0) - (expired.start_time or 0) == 3_000_000_000
    assert (check.end_time or 0) - (check.start_time or 0) == 250_000_000
    assert dict(check.attributes or {})["pharox.status"] == ProxyStatus.ACTIVE.value


def test_only_so_many_acquisitions_are_remembered(
    spans: InMemorySpanExporter, tracer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Leases that others release do not fill the memory; without a link there is a span."""
    monkeypatch.setattr(tracing, "REMEMBERED", 2)
    storage = InMemoryStorage()
    fill(storage, 5)
    manager = ProxyManager(storage)
    recorder = register_tracing(manager, tracer=tracer)
    leases = [manager.acquire_proxy("pool") for _ in range(5)]
    assert len(recorder._acquired) == 2
    for lease in leases:
        assert lease is not None
        manager.release_proxy(lease)
    released = [s for s in spans.get_finished_spans() if s.name == "pharox.release"]
    assert [len(span.links) for span in released] == [0, 0, 0, 1, 1]
    assert recorder._acquired == {}


def test_without_opentelemetry_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    """No span, no error, and no callback."""
    monkeypatch.setattr(tracing, "trace", None)
    storage = InMemoryStorage()
    fill(storage)
    manager = ProxyManager(storage)
    recorder = register_tracing(manager)
    with manager.with_lease("pool"):
        pass
    assert manager._acquire_callbacks == []
    assert recorder._acquired == {}

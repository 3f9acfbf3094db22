"""A recorder that is registered twice records once; two that record elsewhere both do."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest
import structlog
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry

from pharox import (
    AsyncInMemoryStorage,
    AsyncProxyManager,
    InMemoryStorage,
    PrometheusMetricsRecorder,
    ProxyManager,
    StructuredLogger,
    TracingRecorder,
    register_prometheus_metrics,
    register_structured_logging,
    register_tracing,
)

Manager = ProxyManager | AsyncProxyManager


@pytest.fixture(params=[ProxyManager, AsyncProxyManager])
def manager(request: pytest.FixtureRequest) -> Manager:
    if request.param is ProxyManager:
        return ProxyManager(InMemoryStorage())
    return AsyncProxyManager(AsyncInMemoryStorage())


def ask(manager: Manager) -> None:
    """Ask for a proxy in vain."""
    if isinstance(manager, ProxyManager):
        manager.acquire_proxy("nope")
    else:
        asyncio.run(manager.acquire_proxy("nope"))


def counted(registry: CollectorRegistry) -> float:
    return sum(
        sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == "pharox_acquire_total"
    )


class TestMetrics:
    def test_the_same_recorder_counts_once(self, manager: Manager) -> None:
        """However often it is registered, and whoever made it for this registry."""
        registry = CollectorRegistry()
        recorder = register_prometheus_metrics(manager, registry=registry)
        recorder.register(manager)
        register_prometheus_metrics(manager, registry=registry)
        assert PrometheusMetricsRecorder(registry=registry).register(manager) is not recorder
        ask(manager)
        assert counted(registry) == 1

    def test_two_registries_count_both(self, manager: Manager) -> None:
        """As two namespaces do."""
        registries = CollectorRegistry(), CollectorRegistry()
        for registry in registries:
            register_prometheus_metrics(manager, registry=registry)
        register_prometheus_metrics(manager, registry=registries[0], namespace="other")
        ask(manager)
        assert [counted(registry) for registry in registries] == [1, 1]
        assert "other_acquire" in {family.name for family in registries[0].collect()}

    def test_one_recorder_serves_two_managers(self, manager: Manager) -> None:
        """Each of them is told of once."""
        registry = CollectorRegistry()
        recorder = register_prometheus_metrics(manager, registry=registry)
        other = ProxyManager(InMemoryStorage())
        recorder.register(other).register(other)
        ask(manager)
        ask(other)
        assert counted(registry) == 2

    def test_a_recorder_of_ones_own_is_another(self, manager: Manager) -> None:
        """Its methods may do more than count."""
        heard: list[Any] = []

        class Mine(PrometheusMetricsRecorder):
            def handle_acquire(self, payload: Any) -> None:
                heard.append(payload)

        registry = CollectorRegistry()
        register_prometheus_metrics(manager, registry=registry)
        Mine(registry=registry).register(manager).register(manager)
        ask(manager)
        assert (len(heard), counted(registry)) == (1, 1)


ADAPTER = logging.LoggerAdapter(logging.getLogger("test.adapter"), {})


@pytest.mark.parametrize(
    "logger",
    [
        lambda: None,
        lambda: logging.getLogger("test.lines"),
        lambda: ADAPTER,
        lambda: structlog.get_logger("test.lines"),
    ],
    ids=["default", "logging", "adapter", "structlog"],
)
def test_a_line_is_written_once(
    manager: Manager, caplog: pytest.LogCaptureFixture, logger: Callable[[], Any]
) -> None:
    """Whether the recorder is registered again or another one for the same logger."""
    structlog.configure(
        logger_factory=structlog.stdlib.LoggerFactory(),
        processors=[structlog.stdlib.render_to_log_kwargs],
    )
    try:
        with caplog.at_level(logging.INFO):
            register_structured_logging(manager, logger=logger()).register(manager)
            StructuredLogger(logger=logger()).register(manager)
            ask(manager)
            assert caplog.messages == ["pharox.acquire"]
            # Elsewhere or otherwise it is another recorder.
            StructuredLogger(logger=logging.getLogger("test.more")).register(manager)
            ask(manager)
            assert caplog.messages == ["pharox.acquire"] * 3
    finally:
        structlog.reset_defaults()


def test_there_is_one_span(manager: Manager) -> None:
    """With one tracer, and two with two."""
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    tracer = provider.get_tracer("tests")
    register_tracing(manager, tracer=tracer).register(manager)
    TracingRecorder(tracer=tracer).register(manager)
    register_tracing(manager).register(manager)  # of the global provider
    ask(manager)
    assert [span.name for span in spans.get_finished_spans()] == ["pharox.acquire"]
    register_tracing(manager, tracer=provider.get_tracer("others"))
    ask(manager)
    assert len(spans.get_finished_spans()) == 3


def test_a_function_is_called_as_often_as_it_is_registered(manager: Manager) -> None:
    """Which callbacks are one is known of recorders only."""
    heard: list[Any] = []
    manager.register_acquire_callback(heard.append)
    manager.register_acquire_callback(heard.append)
    ask(manager)
    assert len(heard) == 2

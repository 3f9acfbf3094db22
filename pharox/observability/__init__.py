"""Logs, metrics and spans of a process, and metrics of the whole fleet."""

try:
    from .lease_metrics import OpenTelemetryMetricsRecorder, register_opentelemetry_metrics
    from .logging import StructuredLogger, register_structured_logging
    from .metrics import (
        DEFAULT_LATENCY_BUCKETS,
        DEFAULT_LEASE_BUCKETS,
        DEFAULT_QUANTILES,
        PrometheusMetricsRecorder,
        register_prometheus_metrics,
    )
    from .tracing import TracingRecorder, register_tracing
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"{error.name} is not installed: pip install 'pharox[observability]'", name=error.name
    ) from error

__all__ = [
    "DEFAULT_LATENCY_BUCKETS",
    "DEFAULT_LEASE_BUCKETS",
    "DEFAULT_QUANTILES",
    "OpenTelemetryMetricsRecorder",
    "PrometheusMetricsRecorder",
    "StructuredLogger",
    "TracingRecorder",
    "register_opentelemetry_metrics",
    "register_prometheus_metrics",
    "register_structured_logging",
    "register_tracing",
]

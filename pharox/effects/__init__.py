"""Run programs: generators that yield requests, driven by a thread or an event loop."""

from __future__ import annotations

from .running import (
    Calls,
    call,
    call_async,
    is_async,
    result_within,
    result_within_async,
    run,
    run_async,
)

__all__ = [
    "Calls",
    "call",
    "call_async",
    "is_async",
    "result_within",
    "result_within_async",
    "run",
    "run_async",
]

"""Read the memory, CPU time and running time of workers from the operating system.

The process that serves reads them at each scrape: idle and hanging workers are seen too, and no
request waits for it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import psutil  # type: ignore[import-untyped]
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from .family import EXITS, Member

_SEAT = ["worker_id"]
_LEGACY = {"interrupted": ("quit", "graceful"), "aborted": ("abort", "forced")}
_FORCED = ("killed",)


class WorkerState(NamedTuple):
    """The resources that a worker uses."""

    memory_bytes: int
    cpu_s: float
    cpu_percent: float
    uptime_s: float


class WorkerProcesses:
    """The processes of live workers."""

    def __init__(self) -> None:
        self._known: dict[str, psutil.Process] = {}

    def look(self, living: Iterable[Member]) -> dict[Member, WorkerState]:
        """Return the resources of each worker, except those that just ended or are hidden."""
        states: dict[Member, WorkerState] = {}
        known, self._known = self._known, {}
        for member in living:
            try:
                process = known.get(member.identity) or psutil.Process(member.pid)
                with process.oneshot():
                    times = process.cpu_times()
                    states[member] = WorkerState(
                        process.memory_info().rss,
                        times.user + times.system,
                        process.cpu_percent(),
                        max(0.0, time.time() - process.create_time()),
                    )
                self._known[member.identity] = process
            except (psutil.Error, OSError):
                continue
        return states


def process_metrics(
    states: Mapping[Member, WorkerState], times: Mapping[str, float]
) -> Iterator[Metric]:
    """Yield the resources of workers, by seat."""
    memory = GaugeMetricFamily(
        "gunicorn_worker_memory_bytes", "Resident memory of the worker.", labels=_SEAT
    )
    uptime = GaugeMetricFamily(
        "gunicorn_worker_uptime_seconds", "Time since the worker started.", labels=_SEAT
    )
    for seat, state in _by_seat(states).items():
        memory.add_metric([seat], state.memory_bytes)
        uptime.add_metric([seat], state.uptime_s)
    cpu = CounterMetricFamily(
        "gunicorn_worker_cpu_seconds", "CPU time that the workers of this seat used.", labels=_SEAT
    )
    for seat, seconds in sorted(times.items()):
        cpu.add_metric([seat], seconds)
    yield from (memory, uptime, cpu)


def restart_metric(exits: Counter[str]) -> Metric:
    """Return how workers ended."""
    restarts = CounterMetricFamily(
        "gunicorn_worker_restarts",
        "Workers that ended, by cause; gunicorn replaces those that it still needs.",
        labels=["reason"],
    )
    for reason in EXITS:
        restarts.add_metric([reason], exits[reason])
    return restarts


def legacy_metrics(
    states: Mapping[Member, WorkerState], exits: Mapping[str, Counter[str]]
) -> Iterator[Metric]:
    """Yield the same metrics under the names of gunicorn-prometheus-exporter."""
    percent = GaugeMetricFamily(
        "gunicorn_worker_cpu_percent", "CPU usage of the worker process", labels=_SEAT
    )
    state = GaugeMetricFamily(
        "gunicorn_worker_state", "Current state of the worker", labels=["worker_id", "state"]
    )
    for seat, found in _by_seat(states).items():
        percent.add_metric([seat], found.cpu_percent)
        state.add_metric([seat, "running"], 1)
    yield from (percent, state)
    yield from _legacy_restarts(exits)


def _legacy_restarts(exits: Mapping[str, Counter[str]]) -> Iterator[Metric]:
    text = "Total number of worker restarts"
    for prefix in ("gunicorn_worker", "gunicorn_master_worker"):
        yield _counts(
            f"{prefix}_restart_count", text, ("worker_id", "restart_type", "reason"), exits
        )
    yield _counts("gunicorn_worker_restart", text, ("worker_id", "reason"), exits)
    yield _counts("gunicorn_master_worker_restart", text, ("reason",), exits)


def _counts(
    name: str, text: str, labels: tuple[str, ...], exits: Mapping[str, Counter[str]]
) -> Metric:
    """Return the number of workers that ended, by some of the labels."""
    totals: Counter[tuple[str, ...]] = Counter()
    for seat, reasons in exits.items():
        for how, number in reasons.items():
            reason, kind = _legacy(how)
            known = {"worker_id": seat, "restart_type": kind, "reason": reason}
            totals[tuple(known[label] for label in labels)] += number
    metric = CounterMetricFamily(name, text, labels=labels)
    for values, number in sorted(totals.items()):
        metric.add_metric(values, number)
    return metric


def _legacy(how: str) -> tuple[str, str]:
    """Return the former names of a reason and its type."""
    return _LEGACY.get(how, (how, "forced" if how in _FORCED else "graceful"))


def _by_seat(states: Mapping[Member, WorkerState]) -> dict[str, WorkerState]:
    """Return one state for each seat, and one for all workers without a seat."""
    found: dict[str, WorkerState] = {}
    for member, state in sorted(states.items()):
        before = found.get(member.seat, WorkerState(0, 0.0, 0.0, 0.0))
        found[member.seat] = WorkerState(
            before.memory_bytes + state.memory_bytes,
            before.cpu_s + state.cpu_s,
            before.cpu_percent + state.cpu_percent,
            max(before.uptime_s, state.uptime_s),
        )
    return found

"""The duration of a scrape of two workers, without and with a hundred dead ones.

Run as a process of its own; prints seconds as JSON. The same counts go through
prometheus_client's own files and collector, for comparison.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from statistics import median
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from pharox.gunicorn.aggregate import Aggregate
from pharox.gunicorn.family import Family
from pharox.gunicorn.values import Store, value_class

LIVE, DEAD, SERIES, TIMES = 2, 100, 50, 25


def main() -> None:
    """Measure both."""
    with tempfile.TemporaryDirectory() as folder:
        family = Family.enter(folder)
        store = Store(family)

        def forked() -> None:
            family.forked()
            store.forked()

        ours = _measure(value_class(store), Aggregate(family), forked)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        collector: Any = MultiProcessCollector(None, folder)  # type: ignore[no-untyped-call]
        theirs = _measure(values.MultiProcessValue(), collector, lambda: None)  # type: ignore[no-untyped-call]
    json.dump({"ours": ours, "theirs": theirs}, sys.stdout)


def _measure(values_of: type, collector: Collector, forked: Callable[[], None]) -> dict[str, float]:
    registry = CollectorRegistry()
    registry.register(collector)
    values.ValueClass = values_of
    live = [_worker(forked, stays=True) for _ in range(LIVE)]
    try:
        fresh = _scrape(registry)
        for _ in range(DEAD):
            _worker(forked, stays=False)
        generate_latest(registry)  # which archives what they left
        return {"fresh": fresh, "behind": _scrape(registry)}
    finally:
        for pid in live:
            os.kill(pid, 9)
            os.waitpid(pid, 0)


def _worker(forked: Callable[[], None], *, stays: bool) -> int:
    """Make a process count; return its pid once it has counted, or has ended."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        forked()
        registry = CollectorRegistry()
        hits = Counter("hits", "Hits.", ["path"], registry=registry)
        seconds = Histogram("seconds", "Seconds.", ["path"], registry=registry)
        for number in range(SERIES):
            hits.labels(f"/{number}").inc()
            seconds.labels(f"/{number}").observe(0.1)
        os.write(writer, b"x")
        while stays:
            time.sleep(60)
        os._exit(0)
    os.close(writer)
    os.read(reader, 1)
    os.close(reader)
    if not stays:
        os.waitpid(pid, 0)
    return pid


def _scrape(registry: CollectorRegistry) -> float:
    def once() -> float:
        begun = time.perf_counter()
        generate_latest(registry)
        return time.perf_counter() - begun

    return median(once() for _ in range(TIMES))


if __name__ == "__main__":
    main()

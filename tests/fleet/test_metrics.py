"""Several servers may scrape the metrics of a fleet at the same time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from typing import Any, cast

import pytest
from prometheus_client.metrics_core import Metric

from pharox.fleet import metrics
from pharox.fleet.metrics import LedgersCollector
from pharox.observability.fleet import up_metric


class Slow:
    """The counts of a ledger that answers when it is told to."""

    def __init__(self) -> None:
        self.readings = 0
        self.answers = threading.Event()

    def collect(self) -> list[Metric]:
        """Return that it is up, once it may."""
        self.readings += 1
        self.answers.wait()
        return [up_metric(is_up=True)]


def ups(collector: LedgersCollector) -> list[float]:
    """Scrape, and return what the ledgers' metric ``up`` is."""
    return [sample.value for metric in collector.collect() for sample in metric.samples]


@pytest.fixture
def slow() -> Slow:
    return Slow()


@pytest.fixture
def collector(slow: Slow) -> Iterator[LedgersCollector]:
    """The collector of a fleet whose one ledger is slow."""
    collector = LedgersCollector({"far": cast("Any", slow)})
    yield collector
    slow.answers.set()
    collector.stop()


def test_scrapes_at_the_same_time_share_a_reading(
    slow: Slow, collector: LedgersCollector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both get its result, and the next one reads anew."""
    both_wait = threading.Barrier(2, slow.answers.set)

    def wait(*args: Any) -> Any:
        both_wait.wait()
        return wait_for(*args)

    monkeypatch.setattr(metrics, "wait", wait)
    with ThreadPoolExecutor(2) as scrapes:
        assert [*scrapes.map(ups, [collector] * 2)] == [[1.0], [1.0]]
    assert slow.readings == 1
    monkeypatch.setattr(metrics, "wait", wait_for)
    assert ups(collector) == [1.0]
    assert slow.readings == 2


def test_a_reading_that_is_late_is_waited_for_once(
    slow: Slow, collector: LedgersCollector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its ledger is down until it is done; no other is begun meanwhile."""
    waited = []

    def wait(readings: Any, _: float) -> Any:
        waited.append(len(readings))
        return wait_for(readings, 0)

    monkeypatch.setattr(metrics, "wait", wait)
    assert [ups(collector) for _ in range(3)] == [[0.0]] * 3
    assert waited == [1, 0, 0]
    monkeypatch.setattr(metrics, "wait", wait_for)
    (late,) = collector._late
    slow.answers.set()
    late.result()
    assert slow.readings == 1
    assert ups(collector) == [1.0]
    assert slow.readings == 2

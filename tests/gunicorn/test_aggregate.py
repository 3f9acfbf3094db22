"""The archive: what the dead counted, once, whatever interrupts the writing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, values

from pharox.gunicorn.aggregate import Aggregate
from pharox.gunicorn.family import Family
from pharox.gunicorn.values import ReservedDict, Store, value_class

Shown = dict[tuple[str, tuple[tuple[str, str], ...]], float]


_open: list[Store] = []


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """Close what the test has opened."""
    yield
    while _open:
        _open.pop().close()


class Process:
    """What a process of a server leaves in its folder."""

    def __init__(self, folder: Path) -> None:
        family = Family(folder)
        self.identity = family.hold()
        family.mark("worker")
        registry = CollectorRegistry()
        options: dict[str, Any] = {"registry": registry}
        store = Store(family)
        _open.append(store)
        self._counts = patch.object(values, "ValueClass", value_class(store))
        with self._counts:
            self._hits = Counter("hits", "Hits.", ["path"], **options)
            self.seconds = Histogram("seconds", "Seconds.", buckets=(1, 2), **options)
            self.gauges = {
                mode: Gauge(f"now_{mode}", "Now.", multiprocess_mode=mode, **options)
                for mode in ("all", "liveall", "livesum", "sum", "min", "max", "mostrecent")
            }
        assert family._held is not None
        os.close(family._held)  # Within one process no lock would be in the way.

    def hit(self, path: str, number: float) -> None:
        """Count hits."""
        with self._counts:
            self._hits.labels(path).inc(number)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a server."""
    return Family.enter(str(tmp_path)).folder


def shown(aggregate: Aggregate) -> Shown:
    """Return all samples; no series is there twice."""
    found: Shown = {}
    for metric in aggregate.collect():
        for sample in metric.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found
            found[key] = sample.value
    return found


def plain(found: Shown) -> dict[str, float]:
    """Return the samples without labels."""
    return {name: value for (name, labels), value in found.items() if not labels}


def test_types_are_added_up_by_their_rule(folder: Path) -> None:
    """Of the dead, live gauges and those of each process are gone."""
    for number in (1, 2, 5):
        process = Process(folder)
        process.hit("/", number)
        process.seconds.observe(number)
        for gauge in process.gauges.values():
            gauge.set(number)
    found = shown(Aggregate(Family(folder)))
    assert found["hits_total", (("path", "/"),)] == 8
    assert found["seconds_bucket", (("le", "1.0"),)] == 1
    assert found["seconds_bucket", (("le", "2.0"),)] == 2
    assert found["seconds_bucket", (("le", "+Inf"),)] == found["seconds_count", ()] == 3
    assert found["seconds_sum", ()] == 8
    alone = plain(found)
    assert {name: value for name, value in alone.items() if name.startswith("now_")} == {
        "now_sum": 8,
        "now_min": 1,
        "now_max": 5,
        "now_mostrecent": 5,
    }
    assert alone["gunicorn_worker_starts_total"] == 3
    assert found["gunicorn_worker_restarts_total", (("reason", "killed"),)] == 3


def test_gauges_of_each_process_have_its_pid(folder: Path) -> None:
    """As long as it lives."""
    process = Process(folder)
    process.gauges["all"].set(3)
    with patch.object(Family, "_is_alive", lambda self, identity: identity == process.identity):
        found = shown(Aggregate(Family(folder)))
    assert found["now_all", (("pid", str(os.getpid())),)] == 3


class Interrupted(Exception):
    """The process that serves was killed here."""


class Interruptions:
    """Ends the process that serves before its nth change of the folder."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __enter__(self) -> Interruptions:
        changes: list[tuple[type, str]] = [
            (Path, "unlink"),
            (Path, "replace"),
            (Path, "write_text"),
        ]
        changes += [(ReservedDict, "write_value")]
        self._patches = [
            patch.object(owner, name, self._counted(getattr(owner, name)))
            for owner, name in changes
        ]
        for one in self._patches:
            one.start()
        return self

    def _counted(self, change: Any) -> Any:
        def changing(*arguments: Any, **options: Any) -> Any:
            if self.left == 0:
                raise Interrupted
            self.left -= 1
            return change(*arguments, **options)

        return changing

    def __exit__(self, *_: object) -> None:
        for one in self._patches:
            one.stop()


def test_it_may_be_interrupted_anywhere(tmp_path: Path) -> None:
    """Before each change of the folder in turn: the next one to serve shows the same."""
    after = 0
    while True:
        folder = Family.enter(str(tmp_path)).folder
        first = Process(folder)
        first.hit("/", 3)
        Aggregate(Family(folder)).sweep()
        second = Process(folder)
        second.hit("/", 4)
        second.hit("/other", 1)
        with Interruptions(after):
            try:
                Aggregate(Family(folder)).sweep()
            except Interrupted:
                pass
            else:
                break
        for _ in range(2):
            found = shown(Aggregate(Family(folder)))
            assert found["hits_total", (("path", "/"),)] == 7, after
            assert found["hits_total", (("path", "/other"),)] == 1, after
            assert plain(found)["gunicorn_worker_starts_total"] == 2, after
            assert found["gunicorn_worker_restarts_total", (("reason", "killed"),)] == 2
        after += 1
    assert after > 20


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("count"), st.integers(0, 2), st.integers(0, 9)),
            st.tuples(st.just("die"), st.integers(0, 2), st.integers(0, 40)),
            st.tuples(st.just("start anew"), st.just(0), st.just(0)),
        ),
        max_size=30,
    )
)
def test_totals_are_exact_whatever_happens(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int]]
) -> None:
    """Processes count and die, the one that serves is interrupted and started anew."""
    folder = Family.enter(str(tmp_path_factory.mktemp("root"))).folder
    alive = [Process(folder) for _ in range(3)]
    known = {process.identity for process in alive}
    total = deaths = 0

    with patch.object(Family, "_is_alive", lambda self, identity: identity in known):
        serving = Aggregate(Family(folder))
        for what, which, number in steps:
            if what == "count":
                alive[which].hit("/", number)
                total += number
            elif what == "die":
                known.discard(alive[which].identity)
                deaths += 1
                alive[which] = Process(folder)
                known.add(alive[which].identity)
                with Interruptions(number):
                    try:
                        serving.sweep()
                    except Interrupted:
                        serving = Aggregate(Family(folder))
            else:
                serving = Aggregate(Family(folder))
            found = shown(serving)
            assert found.get(("hits_total", (("path", "/"),)), 0) == total
            assert plain(found)["gunicorn_worker_starts_total"] == 3 + deaths

"""Run a benchmark from its server to its figures: the steps that all share."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from pharox.connecting import embedded
from scripts.benchmarks import (
    api,
    asynchronous,
    console,
    core,
    crawl,
    health,
    importing,
    keep,
    lease,
    ledger,
    observe,
    scale,
    starting,
    targets,
    wait,
)
from scripts.benchmarks.machine import Watch, describe, noise
from scripts.benchmarks.parts import Bench, Part, measure, tabulate


class Benchmark(NamedTuple):
    """A benchmark, which runs on its own server; ``about`` is for the page."""

    prepare: Callable[[Bench], list[Part]]
    title: str
    about: str


ALL = {
    "core": Benchmark(core.prepare, "The command core", core.__doc__ or ""),
    "lease": Benchmark(lease.prepare, "Leasing", lease.__doc__ or ""),
    "keep": Benchmark(keep.prepare, "Leases that are kept", keep.__doc__ or ""),
    "wait": Benchmark(wait.prepare, "Waiting in turn", wait.__doc__ or ""),
    "targets": Benchmark(targets.prepare, "Targets that refuse", targets.__doc__ or ""),
    "scrapy": Benchmark(crawl.prepare, "A crawl of Scrapy", crawl.__doc__ or ""),
    "async": Benchmark(asynchronous.prepare, "Leasing from asyncio", asynchronous.__doc__ or ""),
    "ledger": Benchmark(ledger.prepare, "The ledger", ledger.__doc__ or ""),
    "health": Benchmark(health.prepare, "Health checks", health.__doc__ or ""),
    "import": Benchmark(importing.prepare, "Importing lists", importing.__doc__ or ""),
    "observe": Benchmark(observe.prepare, "Logs and metrics", observe.__doc__ or ""),
    "console": Benchmark(console.prepare, "The console", console.__doc__ or ""),
    "api": Benchmark(api.prepare, "Leasing over HTTP", api.__doc__ or ""),
    "scale": Benchmark(scale.prepare, "Past one server", scale.__doc__ or ""),
    "start": Benchmark(starting.prepare, "Starting the command line", starting.__doc__ or ""),
}
"""The benchmarks by name, in the order of the page."""


class Asked(NamedTuple):
    """How much to measure: seconds per measurement, rounds, and events in the two logs."""

    seconds: float
    rounds: int
    events: int
    history: int


@contextmanager
def _server() -> Iterator[str]:
    """Run an empty server for a block; yield its URL."""
    with tempfile.TemporaryDirectory(prefix="pharox-bench-", ignore_cleanup_errors=True) as folder:
        server = embedded.start(Path(folder) / "data")
        try:
            yield server.url
        finally:
            server.close()


def run(name: str, asked: Asked) -> dict[str, Any]:
    """Measure on a new server; return the figures, the machine, and its load."""
    left_out: list[str] = []
    with ExitStack() as until_the_end:
        url = until_the_end.enter_context(_server())
        bench = Bench(url, asked.seconds, asked.events, asked.history, until_the_end, left_out)
        machine = describe(url)
        with Watch() as watch:
            parts = ALL[name].prepare(bench)
            found = measure(parts, asked.rounds)
    told = tabulate(parts, found)
    return {
        "benchmark": name,
        "machine": machine,
        "asked": asked._asdict(),
        "load": watch.load,
        "noise": noise(watch.load, told),
        "left_out": left_out,
        **told,
        "rounds": found,
    }

"""From the commit of an event to the call of a handler in another process, at a steady rate.

Both clocks are the machine's. The writers follow a fixed schedule, so that a slow moment is counted
for every event that it delayed.
"""

from __future__ import annotations

import multiprocessing
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from statistics import quantiles
from typing import Any

import pharox
from pharox.ledger.subscriptions import Delivery, Subscription
from scripts.benchmarks import goals
from scripts.benchmarks.history import ONE_EVENT
from scripts.benchmarks.parts import Bench, Figures, Line, Part
from scripts.benchmarks.server import connected, new_ledger

RATES = (100, 1_000)
WRITERS = 4
_PATIENCE_S = 30

LINES = tuple(
    line
    for rate in RATES
    for line in (
        Line(f"at {rate:,} events/s, p50", f"p50 at {rate}", "ms"),
        Line(f"at {rate:,} events/s, p99", f"p99 at {rate}", "ms", goal=goals.DELIVERY_P99),
        Line(f"at {rate:,} events/s, committed in fact", f"rate at {rate}"),
    )
)


def part(bench: Bench) -> Part:
    """Return the part that measures the latency of an event, in its own database."""
    url = new_ledger(bench.url, "telling", {})

    def measure() -> Figures:
        figures: Figures = {}
        for rate in RATES:
            committed, called = _tell(url, rate, bench.seconds)
            delays_ms = [1000 * (called[number] - at) for number, at in committed.items()]
            cuts = quantiles(delays_ms, n=100)
            figures[f"p50 at {rate}"] = cuts[49]
            figures[f"p99 at {rate}"] = cuts[98]
            span_s = max(committed.values()) - min(committed.values())
            figures[f"rate at {rate}"] = (len(committed) - 1) / span_s
        return figures

    return Part("latency", {"5. From commit to a handler in another process": LINES}, measure)


def _tell(url: str, rate: int, seconds: float) -> tuple[dict[int, float], dict[int, float]]:
    """Return the time of each event's commit, and of its handler's call."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    count = round(rate * seconds)
    listener = context.Process(target=_listen, args=(url, count, theirs), daemon=True)
    listener.start()
    _receive(ours)
    begin = time.time() + 0.2
    with ThreadPoolExecutor(WRITERS) as writers:
        shares = [range(first, count, WRITERS) for first in range(WRITERS)]
        written = [writers.submit(_write, url, begin, rate, share) for share in shares]
        committed = {number: at for part in written for number, at in part.result().items()}
    called = _receive(ours)
    listener.join()
    return committed, called


def _receive(pipe: Any) -> Any:
    if not pipe.poll(_PATIENCE_S):
        raise TimeoutError("the handler's process does not answer")
    return pipe.recv()


def _write(url: str, begin: float, rate: int, numbers: range) -> dict[int, float]:
    """Append events on schedule, and return the times of their commits."""
    statement = ONE_EVENT.format(table="pharox.events", correlation_id="%s")
    committed = {}
    with connected(url) as connection:
        for number in numbers:
            time.sleep(max(0.0, begin + number / rate - time.time()))
            connection.execute(statement, [str(number)])
            committed[number] = time.time()
    return committed


def _listen(url: str, count: int, pipe: Any) -> None:
    """Follow new events until a number has come, and report the time of each."""
    called: dict[int, float] = {}
    complete = threading.Event()

    def note(delivery: Delivery) -> None:
        called[int(delivery.event.correlation_id or 0)] = time.time()
        if len(called) == count:
            complete.set()

    storage = pharox.connect(url)
    subscription = Subscription("latency", note, start="now", temporary=True)
    with subscription.running(storage):
        time.sleep(1)  # it listens by then, as one does that runs for long
        pipe.send("ready")
        complete.wait()
    pipe.send(called)

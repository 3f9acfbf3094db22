"""The console in front of a long, busy ledger: its pages, its slider, and what looking costs.

The history is that of 1,000 leases a second, of 10,000,000 events unless fewer are asked for, and
the pool has 10,000 proxies. While it is looked at, a process goes on leasing, 1,000 a second if
the machine can. The console runs in a process of its own, as a role that can only read. Each page
is asked for over HTTP, 40 times or for ten seconds in a round, about another proxy, lease or
consumer each time. The slider is dragged about the last quarter of an hour.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from math import ceil
from statistics import median
from typing import NamedTuple
from urllib.parse import urlencode

from scripts.benchmarks import goals
from scripts.benchmarks.console_leasing import TARGET, TASKS, SteadyLeasing
from scripts.benchmarks.console_ledger import POOL, READER, SMALL, LongLedger, make_ledger
from scripts.benchmarks.console_process import ServedConsole
from scripts.benchmarks.parts import Bench, Figures, Line, Part
from scripts.benchmarks.server import backends_processor_s, processor_s

RATE = 1_000
TURNS = 40
"""How often each page is asked for in a round, as long as that takes less than :data:`PAGE_S`."""

PAGE_S = 10.0

STEPS = 60
WINDOW_S = 900
PAIRS = 5
HALF_S = 6.0
"""Seconds of each half of a pair, at least."""

PAGES = (
    "overview",
    "pool",
    "proxy",
    "consumer",
    "lease",
    "target",
    "why",
    "incident",
    "ledger",
)
_PAGES = (
    *(Line(f"{page}, p95", f"{page} p95", "ms", goal=goals.CONSOLE_PAGE) for page in PAGES),
    *(Line(f"{page}, half of the time", f"{page} p50", "ms") for page in PAGES),
    Line("answers that were errors", "errors", "", goal=goals.NO_ERRORS),
    Line("leases a second meanwhile", "rate"),
)
_SLIDER = (
    Line("the first state, in the middle of the window", "first", "ms", goal=goals.CONSOLE_FIRST),
    Line("a step, p95", "step p95", "ms", goal=goals.CONSOLE_STEP),
    Line("a step, half of the time", "step p50", "ms"),
    Line("answers that were errors", "errors", "", goal=goals.NO_ERRORS),
    Line("leases a second meanwhile", "rate"),
)
_COST = (
    Line("of the processor time of server and leasing, added", "added", "%", goal=goals.CONSOLE),
    Line("  in the console's own connections", "own", "%"),
    Line("processor time of a lease and its release without it", "plain", "ms"),
    Line("of a core in the console's process", "console", "%"),
    Line("leases a second without it", "plain rate"),
    Line("leases a second with it", "looked rate"),
)


class Spent(NamedTuple):
    """What some seconds of leasing took; ``own_s`` is what the console's connections took of it."""

    seconds: float
    leases: int
    processor_s: float
    own_s: float
    console_s: float

    @property
    def ms(self) -> float:
        """The processor time of a lease and its release."""
        return 1000 * self.processor_s / self.leases


def prepare(bench: Bench, name: str = "looked_at") -> list[Part]:
    """Return the parts: slider, pages and cost, all in front of one ledger."""
    ledger = make_ledger(bench, name)
    events = f"{bench.history:,} events"
    return [
        Part("slider", {f"2. The slider, {events}": _SLIDER}, partial(_slider, ledger)),
        Part("pages", {f"1. Pages, {events}": _PAGES}, partial(_pages, ledger)),
        Part(
            "cost",
            {"3. An open overview and an open page of the pool": _COST},
            partial(_cost, ledger, max(bench.seconds, HALF_S)),
        ),
    ]


def _pages(ledger: LongLedger) -> Figures:
    """Ask for all pages, in turns."""
    paths = paths_of(ledger)
    times: dict[str, list[float]] = {page: [] for page in paths}
    with SteadyLeasing(ledger.url, POOL, RATE) as leasing, ServedConsole(ledger.reader_url) as app:
        for path in paths.values():
            app.asked(path())  # modules are imported, templates compiled
        errors: list[tuple[str, int]] = []
        began, before = time.monotonic(), leasing.look()
        for _ in range(TURNS):
            for page, path in paths.items():
                if sum(times[page]) > 1000 * PAGE_S:
                    continue
                status, took_ms = app.asked(path())
                times[page].append(took_ms)
                if status != 200:
                    errors.append((page, status))
        rate = (leasing.look().leases - before.leases) / (time.monotonic() - began)
    if errors:
        print(f"errors: {errors}", file=sys.stderr)
    return {
        **{f"{page} p95": p95(each) for page, each in times.items()},
        **{f"{page} p50": median(each) for page, each in times.items()},
        "errors": len(errors),
        "rate": rate,
    }


def paths_of(ledger: LongLedger) -> Mapping[str, Callable[[], str]]:
    """Return for each page what makes the path of another one of its kind."""
    choose = random.Random(7)
    until = ledger.small_until
    incident = {
        "pool": SMALL,
        "from": (until - timedelta(seconds=WINDOW_S)).isoformat(),
    }

    def windows() -> str:
        # Another window each time: the last few reports are kept. All have what happened.
        end = until + timedelta(seconds=choose.randrange(600) / 1000)
        return f"/incident?{urlencode({**incident, 'to': end.isoformat()})}"

    return {
        "overview": lambda: "/",
        "pool": lambda: f"/pools/{ledger.pool_id}?proxies={choose.choice(ledger.proxies)}",
        "proxy": lambda: f"/proxies/{choose.choice(ledger.proxies)}",
        "consumer": lambda: f"/consumer?name=crawler-{choose.randrange(TASKS)}",
        "lease": lambda: f"/leases/{choose.choice(ledger.leases)}",
        "target": lambda: f"/target?name={TARGET}",
        "why": lambda: f"/why?consumer=worker-{choose.choice((1, 3, 5, 7))}",
        "incident": windows,
        "ledger": lambda: "/ledger",
    }


def _slider(ledger: LongLedger) -> Figures:
    """Drag the slider of a console that has just started."""
    choose, errors = random.Random(7), 0
    steps: list[float] = []
    with SteadyLeasing(ledger.url, POOL, RATE) as leasing, ServedConsole(ledger.reader_url) as app:
        app.asked(f"/pools/{ledger.pool_id}")  # the page on which the slider is
        began, before = time.monotonic(), leasing.look()
        end = datetime.now(UTC)
        place = WINDOW_S / 2
        status, first_ms = app.asked(_part(ledger, end, place))
        errors += status != 200
        for _ in range(STEPS):
            place = min(WINDOW_S, max(0.0, place + choose.uniform(-60, 60)))
            status, took_ms = app.asked(_part(ledger, end, place))
            errors += status != 200
            steps.append(took_ms)
        rate = (leasing.look().leases - before.leases) / (time.monotonic() - began)
    return {
        "first": first_ms,
        "step p95": p95(steps),
        "step p50": median(steps),
        "errors": errors,
        "rate": rate,
    }


def _part(ledger: LongLedger, end: datetime, place: float) -> str:
    at = end - timedelta(seconds=WINDOW_S - place)
    query = {"at": at.isoformat(), "span": WINDOW_S, "end": end.isoformat()}
    return f"/pools/{ledger.pool_id}/part?{urlencode(query)}"


def _cost(ledger: LongLedger, seconds: float) -> Figures:
    """Lease with and without open pages, in pairs: of two halves of one pair, either is first."""
    live = ["/live", f"/pools/{ledger.pool_id}/live"]
    pairs: list[tuple[Spent, Spent]] = []
    with SteadyLeasing(ledger.url, POOL, RATE) as leasing, ServedConsole(ledger.reader_url) as app:
        with app.watched(live):
            time.sleep(HALF_S)  # its chart is filled, its statements are planned
        for number in range(PAIRS):
            halves: dict[bool, Spent] = {}
            for is_open in (number % 2 == 0, number % 2 == 1):
                with app.watched(live if is_open else []):
                    halves[is_open] = _spent(ledger, leasing, app, seconds)
            pairs.append((halves[False], halves[True]))
    plain, looked = zip(*pairs, strict=True)
    return {
        "added": median(100 * (b.ms / a.ms - 1) for a, b in pairs),
        "own": median(100 * each.own_s / each.processor_s for each in looked),
        "plain": median(each.ms for each in plain),
        "console": median(100 * each.console_s / each.seconds for each in looked),
        "plain rate": median(each.leases / each.seconds for each in plain),
        "looked rate": median(each.leases / each.seconds for each in looked),
    }


def _spent(ledger: LongLedger, leasing: SteadyLeasing, app: ServedConsole, seconds: float) -> Spent:
    server_s, own_s = processor_s(ledger.url), backends_processor_s(ledger.url, READER)
    console_s, before, began = app.processor_s(), leasing.look(), time.monotonic()
    time.sleep(seconds)
    after, passed = leasing.look(), time.monotonic() - began
    console_s = app.processor_s() - console_s
    own_s = backends_processor_s(ledger.url, READER) - own_s
    server_s = processor_s(ledger.url) - server_s
    return Spent(
        passed,
        after.leases - before.leases,
        server_s + after.cpu_s - before.cpu_s,
        own_s,
        console_s,
    )


def p95(values: list[float]) -> float:
    """Return what 19 of 20 values are at most."""
    return sorted(values)[ceil(0.95 * len(values)) - 1]

"""A crawl of Scrapy through leased proxies, beside one through fixed ones.

2,000 pages of a site, three times: with a proxy chosen in the spider, in turns, of two that work;
and with the add-on, which leases from a pool of four, for each request, or for the domain. Of the
four one is refused by the site with 403, and one dies after 20 pages: it then takes no connection.
All crawls have Scrapy's defaults, and the proxies, which answer as the site, have a process of
their own. The pool was checked before.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from contextlib import closing
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import pharox
from pharox import HealthCheckResult, Proxy, ProxyPool, ProxyProtocol, ProxyStatus
from pharox.events import LeaseAcquired, OutcomeReported
from scripts.benchmarks import goals
from scripts.benchmarks.parts import Bench, Figures, Line, Part
from scripts.benchmarks.server import new_ledger, settled
from scripts.lib.crawl_lab import HOST, Lab, running_lab

PAGES = 2_000
DELAYS_S = {"after 100 ms": 0.1, "at once": 0.0}
"""A site behind proxies takes at least the first; the second shows what a page costs."""

GOOD = ("good", "good-2")
POOL = (*GOOD, "refusing", "mortal")


def prepare(bench: Bench) -> list[Part]:
    """Return a part for each kind of site."""
    return [
        Part(
            f"a site that answers {name}",
            {
                f"{number}. A site that answers {name}": _lines(
                    goals.SCRAPY_RATE if delay_s else None
                )
            },
            partial(_crawls, bench, delay_s),
        )
        for number, (name, delay_s) in enumerate(DELAYS_S.items(), 1)
    ]


def _lines(rate: goals.Goal | None) -> tuple[Line, ...]:
    return (
        Line("pages a second through fixed proxies", "fixed"),
        Line("a lease a request", "request"),
        Line("of the rate through fixed ones", "request", "", per="fixed", goal=rate),
        Line("a lease a domain", "domain"),
        Line("of that rate, too", "domain", "", per="fixed", goal=rate),
        Line("pages that came once, of 2,000, the fewest", "once", "", goal=goals.SCRAPY_ONCE),
        Line("leases that were left", "left", "", goal=goals.SCRAPY_LEFT),
        Line("leases against a rest", "broken", "", goal=goals.SCRAPY_RESTS),
        Line("ms of the crawler's processor a page, fixed", "fixed ms", "ms"),
        Line("ms of it, a lease a request", "request ms", "ms"),
        Line("ms of it, a lease a domain", "domain ms", "ms"),
    )


def _crawls(bench: Bench, delay_s: float) -> Figures:
    figures: Figures = {"once": PAGES, "left": 0, "broken": 0}
    with running_lab(delay_s) as lab:
        crawls = {"fixed": _crawl({"proxies": [lab.url(kind) for kind in GOOD]})}
    for lease_per in ("request", "domain"):
        with running_lab(delay_s) as lab:
            url = new_ledger(bench.url, "crawled", {})
            _fill(url, lab)
            settled(url)
            crawls[lease_per] = _crawl({"url": url, "lease_per": lease_per})
            with closing(pharox.connect(url)) as storage:
                stats = storage.get_pool_stats("pool")
                assert stats is not None
                figures["left"] += stats.total_leases
                figures["broken"] += leases_against_a_rest(storage.events())
    for kind, crawl in crawls.items():
        figures[kind] = PAGES / crawl["seconds"]
        figures[f"{kind} ms"] = 1000 * crawl["processor_s"] / PAGES
        figures["once"] = min(figures["once"], crawl["once"])
    return figures


def _crawl(order: dict[str, Any]) -> dict[str, Any]:
    """Crawl in a process of its own, and return what it measured."""
    done = subprocess.run(
        [sys.executable, "-m", "scripts.benchmarks.crawl_process"],
        input=json.dumps({"pages": PAGES, **order}),
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _fill(url: str, lab: Lab) -> None:
    """Make a pool of the four, each of which was checked once."""
    with closing(pharox.connect(url)) as storage:
        pool = ProxyPool(name="pool")
        storage.save_pool(pool)
        for kind in POOL:
            proxy = Proxy(
                host=HOST,
                port=lab.ports[kind],
                protocol=ProxyProtocol.HTTP,
                pool_id=pool.id,
                status=ProxyStatus.ACTIVE,
                max_concurrency=8,
            )
            storage.save_proxy(proxy)
            check = HealthCheckResult(
                proxy_id=proxy.id,
                status=ProxyStatus.ACTIVE,
                latency_ms=5,
                protocol=ProxyProtocol.HTTP,
            )
            storage.record_health_checks([check])


def leases_against_a_rest(events: Iterable[Any]) -> int:
    """Count leases for a target of proxies that rested for it."""
    until: dict[tuple[UUID, str], datetime | None] = {}
    broken = 0
    for event in events:
        if isinstance(event, OutcomeReported) and event.target is not None:
            assert event.proxy_id is not None
            until[event.proxy_id, event.target] = event.cools_until
        elif isinstance(event, LeaseAcquired) and event.target is not None:
            assert event.proxy_id is not None
            rests = until.get((event.proxy_id, event.target))
            broken += rests is not None and rests > event.recorded_at
    return broken

"""The cost of logs and metrics: lease cycles with both and with neither, in turns."""

from __future__ import annotations

from scripts.benchmarks import goals
from scripts.benchmarks.parts import Bench, Figures, Line, Part
from scripts.benchmarks.peers import OURS, told_by
from scripts.benchmarks.server import new_ledger, settled

LINES = (
    Line("cycles with neither", "off"),
    Line("cycles with a line and metrics for each event", "on"),
    Line("  time of such a cycle, of one with neither", "off", per="on", goal=goals.OBSERVE_COST),
)
SCRAPE = (
    Line("two workers", "scrape", unit="ms"),
    Line("the same, 100 dead ones behind them", "scrape_behind", unit="ms"),
    Line("  of two workers alone", "scrape_behind", per="scrape", goal=goals.SCRAPE_DEAD),
    Line("prometheus_client's collector: two workers", "peer_scrape", unit="ms"),
    Line("  the same, 100 dead ones behind them", "peer_scrape_behind", unit="ms"),
)


def prepare(bench: Bench) -> list[Part]:
    """Return the parts that measure cycles with and without logs and metrics, and scrapes."""
    url = new_ledger(bench.url, "observed", {"hundred": 100})
    settled(url)

    def measure() -> Figures:
        return {how: _cycles(url, bench.seconds, how) for how in ("off", "on")}

    return [
        Part("observe", {"1. Lease cycles, 1 process, 100 proxies": LINES}, measure),
        Part("scrape", {"2. A scrape of gunicorn's workers": SCRAPE}, _scrapes),
    ]


def _scrapes() -> Figures:
    told = told_by(OURS, "scrape_process.py")
    return {
        "scrape": told["ours"]["fresh"] * 1000,
        "scrape_behind": told["ours"]["behind"] * 1000,
        "peer_scrape": told["theirs"]["fresh"] * 1000,
        "peer_scrape_behind": told["theirs"]["behind"] * 1000,
    }


def _cycles(url: str, seconds: float, how: str) -> float:
    told = told_by(OURS, "observe_cycles.py", url, "hundred", seconds, how)
    return float(told["cycles"] / seconds)

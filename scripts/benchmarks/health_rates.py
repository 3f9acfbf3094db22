"""Checks a second: a bare httpx loop, ours, and pharox 0.11.0, each in its own process.

With few proxies httpx keeps its connections; ours opens one for each check, as a
new lease would. With as many proxies as checks neither can keep any.
"""

from __future__ import annotations

import json
from itertools import cycle, islice
from typing import Any

from scripts.benchmarks import goals
from scripts.benchmarks.health_proxies import TARGET, Ports, address
from scripts.benchmarks.parts import Figures, Line, Part
from scripts.benchmarks.peers import OURS, PHAROX_0_11, told_by

CHECKS = 10_000
FEW = 20
AT_ONCE = 100

# It makes two TLS contexts a check, some 40 ms and 1.6 MB: so few show its pace.
PEER_CHECKS = 500
PEER_PATIENCE_S = 30

LINES = (
    Line(f"floor: httpx, {FEW} proxies, connections kept", "floor few"),
    Line(f"ours, {FEW} proxies", "ours few"),
    Line("  of the floor", "ours few", per="floor few", goal=goals.HEALTH_FLOOR),
    Line(f"floor: httpx, {CHECKS:,} proxies, a client a check", "floor many"),
    Line(f"ours, {CHECKS:,} proxies", "ours many"),
    Line("  of the floor", "ours many", per="floor many"),
    Line("  good proxies that ours found slow or inactive", "ours amiss", "", goal=goals.NO_ERRORS),
    Line(f"pharox 0.11.0, {FEW} proxies, {AT_ONCE} after {AT_ONCE}", "peer few"),
    Line("  ours, of that", "ours few", per="peer few"),
    Line(f"  of {PEER_CHECKS} good proxies found slow or inactive", "peer amiss", ""),
)
UNBOUNDED_LINES = (
    Line(f"{PEER_CHECKS:,} at once", "rate"),
    Line("  good proxies found slow", "slow", ""),
    Line("  good proxies found inactive", "inactive", ""),
    Line(f"{CHECKS:,} at once: results after {PEER_PATIENCE_S} s", "results", ""),
)

Told = dict[str, Any]
"""The result of a run: seconds, and the number of checks by status."""


def part(ports: Ports) -> Part:
    """Return the part that measures the rate of checks."""

    def measure() -> Figures:
        runs = {
            "floor few": _run(OURS, "kept", ports, FEW),
            "ours few": _run(OURS, "stream", ports, FEW),
            "floor many": _run(OURS, "fresh", ports, CHECKS),
            "ours many": _run(OURS, "stream", ports, CHECKS),
            "peer few": _run(PHAROX_0_11, "stream", ports, FEW, checks=PEER_CHECKS),
        }
        rates = {name: _rate(told) for name, told in runs.items()}
        ours_amiss = _amiss(runs["ours few"]) + _amiss(runs["ours many"])
        return {**rates, "ours amiss": ours_amiss, "peer amiss": _amiss(runs["peer few"])}

    return Part("rates", {f"1. Checks, {AT_ONCE} at once": LINES}, measure)


def unbounded_part(ports: Ports) -> Part:
    """Return the part that measures the peer's lack of a bound."""

    def measure() -> Figures:
        some = _run(PHAROX_0_11, "stream", ports, CHECKS, checks=PEER_CHECKS, at_once=PEER_CHECKS)
        many = _run(
            PHAROX_0_11, "stream", ports, CHECKS, at_once=CHECKS, patience_s=PEER_PATIENCE_S
        )
        return {
            "rate": _rate(some),
            "slow": some["found"].get("slow", 0),
            "inactive": some["found"].get("inactive", 0),
            "results": sum(many["found"].values()),
        }

    title = "2. pharox 0.11.0 as it is, without a bound"
    return Part("unbounded peer", {title: UNBOUNDED_LINES}, measure, once=True)


def _run(
    python: list[str],
    what: str,
    ports: Ports,
    different: int,
    *,
    checks: int = CHECKS,
    at_once: int = AT_ONCE,
    patience_s: float = 300,
) -> Told:
    urls = [f"http://{address(number)}:{ports['good']}" for number in range(different)]
    task = {
        "target": TARGET,
        "proxies": list(islice(cycle(urls), checks)),
        "at_once": at_once,
        "patience_s": patience_s,
    }
    return told_by(python, "health_checks.py", what, given=json.dumps(task))


def _rate(told: Told) -> float:
    return float(sum(told["found"].values()) / told["seconds"])


def _amiss(told: Told) -> int:
    """Return the number of good proxies that got another status."""
    return int(sum(told["found"].values()) - told["found"].get("active", 0))

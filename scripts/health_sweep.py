#!/usr/bin/env python3
"""Check every proxy that is due, and print the leases on each proxy that dropped out.

    scripts/health_sweep.py [POOL [TARGET]]

An example to copy. PHAROX_DATABASE_URL is the database, PHAROX_CHECK_URL the default target."""

from __future__ import annotations

import argparse
import asyncio
import sys
from contextlib import aclosing, closing

import pharox as px
from pharox.settings import check_url


def tell_if_dropped(check: px.HealthEventPayload) -> None:
    if check.status_before is not check.status_after is px.ProxyStatus.INACTIVE:
        leases = ", ".join(map(str, check.lease_ids)) or "none"
        print(f"{check.result.proxy_id} dropped out ({check.result.failure}); leases: {leases}")


async def sweep(storage: px.IStorage, pool: str | None, target: str) -> px.SweepSummary:
    usual = px.HealthCheckOptions.model_validate({"target_url": target})
    patient = usual.model_copy(update={"timeout": 10.0, "attempts": 2})
    checker = px.HealthChecker(usual, {px.ProxyProtocol.SOCKS5: patient})
    manager = px.ProxyManager(storage)
    manager.register_health_callback(tell_if_dropped)
    rate = px.AcquisitionRate(per_second=200)  # while there are more, a sweep waits
    manager.register_acquire_callback(rate.note)
    sweeper = px.HealthCheckOrchestrator(manager=manager, checker=checker, pause_when=rate.is_high)
    summary = px.SweepSummary()
    async with aclosing(sweeper.sweep(summary.watch(sweeper.due(pool)), per_host=20)) as outcomes:
        async for outcome in outcomes:
            summary.add(outcome)
    return summary


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pool", nargs="?")
    parser.add_argument("target", nargs="?")
    asked = parser.parse_args()
    try:
        with closing(px.connect()) as storage:
            url = check_url(asked.target, "POOL TARGET")
            summary = asyncio.run(sweep(storage, asked.pool, url))
    except (px.PharoxError, ValueError) as error:
        print(f"health_sweep.py: {error}", file=sys.stderr)
        return 1
    found = ", ".join(f"{number} {status}" for status, number in summary.statuses.most_common())
    print(f"{summary.checked} checked: {found or 'none was due'}; {summary.recovered} came back")
    return 0


if __name__ == "__main__":
    sys.exit(main())

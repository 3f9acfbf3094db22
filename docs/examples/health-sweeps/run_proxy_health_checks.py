#!/usr/bin/env python3
"""Check a pool's proxies, keep what was found in the ledger, and act on it.

    run_proxy_health_checks.py [POOL] [--target URL] [--expect-text TEXT]

The database is that of PHAROX_DATABASE_URL, and the page to fetch that of PHAROX_CHECK_URL
if no --target is given. Use a page of your own: it sees all of your proxies, and with a text
that only this page has, a proxy that answers with a page of its own is found out.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections import Counter, defaultdict
from contextlib import closing

from pharox import (
    HealthChecker,
    HealthCheckOptions,
    HealthCheckOrchestrator,
    HealthEventPayload,
    IStorage,
    PharoxError,
    ProxyManager,
    ProxyProtocol,
    ProxyStatus,
    connect,
)
from pharox.settings import check_url


class Report:
    """What a sweep found, by provider: how many checks failed and why, and how long they took."""

    def __init__(self) -> None:
        self.latencies_ms: defaultdict[str, list[int]] = defaultdict(list)
        self.failures: defaultdict[str, Counter[str]] = defaultdict(Counter)

    def note(self, check: HealthEventPayload) -> None:
        """Take one check; a health callback."""
        provider, result = check.source or "no source", check.result
        self.latencies_ms[provider].append(result.latency_ms)
        if result.failure:
            self.failures[provider][result.failure.value] += 1
        if check.lease_ids:
            print(f"{result.proxy_id} dropped out, and is leased {len(check.lease_ids)} times")

    def lines(self) -> list[str]:
        """Return a line for each provider."""
        return [
            f"{provider}: {len(latencies)} checked, "
            f"median {sorted(latencies)[len(latencies) // 2]} ms, "
            f"failed: {dict(self.failures[provider]) or 'none'}"
            for provider, latencies in sorted(self.latencies_ms.items())
        ]


def checker_for(target: str, text: str | None) -> HealthChecker:
    """Return a checker that has more patience with SOCKS5 proxies than with others."""
    page = {"target_url": target, "expected_text": text, "expected_status_codes": [200]}
    usual = {"timeout": 5.0, "attempts": 2, "slow_threshold_ms": 1500}
    patient = {"timeout": 8.0, "attempts": 3, "slow_threshold_ms": 2500}
    checker = HealthChecker(default_options=HealthCheckOptions.model_validate(page | usual))
    checker.set_protocol_options(
        ProxyProtocol.SOCKS5, HealthCheckOptions.model_validate(page | patient)
    )
    return checker


async def sweep(storage: IStorage, checker: HealthChecker, pool: str | None, report: Report) -> int:
    """Check all that is due, and return how many proxies are well."""
    manager = ProxyManager(storage)
    manager.register_health_callback(report.note)
    orchestrator = HealthCheckOrchestrator(manager=manager, checker=checker)
    well = 0
    proxies = storage.load_proxies_for_healthchecks(pool)
    async for result in orchestrator.stream_health_checks(proxies, concurrency=100, per_host=10):
        if result.status in {ProxyStatus.ACTIVE, ProxyStatus.SLOW}:
            well += 1
        else:
            print(f"{result.proxy_id}: {result.error_message}")
    return well


def main() -> int:
    """Run one sweep; the exit status is 1 if no proxy is well."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pool", nargs="?", metavar="POOL")
    parser.add_argument("--target", metavar="URL")
    parser.add_argument("--expect-text", metavar="TEXT")
    asked = parser.parse_args()
    report = Report()
    try:
        checker = checker_for(check_url(asked.target, "--target URL"), asked.expect_text)
        with closing(connect()) as storage:
            well = asyncio.run(sweep(storage, checker, asked.pool, report))
    except (PharoxError, ValueError) as error:
        print(f"run_proxy_health_checks.py: {error}", file=sys.stderr)
        return 2
    print(*report.lines(), f"{well} proxies can be leased", sep="\n")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())

"""What keeps a ledger going: parked events, sweeps, read models.

A sweep and a rebuild take minutes. Each runs in a thread of its own.
"""

from __future__ import annotations

import asyncio
from typing import Any

import projections

from ...errors import InvalidInputError, SubscriptionNotFoundError
from ...health import HealthChecker, HealthCheckOrchestrator, SweepSummary
from ...incident.wording import count
from ...ledger.rebuild import rebuild
from ...ledger.subscriptions import retry, subscriptions
from ...models import HealthCheckOptions, HealthPolicy
from ...settings import check_url
from ...storage.postgres import PostgresStorage
from ...storage.validation import pool_named
from ..access import Action
from ..jobs import Outcome, Progress
from .shapes import Deed, Field, Subject, Values


def _find_parked(storage: Any, name: str) -> Subject:
    for found in subscriptions(storage):
        if found.name == name:
            who = "A reader is running." if found.active else "No reader is running."
            hint = "Empty: all that are parked."
            return Subject(
                name,
                [f"{found.parked} events are parked.", who],
                [Field("key", "Only those of this key", hint=hint)],
                "ledger",
            )
    raise SubscriptionNotFoundError(f"there is no subscription {name!r}", name=name)


def _retry(storage: Any, name: str, values: Values, reason: str) -> str:
    storage.record_action(Action.RETRY_PARKED.value, name, reason)
    marked = retry(storage, name, key=values.get("key", "").strip() or None)
    if not marked:
        return "Nothing is parked there, so nothing was marked."
    return f"{marked} parked events are marked: the subscription's reader tries them first."


def _find_pool(storage: Any, name: str) -> Subject:
    pool_named(name, storage.list_pools())
    number = storage.get_pool_stats(name).total_proxies
    facts = [f"It has {count(number, 'proxy', 'proxies')}.", f"They fetch {_page()}."]
    return Subject(name, facts, page="ledger")


def _page() -> str:
    """Return what proxies are to fetch, as ``pharox sweep`` has it; refuse if nobody has said."""
    return check_url(None, "it to `pharox sweep`")


def _begin_sweep(storage: Any, name: str, _: Values, reason: str) -> str:
    (pool,) = pool_named(name, storage.list_pools())
    storage.record_action(Action.SWEEP.value, name, reason, pool_id=pool.id)
    return "The sweep has begun."


def _sweep(storage: Any, name: str, progress: Progress) -> Outcome:
    summary = SweepSummary()
    total = storage.get_pool_stats(name).total_proxies

    async def run() -> None:
        checker = HealthChecker(HealthCheckOptions(target_url=_page()))
        orchestrator = HealthCheckOrchestrator(storage, checker, policy=HealthPolicy())
        async for outcome in orchestrator.sweep(summary.watch(orchestrator.due(name))):
            summary.add(outcome)
            progress(f"checking pool {name}", summary.checked, total)

    asyncio.run(run())
    found = ", ".join(f"{number:,} {status}" for status, number in summary.statuses.most_common())
    checked = count(summary.checked, "proxy was checked", "proxies were checked")
    return Outcome(f"{checked}: {found or 'none was due'}.")


def _find_read_models(storage: Any, name: str) -> Subject:
    if not isinstance(storage, PostgresStorage):
        raise InvalidInputError("only a ledger in PostgreSQL has read models to rebuild")
    known = [projection.name for projection in projections.ALL]
    if name not in ("all", *known):
        raise InvalidInputError(f"there is no read model {name!r}", value=name)
    which = f"All {len(known)} read models." if name == "all" else f"The read model {name}."
    return Subject(name, [which], page="ledger")


def _begin_rebuild(storage: Any, name: str, _: Values, reason: str) -> str:
    storage.record_action(Action.REBUILD.value, name, reason)
    return "The rebuild has begun."


def _rebuild(storage: Any, name: str, progress: Progress) -> Outcome:
    def folded(reached: int, last: int) -> None:
        progress("folding the log", reached, last)

    done = rebuild(storage, () if name == "all" else (name,), progress=folded)
    rows = f"{len(done.findings)} rows" if done.findings else "nothing"
    reached = f"Rebuilt up to event {done.last_seq:,} in {done.seconds:.1f} s"
    return Outcome(
        f"{reached}; {rows} differed from the log.",
        is_good=not done.findings,
        findings=[str(finding) for finding in done.findings],
    )


DEEDS = (
    Deed(
        Action.RETRY_PARKED,
        "Retry parked events",
        "The subscription's reader hands them to its handler again, before anything else.",
        _find_parked,
        _retry,
    ),
    Deed(
        Action.SWEEP,
        "Check a pool now",
        "Every proxy of the pool that is not banned is checked, and the results are recorded.",
        _find_pool,
        _begin_sweep,
        _sweep,
    ),
    Deed(
        Action.REBUILD,
        "Rebuild read models",
        "They are folded from the log anew while leasing goes on, and exchanged at the end.",
        _find_read_models,
        _begin_rebuild,
        _rebuild,
    ),
)

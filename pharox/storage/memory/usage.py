"""Sum up from the log what was used of proxies."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Any
from uuid import UUID

from projections.spending import day_of

from ...events import Event, LeaseAcquired, OutcomeReported, ProxyChanged, ProxyRegistered
from ...models import OutcomeKind, Usage
from ...models.money import total
from ..validation import UsageWish
from .state import State

_Group = tuple[Any, ...]


def usage(state: State, wish: UsageWish) -> list[Usage]:
    """Return the groups that cost most, then those with the most bytes, requests and leases."""
    groups: dict[_Group, dict[str, Any]] = {}
    for event, source in _used(state, wish):
        group = _group(event, source, wish.by)
        sums = groups.setdefault(
            group, {"leases": 0, "requests": 0, "ok": 0, "bytes": 0, "money": Decimal(0)}
        )
        sums["money"] = total(sums["money"], event.cost or Decimal(0))
        if isinstance(event, LeaseAcquired):
            sums["leases"] += 1
        else:
            sums["requests"] += event.count
            sums["ok"] += event.count if event.outcome is OutcomeKind.OK else 0
            sums["bytes"] += event.bytes or 0
    found = [
        Usage(**dict(zip(wish.by, group, strict=True)), **sums) for group, sums in groups.items()
    ]
    found.sort(key=Usage.group)
    found.sort(key=lambda own: (own.money, own.bytes, own.requests, own.leases), reverse=True)
    return found[: wish.limit]


def _used(
    state: State, wish: UsageWish
) -> Iterator[tuple[LeaseAcquired | OutcomeReported, str | None]]:
    """Yield what was used, each with the source that its proxy had then."""
    sources: dict[UUID, str | None] = {}
    for event in state.log:
        if isinstance(event, ProxyRegistered | ProxyChanged):
            sources[event.proxy_id] = event.source
        elif isinstance(event, LeaseAcquired | OutcomeReported) and _is_wished(event, wish):
            yield event, sources.get(event.proxy_id)


def _is_wished(event: Event, wish: UsageWish) -> bool:
    return (
        (wish.since is None or event.recorded_at >= wish.since)
        and (wish.until is None or event.recorded_at < wish.until)
        and wish.pool_name in (None, getattr(event, "pool_name", None))
    )


def _group(
    event: LeaseAcquired | OutcomeReported, source: str | None, by: tuple[str, ...]
) -> _Group:
    every = {
        "consumer": event.consumer,
        "source": source,
        "target": event.target,
        "pool": event.pool_name,
        "day": day_of(event.recorded_at),
    }
    return tuple(every[key] for key in by)

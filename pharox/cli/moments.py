"""Print a pool as it was at a moment, and the difference between two moments."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ..history.describing import counts_in_words, in_numbers, shown_status
from ..models import SourceCounts
from ..models.text import escape_unprintable
from .showing import in_utc, print_table

if TYPE_CHECKING:
    from projections import SourceRow

    from ..history.replay import Difference, PoolMoment, ProxyChange, ProxyMoment


_COLUMNS = ("proxy", "address", "status", "leases", "limit", "country", "last check", "held by")

LISTED = 5
"""How many targets are listed that a proxy rested for."""


def print_moment(moment: PoolMoment) -> None:
    """Print a pool: its statistics, whose turn it was, and each proxy with its holders."""
    _print(f"pool {moment.pool.name} ({moment.pool.id}) {_after(moment)}")
    _print(in_numbers(moment.counts))
    addresses = _addresses(moment)
    for cursor in moment.cursors:
        if cursor.proxy_id is not None:
            turn = addresses.get(cursor.proxy_id, cursor.proxy_id)
            _print(f"{cursor.selector}: the last turn went to {turn}")
    for source in moment.sources:
        _print(_source(source))
    print()
    has_rests = any(proxy.cooling for proxy in moment.proxies)
    print_table(
        (*_COLUMNS, "rests for") if has_rests else _COLUMNS,
        ((*_row(each), _rests(each)) if has_rests else _row(each) for each in moment.proxies),
    )


def print_difference(was: PoolMoment, becomes: PoolMoment, found: Difference) -> None:
    """Print what changed from one moment to the other, one change a line."""
    _print(f"pool {becomes.pool.name} ({becomes.pool.id})")
    _print(f"as it was {_after(was)}")
    _print(f"and {_after(becomes)}")
    print()
    for line in _differences(found, {**_addresses(was), **_addresses(becomes)}):
        _print(line)
    if not found:
        print("there is no difference")


def _row(proxy: ProxyMoment) -> tuple[object, ...]:
    availability, health = proxy.availability, proxy.health
    checked = health and f"{health.status} at {in_utc(health.checked_at)}"
    holders = (f"{held.consumer_name} until {in_utc(held.expires_at)}" for held in proxy.holders)
    return (
        proxy.proxy.id,
        proxy.address,
        shown_status(
            availability.status,
            drains=bool(availability.drains),
            until=availability.banned_until,
        ),
        availability.current_leases,
        availability.max_concurrency,
        proxy.proxy.country,
        checked,
        "; ".join(holders) or None,
    )


def _source(source: SourceRow) -> str:
    """Return how the last refreshes of a source had gone."""
    when = "no refresh yet"
    if source.refreshed_at is not None and source.counts is not None:
        found = counts_in_words(SourceCounts(**source.counts))
        when = f"changed {in_utc(source.refreshed_at)} ({found})"
    if source.failure is not None and source.failed_at is not None:
        when += f"; failed {in_utc(source.failed_at)}: {source.failure}"
    return f"source {source.name}: {when}"


def _rests(proxy: ProxyMoment) -> str | None:
    """Return the targets that a proxy rested for, the first few, each with its end."""
    rests = [
        f"{pair.target} until {in_utc(pair.cools_until)}"
        for pair in proxy.cooling[:LISTED]
        if pair.cools_until is not None
    ]
    if len(proxy.cooling) > LISTED:
        rests.append(f"{len(proxy.cooling) - LISTED} more")
    return "; ".join(rests) or None


def _differences(found: Difference, addresses: dict[Any, str]) -> Iterator[str]:
    for what, changes in (("pool", found.pool), ("statistics", found.statistics)):
        for name, (was, becomes) in changes.items():
            yield f"  {what}: {name.replace('_', ' ')} {_value(was)} -> {_value(becomes)}"
    for name, turn in found.cursors.items():
        was, becomes = (addresses.get(proxy_id, proxy_id) for proxy_id in turn)
        yield f"  {name}: {_value(was)} -> {_value(becomes)}"
    for proxy in found.added:
        yield f"  + {proxy.address} ({proxy.proxy.id}) {proxy.availability.status}"
    for proxy in found.removed:
        yield f"  - {proxy.address} ({proxy.proxy.id}) {proxy.availability.status}"
    for change in found.changed:
        yield f"  ~ {change.address} ({change.id}) {_changes_of(change)}"
    for lease in found.begun:
        yield f"  + lease {lease.id}: {lease.consumer_name} on {addresses[lease.proxy_id]}"
    for lease in found.renewed:
        yield (
            f"  ~ lease {lease.id}: {lease.consumer_name} on {addresses[lease.proxy_id]}"
            f" until {in_utc(lease.expires_at)}"
        )
    for lease in found.ended:
        yield f"  - lease {lease.id}: {lease.consumer_name} on {addresses[lease.proxy_id]}"


def _changes_of(change: ProxyChange) -> str:
    """Return the changed attributes of a proxy; times of checks only if nothing else changed."""
    describing = {
        name: pair for name, pair in change.attributes.items() if not name.endswith("_at")
    }
    return ", ".join(
        f"{name.replace('_', ' ')} {_value(was)} -> {_value(becomes)}"
        for name, (was, becomes) in (describing or change.attributes).items()
    )


def _addresses(moment: PoolMoment) -> dict[Any, str]:
    return {proxy.proxy.id: proxy.address for proxy in moment.proxies}


def _after(moment: PoolMoment) -> str:
    return f"after event {moment.seq}, recorded at {in_utc(moment.recorded_at)}"


def _value(value: Any) -> str:
    return "-" if value is None else in_utc(value) if isinstance(value, datetime) else str(value)


def _print(line: str) -> None:
    print(escape_unprintable(line))

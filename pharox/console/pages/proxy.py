"""One proxy: who holds it, its health, where it rests, and who had it before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from starlette.requests import Request
from starlette.responses import Response

from pharox.log import Extract

from ...errors import ProxyNotFoundError
from ...history.addresses import address_of
from ...history.past.keyframes import Keyframes
from ...history.sealed_log import last_seq
from ...models import HealthCheckResult, Lease, Proxy, TargetOutcomes, utc_now
from ...models.ids import NIL
from ..console import reader
from ..rendering import render
from ..rotating import RotationNow, rotation_of
from ..story import Here, Line, Part, Wanted, lines_of, read_part, wanted_of

TARGETS = 20
"""How many targets are listed."""

HOLDERS = 50
"""How many holders are listed."""


class Holder(NamedTuple):
    """A lease on a proxy."""

    lease_id: UUID
    consumer: str
    since: datetime


@dataclass(frozen=True, slots=True)
class ProxyPage:
    """What the page of a proxy shows.

    ``proxy`` is None if it was removed. ``holders`` are the leases on it, the first
    :data:`HOLDERS`: now, or at the event ``then`` if the page ends in the past. ``targets`` are
    those that outcomes were reported of, the first :data:`TARGETS`. ``rotation`` is None if it has
    no link for another exit; ``has_source`` says whether its source is one that is refreshed.
    """

    id: UUID
    address: str
    pool_id: UUID | None
    pool_name: str
    proxy: Proxy | None
    holders: Sequence[Holder]
    then: int | None
    health: HealthCheckResult | None
    targets: Sequence[TargetOutcomes]
    has_more: bool
    rotation: RotationNow | None
    has_source: bool
    wanted: Wanted
    part: Part
    lines: Sequence[Line]


def data(storage: Any, keyframes: Keyframes, proxy_id: UUID, wanted: Wanted) -> ProxyPage:
    """Return what the page of a proxy shows.

    Raises
    ------
    ProxyNotFoundError
        If there never was such a proxy.
    """
    proxy: Proxy | None = storage.get_bare_proxy(proxy_id)
    part = read_part(storage, Extract(proxy_id=proxy_id), wanted)
    last = last_seq(storage)
    pool_id = proxy.pool_id if proxy else _pool_of(storage, proxy_id, part)
    then = _end(storage, wanted, last)
    if then is not None:
        holders = _holders_then(keyframes, pool_id, proxy_id, then, last)
    else:
        holders = _holders_now(storage, proxy) if proxy else []
    targets = storage.list_target_outcomes(proxy_id=proxy_id, limit=TARGETS + 1)
    lines = lines_of(storage, keyframes.past, part.events, part.begins_after)
    known = address_of(proxy) if proxy else None
    gone = keyframes.past.addresses(pool_id, [proxy_id], last) if known is None else {}
    names = {pool.id: pool.name for pool in storage.list_pools()}
    return ProxyPage(
        proxy_id,
        known or gone.get(proxy_id) or str(proxy_id),
        pool_id if pool_id in names else None,
        names.get(pool_id, str(pool_id)),
        proxy,
        holders[:HOLDERS],
        then,
        storage.get_last_health_result(proxy_id) if proxy else None,
        targets[:TARGETS],
        len(targets) > TARGETS,
        rotation_of(storage, proxy) if proxy else None,
        _has_source(storage, proxy),
        wanted,
        part,
        lines,
    )


def _holders_now(storage: Any, proxy: Proxy) -> list[Holder]:
    # Leases are listed by pool, proxy and id: those of one proxy follow a lease of the lowest id.
    before = Lease(
        id=NIL, proxy_id=proxy.id, consumer_id=NIL, pool_id=proxy.pool_id, expires_at=utc_now()
    )
    held = storage.list_held_leases(after=before, limit=HOLDERS)
    return [
        Holder(lease.id, lease.consumer_name or "", lease.acquired_at)
        for lease in held
        if lease.proxy_id == proxy.id
    ]


def _holders_then(
    keyframes: Keyframes, pool_id: UUID, proxy_id: UUID, seq: int, last: int
) -> list[Holder]:
    leases = keyframes.at(pool_id, seq, last).leases
    held = [
        Holder(key, lease.consumer, lease.acquired_at)
        for key, lease in leases.items()
        if lease.proxy_id == proxy_id
    ]
    return sorted(held, key=lambda holder: holder.since)


def _has_source(storage: Any, proxy: Proxy | None) -> bool:
    """Return whether a proxy is of a list that its pool is kept in step with."""
    if proxy is None or proxy.source is None:
        return False
    known = ((each.pool_id, each.name) for each in storage.list_sources())
    return (proxy.pool_id, proxy.source) in known


def _pool_of(storage: Any, proxy_id: UUID, part: Part) -> UUID:
    """Return the pool that a removed proxy was in, from any event of it."""
    events = part.events or read_part(storage, Extract(proxy_id=proxy_id), Wanted()).events
    if not events:
        raise ProxyNotFoundError(f"There never was a proxy {proxy_id}.", proxy_id=proxy_id)
    return events[-1].pool_id


def _end(storage: Any, wanted: Wanted, last: int) -> int | None:
    """Return the seq at which a page ends that was asked for up to a moment; None for now."""
    if wanted.until is None:
        return None
    seq = wanted.until if isinstance(wanted.until, int) else storage.seq_at(wanted.until)
    return None if seq >= last else int(seq)


async def page(request: Request) -> Response:
    """Answer with the page of a proxy."""
    console = await reader(request)
    proxy_id = request.path_params["proxy"]
    wanted = wanted_of(request.query_params)
    shown = await console.read(data, console.storage, console.keyframes, proxy_id, wanted)
    here = Here("proxy", {"proxy": shown.id})
    return render(request, "proxy.html", shown=shown, here=here)

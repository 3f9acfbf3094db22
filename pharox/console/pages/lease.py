"""One lease, from beginning to end: who held which proxy, and what became of both meanwhile."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from heapq import merge
from itertools import islice
from operator import attrgetter
from typing import Any
from uuid import UUID

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from pharox.log import Extract
from pharox.log.extract import BIGGEST

from ...events import (
    Event,
    LeaseAcquired,
    LeaseEnd,
    LeaseExpired,
    LeaseReleased,
    LeaseRevoked,
)
from ...history.past.shapes import Past
from ...history.sealed_log import archived_upto
from ...models import Lease
from ..console import reader
from ..rendering import render
from ..story import PAGE, Here, Line, Part, Wanted, lines_of, read_part, wanted_of

_ENDS = {"LeaseReleased": "released", "LeaseExpired": "expired", "LeaseRevoked": "revoked"}
_MEANWHILE = ("HealthChecked", "ProxyChanged")


@dataclass(frozen=True, slots=True)
class LeasePage:
    """What the page of a lease shows.

    ``acquired`` and ``ended`` are its first and last event, the latter None while it is held.
    ``lease`` is the row of the read model, None if it was pruned.
    """

    id: UUID
    acquired: LeaseAcquired
    ended: LeaseEnd | None
    lease: Lease | None
    address: str
    wanted: Wanted
    part: Part
    lines: Sequence[Line]

    @property
    def status(self) -> str:
        """Whether it is held, and how it ended otherwise."""
        return "held" if self.ended is None else _ENDS[self.ended.type]

    @property
    def ends_at(self) -> datetime:
        """When it ended, or will end as far as is known."""
        if self.ended is not None:
            return self.ended.recorded_at
        return self.lease.expires_at if self.lease else self.acquired.expires_at

    @property
    def of_then(self) -> dict[str, str]:
        """The parameters of the proxy's page for the time of the lease."""
        end = {} if self.ended is None else {"to": str(self.ended.seq)}
        return {"from": str(self.acquired.seq), **end}


def data(storage: Any, past: Past, lease_id: UUID, wanted: Wanted) -> LeasePage:
    """Return what the page of a lease shows.

    Raises
    ------
    HTTPException
        404 if there never was such a lease.
    """
    acquired, ended = _ends_of(storage, lease_id)
    if acquired is None:
        raise HTTPException(404, f"There never was a lease {lease_id}.")
    part = read_part(storage, Extract(lease_id=lease_id), wanted, is_forward=True)
    part = _with_meanwhile(storage, part, acquired, ended)
    lines = lines_of(storage, past, part.events, part.begins_after)
    address = past.addresses(acquired.pool_id, [acquired.proxy_id], acquired.seq)
    return LeasePage(
        lease_id,
        acquired,
        ended,
        storage.get_lease(str(lease_id)),
        address.get(acquired.proxy_id, str(acquired.proxy_id)),
        wanted,
        part,
        lines,
    )


def _ends_of(storage: Any, lease_id: UUID) -> tuple[LeaseAcquired | None, LeaseEnd | None]:
    """Return the first and the last event of a lease, as far as there are any."""
    acquired, ended = None, None
    events: Iterable[Event] = storage.history(
        Extract(after=archived_upto(storage), lease_id=lease_id, types=("LeaseAcquired", *_ENDS))
    )
    for event in events:
        match event:
            case LeaseAcquired():
                acquired = event
            case LeaseReleased() | LeaseExpired() | LeaseRevoked():
                ended = event
    return acquired, ended


def _with_meanwhile(storage: Any, part: Part, acquired: LeaseAcquired, ended: Event | None) -> Part:
    """Return a page with what happened to the proxy between its events."""
    if not part.events:
        return part
    is_first, is_last = part.older is None, part.newer is None
    meanwhile = Extract(
        after=acquired.seq if is_first else part.events[0].seq,
        upto=(BIGGEST if ended is None else ended.seq) if is_last else part.events[-1].seq,
        types=_MEANWHILE,
        proxy_id=acquired.proxy_id,
    )
    others = islice(storage.history(meanwhile), PAGE)
    return replace(part, events=tuple(merge(part.events, others, key=attrgetter("seq"))))


async def page(request: Request) -> Response:
    """Answer with the page of a lease."""
    console = await reader(request)
    lease_id, wanted = request.path_params["lease"], wanted_of(request.query_params)
    shown = await console.read(data, console.storage, console.figures.past, lease_id, wanted)
    here = Here("lease", {"lease": shown.id})
    return render(request, "lease.html", shown=shown, here=here)

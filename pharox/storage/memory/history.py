"""Read the log, and verify the read models against it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import projections
from pharox.log import Extract
from projections import Finding, LeaseRow

from ...events import Event, LeasesPruned
from ...models import HeldLease, Lease, check_aware
from ...models.text import url_of
from ..requests import held_lease
from ..validation import HeldPage
from .state import State, lease_from_row


def history(state: State, extract: Extract) -> Iterator[Event]:
    """Yield the events in the log that match an extract, in order."""
    extract.check()
    with state.lock:
        last = min(extract.upto, len(state.log))
    for place in range(max(extract.after, 0), last):
        if extract.holds(state.log[place]):
            yield extract.part(state.log[place])


def seq_at(state: State, moment: datetime) -> int:
    """Return the seq of the last event recorded at or before a moment; 0 if there is none."""
    check_aware(moment)
    earlier = (event for event in state.log if event.recorded_at <= moment)
    last = max(earlier, key=lambda event: (event.recorded_at, event.seq), default=None)
    return 0 if last is None else last.seq


def verify(state: State) -> list[Finding]:
    """Fold the whole log again and return every row of a read model that differs."""
    folded = projections.fold(state.log, projections.registered())
    return list(projections.differences(state.rows, folded, projections.registered()))


def leases_of(state: State, consumer_id: UUID | None, *, of_all: bool) -> list[Lease]:
    """Return the leases of one consumer or of all, oldest first."""
    rows: list[LeaseRow] = list(state.rows["leases"].values())
    wanted = (row for row in rows if of_all or row.consumer_id == consumer_id)
    return [lease_from_row(row) for row in sorted(wanted, key=lambda row: row.fencing_token)]


def held_leases(state: State, page: HeldPage) -> list[HeldLease]:
    """Return a page of the active leases, ordered by the ids of pool, proxy and lease."""
    now = state.clock()
    found = []
    for pool_id in sorted(state.pools):
        if page.pool_name not in (None, state.pool_name(pool_id)):
            continue
        for proxy_id in sorted(state.pools[pool_id].held_proxies()):
            row = state.proxy_row(proxy_id)
            address = url_of(row.protocol, row.host, row.port)
            for lease_id in sorted(state.pools[pool_id].held(proxy_id)):
                lease = state.lease(lease_id)
                is_wanted = page.consumer_name in (None, lease.consumer_name)
                if (pool_id, proxy_id, lease_id) > page.after and is_wanted:
                    found.append(held_lease(lease, address, now))
                    if len(found) == page.limit:
                        return found
    return found


def prune_leases(state: State, ended_before: datetime) -> int:
    """Delete leases that ended before a given time, and return how many.

    Leases that ended in the last minute are always kept, as in PostgreSQL.
    """
    check_aware(ended_before)
    settled = min(ended_before, state.clock() - timedelta(minutes=1))
    leases: dict[Any, LeaseRow] = state.rows["leases"]
    ended = [row for row in leases.values() if row.released_at and row.released_at < settled]
    for pool_id in sorted({row.pool_id for row in ended}):
        state.append(LeasesPruned, pool_id=pool_id, ended_before=settled)
    gone = [row.id for row in ended if (row.id, row.pool_id) not in leases]
    for lease_id in gone:
        del state.pool_of_lease[lease_id]
    state.pruned_ids.update(gone)
    return len(gone)

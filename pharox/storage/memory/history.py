"""Read the log, and verify the read models against it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from hashlib import sha256
from heapq import nsmallest
from itertools import chain, islice
from typing import Any
from uuid import UUID

import projections
from pharox.log import Extract
from pharox.log.canonical import canonical
from pharox.log.rows import row_from_event
from pharox.log.signed_heads import contradictions, difference, shorter
from pharox.log.tree import (
    Inclusion,
    Tree,
    TreeHead,
    consistency_spans,
    inclusion_spans,
    leaf_hash,
)
from projections import Finding, LeaseRow

from ...errors import InvalidInputError
from ...events import Event, LeaseAcquired, LeasesPruned
from ...models import HeldLease, Lease, check_aware, check_whole
from ...models.text import url_of
from ..requests import held_lease
from ..validation import HeldPage, IdSpan
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


def tree_head(state: State, size: int | None) -> TreeHead:
    """Return the head of the tree over the first ``size`` events, or all."""
    size = _tree_size(state, size)
    return TreeHead(size, state.tree.root((0, size)))


def prove_inclusion(state: State, seq: int, size: int | None) -> Inclusion:
    """Return the proof that an event is among the first ``size`` events, or all."""
    size = _tree_size(state, size)
    if not 1 <= check_whole(seq, "seq") <= size:
        raise InvalidInputError(f"there is no event {seq} among the first {size}", seq=seq)
    hashes = tuple(map(state.tree.root, inclusion_spans(seq - 1, size)))
    return Inclusion(seq, size, _covered(state.log[seq - 1]), hashes)


def prove_consistency(state: State, old: int, size: int | None) -> tuple[bytes, ...]:
    """Return the proof that the tree over ``size`` events, or all, continues that over ``old``."""
    size = _tree_size(state, size)
    if not 0 <= check_whole(old, "old") <= size:
        raise InvalidInputError(f"the log has {size} events, not {old}", old=old, size=size)
    return tuple(map(state.tree.root, consistency_spans(old, size) if old else ()))


def _tree_size(state: State, size: int | None) -> int:
    """Return how many events a tree is asked for of, after having it grow to all that there are."""
    last = len(state.log)
    for event in islice(state.log, len(state.tree), None):
        state.tree.append(leaf_hash(sha256(_covered(event)).digest()))
    if size is not None and not 0 <= check_whole(size, "size") <= last:
        raise InvalidInputError(f"the log has {last} events, not {size}", size=size, last_seq=last)
    return last if size is None else size


def _covered(event: Event) -> bytes:
    return canonical(row_from_event(event))


def verify_heads(state: State, heads: Iterable[TreeHead]) -> Iterator[Finding]:
    """Yield which signed heads of the tree the log differs from; it is hashed anew."""
    ordered = sorted(heads)
    yield from contradictions(ordered)
    log = Tree(leaf_hash(sha256(_covered(event)).digest()) for event in state.log if ordered)
    matched = 0
    for head in ordered:
        if head.size > len(log):
            yield shorter(head, len(log))
        elif (root := log.root((0, head.size))) != head.root:
            yield difference(head.size, root, head.root, matched)
        else:
            matched = head.size


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
                    found.append(held_lease(lease, address, now, _session_of(state, lease)))
                    if len(found) == page.limit:
                        return found
    return found


def lease_ids(state: State, span: IdSpan, limit: int) -> list[UUID]:
    """Return the first ids of leases in a range, in their order; pruned ones are in the log."""
    known = chain(state.pool_of_lease, state.pruned_ids)
    within = (lease_id for lease_id in known if span.first <= lease_id <= span.last)
    return nsmallest(max(check_whole(limit, "limit"), 0), within)


def _session_of(state: State, lease: Lease) -> str | None:
    """Return the key of the sticky session that a lease was asked for."""
    granted = state.event_at(lease.fencing_token or 0)
    return granted.session if isinstance(granted, LeaseAcquired) else None


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

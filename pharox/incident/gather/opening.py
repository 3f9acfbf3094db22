"""What a picture begins with: the pools before its window, from their past.

It is what a picture looks at: names, statistics, statuses, addresses and the leases that were held.
Nothing else of the ledger is folded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from uuid import UUID

from projections import LeaseRow, PoolCounts

from ...history.past import past_of
from ...history.past.keyframes import Keyframes
from ...history.past.shapes import LeaseDetails, LeaseThen, Past, PoolThen
from ...history.sealed_log import SealedLog, last_seq
from ...models.ids import NIL
from .window import Choice


@dataclass(frozen=True, slots=True)
class Opening:
    """The pools of a picture after an event: their names, and what was in them.

    ``names`` has those of other pools too. ``addresses`` are proxies' URLs without credentials,
    ``statuses`` are by the ids of proxy and pool.
    """

    names: Mapping[UUID, str]
    addresses: dict[UUID, str] = field(default_factory=dict)
    counts: dict[UUID, PoolCounts] = field(default_factory=dict)
    statuses: dict[tuple[UUID, UUID], str] = field(default_factory=dict)
    leases: list[LeaseRow] = field(default_factory=list)

    def add(self, past: Past, pool_id: UUID, then: PoolThen) -> None:
        """Add a pool as it was then."""
        self.counts[pool_id] = then.counts(pool_id)
        for proxy_id, proxy in then.proxies.items():
            self.statuses[proxy_id, pool_id] = proxy.status
        details = past.details(pool_id, list(then.leases), then.seq)
        for lease_id, lease in then.leases.items():
            row = _lease(pool_id, self.names[pool_id], lease_id, lease, details.get(lease_id))
            self.leases.append(row)


def opening(log: SealedLog, names: Mapping[UUID, str], choice: Choice, seq: int) -> Opening:
    """Return what a picture of the chosen pools begins with after the event ``seq``.

    ``names`` are those of all pools then, by id.
    """
    past = past_of(log)
    keyframes, last = Keyframes(past), last_seq(log)
    found = Opening(names)
    for pool_id in filter(choice.has, names):
        then = keyframes.at(pool_id, seq, last)
        found.addresses.update(past.addresses(pool_id, sorted(then.proxies), seq))
        found.add(past, pool_id, then)
    return found


def _lease(
    pool_id: UUID, name: str, lease_id: UUID, lease: LeaseThen, known: LeaseDetails | None
) -> LeaseRow:
    return LeaseRow(
        id=lease_id,
        pool_id=pool_id,
        pool_name=name,
        proxy_id=lease.proxy_id,
        consumer_id=NIL,  # which nobody looks at
        consumer_name=lease.consumer,
        status="active",
        acquired_at=lease.acquired_at,
        expires_at=known.expires_at if known else lease.acquired_at,
        released_at=None,
        fencing_token=known.token if known else 0,
        renewed_at=None,
        revoke_reason=None,
        target=known.target if known else None,
        limited=None,
        exit=None,
    )

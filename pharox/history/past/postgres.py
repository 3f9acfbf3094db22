"""A pool's past in PostgreSQL: a stretch of the log is one statement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, LiteralString
from uuid import UUID

from pharox.log import Extract
from pharox.log.extract import BIGGEST

from ...models.text import url_of
from ...storage.postgres import PostgresStorage
from ...storage.postgres.driver import Session
from ...storage.postgres.retention import refuse_archived
from ...storage.postgres.snapshots import archived_upto
from .records import LastRecords
from .shapes import LeaseDetails, LeaseThen, PoolThen, ProxyThen, Records, Step
from .stretch import Stretch, rows

# Of each proxy the event that tells its state at the end of the way. Most have come back to the
# state that they had: as many leases ended as began, and nothing else was changed.
# Of each lease its beginning and its end. One alone: it began, or ended, and not both.
_CHANGES = """
SELECT picked.is_proxy, e.proxy_id, e.status_{side}, e.leases_{side}, e.max_concurrency_{side},
       e.lease_id, e.type = 'LeaseAcquired', e.consumer, coalesce(e.acquired_at, e.recorded_at)
FROM (
    SELECT GROUPING(proxy_id) = 0 AS is_proxy, {pick}(position) AS position
    FROM stretch
    GROUP BY GROUPING SETS ((proxy_id), (lease_id))
    HAVING CASE WHEN GROUPING(proxy_id) = 0 THEN sum(more_leases) <> 0 OR bool_or(is_changed)
                ELSE lease_id IS NOT NULL AND count(*) = 1 END
) AS picked
JOIN {schema}.events AS e ON e.position = picked.position
"""
_CHANGING: LiteralString = """
    e.position, e.proxy_id,
    CASE WHEN e.type IN ('LeaseAcquired', 'LeaseReleased', 'LeaseExpired', 'LeaseRevoked')
         THEN e.lease_id END AS lease_id,
    coalesce(e.leases_after, 0) - coalesce(e.leases_before, 0) AS more_leases,
    e.status_before IS DISTINCT FROM e.status_after
        OR e.max_concurrency_before IS DISTINCT FROM e.max_concurrency_after AS is_changed"""

_LONG = 200_000
"""A stretch of so many events takes more memory than others."""

# A lease's own events, or what the archive's last state has of it.
_DETAILS = """
SELECT id, coalesce(last.expires_at, (stored.row ->> 'expires_at')::timestamptz),
       last.renewals, coalesce(last.target, stored.row ->> 'target'),
       coalesce(last.token, (stored.row ->> 'fencing_token')::bigint)
FROM unnest(%(ids)s::uuid[]) AS id
CROSS JOIN LATERAL (
    SELECT (array_agg(e.expires_at ORDER BY e.position DESC))[1] AS expires_at,
           count(*) FILTER (WHERE e.type = 'LeaseRenewed'
                              AND e.data ->> 'reason' IS DISTINCT FROM 'clock_went_back')
               AS renewals,
           min(e.data ->> 'target') FILTER (WHERE e.type = 'LeaseAcquired') AS target,
           min(e.position) FILTER (WHERE e.type = 'LeaseAcquired') AS token
    FROM {schema}.events AS e
    JOIN {schema}.seals AS s ON s.position = e.position
    WHERE e.lease_id = id AND e.type IN ('LeaseAcquired', 'LeaseRenewed') AND s.seq <= %(seq)s
) AS last
LEFT JOIN {schema}.snapshot_rows AS stored
    ON last.token IS NULL AND stored.seq = %(archived)s AND stored.projection = 'leases'
   AND stored.row ->> 'id' = id::text
WHERE coalesce(last.token, (stored.row ->> 'fencing_token')::bigint) IS NOT NULL
"""

_ADDRESSES = """
SELECT id, described.data ->> 'protocol', described.data ->> 'host',
       (described.data ->> 'port')::integer
FROM unnest(%(ids)s::uuid[]) AS id
CROSS JOIN LATERAL (
    SELECT e.data
    FROM {schema}.events AS e
    JOIN {schema}.seals AS s ON s.position = e.position
    WHERE e.proxy_id = id AND e.pool_id = %(pool_id)s AND s.seq <= %(seq)s
      AND e.type IN ('ProxyRegistered', 'ProxyChanged', 'ProxyRemoved') AND e.data ? 'host'
    ORDER BY e.position DESC
    LIMIT 1
) AS described
"""

_ADDRESSES_ARCHIVED = """
SELECT (row ->> 'id')::uuid, row ->> 'protocol', row ->> 'host', (row ->> 'port')::integer
FROM {schema}.snapshot_rows
WHERE seq = %(archived)s AND projection = 'proxies' AND row ->> 'id' = ANY (%(ids)s::text[])
"""

_LAST_STORED = """
SELECT max(seq) FROM {schema}.snapshots
WHERE seq <= %(seq)s AND projections @> ARRAY['available_proxies', 'leases']
"""

_PROXIES_STORED = """
SELECT (row ->> 'proxy_id')::uuid, row ->> 'status', (row ->> 'current_leases')::integer,
       (row ->> 'max_concurrency')::integer
FROM {schema}.snapshot_rows
WHERE seq = %(seq)s AND projection = 'available_proxies' AND row ->> 'pool_id' = %(pool_id)s
"""

_LEASES_STORED = """
SELECT (row ->> 'id')::uuid, (row ->> 'proxy_id')::uuid, row ->> 'consumer_name',
       (row ->> 'acquired_at')::timestamptz
FROM {schema}.snapshot_rows
WHERE seq = %(seq)s AND projection = 'leases' AND row ->> 'pool_id' = %(pool_id)s
"""

_PROXIES_NOW = """
SELECT proxy_id, status, current_leases, max_concurrency
FROM {schema}.available_proxies WHERE pool_id = %(pool_id)s
"""

_LEASES_NOW = """
SELECT id, proxy_id, consumer_name, acquired_at
FROM {schema}.leases WHERE pool_id = %(pool_id)s AND status = 'active'
"""


class PostgresPast:
    """Reads a pool's past in one ledger."""

    def __init__(self, storage: PostgresStorage) -> None:
        self._storage = storage
        self._schema = storage.schema

    def now(self, pool_id: UUID, seq: int) -> PoolThen:
        """Return the state at ``seq``, by going back from the present."""
        of_pool = {"pool_id": pool_id}
        with self._storage.session(snapshot=True) as session:
            proxies = rows(session, self._schema, _PROXIES_NOW, of_pool)
            leases = rows(session, self._schema, _LEASES_NOW, of_pool)
            present = _state(BIGGEST, proxies, leases)
            return present.after(self._step(session, pool_id, BIGGEST, seq), seq)

    def last_stored(self, seq: int) -> int | None:
        """Return the seq of the last stored state at or before ``seq``, or None."""
        with self._storage.session() as session:
            found: int | None = rows(session, self._schema, _LAST_STORED, {"seq": seq})[0][0]
            return found

    def stored(self, pool_id: UUID, seq: int) -> PoolThen | None:
        """Return the last stored state at or before ``seq``, or None."""
        with self._storage.session(snapshot=True) as session:
            ((found,),) = rows(session, self._schema, _LAST_STORED, {"seq": seq})
            if found is None:
                return None
            of_pool = {"seq": found, "pool_id": str(pool_id)}
            proxies = rows(session, self._schema, _PROXIES_STORED, of_pool)
            leases = rows(session, self._schema, _LEASES_STORED, of_pool)
        return _state(found, proxies, leases)

    def step(self, pool_id: UUID, begin: int, end: int) -> Step:
        """Return the difference from one seq to another, which may be before it."""
        with self._storage.session(snapshot=True) as session:
            return self._step(session, pool_id, begin, end)

    def details(
        self, pool_id: UUID, lease_ids: list[UUID], seq: int
    ) -> Mapping[UUID, LeaseDetails]:
        """Return what was recorded of leases up to ``seq``."""
        if not lease_ids:
            return {}
        with self._storage.session() as session:
            archived = archived_upto(session, self._schema)
            values = {"ids": lease_ids, "seq": seq, "archived": archived}
            found = rows(session, self._schema, _DETAILS, values)
        return {row[0]: LeaseDetails(*row[1:]) for row in found}

    def addresses(self, pool_id: UUID, proxy_ids: list[UUID], seq: int) -> Mapping[UUID, str]:
        """Return the URLs of proxies, without credentials, as they were at ``seq``."""
        values = {"ids": proxy_ids, "seq": seq, "pool_id": pool_id}
        if not proxy_ids:
            return {}
        with self._storage.session() as session:
            found = rows(session, self._schema, _ADDRESSES, values)
            missing = {str(each) for each in proxy_ids} - {str(row[0]) for row in found}
            if missing and (archived := archived_upto(session, self._schema)):
                stored = {"ids": sorted(missing), "archived": archived}
                found += rows(session, self._schema, _ADDRESSES_ARCHIVED, stored)
        return {row[0]: url_of(*row[1:]) for row in found}

    def records(
        self, pool_id: UUID, proxy_ids: Sequence[UUID], seq: int, at: datetime, *, sessions: int
    ) -> Records:
        """Return what was recorded last up to ``seq``, as far as it is found quickly."""
        with self._storage.session(snapshot=True) as session:
            found = LastRecords(session, self._schema, pool_id, proxy_ids, seq, at)
            return found.records(sessions)

    def _step(self, session: Session, pool_id: UUID, begin: int, end: int) -> Step:
        is_forward = begin <= end
        if abs(end - begin) > _LONG:
            session.take_room()
        refuse_archived(session, self._schema, Extract(after=min(begin, end)))
        found = Stretch(session, self._schema, min(begin, end), max(begin, end)).rows(
            _CHANGES,
            columns=_CHANGING,
            wanted="e.status_before IS NOT NULL OR e.status_after IS NOT NULL",
            pool_id=pool_id,
            side="after" if is_forward else "before",
            pick="max" if is_forward else "min",
        )
        step = Step()
        for is_proxy, proxy_id, status, leases, most, lease_id, began, consumer, since in found:
            if is_proxy:
                then = None if status is None else ProxyThen(status, leases, most)
                step.proxies[proxy_id] = then
            else:
                lease = LeaseThen(proxy_id, consumer, since) if began is is_forward else None
                step.leases[lease_id] = lease
        return step


def _state(seq: int, proxies: list[tuple[Any, ...]], leases: list[tuple[Any, ...]]) -> PoolThen:
    return PoolThen(
        seq,
        {row[0]: ProxyThen(*row[1:]) for row in proxies},
        {row[0]: LeaseThen(*row[1:]) for row in leases},
    )

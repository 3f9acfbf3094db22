"""What was recorded last, up to a moment, of what a page shows: in PostgreSQL, without a long read.

A check is found by the index of a proxy's checks. Rests, outcomes and bindings have no index by
place: they are looked for among the last :data:`LOOKED` events. What was recorded before and not
since is in the read models as it was then. What is left was recorded long before the moment, and
again, or removed, after it, or is archived; :attr:`.shapes.Records.looked_from` says from which
event on nothing is missing.

The last events are found in SQL, decoded, and folded by the projections themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, LiteralString
from uuid import UUID

from psycopg import sql
from psycopg.rows import dict_row

from pharox.log.extract import BIGGEST
from pharox.log.rows import event_from_row
from projections import (
    AVAILABLE_PROXIES,
    PROXY_HEALTH,
    SESSIONS,
    TARGET_OUTCOMES,
    HealthRow,
    Projection,
    TargetOutcomesRow,
)
from projections.carrying import rows_of

from ...events import Event, PoolRemoved, PoolStateCarried
from ...storage.postgres.driver import Session
from ...storage.postgres.snapshots import archived_upto
from ..latest import SLACK
from .shapes import Records, SessionThen
from .stretch import Stretch, rows

LOOKED = 50_000
"""Among how many events the last ones are looked for."""

_GROWTH = 32
"""By how much each stretch is longer than the one after it, in which checks are looked for."""

_RESTING: LiteralString = """e.type IN (
    'LeaseAcquired', 'LeaseReleased', 'LeaseExpired', 'LeaseRevoked', 'ProxyRemoved',
    'RotationBegan', 'RotationCalled', 'RotationAnswered')
    AND (%(since)s::timestamptz IS NULL OR e.recorded_at >= %(since)s)"""

_LATELY_COLUMNS: LiteralString = """
    e.position, e.data ->> 'target' AS target,
    CASE WHEN e.type IN ('OutcomeReported', 'CoolDownSet') THEN e.proxy_id END AS proxy_id,
    CASE WHEN e.type IN ('OutcomeReported', 'CoolDownSet') THEN 'pair'
         WHEN e.type IN ('SessionBound', 'SessionForgotten') THEN 'session'
         WHEN e.type IN ('RotationBegan', 'RotationCalled', 'RotationAnswered') THEN 'rotation'
         ELSE 'pool' END AS kind,
    CASE WHEN e.type IN ('LeasesPruned', 'PoolRemoved', 'PoolStateCarried') THEN e.position END
        AS of_pool"""
_LATELY_WANTED: LiteralString = """
    e.type IN ('OutcomeReported', 'CoolDownSet', 'SessionBound', 'SessionForgotten',
               'RotationBegan', 'RotationCalled', 'RotationAnswered',
               'LeasesPruned', 'PoolRemoved', 'PoolStateCarried')
    AND (e.type NOT IN ('OutcomeReported', 'CoolDownSet')
         OR (e.proxy_id = ANY (%(ids)s::uuid[]) AND e.data ->> 'target' IS NOT NULL))"""

# The last event of each pair, each event of the whole pool, and whether there are others.
_LATELY = """
SELECT kind, max(position) FROM stretch
GROUP BY kind, of_pool, proxy_id, CASE kind WHEN 'pair' THEN target END
"""

_POSITIONS = "SELECT position FROM stretch"

_MOVED = "SELECT EXISTS (SELECT FROM {schema}.pool_moves WHERE pool_id = %(pool_id)s)"

_EVENTS = """
SELECT s.seq, e.*
FROM {schema}.seals AS s JOIN {schema}.events AS e ON e.position = s.position
WHERE s.position = ANY (%(positions)s::bigint[]) AND e.position = ANY (%(positions)s::bigint[])
ORDER BY s.seq
"""

# How long the rules of a pool had its proxies rest at most, and whether all of them are known: the
# event that registered it may be archived.
_LONGEST_REST = """
SELECT max(greatest((data ->> 'rest_after_release_seconds')::float8,
                    (data ->> 'rest_after_expiry_seconds')::float8)),
       coalesce(bool_or(type = 'PoolRegistered'), false)
FROM {schema}.events
WHERE type IN ('PoolRegistered', 'PoolChanged', 'PoolRemoved') AND pool_id = %(pool_id)s
"""

_RESTS = """
SELECT proxy_id, rests_until
FROM (SELECT DISTINCT ON (proxy_id) proxy_id, rests_until FROM stretch
      ORDER BY proxy_id, position DESC) AS last
WHERE rests_until > %(at)s OR proxy_id = ANY (%(carried)s::uuid[])
"""

_CHECKED_ALONE = """
SELECT checked.proxy_id, checked.position
FROM unnest(%(ids)s::uuid[]) AS id
CROSS JOIN LATERAL (
    SELECT e.proxy_id, e.position
    FROM {schema}.events AS e JOIN {schema}.seals AS s ON s.position = e.position
    WHERE e.type = 'HealthChecked' AND e.proxy_id = id AND e.pool_id = %(pool_id)s
      AND s.seq <= %(seq)s AND e.position <= %(high)s AND (e.data ->> 'applied')::boolean
    ORDER BY e.position DESC
    LIMIT 1
) AS checked
"""

_CHECKED_TOGETHER = """
SELECT DISTINCT ON (check_of.id) check_of.id, position
FROM stretch CROSS JOIN LATERAL unnest(proxy_ids) WITH ORDINALITY AS check_of (id, place)
WHERE check_of.id = ANY (%(ids)s::uuid[])
  AND (data -> 'groups' -> (data -> 'group' -> (place - 1)::integer)::integer
       ->> 'applied')::boolean
ORDER BY check_of.id, position DESC
"""

_REMOVALS = """
SELECT e.position
FROM {schema}.events AS e JOIN {schema}.seals AS s ON s.position = e.position
WHERE e.type = 'ProxyRemoved' AND e.proxy_id = ANY (%(ids)s::uuid[]) AND e.pool_id = %(pool_id)s
  AND s.seq <= %(seq)s
"""

_PAIRS_NOW = """
SELECT pool_id, proxy_id, target, successes, failures, streak, cool_downs, cools_until, outcome,
       status, reported_at
FROM {schema}.target_outcomes
WHERE pool_id = %(pool_id)s AND proxy_id = ANY (%(ids)s::uuid[])
  AND coalesce(reported_at < %(before)s, true)
"""

_SET_SINCE = "SELECT DISTINCT proxy_id, target FROM stretch"

_BOUND = """
SELECT type = 'SessionBound' AND expires_at > %(at)s, key, proxy_id, target, expires_at
FROM (SELECT DISTINCT ON (key) key, proxy_id, target, expires_at, type FROM stretch
      ORDER BY key, position DESC) AS last
"""

_BOUND_NOW = """
SELECT key, proxy_id, target, expires_at
FROM {schema}.sessions
WHERE pool_id = %(pool_id)s AND bound_at < %(before)s AND expires_at > %(at)s
ORDER BY key
LIMIT %(limit)s
"""


class LastRecords:
    """Finds the last records of some proxies of a pool, up to the event ``seq``.

    Parameters
    ----------
    session:
        A session of the ledger's database, with one snapshot.
    proxy_ids:
        The proxies of which checks and outcomes are wanted.
    at:
        The moment: all events up to ``seq`` were recorded by then.
    """

    def __init__(
        self,
        session: Session,
        schema: str,
        pool_id: UUID,
        proxy_ids: Sequence[UUID],
        seq: int,
        at: datetime,
    ) -> None:
        self._session, self._schema = session, schema
        self._pool_id, self._seq, self._at = pool_id, seq, at
        self._values: dict[str, Any] = {
            "pool_id": pool_id,
            "ids": list(proxy_ids),
            "seq": seq,
            "at": at,
            "before": at - SLACK,
        }
        self._begin = archived_upto(session, schema)
        self._look(max(self._begin, seq - LOOKED))
        self._is_whole = self._after == 0
        # A pool that came back from another ledger brought along what was known of it.
        removals = [event.seq for event in self._rare if isinstance(event, PoolRemoved)]
        if removals:
            self._begin, self._is_whole = removals[-1], True
            self._look(self._begin)

    def _look(self, after: int) -> None:
        """Read what was recorded after a seq, and which events of the whole pool are rare."""
        self._after = after
        self._stretch = Stretch(self._session, self._schema, after, self._seq)
        self._lately: dict[str, list[int]] = {}
        for kind, position in self._scanned(_LATELY, _LATELY_COLUMNS, _LATELY_WANTED):
            self._lately.setdefault(kind, []).append(position)
        self._rare = self._events(self._lately.get("pool", ()))

    def records(self, sessions: int) -> Records:
        """Return all that is found, with so many sessions."""
        return Records(
            self._rests(),
            self._checks(),
            self._pairs(),
            self._sessions(sessions),
            None if self._is_whole else self._after + 1,
        )

    def _rests(self) -> Mapping[UUID, datetime]:
        """Return until when proxies rested."""
        rests = {row.proxy_id: row.rests_until for row in self._brought(AVAILABLE_PROXIES)}
        is_known, longest = self._longest_rest()
        if longest or rests or not is_known:
            since = self._at - timedelta(seconds=longest) if is_known and not rests else None
            columns: LiteralString = (
                "e.position, e.proxy_id, (e.data ->> 'rests_until')::timestamptz AS rests_until"
            )
            values = {"carried": list(rests), "since": since}
            rests |= dict(self._scanned(_RESTS, columns, _RESTING, **values))
        return {key: until for key, until in rests.items() if until and until > self._at}

    def _longest_rest(self) -> tuple[bool, float]:
        """Return whether it is known for how many seconds a proxy may rest, and how many."""
        ((longest, is_known),) = rows(self._session, self._schema, _LONGEST_REST, self._values)
        # For another exit a proxy rests as long as that takes.
        return is_known and "rotation" not in self._lately, longest or 0.0

    def _checks(self) -> Mapping[UUID, HealthRow]:
        """Return the last check of each proxy."""
        values = {**self._values, "high": self._stretch.high}
        alone = dict(rows(self._session, self._schema, _CHECKED_ALONE, values))
        removals = rows(self._session, self._schema, _REMOVALS, self._values)
        places = {*alone.values(), *self._checked_together(alone), *(row[0] for row in removals)}
        if self._begin < self._after and self._is_moved():
            before = Stretch(self._session, self._schema, self._begin, self._after)
            places.update(self._carried(before))
        state: dict[Any, Any] = {}
        self._fold(PROXY_HEALTH, state, self._events(places))
        keys = ((proxy_id, self._pool_id) for proxy_id in self._values["ids"])
        return {key[0]: state[key] for key in keys if key in state}

    def _checked_together(self, alone: Mapping[UUID, int]) -> Iterator[int]:
        """Yield the positions of the last events in which proxies were checked with others."""
        missing, length = set(self._values["ids"]), LOOKED
        stretch, after = self._stretch, self._after
        while missing:
            found = self._rows(
                stretch,
                _CHECKED_TOGETHER,
                "e.position, e.proxy_ids, e.data",
                "e.proxy_ids && %(ids)s::uuid[]",
                ids=list(missing),
            )
            yield from (row[1] for row in found)
            if after <= self._begin:
                return
            length *= _GROWTH
            upto, after = after, max(self._begin, after - length)
            stretch = Stretch(self._session, self._schema, after, upto)
            later = {each for each, position in alone.items() if position > stretch.high}
            missing -= later | {row[0] for row in found}

    def _pairs(self) -> Mapping[UUID, list[TargetOutcomesRow]]:
        """Return what proxies had come to at targets."""
        state: dict[Any, Any] = {
            (row.pool_id, row.proxy_id, row.target): row for row in self._unchanged_pairs()
        }
        self._fold(TARGET_OUTCOMES, state, self._events(self._lately.get("pair", ())))
        pairs: dict[UUID, list[TargetOutcomesRow]] = {}
        for row in state.values():
            pairs.setdefault(row.proxy_id, []).append(row)
        return {each: pairs[each] for each in self._values["ids"] if each in pairs}

    def _unchanged_pairs(self) -> list[TargetOutcomesRow]:
        """Return the pairs of which nothing was recorded after the moment."""
        if self._is_whole:
            return []
        found = [
            TargetOutcomesRow(*row)
            for row in rows(self._session, self._schema, _PAIRS_NOW, self._values)
        ]
        # A rest that a person set ends later than it was set, so an end before tells that none was.
        doubtful = {row.proxy_id for row in found if not self._is_over(row.cools_until)}
        if not doubtful:
            return found
        since = Stretch(self._session, self._schema, self._seq, BIGGEST)
        columns: LiteralString = "e.proxy_id, e.data ->> 'target' AS target"
        wanted: LiteralString = "e.type = 'CoolDownSet' AND e.proxy_id = ANY (%(ids)s::uuid[])"
        changed = {*self._rows(since, _SET_SINCE, columns, wanted, ids=list(doubtful))}
        return [row for row in found if (row.proxy_id, row.target) not in changed]

    def _is_over(self, until: datetime | None) -> bool:
        before: datetime = self._values["before"]
        return until is None or until < before

    def _sessions(self, limit: int) -> list[SessionThen]:
        """Return the first sessions by key that lived."""
        known = {
            row.key: SessionThen(row.key, row.proxy_id, row.target, row.expires_at)
            for row in self._brought(SESSIONS)
            if row.expires_at > self._at
        }
        if not self._is_whole:
            values = {**self._values, "limit": limit}
            now = rows(self._session, self._schema, _BOUND_NOW, values)
            known |= {row[0]: SessionThen(*row) for row in now}
        columns: LiteralString = """
            e.position, e.type, e.data ->> 'key' AS key, e.proxy_id, e.data ->> 'target' AS target,
            e.expires_at"""
        wanted: LiteralString = "e.type IN ('SessionBound', 'SessionForgotten')"
        found = self._scanned(_BOUND, columns, wanted) if "session" in self._lately else []
        for lives, *binding in found:
            last = SessionThen(*binding)
            known.pop(last.key, None)
            if lives:
                known[last.key] = last
        return sorted(known.values(), key=lambda each: each.key)[:limit]

    def _brought(self, projection: Projection) -> Iterator[Any]:
        """Yield the rows of a read model that the pool brought from another ledger lately."""
        for event in self._rare:
            if not isinstance(event, PoolStateCarried) or not event.arrived:
                continue
            if event.read_model == projection.name:
                yield from rows_of(projection, event.rows)

    def _is_moved(self) -> bool:
        """Return whether the pool ever moved from one ledger to another."""
        ((moved,),) = rows(self._session, self._schema, _MOVED, self._values)
        return bool(moved)

    def _fold(self, projection: Projection, state: dict[Any, Any], events: list[Event]) -> None:
        """Fold events and the rare ones of the pool into a state."""
        for event in sorted([*events, *self._rare], key=lambda event: event.seq):
            for part in event.parts():
                projection.apply(state, part)

    def _carried(self, stretch: Stretch) -> list[int]:
        wanted: LiteralString = "e.type = 'PoolStateCarried'"
        return [row[0] for row in self._rows(stretch, _POSITIONS, "e.position", wanted)]

    def _events(self, positions: Iterable[int]) -> list[Event]:
        """Return the events at positions, in the sealed order."""
        wanted = list(positions)
        if not wanted:
            return []
        statement = sql.SQL(_EVENTS).format(schema=sql.Identifier(self._schema))
        with self._session.connection.cursor(row_factory=dict_row) as cursor:
            cursor.execute(statement, {"positions": wanted}, prepare=False)
            return [event_from_row(row) for row in cursor]

    def _scanned(
        self, select: LiteralString, columns: LiteralString, wanted: LiteralString, **values: Any
    ) -> list[tuple[Any, ...]]:
        """Return the rows of a query of what was recorded lately."""
        return self._stretch.rows(
            select,
            columns=columns,
            wanted=wanted,
            pool_id=self._pool_id,
            is_scanned=True,
            values={**self._values, **values},
        )

    def _rows(
        self,
        stretch: Stretch,
        select: LiteralString,
        columns: LiteralString,
        wanted: LiteralString,
        **values: Any,
    ) -> list[tuple[Any, ...]]:
        return stretch.rows(
            select,
            columns=columns,
            wanted=wanted,
            pool_id=self._pool_id,
            values={**self._values, **values},
        )

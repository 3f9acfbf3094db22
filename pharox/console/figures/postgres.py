"""The figures of a ledger in PostgreSQL, from its read models."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from projections.available_proxies import available_proxies
from projections.leases import leases
from projections.pools import pools
from projections.rotations import RotationRow, rotations

from ...history.past.postgres import PostgresPast
from ...history.past.stretch import Stretch
from ...history.past.stretch import rows as rows_of
from ...ledger.subscriptions import subscriptions
from ...models import PoolMove, Proxy, SourceStatus
from ...storage.postgres import PostgresStorage
from ...storage.postgres.moves import move_from_row, unfinished_statement
from ...storage.postgres.reading import bare_proxies_statement, proxy_from_row
from ...storage.postgres.sql import POOL_ID, PROXY_ID, by_schema, now, text_literal
from ..shares import Share
from .activity import SLOT_S, Counted
from .logs import COLUMNS, COUNT
from .shapes import PoolFigures, SubscriptionFigures

_c = available_proxies.c

# The search goes on while low < high. It halves what is left and guesses by the time in turn: time
# passes evenly in most logs. What has no time is archived, and was before all that has one.
_NEAR = """
WITH RECURSIVE search AS (
    SELECT CASE WHEN last.recorded_at <= %(moment)s THEN %(last)s::bigint ELSE 0 END AS low,
           %(last)s::bigint AS high, NULL::timestamptz AS since, last.recorded_at AS until,
           false AS guesses
    FROM (SELECT max(e.recorded_at) AS recorded_at
          FROM {schema}.seals AS s JOIN {schema}.events AS e ON e.position = s.position
          WHERE s.seq = %(last)s) AS last
    UNION ALL
    SELECT CASE WHEN found.is_later THEN low ELSE place.middle END,
           CASE WHEN found.is_later THEN place.middle - 1 ELSE high END,
           CASE WHEN found.is_later THEN since ELSE found.recorded_at END,
           CASE WHEN found.is_later THEN found.recorded_at ELSE until END,
           NOT guesses
    FROM search
    CROSS JOIN LATERAL (
        SELECT CASE WHEN guesses AND until > since
                    THEN least(high, greatest(low + 1, low + round((high - low)
                         * extract(epoch FROM %(moment)s - since)
                         / extract(epoch FROM until - since))))::bigint
                    ELSE (low + high + 1) / 2 END AS middle
    ) AS place
    CROSS JOIN LATERAL (
        SELECT max(e.recorded_at) AS recorded_at,
               coalesce(max(e.recorded_at) > %(moment)s, false) AS is_later
        FROM {schema}.seals AS s JOIN {schema}.events AS e ON e.position = s.position
        WHERE s.seq = place.middle
    ) AS found
    WHERE low < high
)
SELECT low FROM search WHERE low >= high
"""


class PostgresFigures:
    """The figures of a ledger."""

    def __init__(self, storage: PostgresStorage) -> None:
        self._storage = storage
        self.log = PostgresLog(storage)
        self.past = PostgresPast(storage)

    def now(self) -> datetime:
        """Return the time by the ledger's clock."""
        with self._storage.session() as session:
            moment: datetime = session.rows(clock_statement(self._storage.schema))[0]["now"]
            return moment

    def pools(self) -> list[PoolFigures]:
        """Return all pools as they are now, by name."""
        queues = {queue.pool_name: queue for queue in self._storage.queue_stats()}
        with self._storage.session(snapshot=True) as session:
            rows = session.rows(shares_statement(self._storage.schema))
            held = session.rows(held_statement(self._storage.schema))
            stats = {each.pool_name: each for each in self._storage.list_pool_stats()}
        of_held = {row["pool_id"]: row for row in held}
        shares: dict[UUID, dict[Share, int]] = defaultdict(lambda: dict.fromkeys(Share, 0))
        for row in rows:
            if row["share"] is not None:
                shares[row["id"]][Share(row["share"])] = row["proxies"]
        found = []
        for pool_id, name in {row["id"]: row["name"] for row in rows}.items():
            queue, counts, leased = queues.get(name), stats.get(name), of_held.get(pool_id)
            found.append(
                PoolFigures(
                    pool_id,
                    name,
                    shares[pool_id],
                    leased["leases"] if leased else 0,
                    counts.active_proxies if counts else 0,
                    counts.available_proxies if counts else 0,
                    queue.waiting if queue else 0,
                    queue.longest_wait_seconds if queue else 0.0,
                    max(0.0, leased["oldest_s"]) if leased else 0.0,
                    leased["overdue"] if leased else 0,
                )
            )
        return found

    def proxies(self, pool_id: UUID, after: UUID, limit: int) -> list[Proxy]:
        """Return the next proxies of a pool by id, without credentials."""
        statement = bare_proxies_statement(self._storage.schema)
        with self._storage.session() as session:
            # The statement begins with an id, which is that of the page before.
            rows = session.rows(statement, pool_id=pool_id, from_id=after, limit=limit + 1)
        return [proxy_from_row(row, None) for row in rows if row["id"] != after][:limit]

    def rotation(self, proxy: Proxy) -> RotationRow | None:
        """Return the record of a proxy's rotations; None if it has none."""
        statement = rotation_statement(self._storage.schema)
        with self._storage.session() as session:
            rows = session.rows(statement, proxy_id=proxy.id, pool_id=proxy.pool_id)
        return RotationRow(**rows[0]) if rows else None

    def subscriptions(self) -> list[SubscriptionFigures]:
        """Return the subscriptions, by name."""
        return [
            SubscriptionFigures(each.name, each.lag_seconds, each.parked)
            for each in subscriptions(self._storage)
        ]

    def sources(self) -> list[SourceStatus]:
        """Return the sources, by name."""
        return self._storage.list_sources()

    def moves(self) -> list[PoolMove]:
        """Return the moves of pools that have not ended, the last one first."""
        with self._storage.session() as session:
            rows = session.rows(unfinished_statement(self._storage.schema))
        return [move_from_row(row) for row in rows]


class PostgresLog:
    """Counts the events of a ledger."""

    def __init__(self, storage: PostgresStorage) -> None:
        self._storage = storage

    def last_seq(self) -> int:
        """Return the last seq."""
        return self._storage.seal()

    def seq_near(self, moment: datetime, last_seq: int) -> int:
        """Return a seq up to which events were recorded at or before a moment.

        It searches the sealed order, which differs from that of time by what was committed at
        once: the exact answer of ``seq_at`` reads all events of a minute.
        """
        values = {"moment": moment, "last": last_seq}
        with self._storage.session() as session:
            ((seq,),) = rows_of(session, self._storage.schema, _NEAR, values)
        return int(seq)

    def number(self, after: int, upto: int, pool_id: UUID | None) -> int:
        """Return how many events a stretch has, of one pool or of all."""
        if pool_id is None:
            return upto - after
        with self._storage.session(snapshot=True) as session:
            stretch = Stretch(session, self._storage.schema, after, upto)
            found = stretch.rows(
                "SELECT count(*) FROM stretch", columns="1", wanted="true", pool_id=pool_id
            )
        return int(found[0][0]) if found else 0

    def count(
        self, after: int, upto: int, *, slot_s: float = SLOT_S, pool_id: UUID | None = None
    ) -> Iterator[Counted]:
        """Count the events of a stretch, of one pool or of all, by pool, slot and kind."""
        with self._storage.session(snapshot=True) as session:
            stretch = Stretch(session, self._storage.schema, after, upto)
            rows = stretch.rows(
                COUNT, columns=COLUMNS, wanted="true", values={"slot_s": slot_s}, pool_id=pool_id
            )
        return (Counted(*row) for row in rows)


def share() -> sa.ColumnElement[str]:
    """Return :func:`.plain.share_of` in SQL."""
    return sa.case(
        (_c.status == text_literal("banned"), text_literal(Share.BANNED)),
        (_c.status == text_literal("inactive"), text_literal(Share.DOWN)),
        (_c.current_leases >= _c.max_concurrency, text_literal(Share.LEASED)),
        (_c.rests_until > now, text_literal(Share.RESTING)),
        (_c.status == text_literal("slow"), text_literal(Share.SLOW)),
        else_=text_literal(Share.FREE),
    )


@by_schema
def clock_statement() -> sa.Select[Any]:
    """Query the time by the ledger's clock."""
    return sa.select(now.label("now"))


@by_schema
def rotation_statement() -> sa.Select[Any]:
    """Query the record of a proxy's rotations."""
    c = rotations.c
    return sa.select(rotations).where(c.proxy_id == PROXY_ID, c.pool_id == POOL_ID)


@by_schema
def shares_statement() -> sa.Select[Any]:
    """Query how many proxies each pool has, by share."""
    per_share = (
        sa.select(_c.pool_id, share().label("share"), sa.func.count().label("proxies"))
        .group_by(_c.pool_id, sa.literal_column("2"))
        .subquery("per_share")
    )
    return (
        sa.select(pools.c.id, pools.c.name, per_share.c.share, per_share.c.proxies)
        .select_from(pools.outerjoin(per_share, per_share.c.pool_id == pools.c.id))
        .order_by(pools.c.name.collate("C"))
    )


@by_schema
def held_statement() -> sa.Select[Any]:
    """Query each pool's active leases: their number, the age of the oldest, overdue ones."""
    oldest = sa.extract("epoch", now - sa.func.min(leases.c.acquired_at)).cast(sa.Double)
    return (
        sa.select(
            leases.c.pool_id,
            sa.func.count().label("leases"),
            oldest.label("oldest_s"),
            sa.func.count().filter(leases.c.expires_at < now).label("overdue"),
        )
        .where(leases.c.status == text_literal("active"))
        .group_by(leases.c.pool_id)
    )

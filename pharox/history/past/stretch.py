"""A stretch of a ledger's log in SQL: the events with ``after < seq <= upto``, read once.

The log is partitioned by position, and looking up the seq of each event would double the cost.
Positions differ from seqs only around a tick: what lies between the last position of the first
seq's tick and the first one of the last seq's is in the stretch for certain, and only the events
beside it are looked up (the edges).

Statements are text here, to be read as they run. They name no value but by a parameter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, LiteralString
from uuid import UUID

from psycopg import sql

from pharox.log.extract import BIGGEST

from ...storage.postgres.driver import Session

_EDGES = """
SELECT
    -- low and inner_low around the first event, inner_high and high around the last.
    coalesce((SELECT after_position FROM {schema}.ticks
              WHERE last_seq > %(after)s ORDER BY last_seq LIMIT 1), last.after_position),
    coalesce((SELECT last_position FROM {schema}.ticks
              WHERE last_seq >= %(after)s ORDER BY last_seq LIMIT 1), last.last_position),
    coalesce((SELECT after_position FROM {schema}.ticks
              WHERE last_seq > %(upto)s ORDER BY last_seq LIMIT 1), last.after_position),
    coalesce((SELECT last_position FROM {schema}.ticks
              WHERE last_seq >= %(upto)s ORDER BY last_seq LIMIT 1), last.last_position),
    last.unsealed_after
FROM {schema}.last_tick AS last
"""

# Without an end the stretch goes to the present: events without a seq are part of it. They are
# above unsealed_after, so that what is in doubt beside the inner part is next to nothing.
_STRETCH = """
WITH stretch AS (
    SELECT {columns} FROM {schema}.events AS e
    WHERE e.position > %(inner_low)s AND e.position <= %(inner_high)s AND {wanted}
    UNION ALL
    SELECT {columns} FROM {schema}.seals AS s JOIN {schema}.events AS e ON e.position = s.position
    WHERE s.seq > %(after)s AND s.seq <= %(upto)s
      AND s.position > %(low)s AND s.position <= %(edge_low)s
      AND e.position > %(low)s AND e.position <= %(edge_low)s AND {wanted}
    UNION ALL
    SELECT {columns} FROM {schema}.seals AS s JOIN {schema}.events AS e ON e.position = s.position
    WHERE s.seq > %(after)s AND s.seq <= %(upto)s
      AND s.position > %(inner_high)s AND s.position <= %(high)s
      AND e.position > %(inner_high)s AND e.position <= %(high)s AND {wanted}
    UNION ALL
    SELECT {columns} FROM {schema}.events AS e
    WHERE e.position > %(unsealed_low)s AND e.position <= %(unsealed_high)s AND {wanted}
      AND NOT EXISTS (SELECT FROM {schema}.seals AS s
                      WHERE s.position = e.position AND s.position > %(unsealed_low)s
                        AND s.position <= %(unsealed_high)s)
)
"""

# The same of a short stretch with an end, event by event: the index of kinds would be read for the
# whole part of the log, and what is not rare is in all of its ranges. OFFSET 0 is an optimization
# fence: nothing but positions chooses how events are read.
_SCANNED = """
WITH stretch AS (
    SELECT {columns}
    FROM (SELECT * FROM {schema}.events
          WHERE position > %(inner_low)s AND position <= %(inner_high)s OFFSET 0) AS e
    WHERE {wanted}
    UNION ALL
    SELECT {columns}
    FROM {schema}.seals AS s CROSS JOIN LATERAL (
        SELECT * FROM {schema}.events AS own
        WHERE own.position = s.position
          AND own.position > %(low)s AND own.position <= %(edge_low)s OFFSET 0) AS e
    WHERE s.seq > %(after)s AND s.seq <= %(upto)s
      AND s.position > %(low)s AND s.position <= %(edge_low)s AND {wanted}
    UNION ALL
    SELECT {columns}
    FROM {schema}.seals AS s CROSS JOIN LATERAL (
        SELECT * FROM {schema}.events AS own
        WHERE own.position = s.position
          AND own.position > %(inner_high)s AND own.position <= %(high)s OFFSET 0) AS e
    WHERE s.seq > %(after)s AND s.seq <= %(upto)s
      AND s.position > %(inner_high)s AND s.position <= %(high)s AND {wanted}
)
"""


class Stretch:
    """One stretch of a log, within a session.

    Parameters
    ----------
    session:
        A session of the ledger's database. Give it one snapshot if several statements read it.
    schema:
        The ledger's schema.
    after, upto:
        Its ends as seqs, the first exclusive. Up to :data:`~pharox.log.extract.BIGGEST` it has the
        events that have no seq yet, too.
    """

    def __init__(self, session: Session, schema: str, after: int, upto: int) -> None:
        self._session, self._schema = session, schema
        self._places = self._find(after, upto)

    def rows(
        self,
        select: LiteralString,
        *,
        columns: LiteralString,
        wanted: LiteralString,
        pool_id: UUID | None = None,
        is_scanned: bool = False,
        values: Mapping[str, Any] = {},
        **parts: LiteralString,
    ) -> list[tuple[Any, ...]]:
        """Return the rows of a query of ``stretch``, of the events of one pool or of all.

        ``wanted`` is a condition on the event ``e``, ``values`` are further parameters. One that
        ``is_scanned`` has an end, and is read as it is: no other index is used.
        """
        if self._places is None:
            return []
        condition = f"({wanted})" if pool_id is None else f"e.pool_id = %(pool_id)s AND ({wanted})"
        return rows(
            self._session,
            self._schema,
            (_SCANNED if is_scanned else _STRETCH) + select,
            {"pool_id": pool_id, **self._places, **values},
            columns=columns,
            wanted=condition,
            **parts,
        )

    @property
    def high(self) -> int:
        """A position that no event of the stretch is above."""
        return self._places["high"] if self._places else 0

    def _find(self, after: int, upto: int) -> dict[str, int] | None:
        """Return the positions around the stretch; None if nothing was ever sealed."""
        found = rows(self._session, self._schema, _EDGES, {"after": after, "upto": upto})
        if not found:
            return None
        low, inner_low, inner_high, high, unsealed_after = found[0]
        is_open = upto == BIGGEST
        inner_high = BIGGEST if is_open else max(inner_low, inner_high)
        edge_low = min(inner_low, BIGGEST if is_open else high)
        return {
            "after": after,
            "upto": upto,
            "low": low,
            "inner_low": inner_low,
            "edge_low": edge_low,
            "inner_high": inner_high,
            "high": BIGGEST if is_open else high,
            "unsealed_low": max(low, unsealed_after) if is_open else 0,
            "unsealed_high": edge_low if is_open else 0,
        }


def rows(
    session: Session,
    schema: str,
    text: LiteralString,
    values: dict[str, Any],
    **parts: LiteralString,
) -> list[tuple[Any, ...]]:
    """Return the rows of a statement.

    Parameters
    ----------
    text:
        SQL with ``{schema}``, the names of further parts in braces, and named parameters.
    values:
        The parameters.
    parts:
        SQL of this code, by the name in braces.
    """
    composed = {name: sql.SQL(part) for name, part in parts.items()}
    statement = sql.SQL(text).format(schema=sql.Identifier(schema), **composed)
    # Values are known when it is planned, so that parts of the log are left out.
    return session.connection.execute(statement, values, prepare=False).fetchall()

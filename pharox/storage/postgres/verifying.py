"""Verify a ledger in one snapshot: the seals, the read models, and plausibility.

The database runs all checks in one snapshot, so they block nobody and no rows are
folded in Python. The checks are independent: the chain shows whether an event was
changed after it was sealed, the fold whether a read model is what the events
fold to, and the others whether the events could have happened.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Sequence
from functools import lru_cache
from itertools import islice

import psycopg
from psycopg import sql

from pharox.log import events
from pharox.log.canonical import DIGEST_VERSION
from pharox.log.signed_heads import CHECKPOINT
from pharox.log.tree import HEIGHT, TreeHead
from projections import Finding, Projection
from projections.pool_stats import SLOTS

from .driver import Session
from .folding import STORED_TIME_ZONE, Folder, current_rows, live_statement
from .snapshots import base_of, snapshots_after
from .sql import TEMPORARY, Statement
from .verifying_schema import FUNCTIONS, verify_schema
from .verifying_tree import Archive, verify_heads

Progress = Callable[[str, int, int], None]
"""Called with what is checked now, and how far: how many of how many checks are done, or, while the
log is folded, the seq reached and the last one."""

FOLD = "fold"
"""What :data:`Progress` is told while the log is folded."""

CHAIN = {
    "events": """
        SELECT jsonb_build_object('seq', s.seq, 'position', coalesce(s.position, e.position)),
               CASE WHEN e.position IS NOT NULL THEN
                   jsonb_build_object('version', coalesce(s.version, {version}),
                       'digest', encode({ledger}.digest(
                           e, coalesce(s.version, {version}::smallint)), 'hex')) END,
               CASE WHEN s.position IS NOT NULL THEN
                   jsonb_build_object('version', s.version, 'digest', encode(s.digest, 'hex')) END
        FROM {ledger}.seals AS s
        FULL JOIN {ledger}.events AS e ON e.position = s.position
        -- An event without a seal is correct if the last tick could not see it.
        WHERE (s.position IS NULL OR s.digest IS DISTINCT FROM {ledger}.digest(e, s.version))
          AND (s.position IS NOT NULL OR NOT (
              e.tx >= (SELECT pg_snapshot_xmax(snapshot) FROM {last_tick})
              OR e.tx = ANY (ARRAY(SELECT pg_snapshot_xip(snapshot) FROM {last_tick}))))
          AND NOT EXISTS (  -- a part being archived: its events leave before its seals
              SELECT FROM {ledger}.partitions AS p
              WHERE p.archived_at IS NOT NULL
                AND coalesce(s.position, e.position) >= p.first_position
                AND coalesce(s.position, e.position) < p.end_position)
        ORDER BY coalesce(s.position, e.position)
    """,
    "readable": """
        SELECT jsonb_build_object('position', e.position), jsonb_build_object('type', e.type), NULL
        FROM {ledger}.events AS e
        WHERE {ledger}.is_event_v1({event}) IS NOT TRUE
        ORDER BY e.position
    """,
    "seals": """
        SELECT jsonb_build_object('seq', seq), jsonb_build_object('previous', previous),
               jsonb_build_object('previous', seq - 1)
        FROM (SELECT seq, lag(seq, 1, (SELECT coalesce(max(last_seq), 0) FROM {ledger}.partitions))
                          OVER (ORDER BY seq) AS previous FROM {ledger}.seals
              WHERE seq > (SELECT coalesce(max(last_seq), 0) FROM {ledger}.partitions)) AS s
        WHERE seq <> previous + 1
        ORDER BY seq
    """,
    "ticks": """
        -- The last tick is also in ticks once it is complete, and is then counted once.
        WITH chain AS (
            SELECT * FROM {ledger}.ticks UNION ALL SELECT * FROM {last_tick}
            WHERE NOT EXISTS (SELECT FROM {ledger}.ticks AS t
                              WHERE t.last_seq = last_tick.last_seq AND t::text = last_tick::text)
        ), linked AS (
            SELECT last_seq, lag(last_seq, 1, 0::bigint) OVER chain AS before_seq,
                   lag(root, 1, ''::bytea) OVER chain AS before_root,
                   lag(last_position, 1, 0::bigint) OVER chain AS before_position
            FROM chain WINDOW chain AS (ORDER BY last_seq)
        )
        SELECT jsonb_build_object('last_seq', last_seq),
               jsonb_build_object('first_seq', first_seq, 'root', encode(root, 'hex'),
                                  'last_position', last_position),
               jsonb_build_object('first_seq', before_seq + 1, 'root', encode(made, 'hex'),
                                  'last_position', greatest(before_position, position))
        FROM linked JOIN chain AS t USING (last_seq), LATERAL (
            SELECT max(position) AS position,
                   {ledger}.root(before_root, t::{ledger}.ticks,
                                 string_agg(digest, ''::bytea ORDER BY seq)) AS made
            FROM {ledger}.seals
            WHERE seq BETWEEN t.first_seq AND t.last_seq
              AND position > t.after_position AND position <= t.last_position) AS sealed
        WHERE first_seq > (SELECT coalesce(max(last_seq), 0) FROM {ledger}.partitions)
          AND (first_seq <> before_seq + 1 OR root IS DISTINCT FROM made
               OR last_position <> greatest(before_position, position))
        ORDER BY last_seq
    """,
    "sealed": """
        SELECT jsonb_build_object('last_seq', ticked.seq),
               jsonb_build_object('last_seal', sealed.seq),
               jsonb_build_object('last_seal', ticked.seq)
        FROM (SELECT greatest((SELECT max(seq) FROM {ledger}.seals),
                              (SELECT max(last_seq) FROM {ledger}.partitions), 0) AS seq) AS sealed,
             (SELECT coalesce(max(last_seq), 0) AS seq FROM {last_tick}) AS ticked
        WHERE sealed.seq <> ticked.seq
    """,
}
"""The checks of the log by name. Each query returns a key, the found and the expected value."""

SENSE = {
    "history": """
        SELECT jsonb_build_object('seq', seq, 'proxy_id', proxy_id),
               jsonb_build_object('before', before), jsonb_build_object('before', left_by_last)
        FROM (SELECT seq, proxy_id, before, number,
                     lag(after) OVER (PARTITION BY pool_id, proxy_id ORDER BY seq) AS left_by_last
              FROM (SELECT *, row_number() OVER (PARTITION BY pool_id, proxy_id ORDER BY seq)
                                  AS number
                    FROM (SELECT s.seq, e.pool_id, e.proxy_id,
                                 jsonb_build_object('status', e.status_before,
                                     'leases', e.leases_before,
                                     'max_concurrency', e.max_concurrency_before) AS before,
                                 jsonb_build_object('status', e.status_after,
                                     'leases', e.leases_after,
                                     'max_concurrency', e.max_concurrency_after) AS after
                          FROM {ledger}.seals AS s
                          JOIN {ledger}.events AS e ON e.position = s.position
                          WHERE e.proxy_id IS NOT NULL
                            AND e.type NOT IN (
                                'CursorMoved', 'LeaseRenewed', 'OutcomeReported', 'CoolDownSet',
                                'SessionBound', 'SessionForgotten', 'ExitRotated'
                            )
                          -- Checks in a ProxiesChecked leave the state as it was.
                          UNION ALL
                          SELECT s.seq, e.pool_id, checked.proxy_id, state, state
                          FROM {ledger}.seals AS s
                          JOIN {ledger}.events AS e ON e.position = s.position,
                               {ledger}.checks_v1(e.proxy_ids, e.data) AS checked,
                               jsonb_build_object('status', checked.status,
                                   'leases', checked.leases,
                                   'max_concurrency', checked.max_concurrency) AS state
                          WHERE e.type = 'ProxiesChecked') AS states) AS numbered) AS chain
        WHERE number > 1 AND before <> left_by_last
        ORDER BY seq
    """,
    "holders": """
        SELECT jsonb_build_object('proxy_id', a.proxy_id, 'pool_id', a.pool_id),
               jsonb_build_object('leases', held, 'counted', a.current_leases),
               jsonb_build_object('leases', least(held, a.max_concurrency), 'counted', held)
        FROM {ledger}.available_proxies AS a,
             LATERAL (SELECT count(*) AS held FROM {ledger}.leases AS l
                      WHERE l.pool_id = a.pool_id AND l.proxy_id = a.proxy_id
                        AND l.status = 'active') AS active
        WHERE held <> a.current_leases OR held > a.max_concurrency
        ORDER BY a.proxy_id
    """,
    "counters": """
        SELECT jsonb_build_object('pool_id', pool_id), to_jsonb(kept) - 'pool_id',
               to_jsonb(counted) - 'pool_id'
        FROM (SELECT pool_id, sum(total_proxies) AS total_proxies,
                     sum(active_proxies) AS active_proxies,
                     sum(available_proxies) AS available_proxies,
                     sum(leased_proxies) AS leased_proxies, sum(total_leases) AS total_leases
              FROM {ledger}.pool_stats GROUP BY pool_id) AS kept
        FULL JOIN (
              SELECT p.id AS pool_id, count(a.proxy_id) AS total_proxies,
                     count(*) FILTER (WHERE a.status = 'active') AS active_proxies,
                     count(*) FILTER (WHERE a.lease_rank = 0) AS available_proxies,
                     count(*) FILTER (WHERE a.current_leases > 0) AS leased_proxies,
                     coalesce(sum(a.current_leases), 0) AS total_leases
              FROM {ledger}.pools AS p LEFT JOIN {ledger}.available_proxies AS a ON a.pool_id = p.id
              GROUP BY p.id) AS counted USING (pool_id)
        WHERE (to_jsonb(kept) - 'pool_id') IS DISTINCT FROM (to_jsonb(counted) - 'pool_id')
        ORDER BY pool_id
    """,
    "slots": """
        SELECT jsonb_build_object('pool_id', p.id),
               jsonb_build_object('slots', coalesce(array_agg(s.slot ORDER BY s.slot)
                                                    FILTER (WHERE s.slot IS NOT NULL), '{{}}')),
               jsonb_build_object('slots', ARRAY(SELECT generate_series(0, {last_slot})))
        FROM {ledger}.pools AS p LEFT JOIN {ledger}.pool_stats AS s ON s.pool_id = p.id
        GROUP BY p.id
        HAVING coalesce(array_agg(s.slot::int ORDER BY s.slot) FILTER (WHERE s.slot IS NOT NULL),
                        '{{}}') <> ARRAY(SELECT generate_series(0, {last_slot}))
        ORDER BY p.id
    """,
    "expiry": """
        SELECT jsonb_build_object('id', l.id, 'pool_id', l.pool_id),
               jsonb_build_object('status', l.status, 'expires_at', l.expires_at),
               jsonb_build_object('status', 'expired', 'expires_at', l.expires_at)
        FROM {ledger}.leases AS l
        WHERE l.status = 'active'
          AND l.expires_at < (
              SELECT max(x.released_at) - interval '1 min' FROM {ledger}.leases AS x
              WHERE x.pool_id = l.pool_id AND x.status = 'expired'
                AND x.released_at < {ledger}.clock() - interval '1 min')
        ORDER BY l.id
    """,
    "subscriptions": """
        SELECT jsonb_build_object('subscription', name),
               jsonb_build_object('checkpoint', checkpoint),
               jsonb_build_object('checkpoint', sealed.seq)
        FROM {ledger}.subscriptions,
             (SELECT coalesce(max(last_seq), 0) AS seq FROM {ledger}.last_tick) AS sealed
        WHERE checkpoint > sealed.seq
        ORDER BY name
    """,
    "tree": """
        SELECT jsonb_build_object('level', n.level, 'first_seq', (n.index << n.level::int) + 1,
                                  'last_seq', (n.index + 1) << n.level::int),
               jsonb_build_object('hash', encode(n.hash, 'hex')),
               jsonb_build_object('hash', encode(made, 'hex'))
        FROM {ledger}.tree_nodes AS n, LATERAL (
            SELECT CASE WHEN n.level <= {tile} THEN
                (SELECT string_agg(
                     sha256(decode('00', 'hex') || s.digest), ''::bytea ORDER BY s.seq)
                 FROM {ledger}.seals AS s
                 WHERE s.seq > n.index << n.level::int
                   AND s.seq <= (n.index + 1) << n.level::int)
            ELSE
                (SELECT string_agg(c.hash, ''::bytea ORDER BY c.index)
                 FROM {ledger}.tree_nodes AS c
                 WHERE c.level = n.level - {tile}
                   AND c.index >= n.index << {tile} AND c.index < (n.index + 1) << {tile})
            END AS hashes) AS below, LATERAL (
            SELECT {ledger}.tree_node_v1(below.hashes) AS made) AS computed
        -- What is kept of archived events has no seals any more.
        WHERE (n.level > {tile} OR n.index << n.level::int >=
               (SELECT coalesce(max(last_seq), 0) FROM {ledger}.partitions))
          AND n.hash IS DISTINCT FROM made
        ORDER BY n.level, n.index
    """,
}
"""The plausibility checks: a proxy's state before an event is its state after the previous one,
it has no more leases than its capacity, counters equal counts, no expiry of leases
omitted one that was due, no subscription is beyond the log, and what is kept of the tree is that
of the seals."""

LAST_TICK = """(
    SELECT last_seq, first_seq, snapshot, anchor, system_identifier, sealed_at, root,
           after_position, last_position
    FROM {ledger}.last_tick) AS last_tick"""


class _Stages:
    """Tells a listener of each check before it begins."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def begin(self, check: str) -> None:
        """Say that the next check begins."""
        if self._progress is not None:
            self._progress(check, self._done, self._total)
        self._done += 1

    def folded(self, reached: int, last: int) -> None:
        """Say how far the log is folded."""
        if self._progress is not None:
            self._progress(FOLD, reached, last)


def verify(
    session: Session,
    ledger: str,
    projections: Sequence[Projection],
    limit: int,
    progress: Progress | None = None,
    heads: Collection[TreeHead] = (),
    archive: Archive | None = None,
) -> Generator[Finding]:
    """Yield what is wrong with a ledger, as seen in one snapshot of the database.

    Parameters
    ----------
    session:
        A session with a snapshot, in a transaction that will be rolled back.
    limit:
        The maximum number of findings of each check.
    progress:
        Told of each check.
    heads:
        Signed heads of the log's tree, to compare the log with.
    archive:
        What reads archived events, to compare them, too; see :func:`verify_heads`.
    """
    own = 2 if heads else 1
    stages = _Stages(progress, own + len(CHAIN) + len(projections) + len(SENSE))
    # First: the session's snapshot must be taken after these locks.
    hold(session, ledger, projections)
    session.connection.execute(STORED_TIME_ZONE)
    stages.begin(FUNCTIONS)
    yield from islice(verify_schema(session, ledger), limit)
    if heads:
        stages.begin(CHECKPOINT)
        yield from islice(verify_heads(session, ledger, heads, archive), limit)
    changed = False
    for finding in _verify_log(session, ledger, limit, stages):
        changed = True
        yield finding
    try:
        with session.connection.transaction():
            yield from _verify_read_models(session, ledger, projections, limit, stages)
    except (psycopg.IntegrityError, psycopg.DataError):
        # A changed event may violate a read model's constraints. The change is reported already.
        if not changed:
            raise


def _verify_read_models(
    session: Session,
    ledger: str,
    projections: Sequence[Projection],
    limit: int,
    stages: _Stages,
) -> Generator[Finding]:
    """Yield rows that differ from the fold of the log, and events that could not have happened."""
    folder = Folder(session, ledger, projections)
    folder.create()
    if base := base_of(session, ledger, projections):
        folder.load(base)
    for stored in snapshots_after(session, ledger, base):
        folder.fold_to(stored.seq)
        for projection in projections:
            if projection.name in stored.projections:
                yield from _stored_differences(folder, projection, limit)
    folder.fold_visible(stages.folded)
    for projection in projections:
        stages.begin(projection.name)
        yield from differences(session, ledger, TEMPORARY, projection, limit)
    for check, query in SENSE.items():
        stages.begin(check)
        yield from _findings(session, check, _ledger_query(query, ledger), limit)


def verify_log(session: Session, ledger: str, limit: int) -> Generator[Finding]:
    """Yield the changes in the log since it was sealed."""
    return _verify_log(session, ledger, limit, _Stages(None, len(CHAIN)))


def _verify_log(session: Session, ledger: str, limit: int, stages: _Stages) -> Generator[Finding]:
    session.take_room()
    for check, query in CHAIN.items():
        stages.begin(check)
        yield from _findings(session, check, _ledger_query(query, ledger), limit)


def hold(session: Session, ledger: str, projections: Sequence[Projection]) -> None:
    """Lock the tables against replacement, and the log against archiving, until the end.

    This must come before the session's snapshot: a table that is replaced after the snapshot
    would seem to be empty.
    """
    names = ["events", "seals", *(projection.table.name for projection in projections)]
    tables = sql.SQL(", ").join(sql.Identifier(ledger, name) for name in names)
    session.connection.execute(sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(tables))


def _findings(session: Session, check: str, statement: Statement, limit: int) -> Generator[Finding]:
    # No cursor is used: its query could not use parallel workers.
    limited = statement._replace(text=b"%b LIMIT %d" % (statement.text, limit))
    for row in session.rows(limited):
        yield Finding(check, row["key"], row["found"], row["expected"])


def _ledger_query(query: str, ledger: str) -> Statement:
    text = query.replace("{last_tick}", LAST_TICK)
    columns = sql.SQL(", ").join(sql.Identifier("e", column.name) for column in events.c)
    event = sql.SQL("ROW({})::{}").format(columns, sql.Identifier(ledger, "event_v1"))
    composed = sql.SQL(text).format(
        ledger=sql.Identifier(ledger),
        last_slot=SLOTS - 1,
        version=DIGEST_VERSION,
        event=event,
        tile=HEIGHT,
    )
    return Statement(composed.as_bytes(), (), {}, ("key", "found", "expected"))


def _stored_differences(folder: Folder, projection: Projection, limit: int) -> Generator[Finding]:
    """Yield the rows of a stored snapshot that differ from the fold of the log up to its seq."""
    query = sql.SQL(
        "SELECT jsonb_build_object('seq', {seq}::bigint, 'projection', {name}::text), "
        "stored.row, folded.row FROM (SELECT row FROM {ledger}.snapshot_rows "
        "WHERE seq = {seq} AND projection = {name}) AS stored "
        "FULL JOIN (SELECT to_jsonb(current_row) AS row FROM ({rows}) AS current_row) AS folded "
        "ON stored.row = folded.row WHERE stored.row IS NULL OR folded.row IS NULL"
    ).format(
        ledger=sql.Identifier(folder.ledger),
        seq=folder.seq,
        name=projection.name,
        rows=current_rows(folder.target, projection),
    )
    statement = Statement(query.as_bytes(), (), {}, ("key", "found", "expected"))
    return _findings(folder.session, "snapshots", statement, limit)


def differences(
    session: Session, ledger: str, target: str, projection: Projection, limit: int
) -> Generator[Finding]:
    """Yield the rows of a read model that differ from those folded into the target schema."""
    return _findings(session, projection.name, _difference(ledger, target, projection), limit)


@lru_cache(maxsize=256)
def _difference(ledger: str, target: str, projection: Projection) -> Statement:
    live, folded = (
        sql.SQL(live_statement(projection, schema).text.decode()) for schema in (ledger, target)
    )
    key = sql.SQL(", ").join(map(sql.Identifier, projection.key))
    pairs = sql.SQL(", ").join(
        sql.SQL("{}, {}").format(sql.Literal(part), sql.Identifier(part)) for part in projection.key
    )
    query = sql.SQL(
        "SELECT jsonb_build_object({pairs}), to_jsonb(found), to_jsonb(expected) FROM ("
        "SELECT {key}, found, expected "
        "FROM ({live}) AS found FULL JOIN ({folded}) AS expected USING ({key}) "
        "WHERE found IS DISTINCT FROM expected ORDER BY {key}) AS different"
    ).format(pairs=pairs, live=live, folded=folded, key=key)
    return Statement(query.as_bytes(), (), {}, ("key", "found", "expected"))

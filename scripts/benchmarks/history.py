"""Events made in the database itself: one per commit, or the history of a busy month.

Of twenty events of the history nine are leases acquired, eight releases, one an expiry, one a
health check and one a miss. Only the log is written; a rebuild makes the read models.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
from sqlalchemy.engine import Engine

from pharox.storage.postgres.sql import quoted
from scripts.benchmarks.server import connected

_START = datetime(2026, 1, 1, tzinfo=UTC)

ONE_EVENT = """
INSERT INTO {table} (
    recorded_at, expires_at, pool_id, proxy_id, lease_id, consumer_id,
    leases_before, leases_after, max_concurrency_before, max_concurrency_after,
    schema_version, type, status_before, status_after, selector, consumer, pool_name, actor,
    correlation_id
)
VALUES (
    now(), now() + interval '5 min', '00000000-0000-7000-8000-000000000000',
    lpad(to_hex((random() * 99)::int), 32, '0')::uuid, uuidv7(),
    '00000000-0000-7000-8000-000000000001',
    0, 1, 1, 1,
    1, 'LeaseAcquired', 'active', 'active', 'round_robin', 'worker-1', 'bench', 'bench:1',
    {correlation_id}
)
"""
"""An event as a lease leaves it; nothing is folded from it."""

_COLUMNS = (
    "recorded_at, expires_at, acquired_at, pool_id, proxy_id, lease_id, consumer_id, "
    "leases_before, leases_after, max_concurrency_before, max_concurrency_after, schema_version, "
    "type, status_before, status_after, selector, consumer, pool_name, actor, data"
)
_STORY = """
SELECT
    at,
    CASE
        WHEN type = 'LeaseAcquired' THEN at + interval '5 min'
        WHEN type = 'LeaseExpired' THEN at
    END,
    CASE WHEN type IN ('LeaseReleased', 'LeaseExpired') THEN acquired_at END,
    %(pool_id)s,
    CASE WHEN type <> 'AcquireMissed' THEN members[1 + cycle %% cardinality(members)] END,
    CASE WHEN type LIKE 'Lease%%' THEN lease END,
    CASE WHEN type LIKE 'Lease%%' THEN lease END,
    CASE
        WHEN type IN ('LeaseReleased', 'LeaseExpired') THEN 1
        WHEN type <> 'AcquireMissed' THEN 0
    END,
    CASE WHEN type = 'LeaseAcquired' THEN 1 WHEN type <> 'AcquireMissed' THEN 0 END,
    CASE WHEN type <> 'AcquireMissed' THEN 1 END,
    CASE WHEN type <> 'AcquireMissed' THEN 1 END,
    1::smallint,
    type,
    CASE WHEN type <> 'AcquireMissed' THEN 'active' END,
    CASE WHEN type <> 'AcquireMissed' THEN 'active' END,
    CASE WHEN type IN ('LeaseAcquired', 'AcquireMissed') THEN 'round_robin' END,
    CASE WHEN type <> 'HealthChecked' THEN 'worker-' || cycle %% 8 END,
    CASE WHEN type <> 'HealthChecked' THEN 'bench' END,
    'bench:1',
    CASE
        WHEN type = 'HealthChecked' THEN jsonb_build_object(
            'applied', true, 'status', 'active', 'reachable', true, 'latency_ms', cycle %% 900,
            'protocol', 'http', 'attempts', 1, 'checked_at', at)
        WHEN type = 'AcquireMissed' THEN jsonb_build_object('reason', 'at_capacity')
    END
FROM (
    SELECT
        cycle,
        CAST(%(start)s AS timestamptz) + (2 * cycle + half) * CAST(%(step)s AS interval) AS at,
        CAST(%(start)s AS timestamptz) + 2 * cycle * CAST(%(step)s AS interval) AS acquired_at,
        CASE
            WHEN cycle %% 10 = 9 THEN (ARRAY['HealthChecked', 'AcquireMissed'])[1 + half]
            WHEN half = 0 THEN 'LeaseAcquired'
            WHEN cycle %% 10 = 8 THEN 'LeaseExpired'
            ELSE 'LeaseReleased'
        END AS type,
        overlay(overlay(md5(cycle::text) PLACING lpad(to_hex(cycle), 12, '0') FROM 1)
                PLACING '7' FROM 13)::uuid AS lease
    FROM generate_series(CAST(%(first)s AS bigint), CAST(%(last)s AS bigint)) AS cycle,
         generate_series(0, 1) AS half
    ORDER BY cycle, half
) AS story,
(SELECT array_agg(id ORDER BY id) AS members
 FROM {schema}.proxies
 WHERE pool_id = %(pool_id)s) AS pool
"""


def make_history(
    engine: Engine,
    schema: str,
    pool_id: UUID,
    events: int,
    *,
    start: datetime = _START,
    step_ms: float = 2,
    per_batch: int = 100_000,
    after_batch: Callable[[], object] = lambda: None,
) -> None:
    """Append a consistent history of so many events to the log of a pool of exclusive proxies.

    One session produces the events and another one stores them, both with COPY.

    Parameters
    ----------
    start, step_ms:
        When the first event was recorded, and the milliseconds from each to the next.
    per_batch, after_batch:
        How many pairs of events are committed at once, and what to do after each commit.
    """
    url = engine.url.render_as_string(hide_password=False)
    with connected(url) as source, connected(url) as log:
        log.execute("SET synchronous_commit = off")
        pace = {"start": start, "step": timedelta(milliseconds=step_ms)}
        for first in range(0, events // 2, per_batch):
            last = min(first + per_batch, events // 2) - 1
            values = {"pool_id": pool_id, "first": first, "last": last, **pace}
            try:
                _copy(source, log, schema, values)
            except psycopg.errors.CheckViolation:  # the log is at the end of its last part
                log.execute(f"SELECT {quoted(schema)}.add_partition()")
                _copy(source, log, schema, values)
            after_batch()


def _copy(
    source: psycopg.Connection[Any],
    log: psycopg.Connection[Any],
    schema: str,
    values: dict[str, Any],
) -> None:
    story = _STORY.format(schema=quoted(schema))
    told = psycopg.ClientCursor(source).mogrify(story, values)
    telling, taking = source.cursor(), log.cursor()
    into = f"COPY {quoted(schema)}.events ({_COLUMNS}) FROM STDIN (FORMAT binary)"
    with (
        telling.copy(f"COPY ({told}) TO STDOUT (FORMAT binary)") as lines,
        taking.copy(into) as target,
    ):
        for block in lines:
            target.write(block)

"""The condition of a ledger: its seals, its parts, its read models, and when proxies were checked.

In PostgreSQL it is read from small tables and the catalog. Numbers of rows are the planner's
estimates: nothing is counted. A storage in memory has no seals or parts; of it only the end of the
log and the checks are known.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, LiteralString, NamedTuple

from projections import Projection, registered

from ..history.sealed_log import last_seq
from ..models import ProxyStatus, utc_now
from ..storage.interface import IStorage

RUN_GAP_S = 60
"""After how many seconds without a check of a pool a sweep of it is over."""

RUNS = 3
"""How many sweeps of a pool are listed, the last ones."""

PARTS = 100
"""How many parts of the log are listed, the newest."""


@dataclass(frozen=True, slots=True)
class Seal:
    """The last tick: the seq up to which events are sealed, when, and the root of the chain.

    ``unsealed`` are how many positions came since, at most: events of transactions that were
    rolled back are among them.
    """

    last_seq: int
    sealed_at: datetime | None = None
    root: str = ""
    unsealed: int = 0
    age_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ReadModel:
    """A read model: what it means, and about how many rows and bytes it has, if that is known."""

    name: str
    meaning: str
    rows: int | None = None
    size_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class LogPart:
    """A part of the log by its positions, the end exclusive. Once archived, it has the rest."""

    first_position: int
    end_position: int
    first_seq: int | None
    last_seq: int | None
    first_recorded_at: datetime | None
    last_recorded_at: datetime | None
    archived_at: datetime | None
    archive: str | None


class Run(NamedTuple):
    """Checks of a pool that followed each other, as those of a sweep do.

    ``found`` are the proxies by what was found, without those that were checked again since. It
    goes on if the last check is no longer ago than :data:`RUN_GAP_S`.
    """

    began_at: datetime
    last_at: datetime
    goes_on: bool
    found: dict[str, int]

    @property
    def checked(self) -> int:
        """How many proxies it has checked, of those that were not checked again since."""
        return sum(self.found.values())

    @property
    def in_order(self) -> list[tuple[str, int]]:
        """What was found, the best first."""
        return [(each.value, self.found[each]) for each in ProxyStatus if each in self.found]


@dataclass(frozen=True, slots=True)
class Checks:
    """When the proxies of a pool were checked: ``fresh`` of ``total`` in the last ten minutes.

    ``runs`` are the last sweeps, as far as the last check of each proxy tells; the newest first.
    """

    pool_id: Any
    pool: str
    total: int
    fresh: int
    never: int
    last_at: datetime | None
    oldest_at: datetime | None
    runs: Sequence[Run] = ()


@dataclass(frozen=True, slots=True)
class Condition:
    """The condition of a ledger.

    ``maintenance`` says that a rebuild or an archive holds the lock; ``snapshot_seq`` is the last
    stored state of the past. ``has_parts`` is False in memory.
    """

    seal: Seal
    read_models: Sequence[ReadModel]
    checks: Sequence[Checks]
    parts: Sequence[LogPart] = ()
    has_parts: bool = False
    schema: str = ""
    version: str = ""
    maintenance: bool = False
    rebuild_began: bool = False
    snapshot_seq: int | None = None


def condition_of(storage: IStorage) -> Condition:
    """Return the condition of a ledger."""
    if hasattr(storage, "session") and hasattr(storage, "schema"):
        return _in_postgres(storage)
    models = [ReadModel(each.name, meaning_of(each)) for each in registered()]
    return Condition(Seal(last_seq(storage)), models, _checks_plain(storage))  # type: ignore[arg-type]


def meaning_of(projection: Projection) -> str:
    """Return the first sentence of what a projection's file says."""
    text = sys.modules[type(projection).__module__].__doc__ or ""
    first = " ".join(text.split("\n\n")[0].split())
    return first.partition(": ")[2] or first


def checks_of(storage: Any) -> list[Checks]:
    """Return when the proxies of each pool were checked, by the pool's name."""
    if not (hasattr(storage, "session") and hasattr(storage, "schema")):
        return _checks_plain(storage)
    from ..history.past.stretch import rows  # noqa: PLC0415 - it comes with an extra

    values = {"gap_s": RUN_GAP_S, "runs": RUNS}
    with storage.session() as session:
        pools = rows(session, storage.schema, _CHECKS, values)
        runs = rows(session, storage.schema, _RUNS, values)
    return [
        replace(Checks(*row), runs=[Run(*run) for pool_id, *run in runs if pool_id == row[0]])
        for row in pools
    ]


def runs_of(checks: Sequence[tuple[datetime, str]], now: datetime) -> list[Run]:
    """Return the last runs among checks, each with its moment and what was found."""
    checks, gap = sorted(checks), timedelta(seconds=RUN_GAP_S)
    breaks = [at for at, (a, b) in enumerate(pairwise(checks), 1) if b[0] - a[0] > gap]
    runs = []
    for first, end in pairwise([0, *breaks, len(checks)] if checks else [0]):
        run = checks[first:end]
        found = Counter(status for _, status in run)
        goes_on = now - run[-1][0] <= gap
        runs.append(Run(run[0][0], run[-1][0], goes_on, dict(sorted(found.items()))))
    return runs[: -RUNS - 1 : -1]


def _checks_plain(storage: Any) -> list[Checks]:
    found = []
    for pool in storage.list_pools():
        proxies = storage.list_proxies(str(pool.id))
        results = [storage.get_last_health_result(proxy.id) for proxy in proxies]
        moments = [each.checked_at for each in results if each is not None]
        stats = storage.get_pool_stats(pool.name)
        now = stats.collected_at if stats else utc_now()
        fresh = sum((now - moment).total_seconds() < 600 for moment in moments)
        found.append(
            Checks(
                pool.id,
                pool.name,
                len(proxies),
                fresh,
                len(proxies) - len(moments),
                max(moments, default=None),
                min(moments, default=None),
                runs_of([(each.checked_at, each.status.value) for each in results if each], now),
            )
        )
    return found


_SEAL = """
SELECT last_seq, sealed_at, encode(root, 'hex'),
       greatest(coalesce((SELECT max(position) FROM {schema}.events), 0) - last_position, 0),
       greatest(extract(epoch FROM {schema}.clock() - sealed_at), 0)::float8
FROM {schema}.last_tick
"""

_TABLES = """
SELECT c.relname::text, nullif(c.reltuples, -1)::bigint, pg_total_relation_size(c.oid)
FROM pg_class AS c
JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = %(name)s AND c.relkind = 'r' AND c.relname = ANY (%(tables)s)
"""

_PARTS = """
SELECT first_position, end_position, first_seq, last_seq, first_recorded_at, last_recorded_at,
       archived_at, archive
FROM {schema}.partitions ORDER BY first_position DESC LIMIT %(limit)s
"""

_CHECKS = """
SELECT p.id, p.name, count(a.proxy_id),
       count(*) FILTER (WHERE h.checked_at > {schema}.clock() - interval '10 min'),
       count(a.proxy_id) - count(h.checked_at), max(h.checked_at), min(h.checked_at)
FROM {schema}.pools AS p
LEFT JOIN {schema}.available_proxies AS a ON a.pool_id = p.id
LEFT JOIN {schema}.proxy_health AS h ON h.pool_id = a.pool_id AND h.proxy_id = a.proxy_id
GROUP BY p.id, p.name ORDER BY p.name COLLATE "C"
"""

_RUNS = """
SELECT pool_id, min(began_at), max(last_at), bool_or(goes_on), jsonb_object_agg(status, proxies)
FROM (
    SELECT pool_id, run, status, count(*) AS proxies, min(checked_at) AS began_at,
           max(checked_at) AS last_at,
           max(checked_at) >= {schema}.clock() - %(gap_s)s * interval '1 s' AS goes_on
    FROM (
        -- The last run is run 0. Among equal times a run ends in the order that numbers them.
        SELECT pool_id, status, checked_at,
               count(*) FILTER (WHERE ends) OVER (PARTITION BY pool_id ORDER BY checked_at DESC,
                                                  proxy_id) AS run
        FROM (
            SELECT h.pool_id, h.proxy_id, h.status, h.checked_at,
                   lead(h.checked_at) OVER (PARTITION BY h.pool_id
                                            ORDER BY h.checked_at, h.proxy_id DESC)
                   - h.checked_at > %(gap_s)s * interval '1 s' AS ends
            FROM {schema}.proxy_health AS h
            JOIN {schema}.available_proxies AS a
              ON a.pool_id = h.pool_id AND a.proxy_id = h.proxy_id
        ) AS checks
    ) AS numbered
    WHERE run < %(runs)s
    GROUP BY pool_id, run, status
) AS counted
GROUP BY pool_id, run ORDER BY pool_id, run
"""

_MAINTENANCE = """
SELECT EXISTS (
           SELECT FROM pg_locks
           WHERE locktype = 'advisory' AND granted AND objsubid = 2 AND classid = %(lock)s
             AND objid::bigint = hashtext(%(name)s)::bigint & 4294967295
             AND database = (SELECT oid FROM pg_database WHERE datname = current_database())),
       EXISTS (SELECT FROM pg_namespace WHERE nspname = %(fresh)s),
       (SELECT max(seq) FROM {schema}.snapshots)
"""


def _in_postgres(storage: Any) -> Condition:
    from ..history.past.stretch import rows  # noqa: PLC0415
    from ..storage.postgres.schema import ALONE_LOCK  # noqa: PLC0415 - it comes with an extra

    schema: str = storage.schema
    known = registered()
    values = {
        "name": schema,
        "fresh": f"{schema}_rebuild",
        "tables": [each.table.name for each in known],
        "limit": PARTS,
        "lock": ALONE_LOCK,
    }
    with storage.session() as session:

        def ask(text: LiteralString) -> list[tuple[Any, ...]]:
            return rows(session, schema, text, values)

        sealed, tables, parts = ask(_SEAL), ask(_TABLES), ask(_PARTS)
        ((is_busy, began, snapshot_seq),) = ask(_MAINTENANCE)
    sizes = {name: (number, size) for name, number, size in tables}
    return Condition(
        Seal(*sealed[0]) if sealed else Seal(0),
        [
            ReadModel(each.name, meaning_of(each), *sizes.get(each.table.name, (None, None)))
            for each in known
        ],
        checks_of(storage),
        [LogPart(*row) for row in parts],
        has_parts=True,
        schema=schema,
        version=str(storage.schema_version()),
        maintenance=is_busy,
        rebuild_began=began,
        snapshot_seq=snapshot_seq,
    )

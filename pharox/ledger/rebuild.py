"""Fold the log into fresh tables while leasing continues, and exchange them for the live ones.

The fresh tables are in a schema of their own, so a killed rebuild leaves the live
tables as they are, and the next run drops the rest. Only the last step blocks
writers: it locks the live tables, folds what has been appended in the meantime, and
exchanges the tables in one transaction. If it does not get the locks at once, it lets
the writers go first and tries again.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from itertools import islice
from typing import NamedTuple

import psycopg
from psycopg import sql

import projections as known
from projections import Finding, Projection

from ..errors import DatabaseError, InvalidInputError
from ..storage.postgres import PostgresStorage
from ..storage.postgres.driver import Session
from ..storage.postgres.folding import Folder
from ..storage.postgres.functions import others_function
from ..storage.postgres.schema import LONGEST_NAME
from ..storage.postgres.snapshots import base_of
from ..storage.postgres.sql import quoted
from ..storage.postgres.verifying import differences
from .maintenance_lock import maintenance_lock

Progress = Callable[[int, int], None]

NEAR = 200
"""With fewer events than this to fold, a rebuild takes the locks."""

NEARER = 0.9
"""A round of catching up must leave fewer events than this part of the former round's."""

PATIENCE_S = 5.0
"""How long to wait for another rebuild; a killed session takes a moment to end."""

LOCK_TIMEOUT_MS = 50
ATTEMPTS = 200


class Rebuilt(NamedTuple):
    """The result of a rebuild.

    ``last_seq`` is the last event in the new tables, ``findings`` are rows in which
    the old tables differed from the log. ``locked_ms`` is how long the exchange
    blocked writers, ``attempts`` how often it tried before it had all locks.
    """

    projections: tuple[str, ...]
    last_seq: int
    seconds: float
    locked_ms: float
    attempts: int
    findings: tuple[Finding, ...]


def rebuild(
    storage: PostgresStorage,
    names: Sequence[str] = (),
    *,
    progress: Progress | None = None,
    limit: int = 100,
    force: bool = False,
) -> Rebuilt:
    """Rebuild read models from the log.

    Parameters
    ----------
    names:
        Which projections; all that are registered if empty.
    progress:
        Called from time to time with the current seq and the last one.
    limit:
        How many differences between the old tables and the log to return at most.
    force:
        Put the new tables in place even if the log was changed since it was sealed.

    Raises
    ------
    InvalidInputError
        If no projection has one of the names.
    ConflictError
        If another rebuild, or an archive, is running.
    DatabaseError
        If an object depends on a table to be exchanged, if the old tables differ
        from a log that was itself changed, or if the locks could not be taken.
    """
    wanted = _chosen(names)
    started = time.monotonic()
    with (
        storage.own_session() as session,
        maintenance_lock(session.connection, storage.schema, PATIENCE_S),
    ):
        session.take_room()
        _begin(session, storage.schema, wanted)
        last = storage.seal()
        base = base_of(session, storage.schema, wanted)
        _fold_in_parallel(storage, wanted, base, last, progress or _no_progress)
        whole = Folder(session, storage.schema, wanted, fresh_schema(storage.schema))
        whole.seq = last
        _catch_up(storage, whole)
        whole.create_indexes()
        whole.analyze()
        _catch_up(storage, whole)
        findings = _compare(whole, limit)
        if findings and not force:
            _check_log(storage)
        locked_ms, attempts = _exchange(storage, whole)
        _drop_fresh(session, storage.schema)
    seconds = time.monotonic() - started
    done = tuple(projection.name for projection in wanted)
    return Rebuilt(done, whole.seq, seconds, locked_ms, attempts, tuple(findings))


def fresh_schema(schema: str) -> str:
    """Return the name of the schema in which a ledger's read models are rebuilt.

    Raises
    ------
    InvalidInputError
        If it is too long: PostgreSQL would truncate it, perhaps to the ledger's own name.
    """
    name = f"{schema}_rebuild"
    if len(name.encode()) > LONGEST_NAME:
        raise InvalidInputError(f"schema {schema!r} has too long a name to be rebuilt")
    return name


def _chosen(names: Sequence[str]) -> tuple[Projection, ...]:
    by_name = {projection.name: projection for projection in known.registered()}
    for name in names:
        if name not in by_name:
            raise InvalidInputError(
                f"no projection is named {name!r}; there are {', '.join(by_name)}"
            )
    return tuple(by_name[name] for name in dict.fromkeys(names or by_name))


def _no_progress(_reached: int, _last: int) -> None:
    pass


# The schema for the fresh tables

_DEPENDENT = """
SELECT pg_describe_object(d.classid, d.objid, 0), c.relname::text
FROM pg_depend AS d
JOIN pg_class AS c ON c.oid = d.refobjid AND d.refclassid = 'pg_class'::regclass
JOIN pg_namespace AS n ON n.oid = c.relnamespace
LEFT JOIN pg_constraint AS k ON d.classid = 'pg_constraint'::regclass AND k.oid = d.objid
WHERE n.nspname = %(schema)s AND c.relname = ANY (%(tables)s)
  AND (d.classid IN ('pg_rewrite'::regclass, 'pg_policy'::regclass, 'pg_publication_rel'::regclass,
                     'pg_statistic_ext'::regclass)
       OR k.contype = 'f'
       OR (d.classid = 'pg_trigger'::regclass AND NOT EXISTS (
           SELECT FROM pg_trigger AS t WHERE t.oid = d.objid AND t.tgisinternal))
       OR (d.classid = 'pg_class'::regclass AND d.deptype = 'a' AND EXISTS (
           SELECT FROM pg_index AS i JOIN pg_class AS x ON x.oid = i.indexrelid
           WHERE i.indexrelid = d.objid AND NOT x.relname = ANY (%(indexes)s))))
ORDER BY 1
LIMIT 1
"""


def _begin(session: Session, schema: str, wanted: Sequence[Projection]) -> None:
    connection = session.connection
    tables = [projection.table.name for projection in wanted]
    indexes = [str(index.name) for projection in wanted for index in projection.table.indexes]
    known_by_name = {"schema": schema, "tables": tables, "indexes": indexes}
    dependent = connection.execute(_DEPENDENT, known_by_name).fetchone()
    if dependent is not None:
        raise DatabaseError(
            f"{dependent[0]} depends on the table {dependent[1]}, which the rebuild replaces: drop "
            "it, rebuild, and create it again"
        )
    _drop_fresh(session, schema)
    fresh = sql.Identifier(fresh_schema(schema))
    with connection.transaction():
        connection.execute(sql.SQL("CREATE SCHEMA {}").format(fresh))
        connection.execute(sql.SQL("COMMENT ON SCHEMA {} IS {}").format(fresh, _mark(schema)))


def _mark(schema: str) -> str:
    return f"where pharox rebuilds {schema}"


def _drop_fresh(session: Session, schema: str) -> None:
    """Drop the schema of an earlier rebuild, but no other schema of the same name."""
    name = fresh_schema(schema)
    query = "SELECT obj_description(oid, 'pg_namespace') FROM pg_namespace WHERE nspname = %s"
    found = session.connection.execute(query, (name,)).fetchone()
    if found is None:
        return
    if found[0] != _mark(schema):
        raise DatabaseError(
            f"the rebuild needs the schema name {name!r}, and pharox did not create that schema"
        )
    session.connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(name)))


# While leasing continues


def _fold_in_parallel(
    storage: PostgresStorage,
    wanted: Sequence[Projection],
    base: int,
    last: int,
    progress: Progress,
) -> None:
    """Fold the whole log on two connections: leases take as long as all others together."""
    groups = (
        [p for p in wanted if p is known.LEASES],
        [p for p in wanted if p is not known.LEASES],
    )
    reached = {number: 0 for number, group in enumerate(groups) if group}
    given_up = threading.Event()

    def fold(number: int) -> None:
        with storage.own_session() as session:
            session.take_room()
            target = fresh_schema(storage.schema)
            folder = Folder(session, storage.schema, groups[number], target)
            folder.create()
            if base:
                folder.load(base)
            for reached[number] in folder.advance(last):
                progress(min(reached.values()), last)
                if given_up.is_set():
                    return

    with ThreadPoolExecutor(len(reached)) as workers:
        try:
            for done in as_completed([workers.submit(fold, number) for number in reached]):
                done.result()
        except BaseException:
            given_up.set()
            raise


def _catch_up(storage: PostgresStorage, whole: Folder) -> None:
    """Fold newly appended events until few are left to fold under the locks.

    Writers may append more than ``NEAR`` while a round runs, however short it is. So
    this also ends when a round came hardly nearer than the one before it.
    """
    behind = math.inf
    while NEAR < (left := (last := storage.seal()) - whole.seq) < behind * NEARER:
        whole.fold_to(last)
        behind = left


def _compare(whole: Folder, limit: int) -> list[Finding]:
    """Compare old and fresh tables in one snapshot, without a lock.

    The fold up to that snapshot is rolled back, so afterwards the fresh tables are
    at ``whole.seq`` again.
    """
    session, reached = whole.session, whole.seq
    with session.connection.transaction(force_rollback=True):
        session.connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        whole.fold_visible()
        differing = (
            finding
            for projection in _existing(session, whole)
            for finding in differences(session, whole.ledger, whole.target, projection, limit)
        )
        with closing(differing):
            findings = list(islice(differing, limit))
    whole.seq = reached
    return findings


def _check_log(storage: PostgresStorage) -> None:
    """Raise DatabaseError if the tables differ because the log itself was changed."""
    changed = storage.verify_log(limit=1)
    if changed:
        raise DatabaseError(
            f"the log was changed since it was sealed ({changed[0]}); the read models were left as "
            "they are. `pharox verify` shows all changes; --force rebuilds from the changed log"
        )


def _existing(session: Session, whole: Folder) -> list[Projection]:
    """Return the projections that have a live table; a new one has none."""
    query = "SELECT tablename FROM pg_tables WHERE schemaname = %s"
    tables = {row[0] for row in session.connection.execute(query, (whole.ledger,))}
    return [projection for projection in whole.projections if projection.table.name in tables]


# While writers are blocked


def _exchange(storage: PostgresStorage, whole: Folder) -> tuple[float, int]:
    """Exchange the tables; return how long the locks were held, and the attempts."""
    for attempt in range(1, ATTEMPTS + 1):
        _catch_up(storage, whole)
        reached = whole.seq
        try:
            return _exchange_once(whole), attempt
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
            whole.seq = reached
            time.sleep(random.uniform(0.02, 0.2))  # noqa: S311 - only to let others go first
    raise DatabaseError(
        f"the read models were left as they are: their locks could not be acquired in {ATTEMPTS} "
        "attempts; look for open transactions, or a running verify"
    )


def _exchange_once(whole: Folder) -> float:
    connection, schema = whole.session.connection, sql.Identifier(whole.ledger)
    live = [
        sql.Identifier(whole.ledger, projection.table.name)
        for projection in _existing(whole.session, whole)
    ]
    tables = [projection.table.name for projection in whole.projections]
    named = {"schema": whole.ledger, "tables": tables}
    access = connection.execute(_ACCESS, named).fetchall()
    with connection.transaction():
        # Below deadlock_timeout: if a worker waits for us too, the rebuild gives way.
        connection.execute(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}")
        asked = time.monotonic()
        if live:
            lock = sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE")
            connection.execute(lock.format(sql.SQL(", ").join(live)))
        # SHARE waits for running appends and stops new ones: the seal below is complete.
        connection.execute(sql.SQL("LOCK TABLE ONLY {}.events IN SHARE MODE").format(schema))
        connection.execute(sql.SQL("SELECT {}.seal(true)").format(schema))
        connection.execute("SET LOCAL lock_timeout = 0")
        whole.fold_sealed()
        for table in live:
            connection.execute(sql.SQL("DROP TABLE {}").format(table))
        for projection in whole.projections:
            fresh = sql.Identifier(whole.target, projection.table.name)
            connection.execute(sql.SQL("ALTER TABLE {} SET SCHEMA {}").format(fresh, schema))
        for (grant,) in access:
            connection.execute(grant)
        _fold_others_from_now_on(whole)
    return (time.monotonic() - asked) * 1000


def _fold_others_from_now_on(whole: Folder) -> None:
    """Make commands fold into other packages' read models, if one of those is rebuilt."""
    if all(projection in known.ALL for projection in whole.projections):
        return
    query = "SELECT tablename FROM pg_tables WHERE schemaname = %s"
    tables = {row[0] for row in whole.session.connection.execute(query, (whole.ledger,))}
    others = [p for p in known.registered() if p not in known.ALL and p.table.name in tables]
    text = others_function(others).replace("{schema}", quoted(whole.ledger))
    whole.session.connection.execute(text.encode())


_ACCESS = """
SELECT format('ALTER TABLE %%I.%%I OWNER TO %%I', n.nspname, c.relname, r.rolname)
FROM pg_class AS c
JOIN pg_namespace AS n ON n.oid = c.relnamespace
JOIN pg_roles AS r ON r.oid = c.relowner
WHERE n.nspname = %(schema)s AND c.relname = ANY (%(tables)s) AND r.rolname <> current_user
UNION ALL
SELECT format('GRANT %%s ON %%I.%%I TO %%s%%s',
    x.privilege_type, n.nspname, c.relname,
    CASE x.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(x.grantee)) END,
    CASE WHEN x.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
FROM pg_class AS c
JOIN pg_namespace AS n ON n.oid = c.relnamespace
CROSS JOIN LATERAL aclexplode(c.relacl) AS x
WHERE n.nspname = %(schema)s AND c.relname = ANY (%(tables)s) AND x.grantee <> c.relowner
UNION ALL
SELECT format('GRANT %%s (%%I) ON %%I.%%I TO %%s%%s',
    x.privilege_type, a.attname, n.nspname, c.relname,
    CASE x.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(x.grantee)) END,
    CASE WHEN x.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
FROM pg_class AS c
JOIN pg_namespace AS n ON n.oid = c.relnamespace
JOIN pg_attribute AS a ON a.attrelid = c.oid
CROSS JOIN LATERAL aclexplode(a.attacl) AS x
WHERE n.nspname = %(schema)s AND c.relname = ANY (%(tables)s)
"""
"""Commands that give fresh tables the owners and privileges of the live ones."""

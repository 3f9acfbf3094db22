"""Grant database roles their rights on a ledger: as its owner, an app, a reader or a fence.

    owner    everything: upgrades, rebuilds, archives, rotates keys, grants, moves pools
    app      appends to the log, keeps the read models, reads proxies' credentials
    reader   reads the log and the read models, never credentials
    fence    may call require_lease in transactions of its own, and nothing else

All rights in the schema are first revoked from a role and then granted as needed, so
granting is idempotent. Afterwards the database is asked what each role can do,
whatever the source: ownership, membership, PUBLIC, default privileges. If that is
more than it should be, or less, everything is rolled back.

Sealing and partitioning run in functions with their owner's rights. So an app cannot
order events, choose an event's position or transaction, or hide an event; nor move a pool,
for which the positions of a ledger are set. It cannot
write the stored states of the past either, with which all folds begin after events
were archived.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import psycopg
from psycopg import sql

import projections
from pharox.log import tables as log

from ..errors import DatabaseError, InvalidInputError
from ..models import check_text
from ..storage.postgres import PostgresStorage
from ..storage.postgres.tables import proxy_credentials, source_secrets, source_turns
from .maintenance_lock import maintenance_lock

PATIENCE_S = 5.0
"""How long to wait for a rebuild or an archive, which copy privileges to new tables."""

_SHOWN = 5


@dataclass(frozen=True)
class Roles:
    """The server's roles by their part in a ledger; each role has at most one part."""

    app: Sequence[str] = ()
    reader: Sequence[str] = ()
    owner: str | None = None
    fence: Sequence[str] = ()

    def __post_init__(self) -> None:
        names = self.names()
        if not names:
            raise InvalidInputError("give at least one role: an app, a reader, a fence or an owner")
        for name in names:
            if not check_text(name):
                raise InvalidInputError("a role's name cannot be empty")
            if names.count(name) > 1:
                raise InvalidInputError(f"role {name!r} is named twice", name=name)

    def names(self) -> list[str]:
        """Return all names."""
        return [*self.restrained(), *([] if self.owner is None else [self.owner])]

    def restrained(self) -> list[str]:
        """Return the names of all but the owner."""
        return [*self.app, *self.reader, *self.fence]


class Right(NamedTuple):
    """One privilege in the schema; ``column`` is given if it covers one column only."""

    kind: str
    name: str
    column: str | None
    privilege: str

    def __str__(self) -> str:
        column = f" ({self.column})" if self.column else ""
        return f"{self.privilege}{column} on {self.kind} {self.name}"


def statements(storage: PostgresStorage, roles: Roles) -> list[str]:
    """Return the SQL that grants roles their rights and revokes all others.

    Raises
    ------
    DatabaseError
        If a role does not exist, or cannot be restricted.
    """
    with storage.own_session() as session:
        return _Granting(session.connection, storage.schema, roles).statements()


def grant(storage: PostgresStorage, roles: Roles) -> None:
    """Grant roles their rights and revoke all others, in one transaction.

    Raises
    ------
    ConflictError
        If a rebuild or an archive is running.
    DatabaseError
        If a role does not exist, the current role may not grant, or a role would
        still have more rights than it should, or fewer.
    """
    with (
        storage.own_session() as session,
        maintenance_lock(session.connection, storage.schema, PATIENCE_S),
        session.connection.transaction(),
    ):
        granting = _Granting(session.connection, storage.schema, roles)
        granting.check_rights_to_grant()
        for statement in granting.statements():
            session.connection.execute(statement.encode())
        granting.check_outcome()  # before the commit, so that a wrong outcome is rolled back


def identifier(name: str) -> sql.Composable:
    """Quote a name for SQL; unprintable characters become Unicode escapes."""
    if name.isprintable():
        return sql.Identifier(name)
    spelled = (c if c.isprintable() and c != "\\" else f"\\+{ord(c):06X}" for c in name)
    return sql.SQL('U&"{}"').format(sql.SQL("".join(spelled).replace('"', '""')))


# The rights of each role

_READ = (
    "alembic_version",
    *(
        table.name
        for table in (
            log.events,
            log.seals,
            log.ticks,
            log.tree_nodes,
            log.last_tick,
            log.partitions,
            log.snapshots,
            log.snapshot_rows,
            log.subscriptions,
            log.parked_events,
            log.fleet_counts,
        )
    ),
)
_KEPT_BY_APPS = tuple(t.name for t in (log.subscriptions, log.parked_events, log.fleet_counts))
_QUEUES = ("waiting_processes", "waiting_tickets", source_turns.name)
_SECRETS = (proxy_credentials.name, source_secrets.name)
_READ_FUNCTIONS = (
    "are_checks_v1",
    "checks_v1",
    "clock",
    "digest",
    "is_event_v1",
    "keep_tree_v1",
    "oldest_client",
    "root",
    "seal",
    "seq_at_v1",
    "silence_v1",
    "tree_node_v1",
)
_APP_FUNCTIONS = (
    "acquire_fallback_v1",
    "acquire_for_target_v1",
    "acquire_one_v1",
    "acquire_one_v2",
    "acquire_one_v3",
    "acquire_sticky_v1",
    "acquire_sticky_v2",
    "add_partition",
    "answer_one_v1",
    "answer_rotation_v1",
    "append_one_v1",
    "append_v1",
    "ask_pool_v1",
    "beat_v1",
    "begin_rotation_v1",
    "begin_rotations_v1",
    "bind_session_v1",
    "binding_turn_v1",
    "budgets_v1",
    "bytes_cost_v1",
    "claim_rotations_v1",
    "cool_down_s_v1",
    "counts_after_v1",
    "due_leases_v1",
    "end_bans_v1",
    "exit_session_v1",
    "explores_v1",
    "fits_session_v1",
    "fold_available_proxies_v1",
    "fold_lease_ids_v1",
    "fold_selector_cursors_v1",
    "for_limits_v1",
    "for_target_v1",
    "forget_credentials",
    "forget_session_v1",
    "forget_silent_v1",
    "forget_source_secrets_v1",
    "free_for_session_v1",
    "free_for_target_v1",
    "free_in_order_for_session_v1",
    "free_in_order_for_target_v1",
    "free_proxies_v1",
    "front_v1",
    "granted_before_v1",
    "has_budget_v1",
    "has_room_v1",
    "inherit_session_v1",
    "is_made_v1",
    "is_seen_v1",
    "judge_targets_v1",
    "lasts_v1",
    "lease_commands_v1",
    "lease_commands_v2",
    "lease_commands_v3",
    "lease_event_v1",
    "leased_proxy_v1",
    "leased_proxy_v2",
    "leave_queue_v1",
    "leave_queues_v1",
    "limit_keys_v1",
    "limit_most_v1",
    "limit_room_v1",
    "limited_by_v1",
    "limited_commands_v1",
    "limited_details_v1",
    "limited_proxies_v1",
    "limited_v1",
    "limits_v1",
    "lock_cursors_v1",
    "mark_ticket_v1",
    "matching_v1",
    "may_try_v1",
    "minutes_v1",
    "miss_reason_v1",
    "missed_v1",
    "moved_reason_v1",
    "most_successful_v1",
    "next_day_v1",
    "next_free_v1",
    "next_turns_v1",
    "order_of_v1",
    "paces_v1",
    "pair_after_v1",
    "place_pool_v1",
    "places_in_turn_v1",
    "places_v1",
    "queue_v1",
    "reached_details_v1",
    "reached_limit_v1",
    "reason_v1",
    "recorded_turn_v1",
    "redate_leases_v1",
    "release_one_v1",
    "release_one_v2",
    "renew_leases_v1",
    "report_outcomes_v1",
    "require_lease",
    "rest_or_rotation_v1",
    "rest_v1",
    "resting_reason_v1",
    "returned_leases_v1",
    "revoke_leases_v1",
    "rotate_exit_v1",
    "rotation_event_v1",
    "rotation_times_v1",
    "seed_v1",
    "serve_v1",
    "session_turns_v1",
    "set_cool_down_v1",
    "set_size_v1",
    "take_turns_v1",
    "try_limits_v1",
    "try_request_v1",
    "try_sticky_v1",
    "try_turn_v1",
    "turns_v1",
    "unbound_v1",
    "unlimited_v1",
    "unreserved_v1",
    "wait_fallback_v1",
    "wait_for_turn_v1",
    "wait_limits_v1",
    "wait_sticky_v1",
    "wait_sticky_v2",
    "wait_v1",
    "wait_v2",
    "wait_v3",
    "waited_ms_v1",
    "wished_country_v1",
    "with_costs_v1",
    "with_defaults_v1",
    "with_exit_v1",
    "with_reason_v1",
    "with_rest_v1",
    "without_reserved_v1",
)


def _read_models() -> tuple[str, ...]:
    return tuple(projection.table.name for projection in projections.registered())


def _reader_rights() -> Iterator[Right]:
    yield Right("schema", "", None, "USAGE")
    for table in (*_READ, *_QUEUES, *_read_models()):
        yield Right("table", table, None, "SELECT")
    for function in _READ_FUNCTIONS:
        yield Right("function", function, None, "EXECUTE")


def _fence_rights() -> Iterator[Right]:
    yield Right("schema", "", None, "USAGE")
    yield Right("function", "require_lease", None, "EXECUTE")


def _app_rights() -> Iterator[Right]:
    yield from _reader_rights()
    for table in (*_KEPT_BY_APPS, *_QUEUES, *_read_models()):
        for privilege in ("INSERT", "UPDATE", "DELETE"):
            yield Right("table", table, None, privilege)
    for table in _SECRETS:
        for privilege in ("SELECT", "INSERT"):
            yield Right("table", table, None, privilege)
    for function in _APP_FUNCTIONS:
        yield Right("function", function, None, "EXECUTE")


# Queries of the catalog

_OBJECTS = """
SELECT 'table', relname::text
FROM pg_class WHERE relnamespace = %(schema)s AND relkind IN ('r', 'p', 'v', 'm', 'f')
UNION ALL
SELECT 'function', proname::text
FROM pg_proc WHERE pronamespace = %(schema)s
UNION ALL
SELECT 'type', relname::text
FROM pg_class WHERE relnamespace = %(schema)s AND relkind = 'c'
ORDER BY 1, 2
"""

_UNRESTRAINED = """
SELECT r.rolname::text, CASE
    WHEN r.rolsuper THEN 'is a superuser'
    WHEN r.rolcreaterole THEN 'may give itself other roles (CREATEROLE)'
    WHEN r.rolreplication THEN 'may copy the whole server (REPLICATION)'
    WHEN pg_has_role(r.oid, %(future_owner)s::name, 'MEMBER')
        THEN 'owns the ledger, or may act as its owner'
    WHEN pg_has_role(r.oid, d.datdba, 'MEMBER')
        THEN 'owns the database, or may act as its owner'
    WHEN r.rolname IN ('pg_execute_server_program', 'pg_read_server_files', 'pg_write_server_files')
        THEN 'reaches the server''s files'
END
FROM pg_roles AS r, pg_database AS d
WHERE r.rolname = ANY (%(reach)s::name[]) AND d.datname = current_database()
ORDER BY r.rolname = ANY (%(roles)s::name[]) DESC, r.rolname
"""
"""Roles that cannot be restricted, and why."""

_DEFAULTS = """
SELECT pg_get_userbyid(d.defaclrole)::text, d.defaclnamespace <> 0,
       CASE d.defaclobjtype WHEN 'r' THEN 'TABLES' WHEN 'S' THEN 'SEQUENCES' ELSE 'FUNCTIONS' END,
       CASE x.grantee WHEN 0 THEN NULL ELSE pg_get_userbyid(x.grantee)::text END
FROM pg_default_acl AS d, LATERAL aclexplode(d.defaclacl) AS x
WHERE d.defaclnamespace IN (0, %(schema)s) AND d.defaclobjtype IN ('r', 'S', 'f')
  AND (x.grantee = 0 OR pg_get_userbyid(x.grantee) = ANY (%(roles)s::name[]))
  AND (d.defaclnamespace <> 0
       OR d.defaclrole = %(owner)s AND d.defaclobjtype <> 'f' AND x.privilege_type <> 'SELECT')
GROUP BY 1, 2, 3, 4
ORDER BY 1, 2, 3, 4
"""
"""Default privileges, which new tables get, such as the next part of the log."""

_HELD = """
WITH roles AS (SELECT unnest(%(roles)s::name[]) AS role),
relations AS (
    SELECT oid, relname, relkind FROM pg_class
    WHERE relnamespace = %(schema)s AND relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
),
privileges AS (
    SELECT unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER']
                  || CASE WHEN current_setting('server_version_num')::int >= 170000
                          THEN ARRAY['MAINTAIN'] ELSE '{}' END) AS privilege
)
SELECT role::text, 'table', relname::text, NULL, privilege
FROM roles, relations AS t, privileges
WHERE relkind <> 'S' AND has_table_privilege(role, t.oid, privilege)
UNION ALL
SELECT role::text, 'table', relname::text, attname::text, privilege
FROM roles, relations AS t, privileges, pg_attribute AS a
WHERE relkind <> 'S' AND a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped
  AND privilege IN ('SELECT', 'INSERT', 'UPDATE', 'REFERENCES')
  AND NOT has_table_privilege(role, t.oid, privilege)
  AND has_column_privilege(role, t.oid, a.attnum, privilege)
UNION ALL
SELECT role::text, 'sequence', relname::text, NULL, privilege
FROM roles, relations AS s, unnest(ARRAY['USAGE', 'SELECT', 'UPDATE']) AS privilege
WHERE relkind = 'S' AND has_sequence_privilege(role, s.oid, privilege)
UNION ALL
SELECT role::text, 'function', proname::text, NULL, 'EXECUTE'
FROM roles, pg_proc AS f
WHERE pronamespace = %(schema)s AND has_function_privilege(role, f.oid, 'EXECUTE')
UNION ALL
SELECT role::text, 'schema', '', NULL, privilege
FROM roles, unnest(ARRAY['USAGE', 'CREATE']) AS privilege
WHERE has_schema_privilege(role, %(schema)s::oid, privilege)
"""
"""Every right that roles have in the schema, from any source."""

_REACH = """
SELECT DISTINCT r.rolname::text
FROM pg_roles AS r, unnest(%(roles)s::name[]) AS role
WHERE pg_has_role(role, r.oid, 'MEMBER')
"""


class _Granting:
    """The rights of some roles in one ledger, over a connection to it."""

    def __init__(self, connection: psycopg.Connection[Any], schema: str, roles: Roles) -> None:
        self._connection = connection
        self._roles = roles
        self._name = schema
        self._schema = identifier(schema)
        ((self._schema_oid, self._owner_oid, self._owner),) = self._rows(
            "SELECT oid, nspowner, pg_get_userbyid(nspowner)::text FROM pg_namespace "
            "WHERE nspname = %(name)s"
        )
        self._check_roles()
        self._objects = self._rows(_OBJECTS)  # functions are not overloaded

    def check_rights_to_grant(self) -> None:
        """Raise DatabaseError unless this session may grant the ledger's rights."""
        ((may, user),) = self._rows("SELECT pg_has_role(%(owner)s::oid, 'MEMBER'), current_user")
        if not may:
            raise DatabaseError(
                f"role {user!r} may not grant rights on the ledger, which belongs to "
                f"{self._owner!r}: connect as that role or as a superuser",
                role=user,
                owner=self._owner,
            )

    def statements(self) -> list[str]:
        """Return all statements to execute, in order."""
        composed = [
            *self._database_rights(),
            *self._ownership(),
            *self._revocations(),
            *self._grants(self._roles.reader, frozenset(_reader_rights())),
            *self._grants(self._roles.app, frozenset(_app_rights())),
            *self._grants(self._roles.fence, frozenset(_fence_rights())),
        ]
        return [statement.as_string(self._connection) for statement in composed]

    def check_outcome(self) -> None:
        """Raise DatabaseError if a role can do more than it should, or less."""
        for names, wanted in (
            (self._roles.app, self._there(_app_rights())),
            (self._roles.reader, self._there(_reader_rights())),
            (self._roles.fence, self._there(_fence_rights())),
        ):
            for name in names:
                held = {Right(*row[1:]) for row in self._rows(_HELD, roles=self._reach([name]))}
                if more := held - wanted:
                    raise DatabaseError(
                        f"role {name!r} would still have {_some(more)}: through another role, or "
                        "granted by someone other than the owner; revoke it first",
                        role=name,
                        rights=sorted(map(str, more)),
                    )
                if less := wanted - held:
                    raise DatabaseError(
                        f"role {name!r} would lack {_some(less)}: {self._owner!r} or a superuser "
                        "must grant it",
                        role=name,
                        rights=sorted(map(str, less)),
                    )

    # Statements

    def _reach(self, names: Sequence[str]) -> list[str]:
        """Return the roles and all roles that they can SET ROLE to."""
        return [name for (name,) in self._rows(_REACH, roles=list(names))]

    def _check_roles(self) -> None:
        known = {name for (name,) in self._rows("SELECT rolname::text FROM pg_roles")}
        for name in self._roles.names():
            if name not in known:
                create = sql.SQL("CREATE ROLE {} LOGIN").format(identifier(name))
                raise DatabaseError(
                    f"there is no role {name!r}; create it with `{create.as_string()}`", role=name
                )
        owner = self._owner if self._roles.owner is None else self._roles.owner
        restrained = self._roles.restrained()
        for name, why in self._rows(
            _UNRESTRAINED, roles=restrained, reach=self._reach(restrained), future_owner=owner
        ):
            if why is not None:
                raise DatabaseError(
                    f"role {name!r} {why}, so its rights cannot be limited; choose another role",
                    role=name,
                )

    def _database_rights(self) -> Iterator[sql.Composable]:
        """Yield the grants on the database that PUBLIC does not already have."""
        query = "SELECT has_database_privilege(%(role)s::name, current_database(), %(privilege)s)"
        ((database,),) = self._rows("SELECT current_database()")
        for name in self._roles.names():
            # A rebuild creates a schema; a fold creates temporary tables.
            needed = ["CONNECT", "TEMPORARY", *(["CREATE"] if name == self._roles.owner else [])]
            for privilege in needed:
                if self._rows(query, role=name, privilege=privilege) == [(False,)]:
                    yield sql.SQL("GRANT {} ON DATABASE {} TO {}").format(
                        sql.SQL(privilege), identifier(database), identifier(name)
                    )

    def _ownership(self) -> Iterator[sql.Composable]:
        if self._roles.owner is None:
            return
        owner = identifier(self._roles.owner)
        yield sql.SQL("ALTER SCHEMA {} OWNER TO {}").format(self._schema, owner)
        for kind, name in self._objects:
            yield sql.SQL("ALTER {} {} OWNER TO {}").format(
                sql.SQL(kind.upper()), self._spelled(kind, name), owner
            )

    def _revocations(self) -> Iterator[sql.Composable]:
        restrained = self._roles.restrained()
        if not restrained:
            return
        everybody = _list([sql.SQL("PUBLIC"), *map(identifier, restrained)])
        yield sql.SQL("REVOKE ALL ON SCHEMA {} FROM {} CASCADE").format(self._schema, everybody)
        for kind in ("TABLES", "SEQUENCES", "FUNCTIONS"):
            yield sql.SQL("REVOKE ALL ON ALL {} IN SCHEMA {} FROM {} CASCADE").format(
                sql.SQL(kind), self._schema, everybody
            )
        for maker, is_own, kind, grantee in self._rows(_DEFAULTS, roles=restrained):
            revocation = sql.SQL("ALTER DEFAULT PRIVILEGES FOR ROLE {}{} REVOKE ALL ON {} FROM {}")
            composed = revocation.format(
                identifier(maker),
                sql.SQL(" IN SCHEMA {}").format(self._schema) if is_own else sql.SQL(""),
                sql.SQL(kind),
                sql.SQL("PUBLIC") if grantee is None else identifier(grantee),
            )
            if not is_own:  # It affects other schemas too, so a person has to decide.
                raise DatabaseError(
                    f"every table that {maker!r} makes gives rights to "
                    f"{'PUBLIC' if grantee is None else repr(grantee)}, as the next part of the "
                    f"log would; run `{composed.as_string()}` first",
                    role=grantee,
                )
            yield composed

    def _grants(self, names: Sequence[str], rights: frozenset[Right]) -> Iterator[sql.Composable]:
        if not names:
            return
        grantees = _list(map(identifier, names))
        by_object: dict[tuple[str, str], set[str]] = {}
        for right in sorted(self._there(rights), key=str):
            if right.column is None:
                by_object.setdefault((right.kind, right.name), set()).add(right.privilege)
        alike: dict[tuple[str, tuple[str, ...]], list[sql.Composable]] = {}
        for (kind, name), privileges in by_object.items():
            order = ("SELECT", "INSERT", "UPDATE", "DELETE", "USAGE", "EXECUTE")
            key = kind, tuple(sorted(privileges, key=order.index))
            alike.setdefault(key, []).append(self._spelled(kind, name))
        for (kind, privileges_in_order), objects in alike.items():
            yield sql.SQL("GRANT {} ON {} {} TO {}").format(
                sql.SQL(", ".join(privileges_in_order)),
                sql.SQL(kind.upper()),
                _list(objects),
                grantees,
            )

    def _spelled(self, kind: str, name: str) -> sql.Composable:
        if kind == "schema":
            return self._schema
        return sql.SQL("{}.{}").format(self._schema, identifier(name))

    def _there(self, rights: Iterable[Right]) -> frozenset[Right]:
        """Return the rights on existing objects: a new projection has no table before a rebuild."""
        return frozenset(
            right
            for right in rights
            if right.kind in ("schema", "sequence") or (right.kind, right.name) in self._objects
        )

    def _rows(self, query: str, **values: Any) -> list[tuple[Any, ...]]:
        known = {"name": self._name}
        with suppress(AttributeError):  # not set yet
            known |= {"schema": self._schema_oid, "owner": self._owner_oid}
        return self._connection.execute(query.encode(), {**known, **values}).fetchall()


def _list(parts: Iterable[sql.Composable]) -> sql.Composed:
    return sql.SQL(", ").join(parts)


def _some(rights: Iterable[Right]) -> str:
    named = sorted(map(str, rights))
    more = len(named) - _SHOWN
    return ", ".join(named[:_SHOWN]) + (f" and {more} more" if more > 0 else "")

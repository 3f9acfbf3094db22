"""What a session of the database must be like, before the ledger is used through it.

Databases and roles have defaults of their own, and our statements assume some:
each sees what was committed before it began, times come as ISO dates, text comes
as Unicode. A connection of ours sets what it needs; one that was made elsewhere
belongs to others too, so there it is said what to set. That is asked once for each
connection, when it is first lent.

Behind a pooler a session may belong to many clients in turn. So no name of a
prepared statement may be one that another client would choose, nothing is prepared
there unless it is asked for, and nothing is set that the pooler does not keep apart.
"""

from __future__ import annotations

import secrets
from collections.abc import Generator
from typing import Any, NamedTuple

import psycopg

from ...errors import DatabaseError, InvalidInputError
from .refusals import AnyConnection

OURS = "pharox_sets_sessions"
"""The execution option of an engine whose connections are ours to set."""

FITS = "pharox_fits"
"""Whether a connection of a pool has been looked at, in its ``info``."""

Asking = Generator[str, tuple[Any, ...] | None, None]
"""Yields statements without parameters; receives the first row of each that has one."""

_APART = 1 << 62
_ASK = "SELECT pg_backend_pid(), current_setting('default_transaction_isolation')"
_ISOLATION = "default_transaction_isolation"
_READ_COMMITTED = "read committed"


class _Need(NamedTuple):
    """A setting of a session, the value that the ledger needs, and the one that is there."""

    name: str
    value: str
    found: str

    def how(self) -> str:
        """Return the statement that sets it for a session."""
        return f"SET {self.name} = '{self.value}'"


def check_prepare(prepare: bool | None) -> bool | None:
    """Return whether to prepare statements, if it says so, else raise an error."""
    if prepare is None or isinstance(prepare, bool):
        return prepare
    raise InvalidInputError("prepare must be True, False or None", value=prepare)


def fitting(connection: AnyConnection, *, ours: bool, prepare: bool | None) -> Asking:
    """Make a connection fit for the ledger, or say why it is not.

    Parameters
    ----------
    connection:
        One in autocommit mode.
    ours:
        Whether nobody else uses its session, so that it may be set.
    prepare:
        Whether statements are prepared; if None, unless a pooler is between.

    Raises
    ------
    DatabaseError
        If it is not fit, and cannot be made so here.
    """
    keep_names_apart(connection)
    for need in _reported_needs(connection):
        if not ours:
            raise _unfit(need)
        yield need.how()
    pid, isolation = (yield _ASK) or (None, "")
    is_pooled = pid != connection.info.backend_pid
    if prepare is False or (prepare is None and is_pooled):
        connection.prepare_threshold = None
    if isolation not in (_READ_COMMITTED, "read uncommitted"):
        need = _Need(_ISOLATION, _READ_COMMITTED, isolation)
        if not ours:
            raise _unfit(need)
        if is_pooled:
            raise _unfit_behind_a_pooler(need)
        yield need.how()
    level = connection.isolation_level
    if level is not None and level > psycopg.IsolationLevel.READ_COMMITTED:
        raise DatabaseError(
            f"the engine's isolation_level is {level.name.replace('_', ' ')}, and the ledger needs "
            'READ COMMITTED: make the engine with isolation_level="AUTOCOMMIT"'
        )


def keep_names_apart(connection: AnyConnection) -> None:
    """Have a connection give its prepared statements names that no other client uses.

    psycopg numbers them from 0 in each connection. A pooler that lends a session to
    several clients would have one of them run what another one has prepared.
    """
    prepared = connection._prepared
    if prepared._prepared_idx < _APART:
        prepared._prepared_idx = _APART | secrets.randbits(62)


def _reported_needs(connection: AnyConnection) -> list[_Need]:
    """Return what has to be set, of what the server reports without being asked."""
    found = {
        name: connection.info.parameter_status(name) or ""
        for name in ("client_encoding", "DateStyle")
    }
    needs = []
    if connection.info.encoding != "utf-8":
        needs.append(_Need("client_encoding", "UTF8", found["client_encoding"]))
    if not found["DateStyle"].startswith("ISO"):
        needs.append(_Need("DateStyle", "ISO", found["DateStyle"]))
    return needs


def _unfit(need: _Need) -> DatabaseError:
    spelled = need.value.replace(" ", "\\\\ ")
    return DatabaseError(
        f"{need.name} is {need.found!r} in the engine's sessions, and the ledger needs "
        f"{need.value.upper()}: make the engine with "
        f'connect_args={{"options": "-c {need.name}={spelled}"}}, have it set with '
        f"`ALTER ROLE ... SET {need.name} = '{need.value}'`, or use pharox.connect(), whose "
        "connections set it",
        setting=need.name,
        found=need.found,
    )


def _unfit_behind_a_pooler(need: _Need) -> DatabaseError:
    return DatabaseError(
        f"{need.name} is {need.found!r}, the ledger needs {need.value.upper()}, and a pooler is "
        f"between, whose sessions others use too: have it set with `ALTER ROLE ... SET "
        f"{need.name} = '{need.value}'`, or with PgBouncer's connect_query",
        setting=need.name,
        found=need.found,
    )

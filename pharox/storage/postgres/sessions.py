"""Check and set the session settings that the ledger needs.

Databases and roles have their own defaults, but the ledger's statements assume some
settings: READ COMMITTED isolation, ISO dates and Unicode text. The ledger sets them
on its own connections. Connections of an engine made elsewhere are shared with other
code, so there an error says what to set. This is checked once for each connection,
when it is first lent. What the ledger does well without is set where it may be, and
else left: no statement of its own takes as long as compiling it would (``jit``).

Behind a pooler, several clients may use a session in turn. So the names of prepared
statements must be unique among clients, nothing is prepared there unless requested,
and only settings that the pooler tracks for each client are set.
"""

from __future__ import annotations

import secrets
from collections.abc import Generator
from typing import Any, NamedTuple

import psycopg

from ...errors import DatabaseError, InvalidInputError
from .refusals import AnyConnection

OURS = "pharox_sets_sessions"
"""The execution option of an engine whose connections only the ledger uses."""

FITS = "pharox_fits"
"""The key in a pooled connection's ``info`` that says that it has been checked."""

Asking = Generator[str, tuple[Any, ...] | None, None]
"""A program that yields statements without parameters and receives their first rows."""

_APART = 1 << 62
_ASK = (
    "SELECT pg_backend_pid(), current_setting('default_transaction_isolation'), "
    "current_setting('jit')"
)
_ISOLATION = "default_transaction_isolation"
_READ_COMMITTED = "read committed"


class _Need(NamedTuple):
    """A setting of a session, the value that the ledger needs, and its current value."""

    name: str
    value: str
    found: str

    def how(self) -> str:
        """Return the statement that sets the value for a session."""
        return f"SET {self.name} = '{self.value}'"


def check_prepare(prepare: bool | None) -> bool | None:
    """Return ``prepare`` if it is a bool or None, else raise an error."""
    if prepare is None or isinstance(prepare, bool):
        return prepare
    raise InvalidInputError("prepare must be True, False or None", value=prepare)


def fitting(connection: AnyConnection, *, ours: bool, prepare: bool | None) -> Asking:
    """Set up a connection for the ledger, or raise an error that says why it is unsuitable.

    Parameters
    ----------
    connection:
        A connection in autocommit mode.
    ours:
        Whether only the ledger uses its session, so that settings may be changed.
    prepare:
        Whether to prepare statements; if None, unless there is a pooler.

    Raises
    ------
    DatabaseError
        If it is unsuitable and may not be changed here.
    """
    # Before anything is prepared on this connection.
    keep_names_apart(connection)
    for need in _reported_needs(connection):
        if not ours:
            raise _unfit(need)
        yield need.how()
    pid, isolation, jit = (yield _ASK) or (None, "", "")
    # A pooler reports a process id of its own when the connection is made.
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
    if jit == "on" and ours and not is_pooled:
        yield "SET jit = off"
    level = connection.isolation_level
    if level is not None and level > psycopg.IsolationLevel.READ_COMMITTED:
        raise DatabaseError(
            f"the engine's isolation_level is {level.name.replace('_', ' ')}, and the ledger needs "
            'READ COMMITTED: make the engine with isolation_level="AUTOCOMMIT"'
        )


def keep_names_apart(connection: AnyConnection) -> None:
    """Make the names of a connection's prepared statements unique among clients.

    psycopg numbers them from 0 in each connection. If a pooler lends a session to
    several clients, one of them could execute a statement that another prepared.
    """
    prepared = connection._prepared
    if prepared._prepared_idx < _APART:
        prepared._prepared_idx = _APART | secrets.randbits(62)


def _reported_needs(connection: AnyConnection) -> list[_Need]:
    """Return the settings to change, among those that the server reports by itself."""
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
        f'connect_args={{"options": "-c {need.name}={spelled}"}}, set it with '
        f"`ALTER ROLE ... SET {need.name} = '{need.value}'`, or use pharox.connect(), whose "
        "connections set it",
        setting=need.name,
        found=need.found,
    )


def _unfit_behind_a_pooler(need: _Need) -> DatabaseError:
    return DatabaseError(
        f"{need.name} is {need.found!r}, the ledger needs {need.value.upper()}, and a pooler "
        "shares its sessions with others: set it with `ALTER ROLE ... SET "
        f"{need.name} = '{need.value}'`, or with PgBouncer's connect_query",
        setting=need.name,
        found=need.found,
    )

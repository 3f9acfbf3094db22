"""Make a storage from a URL, or from the defaults.

Decides which database is meant and how its engine is made: every statement is
a transaction of its own, the pool hands out the most recently used connection,
and a forked child forgets the connections it inherited instead of closing
them. Nothing is connected yet, and the schema is left as it is.

A URL is read as libpq reads it. Of several hosts, the first one that accepts a
connection is used.

Refused: a URL of another database or driver. An error never repeats the URL,
because of the password in it.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote
from weakref import WeakSet

from sqlalchemy import URL, Engine, create_engine, make_url
from sqlalchemy.exc import ArgumentError

from ..errors import DatabaseUnavailableError, InvalidInputError
from ..settings import Settings

if TYPE_CHECKING:
    from ..storage.postgres import AsyncPostgresStorage, PostgresStorage

_SCHEMES = ("postgres", "postgresql", "postgresql+psycopg")
_EXAMPLE = "postgresql://user:password@host:5432/database"
_AUTHORITY = re.compile(
    r"(?P<before>[^:/?#]+://(?:[^/?#]*@)?)(?P<hosts>[^/?#@]*)(?P<after>[/?#].*)?", re.DOTALL
)
_HOST = re.compile(r"(?P<name>\[[^\]]*\]|[^:\[\]]*)(?::(?P<port>[0-9]*))?")
_ON, _OFF = ("on", "true", "yes", "1"), ("off", "false", "no", "0")
_OPTIONS = {
    "connect_timeout": 10,
    "fallback_application_name": "pharox",
    "client_encoding": "utf8",  # overrides the role's setting
    # Notice a dead server after a minute, not after two hours.
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,  # milliseconds
}


def connect(
    url: str | None = None,
    *,
    schema: str = "pharox",
    answer_timeout_s: float | None = 30.0,
    prepare: bool | None = None,
) -> PostgresStorage:
    """Return the ledger in a database.

    Parameters
    ----------
    url:
        The database, such as ``postgresql://user:password@host:5432/database``; it
        may name several hosts. If None, ``PHAROX_DATABASE_URL``, and if that is not
        set, the embedded server in the user's data folder.
    schema:
        The schema of its tables; ``storage.upgrade_schema()`` creates it.
    answer_timeout_s:
        How many seconds to wait for each answer of a leasing statement before
        cancelling it; None for no limit.
    prepare:
        Whether to prepare statements on the server. If None, the URL's ``prepare``
        (``on`` or ``off``) decides. Without one, statements are prepared unless there
        is a pooler, which may mix up those of several clients.

    Raises
    ------
    InvalidInputError
        If the URL cannot be read, or is for another database or driver.
    DatabaseUnavailableError
        If the embedded server does not start, or its extra is not installed.
    """
    target = _target(url)
    from ..storage.postgres import PostgresStorage  # noqa: PLC0415 - it comes with an extra

    engine = create_engine(target.url, **_options(target.url), max_overflow=20)
    _engines.add(engine)
    return PostgresStorage(
        engine,
        schema=schema,
        secret_keys=target.secret_keys,
        answer_timeout_s=answer_timeout_s,
        prepare=target.prepare if prepare is None else prepare,
    )


async def connect_async(
    url: str | None = None,
    *,
    schema: str = "pharox",
    answer_timeout_s: float | None = 30.0,
    prepare: bool | None = None,
) -> AsyncPostgresStorage:
    """Return the ledger in a database, for asyncio.

    Parameters and errors are those of :func:`connect`. The storage belongs to the
    running event loop. Its tasks share ten connections; a task that finds none free
    waits for one.
    """
    target = await asyncio.to_thread(_target, url)
    # These come with an extra.
    from sqlalchemy.ext.asyncio import create_async_engine  # noqa: PLC0415

    from ..storage.postgres import AsyncPostgresStorage  # noqa: PLC0415

    # A waiting task costs nothing, so the pool does not overflow.
    options = {**_options(target.url), "max_overflow": 0, "pool_timeout": 300}
    engine = create_async_engine(target.url, **options)
    _engines.add(engine.sync_engine)
    return AsyncPostgresStorage(
        engine,
        schema=schema,
        secret_keys=target.secret_keys,
        answer_timeout_s=answer_timeout_s,
        prepare=target.prepare if prepare is None else prepare,
    )


class _Target(NamedTuple):
    """The database, whether to prepare statements, and the embedded server's secret keys."""

    url: URL
    prepare: bool | None = None
    secret_keys: Sequence[str] | None = None


def _target(url: str | None) -> _Target:
    try:
        from ..storage import postgres  # noqa: F401, PLC0415
        from . import embedded  # noqa: PLC0415 - it comes with extras
    except ImportError as error:
        raise DatabaseUnavailableError(
            "a database is an extra: pip install 'pharox[postgres]' for a server of your own, "
            f"'pharox[embedded]' for one that comes along ({error})"
        ) from error
    if url is None and (known := Settings().database_url) is not None:
        url = known.get_secret_value()
    if url is not None:
        return _parsed(url)
    server = embedded.start()
    return _Target(make_url(server.url), secret_keys=server.secret_keys)


def _parsed(url: str) -> _Target:
    """Parse a URL; its password goes where SQLAlchemy hides it."""
    if not isinstance(url, str):
        raise InvalidInputError(
            f"the database URL must be a text such as {_EXAMPLE}, not a {type(url).__name__}"
        )
    without_hosts, hosts = _several_hosts(url)
    try:
        parsed = make_url(without_hosts)
    except (ArgumentError, ValueError):
        parsed = None
    if parsed is None or "@" in (parsed.host or ""):
        # Not chained: SQLAlchemy's error may quote part of the password.
        raise InvalidInputError(
            f"the database URL cannot be read; it should look like {_EXAMPLE}, with special "
            "characters in user and password percent-encoded, such as %40 for @"
        ) from None
    if parsed.drivername not in _SCHEMES:
        raise InvalidInputError(
            f"the database URL is for {parsed.drivername!r}, and the ledger needs PostgreSQL "
            f"through psycopg: {_EXAMPLE}"
        )
    if isinstance(password := parsed.query.get("password"), str):
        parsed = parsed.set(password=password).difference_update_query(["password"])
    prepare = _switch(parsed.query.get("prepare"))
    query = {**hosts, **parsed.difference_update_query(["prepare"]).query}
    parsed = parsed.set(drivername="postgresql+psycopg", query=query)
    _check_options(parsed)
    return _Target(parsed, prepare)


def _several_hosts(url: str) -> tuple[str, dict[str, str]]:
    """Remove the hosts from a URL that names several, or a socket folder, as libpq allows.

    Returns
    -------
    tuple
        The rest of the URL, and the hosts as parameters that SQLAlchemy can read.
    """
    match = _AUTHORITY.fullmatch(url)
    if match is None or not ("," in match["hosts"] or "%2f" in match["hosts"].lower()):
        return url, {}
    pairs = [_HOST.fullmatch(each) for each in match["hosts"].split(",")]
    if not all(pairs):
        return url, {}  # SQLAlchemy cannot read it either
    hosts = {"host": ",".join(unquote(pair["name"].strip("[]")) for pair in pairs if pair)}
    if any(ports := [pair["port"] or "" for pair in pairs if pair]):
        hosts["port"] = ",".join(ports)
    return f"{match['before']}{match['after'] or '/'}", hosts


def _switch(value: str | tuple[str, ...] | None) -> bool | None:
    """Parse an on/off parameter of the URL."""
    if value is None:
        return None
    for words, meaning in ((_ON, True), (_OFF, False)):
        if isinstance(value, str) and value.lower() in words:
            return meaning
    raise InvalidInputError("`prepare` in the database URL must be on or off")


def _check_options(url: URL) -> None:
    """Raise InvalidInputError if SQLAlchemy or libpq rejects an option of the URL."""
    from psycopg import ProgrammingError  # noqa: PLC0415 - it comes with an extra
    from psycopg.conninfo import make_conninfo, timeout_from_conninfo  # noqa: PLC0415

    try:
        _, options = url.get_dialect()().create_connect_args(url)
        make_conninfo(**options)
        timeout_from_conninfo(dict(options))
    except (ArgumentError, ProgrammingError) as error:
        # The message names parameters, ports and timeouts, and no password.
        raise InvalidInputError(f"the database URL cannot be used: {str(error).strip()}") from error


def _options(url: URL) -> dict[str, Any]:
    """Return the arguments that every engine is created with."""
    from ..storage.postgres.sessions import OURS  # noqa: PLC0415 - it comes with an extra

    return {
        "isolation_level": "AUTOCOMMIT",
        "pool_size": 10,
        "pool_use_lifo": True,  # keeps few connections warm, with their prepared statements
        "pool_reset_on_return": None,  # in autocommit mode there is nothing to roll back
        "hide_parameters": True,
        "connect_args": {key: value for key, value in _OPTIONS.items() if key not in url.query},
        "execution_options": {OURS: True},
    }


_engines: WeakSet[Engine] = WeakSet()
_inherited: list[object] = []


def _forget_inherited_connections() -> None:
    """Start a forked child with an empty pool: parent and child cannot share a connection.

    The old pool is kept referenced: the garbage collector would close its connections.
    """
    for engine in list(_engines):
        _inherited.append(engine.pool)
        engine.dispose(close=False)


os.register_at_fork(after_in_child=_forget_inherited_connections)

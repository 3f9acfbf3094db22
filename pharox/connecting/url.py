"""From a URL, or nothing at all, to a storage.

Decides which database is meant and how its engine is made: every statement is
a transaction of its own, the pool gives out the connection that was used last,
and a forked child forgets the connections it inherited instead of closing
them. Nothing is connected yet, and the schema stays as it is.

A URL is read as libpq reads it, with several hosts too, of which the first one
that takes a connection is used.

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
    "client_encoding": "utf8",  # whatever the role's is
    # A server that is gone without a word is noticed after a minute, not after two hours.
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
        The database, such as ``postgresql://user:password@host:5432/database``;
        if None, that of ``PHAROX_DATABASE_URL``, and if that is not set, the
        embedded server in the user's data folder. It may name several hosts.
    schema:
        Where its tables are. ``storage.upgrade_schema()`` creates it.
    answer_timeout_s:
        How many seconds the database has for each answer of leasing, before it is
        asked to cancel the statement; None for no end.
    prepare:
        Whether statements are prepared on the server; if None, what the URL's
        ``prepare`` says (``on`` or ``off``), and if that says nothing, unless a
        pooler is between, which may not keep those of several clients apart.

    Raises
    ------
    InvalidInputError
        If the URL cannot be read, or is for another database or driver.
    DatabaseUnavailableError
        If the embedded server does not start, or what it takes is not installed.
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
    """Return the ledger in a database, for code that awaits.

    As :func:`connect`, whose parameters and errors these are. The storage belongs
    to the event loop that is running, and its tasks share ten connections: who
    finds none free waits for one.
    """
    target = await asyncio.to_thread(_target, url)
    # These come with an extra.
    from sqlalchemy.ext.asyncio import create_async_engine  # noqa: PLC0415

    from ..storage.postgres import AsyncPostgresStorage  # noqa: PLC0415

    # A task that waits costs nothing, so there are no more connections than that.
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
    """Which database, whether to prepare statements, and its own keys if it is the embedded one."""

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
    """Return what a URL says, its password where SQLAlchemy hides it."""
    without_hosts, hosts = _several_hosts(url)
    try:
        parsed = make_url(without_hosts)
    except (ArgumentError, ValueError):
        parsed = None
    if parsed is None or "@" in (parsed.host or ""):
        # Not chained: SQLAlchemy's error may quote a part of the password.
        raise InvalidInputError(
            f"the database URL cannot be read; it should look like {_EXAMPLE}, with special "
            "characters in user and password quoted, such as %40 for @"
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
    """Take the hosts out of a URL that names several, or a socket's folder, as libpq takes them.

    Returns
    -------
    tuple
        What is left of the URL, and the hosts as parameters, which SQLAlchemy can read.
    """
    match = _AUTHORITY.fullmatch(url)
    if match is None or not ("," in match["hosts"] or "%2f" in match["hosts"].lower()):
        return url, {}
    pairs = [_HOST.fullmatch(each) for each in match["hosts"].split(",")]
    if not all(pairs):
        return url, {}  # which SQLAlchemy cannot read either
    hosts = {"host": ",".join(unquote(pair["name"].strip("[]")) for pair in pairs if pair)}
    if any(ports := [pair["port"] or "" for pair in pairs if pair]):
        hosts["port"] = ",".join(ports)
    return f"{match['before']}{match['after'] or '/'}", hosts


def _switch(value: str | tuple[str, ...] | None) -> bool | None:
    """Return what a parameter of the URL says that is on or off."""
    if value is None:
        return None
    for words, meaning in ((_ON, True), (_OFF, False)):
        if isinstance(value, str) and value.lower() in words:
            return meaning
    raise InvalidInputError("the database URL's `prepare` is on or off")


def _check_options(url: URL) -> None:
    """Raise an error where SQLAlchemy or libpq would not know what a URL asks for."""
    from psycopg import ProgrammingError  # noqa: PLC0415 - it comes with an extra
    from psycopg.conninfo import make_conninfo, timeout_from_conninfo  # noqa: PLC0415

    try:
        _, options = url.get_dialect()().create_connect_args(url)
        make_conninfo(**options)
        timeout_from_conninfo(dict(options))
    except (ArgumentError, ProgrammingError) as error:
        # Its text has names of parameters, ports and time-outs, and no password.
        raise InvalidInputError(f"the database URL cannot be used: {str(error).strip()}") from error


def _options(url: URL) -> dict[str, Any]:
    """Return what every engine of ours is made with."""
    from ..storage.postgres.sessions import OURS  # noqa: PLC0415 - it comes with an extra

    return {
        "isolation_level": "AUTOCOMMIT",
        "pool_size": 10,
        "pool_use_lifo": True,  # few connections stay warm, with their prepared statements
        "pool_reset_on_return": None,  # in autocommit mode there is nothing to roll back
        "hide_parameters": True,
        "connect_args": {key: value for key, value in _OPTIONS.items() if key not in url.query},
        "execution_options": {OURS: True},
    }


_engines: WeakSet[Engine] = WeakSet()
_inherited: list[object] = []


def _forget_inherited_connections() -> None:
    """Start with an empty pool in a forked child: parent and child cannot share a connection.

    The old pool is kept, since what is collected is closed, or complained of.
    """
    for engine in list(_engines):
        _inherited.append(engine.pool)
        engine.dispose(close=False)


os.register_at_fork(after_in_child=_forget_inherited_connections)

"""Complete the names of pools in a shell.

A completion runs at each press of the tab key, so it asks the database by itself, without the
storage and its imports; within a bounded time; and it is silent about whatever fails. An embedded
server is asked if it runs, and is not started for it.

Shells evaluate what they are given, zsh with `eval`. So a name that is not a plain word is not
offered: it can still be typed.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from threading import Thread
from typing import Any
from urllib.parse import quote

POOL = "POOL"
"""The metavar of every argument and option that is the name of a pool."""

WITHIN_S = 2.0
"""How long a shell waits for names at most."""

MOST = 100
"""How many names are offered."""

_PLAIN = re.compile(r"\w[\w.-]*", re.ASCII)
_PREPARE = re.compile(r"(?<=[?&])prepare=[^&]*&?")
_QUERY = "SELECT name FROM {}.pools WHERE starts_with(name, %s) ORDER BY name LIMIT %s"


def pool_names(context: Any, _parameter: Any, incomplete: str) -> list[str]:
    """Return the names of pools that begin with what was typed, none if they cannot be read."""
    options = context.find_root().params
    url = options.get("url") or os.environ.get("PHAROX_DATABASE_URL")
    names: list[str] = []
    arguments = (url, options.get("schema") or "pharox", incomplete, names)
    thread = Thread(target=_read, args=arguments, daemon=True)
    thread.start()
    thread.join(WITHIN_S)
    return [name for name in [*names] if _PLAIN.fullmatch(name)]


def _read(url: str | None, schema: str, beginning: str, names: list[str]) -> None:
    """Add names to a list, if they can be read."""
    with suppress(Exception):
        import psycopg  # noqa: PLC0415 - only where a name is completed
        from psycopg import sql  # noqa: PLC0415

        address = _embedded() if url is None else _address(url)
        query = sql.SQL(_QUERY).format(sql.Identifier(schema))
        if address is not None:
            with psycopg.connect(address, autocommit=True, connect_timeout=2) as connection:
                names.extend(name for (name,) in connection.execute(query, (beginning, MOST)))


def _address(url: str) -> str:
    _, _, rest = url.partition("://")
    return f"postgresql://{_PREPARE.sub('', rest)}".rstrip("?&")


def _embedded() -> str | None:
    """Return the address of the embedded server if one runs."""
    from ..connecting.embedded import PORT, running_socket  # noqa: PLC0415 - as above

    if (socket := running_socket()) is None:
        return None
    return f"postgresql://postgres@/postgres?host={quote(str(socket))}&port={PORT}"

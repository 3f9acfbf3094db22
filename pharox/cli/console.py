"""``pharox console``: serve the ledger to a browser."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InvalidInputError
from .session import Target, fleet, is_of_fleet, ledger, opened_async
from .showing import say

if TYPE_CHECKING:
    import socket

    from ..console import Authorize
    from ..storage.postgres import PostgresStorage

_Token = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        envvar="PHAROX_CONSOLE_TOKEN",
        help="Let in who has this token, to read and to act. The variable keeps it out of the list "
        "of processes.",
    ),
]
_ReadToken = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT", envvar="PHAROX_CONSOLE_READ_TOKEN", help="Let in who has this one, to read."
    ),
]
_Users = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        exists=True,
        dir_okay=False,
        readable=True,
        help="Let in who has a password of this file, over TLS: a name, a colon and a password on "
        "each line.",
    ),
]
_ActorHeader = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Let in whom a reverse proxy names in this header; see --trust-proxy."
    ),
]
_TrustProxy = Annotated[
    list[str] | None,
    typer.Option(
        metavar="ADDRESS", help="The address of a reverse proxy whose headers are believed."
    ),
]
_Reader = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="Who of --users or --actor-header may only read."),
]


def console(
    context: typer.Context,
    host: Annotated[
        str,
        typer.Option(metavar="ADDRESS", help="The address to listen on; by default this machine."),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port to listen on.")] = 8080,
    prefix: Annotated[
        str, typer.Option(metavar="PATH", help="The path that a reverse proxy serves it under.")
    ] = "",
    token: _Token = None,
    read_token: _ReadToken = None,
    users: _Users = None,
    actor_header: _ActorHeader = None,
    trust_proxy: _TrustProxy = None,
    reader: _Reader = None,
    api: Annotated[
        bool, typer.Option("--api", help="Serve /api/v1 as well, as `pharox api` does.")
    ] = False,
) -> None:
    """Serve the console: the ledger in the browser, until Ctrl-C or SIGTERM.

    Whoever asks from this machine may read, unless a token, --users or --actor-header says who may.
    """
    from ..console import create_app, create_fleet_app  # noqa: PLC0415 - it needs an extra
    from ..models.text import is_loopback  # noqa: PLC0415

    if prefix and not prefix.startswith("/"):
        raise InvalidInputError(
            f"--prefix must begin with a slash, as /{prefix} does", value=prefix
        )
    authorize = authorize_of(
        token, read_token, users, actor_header, trust_proxy or (), reader or ()
    )
    if authorize is None and not is_loopback(host):
        raise InvalidInputError(
            f"{host} can be reached from other machines: say who may see the console, by --token, "
            "--users or --actor-header"
        )
    # What went wrong in the console itself: its pages say that this has it.
    logging.getLogger("pharox").addHandler(logging.StreamHandler())
    if api and is_of_fleet(context):
        raise InvalidInputError("the API is of one ledger: say which by --ledger, beside --fleet")
    page = "fleet" if is_of_fleet(context) else ""
    shown = f"[{host}]" if ":" in host else host
    options: dict[str, Any] = {
        "root_path": prefix.rstrip("/"),
        "log_level": "warning",
        "access_log": False,
        "server_header": False,
        "proxy_headers": False,
        "timeout_graceful_shutdown": 2,  # streams do not end by themselves
    }
    with ExitStack() as opened:
        if is_of_fleet(context):
            app = create_fleet_app(opened.enter_context(fleet(context)), authorize=authorize)
        else:
            storage = opened.enter_context(ledger(context))
            app = create_app(storage, authorize=authorize)
        import uvicorn  # noqa: PLC0415 - it comes with the extra, as the application says

        from ..api.serving import tcp_socket  # noqa: PLC0415

        listener = opened.enter_context(tcp_socket(host, port))
        say(f"serving http://{shown}:{listener.getsockname()[1]}{prefix.rstrip('/')}/{page}")
        if api:
            asyncio.run(_serve_both(context.obj, storage, authorize, listener, options))
        else:
            uvicorn.Server(uvicorn.Config(app, **options)).run(sockets=[listener])


async def _serve_both(
    target: Target,
    storage: PostgresStorage,
    authorize: Authorize | None,
    listener: socket.socket,
    options: dict[str, Any],
) -> None:
    """Serve the console and the API until a signal."""
    import uvicorn  # noqa: PLC0415 - it comes with the extra

    from .. import api, console  # noqa: PLC0415
    from ..api.serving import Server  # noqa: PLC0415

    async with await opened_async(target) as ours:
        leasing = api.create_app(ours)
        app = console.create_app(storage, authorize=authorize, api=leasing)
        await Server(uvicorn.Config(app, **options), leasing.stop_waiting).serve([listener])


def authorize_of(
    token: str | None,
    read_token: str | None,
    users: Path | None,
    actor_header: str | None,
    trusted: Sequence[str],
    readers: Sequence[str],
) -> Authorize | None:
    """Return what decides who may see and do what; None if no option says so.

    Raises
    ------
    InvalidInputError
        If options exclude each other, or a file is none of names and passwords.
    """
    ways = [bool(token or read_token), users is not None, actor_header is not None]
    if sum(ways) > 1:
        raise InvalidInputError("a token, --users and --actor-header exclude each other")
    if (trusted and not any(ways[1:])) or (readers and not any(ways[1:])):
        raise InvalidInputError("--trust-proxy and --reader go with --users or --actor-header")
    from ..console import HeaderAccess, PasswordAccess, TokenAccess  # noqa: PLC0415

    if users is not None:
        return PasswordAccess(_passwords(users), readers=readers, trusted=trusted)
    if actor_header is not None:
        if not trusted:
            raise InvalidInputError("--actor-header needs --trust-proxy: who may say so?")
        return HeaderAccess(actor_header, trusted=trusted, readers=readers)
    if token or read_token:
        return TokenAccess(token or None, read_token=read_token or None)
    return None


def _passwords(file: Path) -> dict[str, str]:
    """Return the passwords of a file, by name; empty lines and comments (#) are skipped."""
    found: dict[str, str] = {}
    try:
        lines = file.read_text().splitlines()
    except UnicodeDecodeError:
        raise InvalidInputError(f"{file} is no text in UTF-8") from None
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, colon, password = line.partition(":")
        if not colon or not name or not password or name in found:
            raise InvalidInputError(
                f"{file}, line {number}: a name, a colon and a password are needed, each name once"
            )
        found[name] = password
    return found

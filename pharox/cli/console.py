"""``pharox console``: serve the ledger to a browser."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InvalidInputError
from .session import Target, fleet, is_of_fleet, ledger, opened_async
from .showing import say

if TYPE_CHECKING:
    import socket

    from ..console import Authorize

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
    from ..models.text import in_url, is_loopback  # noqa: PLC0415

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
    root = prefix.rstrip("/")
    with ExitStack() as opened:
        make: Callable[..., Any]
        if is_of_fleet(context):
            make = partial(create_fleet_app, opened.enter_context(fleet(context)))
        else:
            make = partial(create_app, opened.enter_context(ledger(context)))
        from ..api.serving import run, tcp_socket  # noqa: PLC0415 - it comes with the extra

        listener = opened.enter_context(tcp_socket(host, port))
        place = f"http://{in_url(host)}:{listener.getsockname()[1]}{root}/{page}"
        leasing = context.obj if api else None
        run(_serve(partial(make, authorize=authorize), leasing, listener, root, place))


async def _serve(
    make: Callable[..., Any],
    leasing: Target | None,
    listener: socket.socket,
    root: str,
    place: str,
) -> None:
    """Serve the console, and the API of a ledger if one is given, until a signal."""
    from ..api import create_app  # noqa: PLC0415 - these come with the extra
    from ..api.serving import Server, config_of  # noqa: PLC0415

    def stop_waiting() -> None:
        if leases is not None:
            leases.stop_waiting()

    async with AsyncExitStack() as opened:
        if leasing is None:
            leases, app = None, make()
        else:
            leases = create_app(await opened.enter_async_context(await opened_async(leasing)))
            app = make(api=leases)
        say(f"serving {place}")
        # Streams do not end by themselves.
        config = config_of(app, root_path=root, timeout_graceful_shutdown=2)
        await Server(config, stop_waiting).serve([listener])


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

"""``pharox api``: serve the API for workers in other languages."""

from __future__ import annotations

import gc
import logging
import re
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import InvalidInputError, MissingHostError
from ..models.text import in_url
from .session import Target, opened_async
from .showing import say

if TYPE_CHECKING:
    import socket

    from prometheus_client import CollectorRegistry

_MODE = re.compile(r"0?[0-7]{3}")


def api(
    context: typer.Context,
    *,
    host: Annotated[
        str,
        typer.Option(metavar="ADDRESS", help="The address to listen on; by default this machine."),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port to listen on.")] = 8081,
    uds: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Listen on a Unix socket, and on no port.")
    ] = None,
    uds_mode: Annotated[
        str, typer.Option(metavar="MODE", help="The permissions of the Unix socket, as of chmod.")
    ] = "660",
    metrics_port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65535, metavar="PORT", help="Serve /metrics on this port of this machine."
        ),
    ] = None,
) -> None:
    """Serve /api/v1: lease over HTTP from any language, until Ctrl-C or SIGTERM.

    Each request has a token of `pharox tokens add`. What is under way together shares commits, so
    one such process serves all workers of a machine.
    """
    if not _MODE.fullmatch(uds_mode):
        raise InvalidInputError("--uds-mode is of three digits from 0 to 7", value=uds_mode)
    _check_extra()
    from ..api.serving import run, tcp_socket, unix_socket_for_a_time  # noqa: PLC0415 - it comes with an extra

    logging.getLogger("pharox").addHandler(logging.StreamHandler())
    with ExitStack() as until_the_end:
        registry = None if metrics_port is None else _served_metrics(metrics_port, until_the_end)
        if uds is not None:
            listener = until_the_end.enter_context(unix_socket_for_a_time(uds, int(uds_mode, 8)))
            place = f"at {uds}"
        else:
            listener = until_the_end.enter_context(tcp_socket(host, port))
            place = f"http://{in_url(host)}:{listener.getsockname()[1]}/api/v1"
        run(_serve(context.obj, listener, place, registry))


async def _serve(
    target: Target, listener: socket.socket, place: str, registry: CollectorRegistry | None
) -> None:
    """Serve the API of a ledger until a signal."""
    from ..api import create_app  # noqa: PLC0415 - it comes with an extra
    from ..api.serving import Server, config_of  # noqa: PLC0415

    async with await opened_async(target) as storage:
        await storage.list_api_tokens()  # A ledger that is not there is told now, not to clients.
        app = create_app(storage, registry=registry)
        gc.freeze()  # What was imported stays, and need not be looked through again and again.
        server = Server(config_of(app), app.stop_waiting)
        say(f"serving {place}")
        await server.serve([listener])


def _served_metrics(port: int, until_the_end: ExitStack) -> CollectorRegistry:
    """Serve the metrics of this process in a thread, and return their registry."""
    try:
        from prometheus_client import REGISTRY  # noqa: PLC0415
    except ModuleNotFoundError:
        raise InvalidInputError("--metrics-port needs pharox[observability]") from None
    from ..scraping.server import MetricsServer  # noqa: PLC0415

    server = MetricsServer(REGISTRY, port, "127.0.0.1")
    until_the_end.callback(server.close)
    say(f"metrics on http://127.0.0.1:{server.port}/metrics")
    return REGISTRY


def _check_extra() -> None:
    from importlib.util import find_spec  # noqa: PLC0415

    if find_spec("uvicorn") is None:
        raise MissingHostError(
            "the API needs uvicorn, which is not installed: pip install 'pharox[api]'",
            host="uvicorn",
            extra="api",
            least_version="0.34",
            found_version=None,
        )

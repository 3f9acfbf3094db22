"""``pharox metrics``: serve metrics of the whole fleet, and write dashboard and alert files."""

from __future__ import annotations

import signal
import threading
from contextlib import ExitStack
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import InvalidInputError
from ..models.text import in_url
from .once import Commands
from .session import fleet, is_of_fleet, ledger
from .showing import say

app = Commands(no_args_is_help=True)

_FILES = ("grafana-dashboard.json", "prometheus-rules.yml")


@app.callback()
def metrics() -> None:
    """Serve metrics of the whole fleet, and write a dashboard and alerts for them."""


@app.command()
def serve(
    context: typer.Context,
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port to listen on.")] = 9464,
    bind: Annotated[
        str, typer.Option(metavar="ADDRESS", help="The address to listen on.")
    ] = "127.0.0.1",
    name: Annotated[
        str, typer.Option(metavar="NAME", help="The subscription's name.")
    ] = "pharox-metrics",
    max_consumers: Annotated[
        int, typer.Option(min=0, metavar="N", help="How many consumers have their own label value.")
    ] = 100,
    max_pools: Annotated[
        int, typer.Option(min=0, metavar="N", help="How many pools have their own label value.")
    ] = 1000,
    max_sources: Annotated[
        int,
        typer.Option(
            min=0, metavar="N", help="How many sources of proxies have their own label value."
        ),
    ] = 100,
    certfile: Annotated[Path | None, typer.Option(help="A certificate, for HTTPS.")] = None,
    keyfile: Annotated[Path | None, typer.Option(help="Its key.")] = None,
) -> None:
    """Count the events of the log and serve /metrics, until Ctrl-C or SIGTERM.

    The counts are kept in the ledger, so a restart continues them. Servers with the same name show
    the same counts; one of them counts.
    """
    try:
        from ..fleet.metrics import LedgersServer  # noqa: PLC0415 - it needs an extra
        from ..observability.fleet import FleetServer  # noqa: PLC0415 - so does this
    except ModuleNotFoundError as error:
        raise InvalidInputError(str(error)) from error

    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    options: dict[str, Any] = {
        "port": port,
        "address": bind,
        "name": name,
        "max_consumers": max_consumers,
        "max_pools": max_pools,
        "max_sources": max_sources,
        "certfile": str(certfile) if certfile else None,
        "keyfile": str(keyfile) if keyfile else None,
    }
    with ExitStack() as opened:
        server: FleetServer | LedgersServer
        if is_of_fleet(context):
            ledgers = opened.enter_context(fleet(context))
            server = opened.enter_context(LedgersServer(ledgers, **options))
        else:
            storage = opened.enter_context(ledger(context))
            server = opened.enter_context(FleetServer(storage, **options))
        scheme = "https" if certfile else "http"
        say(f"serving {scheme}://{in_url(bind)}:{server.port}/metrics")
        while server.is_counting and not stop.wait(0.2):
            pass


@app.command("files")
def write_files(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder to write to.")],
) -> None:
    """Write a Grafana dashboard and Prometheus alert rules for these metrics."""
    if not folder.is_dir():
        raise InvalidInputError(f"there is no folder {folder}")
    for name in _FILES:
        source = files("pharox.observability") / "files" / name
        (folder / name).write_bytes(source.read_bytes())
        print(folder / name)

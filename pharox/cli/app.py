"""Assemble the commands, and define the options that all of them have."""

from __future__ import annotations

import importlib.metadata
from typing import Annotated

import typer

from . import (
    archive,
    audit,
    banning,
    db,
    importing,
    leases,
    leasing,
    log,
    metrics,
    pools,
    proxies,
    pruning,
    replay,
    running,
    stats,
    sticky,
    subscriptions,
    sweeping,
    targets,
    verifying,
)
from .failing import USAGE
from .once import Commands
from .session import Schema, Target, Url

app = Commands(
    name="pharox",
    help="Lease proxies, and read the ledger of who held which.",
    epilog=(
        "The database is the one in PHAROX_DATABASE_URL, or else an embedded PostgreSQL in your "
        "data folder."
    ),
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        try:
            print(importlib.metadata.version("pharox"))
        except importlib.metadata.PackageNotFoundError:
            print("unknown: pharox runs from its source and is not installed")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    url: Url = None,
    schema: Schema = "pharox",
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version."
        ),
    ] = False,
) -> None:
    """Take the options that all commands have; without a command, show the help."""
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(USAGE)
    context.obj = Target(url, schema)


app.command("import")(importing.import_source)
app.command("acquire")(leasing.acquire)
app.command("renew")(leasing.renew)
app.command("run")(running.run_command)
app.command("release")(leasing.release)
app.command("revoke")(leasing.revoke)
app.command("leases")(leases.leases)
app.command("sweep")(sweeping.sweep)
app.command("ban")(banning.ban)
app.command("unban")(banning.unban)
app.command("targets")(targets.targets)
app.command("cooldown")(targets.cooldown)
app.command("stats")(stats.stats)
app.add_typer(pools.app, name="pools")
app.add_typer(proxies.app, name="proxies")
app.add_typer(sticky.app, name="sessions")
app.command("log")(log.log)
app.add_typer(audit.app, name="audit")
app.command("replay")(replay.replay)
app.command("verify")(verifying.verify)
app.command("rebuild")(verifying.rebuild)
app.command("prune")(pruning.prune)
app.add_typer(archive.app, name="archive")
app.add_typer(subscriptions.app, name="subscriptions")
app.add_typer(metrics.app, name="metrics")
app.add_typer(db.app, name="db")

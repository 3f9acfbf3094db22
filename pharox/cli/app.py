"""Assemble the commands, and define the options that all of them have."""

from __future__ import annotations

from typing import Annotated

import typer

from .lazily import LazyGroup, Unloaded
from .once import Commands
from .session import FleetFile, OfLedger, Schema, Target, Url


class _Root(LazyGroup):
    """All commands, in the order of the help."""

    unloaded = (
        Unloaded(
            "import",
            "importing:import_source",
            "Import a list of proxies: addresses, CSV, JSON or JSON lines.",
        ),
        Unloaded(
            "acquire", "leasing:acquire", "Lease a proxy; print the lease's id and the proxy's URL."
        ),
        Unloaded("renew", "leasing:renew", "Extend a lease from now on; fail if it has ended."),
        Unloaded(
            "run",
            "running:run_command",
            "Lease a proxy for a command, keep the lease while it runs, and release it.",
        ),
        Unloaded("release", "leasing:release", "Give a lease back; fail if it has already ended."),
        Unloaded(
            "rotate",
            "rotating:rotate",
            "Have a lease of a gateway, or a mobile proxy, take another exit.",
        ),
        Unloaded(
            "revoke",
            "leasing:revoke",
            "End the lease of somebody else, whose proxy is then free; "
            "fail if it has already ended",
        ),
        Unloaded(
            "leases",
            "leases:leases",
            "List the leases that are held now, by pool and proxy; `revoke` ends one by its id.",
        ),
        Unloaded(
            "sweep",
            "sweeping:sweep",
            "Check every proxy that is due, record the results, and print a summary.",
        ),
        Unloaded("ban", "banning:ban", "Stop leasing proxies, whatever health checks find."),
        Unloaded(
            "unban",
            "banning:unban",
            "Lift the ban on proxies: each may be leased again after a successful check.",
        ),
        Unloaded(
            "targets",
            "targets:app",
            "List the targets that outcomes were reported of, and how many proxies rest for each.",
        ),
        Unloaded(
            "cooldown",
            "targets:cooldown",
            "Have a proxy rest for one target, or end that; for others it is leased as before.",
        ),
        Unloaded(
            "tokens",
            "tokens:app",
            "Issue tokens for workers that lease over HTTP, and withdraw them.",
        ),
        Unloaded("stats", "stats:stats", "Show every pool, or one, in numbers."),
        Unloaded(
            "usage",
            "usage:usage",
            "Sum up leases, requests, bytes and money from the log; what cost most comes first.",
        ),
        Unloaded("pools", "pools:app", "List the pools; register, change or remove one."),
        Unloaded(
            "proxies", "proxies:app", "List a pool's proxies, change some, drain or remove them."
        ),
        Unloaded(
            "fleet",
            "fleet:app",
            "List the ledgers of a fleet, say which of them a pool is in, and move pools.",
        ),
        Unloaded("sources", "sources:app", "Keep pools in step with the lists of providers."),
        Unloaded(
            "sessions",
            "sticky:app",
            "List the sticky sessions: which proxy each key keeps, and for how long.",
        ),
        Unloaded("log", "log:log", "Print the events, oldest first, one per line."),
        Unloaded(
            "export",
            "exporting:export",
            "Write events as CloudEvents 1.0, one JSON object per line, at least once each.",
        ),
        Unloaded(
            "audit",
            "audit:app",
            "Show what happened to a lease, a proxy, a consumer, a pool or a source.",
        ),
        Unloaded(
            "why",
            "why:why",
            "Show why a consumer got no proxy: the reason of its last miss, and who held what then",
        ),
        Unloaded(
            "replay",
            "replay:replay",
            "Show a pool as it was at a moment, its changes after a "
            "moment, or the difference between two",
        ),
        Unloaded(
            "report",
            "report:report",
            "Write what happened in a window of time: a page to look at and send, and a timeline.",
        ),
        Unloaded(
            "verify",
            "verifying:verify",
            "Check the whole ledger: seals, read models, counters, leases.",
        ),
        Unloaded(
            "rebuild",
            "verifying:rebuild",
            "Rebuild read models from the log while leasing continues, then swap them in.",
        ),
        Unloaded(
            "checkpoint",
            "checkpoint:app",
            "Publish signed checkpoints of the log, and make the key that signs them.",
        ),
        Unloaded(
            "prove",
            "proving:prove",
            "Write a proof that an event is in the log, which anybody checks without the database.",
        ),
        Unloaded(
            "check",
            "proving:check",
            "Check the proof of an event offline, and print the event; fail if it is not proven.",
        ),
        Unloaded("prune", "pruning:prune", "Forget the leases that ended before a moment."),
        Unloaded(
            "archive",
            "archive:app",
            "Move old parts of the log into Parquet files, or check such files.",
        ),
        Unloaded(
            "subscriptions",
            "subscriptions:app",
            "Print the subscriptions, and how far each is behind the log.",
        ),
        Unloaded(
            "metrics",
            "metrics:app",
            "Serve metrics of the whole fleet, and write a dashboard and alerts for them.",
        ),
        Unloaded(
            "api",
            "api:api",
            "Serve /api/v1: lease over HTTP from any language, until Ctrl-C or SIGTERM.",
        ),
        Unloaded(
            "console",
            "console:console",
            "Serve the console: the ledger in the browser, until Ctrl-C or SIGTERM.",
        ),
        Unloaded(
            "doctor",
            "doctor:doctor",
            "Examine the connection, the server and the ledger, and say what is to be done.",
        ),
        Unloaded(
            "db", "db:app", "Create the ledger's schema, show its version, or grant rights on it."
        ),
    )


app = Commands(
    cls=_Root,
    name="pharox",
    help="Lease proxies, and read the ledger of who held which.",
    epilog=(
        "The database is the one in PHAROX_DATABASE_URL, or else an embedded PostgreSQL in your "
        "data folder."
    ),
    add_completion=True,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(installed_version() or "unknown: pharox runs from its source and is not installed")
        raise typer.Exit


def installed_version() -> str | None:
    """Return the version of the package, or None if it is not installed."""
    from importlib import metadata  # noqa: PLC0415 - it takes longer than the rest of a help

    try:
        return metadata.version("pharox")
    except metadata.PackageNotFoundError:
        return None


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    url: Url = None,
    schema: Schema = "pharox",
    fleet: FleetFile = None,
    ledger: OfLedger = None,
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version."
        ),
    ] = False,
) -> None:
    """Take the options that all commands have; without a command, show where one would work."""
    context.obj = Target(url, schema, fleet, ledger)
    if context.invoked_subcommand is None:
        from .front import print_front  # noqa: PLC0415 - a help needs none of it

        print_front(context, installed_version())

"""``pharox db``: manage the ledger's schema and the rights on it."""

from __future__ import annotations

from typing import Annotated

import typer

from ..errors import SchemaError
from ..models.text import escape_unprintable
from .once import Commands
from .session import ledger

app = Commands(help="Create the ledger's schema, show its version, or grant rights on it.")


@app.command()
def upgrade(context: typer.Context) -> None:
    """Create the schema, or bring it up to date."""
    with ledger(context) as storage:
        before = storage.schema_version()
        storage.upgrade_schema()
        after = storage.schema_version()
    was = "was at" if before == after else "is now at"
    print(f"schema {storage.schema} {was} version {after}")


@app.command()
def current(context: typer.Context) -> None:
    """Print the schema's version; fail if there is no schema, or if it must be upgraded."""
    from ..storage.postgres.schema import check_version  # noqa: PLC0415

    with ledger(context) as storage:
        version = storage.schema_version()
        if version is not None:
            print(version)
        check_version(version, storage.schema)


@app.command()
def distribute(
    context: typer.Context,
    *,
    to: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="The worker; by default the one with fewest."),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Create nothing; fail if no node has the ledger.")
    ] = False,
) -> None:
    """Create the ledger on a worker of a Citus cluster, or say which node has it."""
    from ..ledger.distributing import distribute, locate  # noqa: PLC0415 - SQLAlchemy is slow

    with ledger(context) as storage:
        placed = locate(storage) if check else distribute(storage, to)
    if placed is None:
        raise SchemaError(f"no node of the cluster has a ledger {storage.schema!r}")
    verb = "is now" if placed.is_new else "is"
    print(escape_unprintable(f"ledger {storage.schema} {verb} on {placed.node}"))
    print(escape_unprintable(f"lease there: {placed.url}"))


@app.command()
def grant(
    context: typer.Context,
    *,
    apps: Annotated[
        list[str] | None,
        typer.Option("--app", metavar="ROLE", help="A role that leases; may be repeated."),
    ] = None,
    readers: Annotated[
        list[str] | None,
        typer.Option("--reader", metavar="ROLE", help="A role that only reads; may be repeated."),
    ] = None,
    fences: Annotated[
        list[str] | None,
        typer.Option(
            "--fence", metavar="ROLE", help="A role that only requires leases; may be repeated."
        ),
    ] = None,
    owner: Annotated[
        str | None, typer.Option(metavar="ROLE", help="The role that becomes the ledger's owner.")
    ] = None,
    apply: Annotated[
        bool,
        typer.Option(
            "--apply", help="Run the SQL in one transaction, and check the rights after it."
        ),
    ] = False,
) -> None:
    """Print the SQL that gives roles the rights they need and takes all others away."""
    from ..ledger import roles  # noqa: PLC0415 - SQLAlchemy takes a while to import

    wanted = roles.Roles(apps or (), readers or (), owner, fences or ())
    with ledger(context) as storage:
        if not apply:
            statements = roles.statements(storage, wanted)
            print("\n".join(f"{line};" for line in ("BEGIN", *statements, "COMMIT")))
            return
        roles.grant(storage, wanted)
    for name in wanted.app:
        print(
            escape_unprintable(
                f"{name} may lease, but not change the log, or create or alter tables"
            )
        )
    for name in wanted.reader:
        print(escape_unprintable(f"{name} may read everything but credentials"))
    for name in wanted.fence:
        print(escape_unprintable(f"{name} may require leases in its own transactions"))
    if owner is not None:
        print(escape_unprintable(f"{owner} owns the ledger"))

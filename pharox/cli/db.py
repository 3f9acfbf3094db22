"""``pharox db``: the schema that the ledger is in."""

from __future__ import annotations

import typer

from .session import ledger

app = typer.Typer(help="Create the ledger's schema, or see its version.")


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
    """Print the schema's version; fail if it is missing, or not the one that is needed."""
    from ..storage.postgres.schema import check_version  # noqa: PLC0415

    with ledger(context) as storage:
        version = storage.schema_version()
        if version is not None:
            print(version)
        check_version(version, storage.schema)

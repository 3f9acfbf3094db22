#!/usr/bin/env python3
"""Write a timeline and an illustrated page of a window of time, as ``pharox report`` does.

scripts/replay_incident.py --from 2026-01-31T10:00Z --to 2026-01-31T10:15Z --output report
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

try:
    import typer

    from pharox.cli.failing import run
    from pharox.cli.report import End, Pools, Start, tell, write
    from pharox.cli.session import Archive, Schema, Target, Url
    from pharox.models import utc_now
    from pharox.models.moments import moment_before
except ModuleNotFoundError as error:
    sys.exit(
        f"replay_incident.py: this Python has no {error.name}: run scripts/setup-env, then "
        ".venv/bin/python scripts/replay_incident.py"
    )

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def replay_incident(
    context: typer.Context,
    start: Start,
    output: Annotated[
        Path,
        typer.Option(metavar="FOLDER", help="The folder to write to; it must be new or empty."),
    ],
    end: End = "now",
    pool: Pools = None,
    archive: Archive = None,
    database_url: Url = None,
    schema: Schema = "pharox",
) -> None:
    """Write a report of what happened in a window of time."""
    now = utc_now()
    window = moment_before(start, now), moment_before(end, now)
    context.obj = Target(database_url, schema)
    tell(write(context, window, output, pool or (), archive))


if __name__ == "__main__":
    sys.exit(run(app, sys.argv[1:], "replay_incident.py"))

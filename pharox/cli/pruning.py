"""``pharox prune``: forget leases that ended long ago."""

from __future__ import annotations

from typing import Annotated

import typer

from ..models import utc_now
from ..models.moments import moment_before
from .session import ledger


def prune(
    context: typer.Context,
    ended_before: Annotated[
        str,
        typer.Option(
            metavar="WHEN", help="A moment such as 2026-01-31T12:00Z, or a span such as 30d or 12h."
        ),
    ],
) -> None:
    """Forget the leases that ended before a moment. The log keeps their events."""
    moment = moment_before(ended_before, utc_now())
    with ledger(context) as storage:
        pruned = storage.prune_leases(moment)
    print(f"{pruned} ended leases forgotten; their events stay in the log")

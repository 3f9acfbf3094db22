"""Run the SQL files of a migration."""

from __future__ import annotations

from collections.abc import Sequence

from alembic import op

from .texts import part_text, spelled


def run_parts(revision: str, parts: Sequence[str]) -> None:
    """Run the files ``sql/<revision>/<part>.sql`` in the schema of this migration."""
    schema = op.get_context().version_table_schema or "pharox"
    for part in parts:
        # Run by the driver: SQLAlchemy would parse colons and percent signs as parameters.
        op.get_bind().connection.cursor().execute(spelled(part_text(revision, part), schema))

"""Run the SQL files of a migration."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.resources import files

from alembic import op

from ..sql import quoted


def run_parts(revision: str, parts: Sequence[str]) -> None:
    """Run the files ``sql/<revision>/<part>.sql`` in the schema of this migration.

    In the files ``{schema}`` stands for the schema's name, ``{literal}`` for the name
    within quotes, and ``{format}`` for the name in what SQL's ``format()`` is given.
    """
    schema = quoted(op.get_context().version_table_schema or "pharox")
    names = {
        "{schema}": schema,
        "{literal}": schema.replace("'", "''"),
        "{format}": schema.replace("%", "%%"),
    }
    for part in parts:
        text = (files(__package__) / "sql" / revision / f"{part}.sql").read_text()
        # Replaced in one pass, as one name may contain the placeholder of another.
        spelled = re.sub(r"\{(schema|literal|format)\}", lambda place: names[place[0]], text)
        # Run by the driver: SQLAlchemy would parse colons and percent signs as parameters.
        op.get_bind().connection.cursor().execute(spelled)

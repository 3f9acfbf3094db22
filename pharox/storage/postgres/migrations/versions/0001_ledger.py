"""Create the log of events, and the read models that are folded from it."""

import re
from importlib.resources import files

from alembic import op

from pharox.storage.postgres import migrations
from pharox.storage.postgres.sql import quoted

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

PARTS = (
    "log",
    "read_models",
    "clock",
    "immutable",
    "partitions",
    "folding",
    "append",
    "leasing",
    "credentials",
    "digest",
    "seal",
)


def upgrade() -> None:
    """Create the tables, the clock, the triggers that protect the log, and its sealing."""
    schema = quoted(op.get_context().version_table_schema or "pharox")
    names = {
        "{schema}": schema,
        "{literal}": schema.replace("'", "''"),  # in quotes
        "{format}": schema.replace("%", "%%"),  # in what format() is given
    }
    for part in PARTS:
        text = (files(migrations) / "sql" / revision / f"{part}.sql").read_text()
        # Replaced in one pass, as one name may contain the placeholder of another.
        spelled = re.sub(r"\{(schema|literal|format)\}", lambda place: names[place[0]], text)
        # Run by the driver: SQLAlchemy would parse colons and percent signs as parameters.
        op.get_bind().connection.cursor().execute(spelled)

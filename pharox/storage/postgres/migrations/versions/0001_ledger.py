"""The log of events, and the read models that are folded from it."""

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
    """Create the tables, the clock, the guard of the log and what seals it."""
    schema = quoted(op.get_context().version_table_schema or "pharox")
    names = {"{schema}": schema, "{literal}": schema.replace("'", "''")}
    for part in PARTS:
        text = (files(migrations) / "sql" / revision / f"{part}.sql").read_text()
        # At once, as one name may contain the other's place.
        spelled = re.sub(r"\{(schema|literal)\}", lambda place: names[place[0]], text)
        # By the driver itself: to SQLAlchemy a colon or a percent sign would be a parameter.
        op.get_bind().connection.cursor().execute(spelled)

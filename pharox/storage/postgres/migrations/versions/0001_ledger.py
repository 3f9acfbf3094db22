"""Create the log of events, and the read models that are folded from it."""

from pharox.storage.postgres.migrations.running import run_parts

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
    run_parts(revision, PARTS)

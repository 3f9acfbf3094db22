"""Wait for a proxy: tickets, and functions that decide in turn with who waits."""

from pharox.storage.postgres.migrations.running import run_parts

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

PARTS = ("waiting",)
LOCKED = ()


def upgrade() -> None:
    """Add two tables and the functions that use them; nothing of before is changed."""
    run_parts(revision, PARTS)

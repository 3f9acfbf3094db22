"""What targets said: outcomes, and what is decided by them.

Columns and tables of read models, types of events, and the functions that decide.
"""

from pharox.storage.postgres.migrations.running import run_parts

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

PARTS = (
    "read_models",
    "folding",
    "outcomes",
    "cooling",
    "bans",
    "exits",
    "selecting",
    "pool_defaults",
    "sessions",
)
LOCKED = ("pools", "available_proxies", "leases", "proxies")


def upgrade() -> None:
    """Add what is known of outcomes, and what decides by it."""
    run_parts(revision, PARTS)

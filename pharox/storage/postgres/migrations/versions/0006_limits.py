"""What bounds leases, which pools stand in for each other, and proxies with many exits.

Columns and tables of read models, types of events, and the functions that decide.
"""

from pharox.storage.postgres.migrations.running import run_parts

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

PARTS = (
    "read_models",
    "events",
    "cool_downs",
    "folding",
    "limiting",
    "gateways",
    "fallback",
    "choosing",
    "weighing",
    "spending",
    "recording",
    "sources",
    "rotating",
    "tree",
    "placing",
    "moving",
    "planning",
    "log_indexes",
)
LOG_GETS_INDEX = True
LOCKED = (
    "pools",
    "available_proxies",
    "leases",
    "proxies",
    "target_outcomes",
    "sessions",
)


def upgrade() -> None:
    """Add what bounds and replaces leases, and what decides by it."""
    run_parts(revision, PARTS)

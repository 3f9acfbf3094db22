"""Revoke leases, bound how long they are held, let proxies rest, and drain them.

That is a type of event, columns, and what decides by them.
"""

from pharox.storage.postgres.migrations.running import run_parts

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

PARTS = (
    "read_models",
    "folding",
    "draining",
    "resting",
    "renewing",
    "redating",
    "revoking",
    "fencing",
)
LOCKED = ("pools", "available_proxies", "leases")


def upgrade() -> None:
    """Add what is known of revocations, rests and drained proxies, and what decides by it."""
    run_parts(revision, PARTS)

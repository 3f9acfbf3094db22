"""Revoke leases, let proxies rest, and drain them: a type of event, columns, and what decides."""

from pharox.storage.postgres.migrations.running import run_parts

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

LOCKED = ("pools", "available_proxies", "leases")


def upgrade() -> None:
    """Add what is known of revocations, rests and drained proxies, and what decides by it."""
    parts = ("read_models", "folding", "draining", "resting", "revoking", "redating", "fencing")
    run_parts(revision, parts)

"""Revoke leases, and let proxies rest: a type of event, columns, and what decides."""

from pharox.storage.postgres.migrations.running import run_parts

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

LOCKED = ("pools", "available_proxies", "leases")


def upgrade() -> None:
    """Add the reason of a revocation and the rests, their folds, and what decides by them."""
    run_parts(revision, ("read_models", "folding", "resting", "revoking", "fencing"))

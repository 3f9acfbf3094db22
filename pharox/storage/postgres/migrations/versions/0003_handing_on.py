"""Revoke leases: a type of event, a status with its reason, and what decides."""

from pharox.storage.postgres.migrations.running import run_parts

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

LOCKED = ("leases",)


def upgrade() -> None:
    """Add ``leases.revoke_reason``, the fold of LeaseRevoked, and what revokes leases."""
    run_parts(revision, ("read_models", "folding", "revoking", "fencing"))

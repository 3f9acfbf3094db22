"""Renew leases: a type of event, a column, and what decides. Return the proxy with a lease."""

from pharox.storage.postgres.migrations.running import run_parts

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

PARTS = ("read_models", "folding", "renewing", "leased_proxy", "fencing")
LOCKED = ("leases",)


def upgrade() -> None:
    """Add ``leases.renewed_at``, the fold of LeaseRenewed, and three functions."""
    run_parts(revision, PARTS)

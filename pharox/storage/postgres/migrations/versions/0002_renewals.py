"""Renew leases: a type of event, a column of the leases, and what decides on renewals."""

from pharox.storage.postgres.migrations.running import run_parts

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

LOCKED = ("leases",)


def upgrade() -> None:
    """Add ``leases.renewed_at``, the fold of LeaseRenewed, and ``renew_leases_v1``."""
    run_parts(revision, ("read_models", "folding", "renewing"))

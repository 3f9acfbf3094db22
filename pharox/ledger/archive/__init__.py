"""Move old parts of the log into Parquet files, and read them back."""

from __future__ import annotations

from .archiving import Archived, Checked, Kept, Outcome, archive, check

__all__ = ["Archived", "Checked", "Kept", "Outcome", "archive", "check"]

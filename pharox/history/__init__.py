"""Questions about the past: the sealed log, audits, and a pool as it was."""

"""Query the past: the sealed log, audits, and the earlier states of a pool."""

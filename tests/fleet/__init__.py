"""Several ledgers as one."""

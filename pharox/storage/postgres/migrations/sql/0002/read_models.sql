-- When a lease was last renewed: its own duration is counted from then.
ALTER TABLE {schema}.leases ADD COLUMN renewed_at timestamptz;

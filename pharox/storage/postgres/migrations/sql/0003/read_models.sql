-- How long a proxy rests, until when it does, and whether it is removed with its last lease; and
-- for how long renewals may keep a lease.
ALTER TABLE {schema}.pools
    ADD COLUMN rest_after_release_seconds double precision,
    ADD COLUMN rest_after_expiry_seconds double precision,
    ADD COLUMN max_held_seconds double precision;
ALTER TABLE {schema}.available_proxies
    ADD COLUMN rests_until timestamptz,
    ADD COLUMN drains boolean;

-- Why a lease was revoked. The constraint is checked while the table is locked: it has the leases
-- that were not pruned.
ALTER TABLE {schema}.leases
    ADD COLUMN revoke_reason text,
    DROP CONSTRAINT ck_leases_status,
    ADD CONSTRAINT ck_leases_status
        CHECK (status IN ('active', 'released', 'expired', 'revoked'));

-- How long a proxy rests, and until when it does.
ALTER TABLE {schema}.pools
    ADD COLUMN rest_after_release_seconds double precision,
    ADD COLUMN rest_after_expiry_seconds double precision;
ALTER TABLE {schema}.available_proxies
    ADD COLUMN rests_until timestamptz;

-- Why a lease was revoked. The constraint is checked while the table is locked: it has the leases
-- that were not pruned.
ALTER TABLE {schema}.leases
    ADD COLUMN revoke_reason text,
    DROP CONSTRAINT ck_leases_status,
    ADD CONSTRAINT ck_leases_status
        CHECK (status IN ('active', 'released', 'expired', 'revoked'));

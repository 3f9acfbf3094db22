-- Fail unless a lease is held, and let nobody take it back before the calling transaction ends. It is
-- for a user's own transaction in this database, which must not do anything for a holder whose lease
-- has ended. KEY SHARE: renewals pass; a release, an expiry or a removal waits.
--
-- It runs with its owner's rights: whoever may call it needs no other right on the ledger.
--
-- A transaction can outlast the lease by 5 seconds at most: from then on the server ends a session
-- that is idle in it, a statement that runs, and from PostgreSQL 17 on the transaction as a whole.
CREATE OR REPLACE FUNCTION {schema}.require_lease(lease_id uuid, fencing_token bigint)
RETURNS void
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    lease record;
    at timestamptz;
    remaining bigint;
    setting record;
BEGIN
    SELECT own.status, own.expires_at, own.released_at, own.fencing_token, own.revoke_reason
    INTO lease
    FROM {schema}.leases AS own
    WHERE own.id = require_lease.lease_id
    FOR KEY SHARE;
    -- By now, which is later than the statement began if there was a lock to wait for.
    at := {schema}.clock() + (clock_timestamp() - statement_timestamp());
    IF lease IS NULL THEN
        RAISE EXCEPTION 'there is no lease %', lease_id
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  HINT = 'It may have ended and been pruned.';
    END IF;
    IF lease.fencing_token IS DISTINCT FROM require_lease.fencing_token THEN
        RAISE EXCEPTION 'lease % has another fencing token than %', lease_id, fencing_token
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    IF lease.status <> 'active' OR lease.expires_at <= at THEN
        RAISE EXCEPTION 'lease % has ended: %', lease_id,
            CASE lease.status
                WHEN 'released' THEN 'it was released at ' || lease.released_at
                WHEN 'revoked' THEN
                    'it was revoked at ' || lease.released_at || ': ' || lease.revoke_reason
                ELSE 'it ran out at ' || lease.expires_at
            END
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;

    remaining := ceil(1000 * (5 + extract(epoch FROM lease.expires_at - at)))::bigint;
    FOR setting IN
        SELECT limits.name, limits.setting::bigint AS ms
        FROM pg_settings AS limits
        WHERE limits.name IN ('idle_in_transaction_session_timeout', 'statement_timeout')
    LOOP
        IF setting.ms = 0 OR setting.ms > remaining THEN
            PERFORM set_config(setting.name, remaining::text, true);
        END IF;
    END LOOP;
    IF current_setting('server_version_num')::integer >= 170000 THEN
        remaining := remaining
            + ceil(1000 * extract(epoch FROM clock_timestamp() - transaction_timestamp()))::bigint;
        IF current_setting('transaction_timeout')::interval = interval '0'
           OR current_setting('transaction_timeout')::interval > remaining * interval '1 ms' THEN
            PERFORM set_config('transaction_timeout', remaining::text, true);
        END IF;
    END IF;
END
$$;

-- A lease whose last grant lies in the future tells that the clock went back: it would last longer
-- than its duration from now. It is renewed then, as its holder would, so that it lasts just that.
-- It does not end early: whoever counts on it began to count before.

-- Re-date up to 500 leases of these pools, by default of all, and return how many. What somebody
-- else has locked is left to whoever looks next. The locks are those of renew_leases_v1.
CREATE FUNCTION {schema}.redate_leases_v1(
    own_slot smallint,
    actor text,
    correlation_id text,
    pool_names text[]
)
RETURNS integer
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
AS $$
DECLARE
    at timestamptz := {schema}.clock();
    tolerated timestamptz := at + interval '1 second';
    pool_ids uuid[];
    found uuid[];
    events {schema}.event_v1[];
BEGIN
    IF pool_names IS NULL THEN
        pool_ids := ARRAY(SELECT pool.id FROM {schema}.pools AS pool);
    ELSE
        pool_ids := ARRAY(
            SELECT pool.id FROM {schema}.pools AS pool WHERE pool.name = ANY (pool_names)
        );
    END IF;
    found := ARRAY(
        SELECT lease.id
        FROM {schema}.leases AS lease
        WHERE lease.pool_id = ANY (pool_ids) AND lease.status = 'active'
          AND coalesce(lease.renewed_at, lease.acquired_at) > tolerated
        LIMIT 500
    );
    IF found = '{}' THEN
        RETURN 0;
    END IF;

    -- The lock comes before the look: only then does the look see what others have done.
    found := ARRAY(
        SELECT lease.id
        FROM unnest(found) AS dated (id)
        JOIN {schema}.leases AS lease ON lease.id = dated.id
        WHERE lease.status = 'active'
        ORDER BY lease.id
        FOR NO KEY UPDATE OF lease SKIP LOCKED
    );
    -- By now: a lease that was granted since this statement began is not from the future.
    tolerated := tolerated + (clock_timestamp() - statement_timestamp());
    events := ARRAY(
        SELECT {schema}.lease_event_v1(
            1, 'LeaseRenewed', lease.pool_id, lease.pool_name,
            lease.proxy_id, lease.id, lease.consumer_id, lease.consumer_name,
            NULL, NULL, NULL, NULL,
            at + (lease.expires_at - coalesce(lease.renewed_at, lease.acquired_at)),
            lease.acquired_at, NULL, '{"reason": "clock_went_back"}'
        )
        FROM unnest(found) AS locked (id)
        JOIN {schema}.leases AS lease ON lease.id = locked.id
        WHERE lease.status = 'active'
          AND coalesce(lease.renewed_at, lease.acquired_at) > tolerated
        ORDER BY lease.fencing_token
    );
    PERFORM {schema}.append_v1(
        events, own_slot, array_fill(1, ARRAY[cardinality(events)]),
        ARRAY[actor], ARRAY[correlation_id]
    );
    RETURN cardinality(events);
END
$$;

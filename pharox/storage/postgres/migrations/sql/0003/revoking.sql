-- Leases are revoked as they are released: the same locks, in the same order, and whatever others
-- have locked is left. The answer has what was revoked, and as 'locked' what may be revoked later;
-- what has ended or run out is not in it.
CREATE FUNCTION {schema}.revoke_leases_v1(
    own_slot smallint,
    with_stats boolean,
    actor text,
    correlation_id text,
    revoked_ids uuid[],
    reason text
)
RETURNS SETOF {schema}.lease_answer
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
AS $$
#variable_conflict use_column
DECLARE
    at timestamptz := {schema}.clock();
    reasons text[] := array_fill(revoke_leases_v1.reason, ARRAY[cardinality(revoked_ids)]);
    ending record;
    event {schema}.event_v1;
    events {schema}.event_v1[] := '{}';
    stats {schema}.pool_counts[] := '{}';
BEGIN
    FOR ending IN
        SELECT
            returned.event,
            {schema}.rest_v1(pool.rest_after_expiry_seconds, availability.rests_until, at) AS rest
        FROM {schema}.returned_leases_v1(revoked_ids, reasons, at) AS returned
        JOIN {schema}.pools AS pool ON pool.id = (returned.event).pool_id
        JOIN {schema}.available_proxies AS availability
          ON availability.pool_id = (returned.event).pool_id
         AND availability.proxy_id = (returned.event).proxy_id
        ORDER BY returned.number
    LOOP
        event := ending.event;
        event.type := 'LeaseRevoked';
        event.data := {schema}.with_reason_v1(ending.rest, revoke_leases_v1.reason);
        events := events || event;
    END LOOP;
    IF events <> '{}' THEN
        events := {schema}.append_v1(
            events, own_slot, array_fill(1, ARRAY[cardinality(events)]),
            ARRAY[actor], ARRAY[correlation_id]
        );
        IF with_stats THEN
            stats := ARRAY(SELECT counts FROM {schema}.counts_after_v1(events) AS counts);
        END IF;
    END IF;

    RETURN QUERY
    SELECT
        revoked.ordinality::integer,
        revoked.type,
        revoked.lease_id,
        revoked.pool_id,
        revoked.pool_name,
        revoked.proxy_id,
        revoked.consumer_id,
        revoked.consumer,
        revoked.acquired_at,
        lease.expires_at,
        revoked.recorded_at,
        lease.fencing_token,
        revoked.data ->> 'reason',
        NULL::integer,
        revoked.recorded_at,
        counts.total_proxies,
        counts.active_proxies,
        counts.available_proxies,
        counts.leased_proxies,
        counts.total_leases
    FROM unnest(events) WITH ORDINALITY AS revoked
    JOIN {schema}.leases AS lease ON lease.id = revoked.lease_id
    LEFT JOIN unnest(stats) AS counts ON counts.position = revoked.position
    ORDER BY revoked.ordinality;

    RETURN QUERY
    SELECT
        NULL::integer, 'locked', lease.id, lease.pool_id, lease.pool_name, lease.proxy_id,
        lease.consumer_id, lease.consumer_name, lease.acquired_at, lease.expires_at,
        NULL::timestamptz, lease.fencing_token, NULL::text, NULL::integer, at,
        NULL::integer, NULL::integer, NULL::integer, NULL::integer, NULL::integer
    FROM {schema}.leases AS lease
    WHERE lease.id = ANY (revoked_ids) AND lease.status = 'active' AND lease.expires_at > at
    ORDER BY lease.id;
END
$$;

-- Tell whether an event is one that could be read back, and folded.
CREATE OR REPLACE FUNCTION {schema}.is_event_v1(event {schema}.event_v1)
RETURNS boolean
LANGUAGE sql
IMMUTABLE
AS $$
    SELECT
        CASE event.type
            WHEN 'LeaseAcquired' THEN
                event.lease_id IS NOT NULL AND event.consumer IS NOT NULL
                AND event.consumer_id IS NOT NULL AND event.pool_name IS NOT NULL
                AND event.status_before IS NOT NULL AND event.status_after IS NOT NULL
                AND event.expires_at IS NOT NULL AND event.acquired_at IS NULL
            WHEN 'LeaseRenewed' THEN
                event.lease_id IS NOT NULL AND event.consumer IS NOT NULL
                AND event.consumer_id IS NOT NULL AND event.pool_name IS NOT NULL
                AND event.proxy_id IS NOT NULL AND event.status_before IS NULL
                AND event.acquired_at IS NOT NULL AND event.expires_at IS NOT NULL
            WHEN 'LeaseReleased' THEN
                event.lease_id IS NOT NULL AND event.consumer IS NOT NULL
                AND event.consumer_id IS NOT NULL AND event.pool_name IS NOT NULL
                AND event.status_before IS NOT NULL AND event.status_after IS NOT NULL
                AND event.acquired_at IS NOT NULL
            WHEN 'LeaseRevoked' THEN
                event.lease_id IS NOT NULL AND event.consumer IS NOT NULL
                AND event.consumer_id IS NOT NULL AND event.pool_name IS NOT NULL
                AND event.status_before IS NOT NULL AND event.status_after IS NOT NULL
                AND event.acquired_at IS NOT NULL AND event.data ? 'reason'
            WHEN 'LeaseExpired' THEN
                event.lease_id IS NOT NULL AND event.consumer IS NOT NULL
                AND event.consumer_id IS NOT NULL AND event.pool_name IS NOT NULL
                AND event.status_before IS NOT NULL AND event.status_after IS NOT NULL
                AND event.acquired_at IS NOT NULL AND event.expires_at IS NOT NULL
            WHEN 'AcquireMissed' THEN
                event.consumer IS NOT NULL AND event.pool_name IS NOT NULL
                AND event.selector IS NOT NULL AND event.data ? 'reason'
            WHEN 'HealthChecked' THEN
                event.status_before IS NOT NULL AND event.status_after IS NOT NULL
                AND event.data ?& '{applied,status,reachable,protocol,checked_at}'
            WHEN 'ProxiesChecked' THEN
                event.proxy_id IS NULL AND {schema}.are_checks_v1(event.proxy_ids, event.data)
            WHEN 'ProxyRegistered' THEN
                event.status_before IS NULL AND event.status_after IS NOT NULL
                AND event.data ?& '{host,port,protocol,checked_at}'
            WHEN 'ProxyChanged' THEN
                event.status_before IS NOT NULL AND event.status_after IS NOT NULL
                AND event.data ?& '{host,port,protocol,checked_at}'
            WHEN 'ProxyRemoved' THEN
                event.status_before IS NOT NULL AND event.status_after IS NULL
            WHEN 'PoolRegistered' THEN event.data ?& '{name,lease_slow}'
            WHEN 'PoolChanged' THEN event.data ?& '{name,lease_slow}'
            WHEN 'PoolRemoved' THEN event.data ? 'name'
            WHEN 'ConsumerRegistered' THEN
                event.consumer IS NOT NULL AND event.consumer_id IS NOT NULL
            WHEN 'CursorMoved' THEN event.proxy_id IS NOT NULL AND event.selector IS NOT NULL
            WHEN 'LeasesPruned' THEN event.data ? 'ended_before'
            ELSE false
        END
        AND (event.proxy_ids IS NULL OR event.type = 'ProxiesChecked')
        AND (event.status_before IS NULL AND event.status_after IS NULL OR event.proxy_id IS NOT NULL)
        AND (event.status_before IS NULL
             OR event.status_before IN ('active', 'inactive', 'slow', 'banned')
             AND event.leases_before >= 0)
        AND (event.status_after IS NULL
             OR event.status_after IN ('active', 'inactive', 'slow', 'banned')
             AND event.leases_after >= 0)
        AND coalesce(isfinite(event.expires_at), true)
        AND coalesce(isfinite(event.acquired_at), true)
        AND coalesce(jsonb_typeof(event.data) = 'object', true)
$$;

-- A drained proxy is banned until its last lease ends, and is removed in the same commit.

-- Append events in the order of the array and fold them. ``numbers`` say which of the actors and
-- correlation ids each has, where it does not have its own. What commands decide by is folded
-- already if it is ``decided``. Commands of leasing, which have ``numbers``, are answered with the
-- removal of drained proxies too, after all that was asked for.
CREATE OR REPLACE FUNCTION {schema}.append_v1(
    new {schema}.event_v1[],
    own_slot smallint,
    numbers integer[] DEFAULT NULL,
    actors text[] DEFAULT NULL,
    correlation_ids text[] DEFAULT NULL,
    decided boolean DEFAULT false
)
RETURNS {schema}.event_v1[]
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
AS $$
DECLARE
    at timestamptz := {schema}.clock();
    appended {schema}.event_v1[];
    folded {schema}.event_v1[];
    types text[];
    drained record;
    removal {schema}.event_v1;
BEGIN
    IF cardinality(new) = 0 THEN
        RETURN new;
    END IF;
    IF EXISTS (
        SELECT 1
        FROM unnest(new) AS event
        WHERE {schema}.is_event_v1(event) IS NOT TRUE
    ) THEN
        PERFORM {schema}.refuse_event_v1();
    END IF;
    -- Both come before a position: seal() goes by the order of ids, the archive by who has the lock.
    PERFORM pg_current_xact_id();
    LOCK TABLE ONLY {schema}.events IN ROW EXCLUSIVE MODE;
    SELECT array_agg(
        ROW(
            nextval('{literal}.events_position_seq'),
            pg_current_xact_id(),
            at,
            event.expires_at,
            event.acquired_at,
            event.pool_id,
            event.proxy_id,
            event.lease_id,
            event.consumer_id,
            event.leases_before,
            event.leases_after,
            event.max_concurrency_before,
            event.max_concurrency_after,
            coalesce(event.schema_version, 1),
            event.type,
            event.status_before,
            event.status_after,
            event.selector,
            event.consumer,
            event.pool_name,
            coalesce(actors[numbers[event.ordinality]], event.actor),
            coalesce(correlation_ids[numbers[event.ordinality]], event.correlation_id),
            event.proxy_ids,
            event.data
        )::{schema}.event_v1
        ORDER BY event.ordinality
    ), array_agg(event.type)
    INTO appended, types
    FROM unnest(new) WITH ORDINALITY AS event;
    INSERT INTO {schema}.events (
        position, tx, recorded_at, expires_at, acquired_at, pool_id, proxy_id, lease_id,
        consumer_id, leases_before, leases_after, max_concurrency_before, max_concurrency_after,
        schema_version, type, status_before, status_after, selector, consumer, pool_name, actor,
        correlation_id, proxy_ids, data
    )
    SELECT
        event.position, event.tx, event.recorded_at, event.expires_at, event.acquired_at,
        event.pool_id, event.proxy_id, event.lease_id, event.consumer_id, event.leases_before,
        event.leases_after, event.max_concurrency_before, event.max_concurrency_after,
        event.schema_version, event.type, event.status_before, event.status_after, event.selector,
        event.consumer, event.pool_name, event.actor, event.correlation_id, event.proxy_ids,
        event.data
    FROM unnest(appended) AS event;
    IF cardinality(new) > 1 AND EXISTS (
        SELECT 1 FROM unnest(appended) AS event WHERE event.pool_id <> new[1].pool_id
    ) THEN
        -- The counters of several pools, in one order: nobody then waits in a circle.
        PERFORM 1
        FROM {schema}.pool_stats AS counters
        WHERE counters.slot = own_slot
          AND counters.pool_id = ANY (ARRAY(SELECT event.pool_id FROM unnest(appended) AS event))
        ORDER BY counters.pool_id
        FOR UPDATE;
    END IF;
    IF 'ProxiesChecked' = ANY (types) THEN
        folded := {schema}.apart_v1(appended);
        types := types || 'HealthChecked'::text;
    ELSE
        folded := appended;
    END IF;
    PERFORM {schema}.fold_v1(folded, types, own_slot, decided);
    PERFORM {schema}.fold_others_v1(folded, types, own_slot);
    IF numbers IS NOT NULL AND EXISTS (
        SELECT 1
        FROM unnest(appended) AS event
        WHERE event.status_after = 'banned' AND event.leases_after = 0
    ) THEN
        FOR drained IN
            SELECT event.*
            FROM unnest(appended) WITH ORDINALITY AS event
            JOIN {schema}.available_proxies AS availability
              ON availability.pool_id = event.pool_id AND availability.proxy_id = event.proxy_id
            WHERE event.status_after = 'banned' AND event.leases_after = 0
              AND availability.drains AND availability.current_leases = 0
            ORDER BY event.ordinality
        LOOP
            removal := NULL;
            removal.type := 'ProxyRemoved';
            removal.pool_id := drained.pool_id;
            removal.proxy_id := drained.proxy_id;
            removal.status_before := drained.status_after;
            removal.leases_before := 0;
            removal.max_concurrency_before := drained.max_concurrency_after;
            removal.actor := drained.actor;
            removal.correlation_id := drained.correlation_id;
            appended := appended || {schema}.append_v1(ARRAY[removal], own_slot);
            PERFORM {schema}.forget_credentials(drained.pool_id, ARRAY[drained.proxy_id]);
        END LOOP;
    END IF;
    RETURN appended;
END
$$;

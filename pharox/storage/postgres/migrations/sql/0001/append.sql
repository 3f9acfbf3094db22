-- The one way into the log: the functions here run with their owner's rights, and nobody else may
-- insert. They give each event its position, its transaction and its moment, refuse what could not
-- be read back, and fold.
--
-- Events come and go as event_v1, a type that never changes: the table may have more columns.
--
-- Every plan goes by an index: the arrays are short, and a plan is kept for all lengths.

-- Tell whether the checks of a ProxiesChecked are whole. On its own, as what holds a subquery is
-- never part of the statement that calls it: is_event_v1 stays quick for all other types.
CREATE FUNCTION {schema}.are_checks_v1(proxy_ids uuid[], data jsonb)
RETURNS boolean
LANGUAGE sql
IMMUTABLE
AS $$
    SELECT
        cardinality(proxy_ids) BETWEEN 1 AND 500
        AND array_ndims(proxy_ids) = 1
        AND array_lower(proxy_ids, 1) = 1
        AND array_position(proxy_ids, NULL) IS NULL
        AND (SELECT count(DISTINCT id) FROM unnest(proxy_ids) AS id) = cardinality(proxy_ids)
        AND data ? 'checked_at'
        AND jsonb_typeof(data -> 'groups') = 'array'
        AND (
            SELECT bool_and(coalesce(
                checks ?& '{applied,status,reachable,protocol}'
                AND checks ->> 'stays' IN ('active', 'inactive', 'slow', 'banned'),
                false))
            FROM jsonb_array_elements(
                CASE WHEN jsonb_typeof(data -> 'groups') = 'array' THEN data -> 'groups' END
            ) AS checks
        )
        AND (
            SELECT bool_and(coalesce(
                CASE WHEN jsonb_typeof(data -> name) = 'array' THEN
                    jsonb_array_length(data -> name) = cardinality(proxy_ids)
                END, false))
            FROM unnest('{group,age_us,leases,latency_ms,mean_latency_ms,streak}'::text[]) AS name
        )
        -- What is not a whole number, or out of range, is neither >= 0 nor unknown to be so.
        AND NOT jsonb_path_exists(
            data,
            '$.group[*] ? (!(@ >= 0 && @ < $.groups.size() && @ == @.floor())
                           || (@ >= 0 && @ == @.floor()) is unknown)'
        )
        AND NOT jsonb_path_exists(
            data,
            '$.leases[*] ? (!(@ >= 0 && @ == @.floor()) || (@ >= 0 && @ == @.floor()) is unknown)'
        )
$$;

-- The checks of a ProxiesChecked, or that of one proxy, each with what the data of a HealthChecked
-- has: what ProxiesChecked.checks() returns in Python.
CREATE FUNCTION {schema}.checks_v1(proxy_ids uuid[], data jsonb, of_proxy uuid DEFAULT NULL)
RETURNS TABLE (
    proxy_id uuid, status text, leases integer, max_concurrency integer, attributes jsonb
)
LANGUAGE plpgsql
STABLE
ROWS 500
AS $$
#variable_conflict use_column
DECLARE
    -- Copies, which are not compressed as stored values are: else each look would unpack them.
    whole jsonb := data || '{}';
    ids uuid[] := proxy_ids || '{}';
    latest timestamptz := whole ->> 'checked_at';
    groups jsonb := whole -> 'groups';
    group_numbers jsonb := whole -> 'group';
    ages jsonb := whole -> 'age_us';
    lease_counts jsonb := whole -> 'leases';
    latencies jsonb := whole -> 'latency_ms';
    means jsonb := whole -> 'mean_latency_ms';
    streaks jsonb := whole -> 'streak';
    single integer := array_position(ids, of_proxy);
BEGIN
    RETURN QUERY
    SELECT
        ids[place + 1],
        common.attributes ->> 'stays',
        (lease_counts -> place)::integer,
        (common.attributes ->> 'max_concurrency')::integer,
        (common.attributes - '{stays,max_concurrency}'::text[]) || jsonb_build_object(
            'checked_at', latest - (ages -> place)::bigint * interval '1 microsecond',
            'latency_ms', latencies -> place,
            'mean_latency_ms', means -> place,
            'streak', streaks -> place,
            'lease_ids', '[]'::jsonb
        )
    FROM generate_series(coalesce(single, 1) - 1, coalesce(single, cardinality(ids)) - 1) AS place,
         LATERAL (SELECT groups -> (group_numbers -> place)::integer) AS common (attributes)
    WHERE of_proxy IS NULL OR ids[place + 1] = of_proxy;
END
$$;

-- Events as they are folded: the checks that are kept together are as many events as they are.
CREATE FUNCTION {schema}.apart_v1(appended {schema}.event_v1[])
RETURNS {schema}.event_v1[]
LANGUAGE sql
STABLE
AS $$
    SELECT array_agg(part.event)
    FROM (
        SELECT event
        FROM unnest(appended) AS event
        WHERE event.type <> 'ProxiesChecked'
        UNION ALL
        SELECT
            ROW(
                event.position,
                event.tx,
                event.recorded_at,
                NULL,
                NULL,
                event.pool_id,
                checked.proxy_id,
                NULL,
                NULL,
                checked.leases,
                checked.leases,
                checked.max_concurrency,
                checked.max_concurrency,
                event.schema_version,
                'HealthChecked',
                checked.status,
                checked.status,
                NULL,
                NULL,
                NULL,
                event.actor,
                event.correlation_id,
                NULL,
                checked.attributes
            )::{schema}.event_v1
        FROM unnest(appended) AS event,
             {schema}.checks_v1(event.proxy_ids, event.data) AS checked
        WHERE event.type = 'ProxiesChecked'
    ) AS part (event)
$$;

-- Tell whether an event is one that could be read back, and folded.
CREATE FUNCTION {schema}.is_event_v1(event {schema}.event_v1)
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
            WHEN 'LeaseReleased' THEN
                event.lease_id IS NOT NULL AND event.consumer IS NOT NULL
                AND event.consumer_id IS NOT NULL AND event.pool_name IS NOT NULL
                AND event.status_before IS NOT NULL AND event.status_after IS NOT NULL
                AND event.acquired_at IS NOT NULL
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

-- Fail as if a check constraint of the log did.
CREATE FUNCTION {schema}.refuse_event_v1()
RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    RAISE EXCEPTION 'an event is none that the log takes'
        USING ERRCODE = 'check_violation', CONSTRAINT = 'ck_events_shape',
              TABLE = 'events', SCHEMA = '{literal}';
END
$$;

-- Append events in the order of the array and fold them. ``numbers`` say which of the actors and
-- correlation ids each has, where it does not have its own. What commands decide by is folded
-- already if it is ``decided``.
CREATE FUNCTION {schema}.append_v1(
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
    RETURN appended;
END
$$;

-- Append one event of a lease and fold it: the same as append_v1 of one, in fewer statements. It
-- is of no turn, and under no id of its caller's: fold_one_v1 does not fold these.
CREATE FUNCTION {schema}.append_one_v1(event {schema}.event_v1, own_slot smallint)
RETURNS {schema}.event_v1
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
AS $$
BEGIN
    IF {schema}.is_event_v1(event) IS NOT TRUE
       OR event.type NOT IN ('LeaseAcquired', 'LeaseReleased', 'LeaseExpired')
       OR event.selector = 'round_robin' OR event.data ? 'own_id' THEN
        PERFORM {schema}.refuse_event_v1();
    END IF;
    event.tx := pg_current_xact_id();
    event.recorded_at := {schema}.clock();
    event.schema_version := coalesce(event.schema_version, 1);
    -- An INSERT has its lock before it takes a position.
    INSERT INTO {schema}.events (
        position, tx, recorded_at, expires_at, acquired_at, pool_id, proxy_id, lease_id,
        consumer_id, leases_before, leases_after, max_concurrency_before, max_concurrency_after,
        schema_version, type, status_before, status_after, selector, consumer, pool_name, actor,
        correlation_id, proxy_ids, data
    )
    SELECT
        nextval('{literal}.events_position_seq'), event.tx, event.recorded_at, event.expires_at,
        event.acquired_at, event.pool_id, event.proxy_id, event.lease_id, event.consumer_id,
        event.leases_before, event.leases_after, event.max_concurrency_before,
        event.max_concurrency_after, event.schema_version, event.type, event.status_before,
        event.status_after, event.selector, event.consumer, event.pool_name, event.actor,
        event.correlation_id, event.proxy_ids, event.data
    RETURNING position INTO event.position;
    PERFORM {schema}.fold_one_v1(event, own_slot);
    PERFORM {schema}.fold_others_v1(ARRAY[event], ARRAY[event.type], own_slot);
    RETURN event;
END
$$;

REVOKE ALL ON FUNCTION {schema}.append_v1, {schema}.append_one_v1 FROM PUBLIC;

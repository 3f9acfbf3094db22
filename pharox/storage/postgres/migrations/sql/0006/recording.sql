-- Record what else is told of a lease, a proxy or a request: its cost, and its exit of a gateway.

-- Append events in the order of the array and fold them. ``numbers`` say which of the actors and
-- correlation ids each has, where it does not have its own. What commands decide by is folded
-- already if it is ``decided``. A LeaseAcquired gets its cost if it has one,
-- and its exit if the proxy is a template. What an event ``rotates`` is recorded after it, as a
-- RotationBegan. Commands of leasing,
-- which have ``numbers``, are answered with the removal of drained proxies too, after all that was
-- asked for.
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
SET jit = off
AS $$
DECLARE
    at timestamptz := {schema}.clock();
    appended {schema}.event_v1[];
    folded {schema}.event_v1[];
    types text[];
    are_events boolean;
    have_exits boolean;
    have_rotations boolean;
    marks jsonb[];
    drained record;
    removal {schema}.event_v1;
BEGIN
    IF cardinality(new) = 0 THEN
        RETURN new;
    END IF;
    IF EXISTS (
        SELECT 1
        FROM {schema}.pools AS pool
        WHERE pool.id = ANY (ARRAY(
                  SELECT DISTINCT event.pool_id
                  FROM unnest(new) AS event
                  WHERE event.type = 'LeaseAcquired'
              ))
          AND (
              pool.cost_per_lease IS NOT NULL
              OR EXISTS (
                  SELECT 1
                  FROM {schema}.proxies AS priced
                  WHERE priced.pool_id = pool.id AND priced.cost_per_lease IS NOT NULL
              )
          )
    ) THEN
        new := {schema}.with_costs_v1(new);
    END IF;
    SELECT
        bool_and({schema}.is_event_v1(event) IS TRUE),
        bool_or(event.type = 'LeaseAcquired' AND (event.data ? 'exit' OR EXISTS (
            SELECT 1
            FROM {schema}.proxies AS template
            WHERE template.pool_id = event.pool_id AND template.id = event.proxy_id
              AND template.placeholders IS NOT NULL
        ))),
        bool_or(event.data ? 'rotates')
    INTO are_events, have_exits, have_rotations
    FROM unnest(new) AS event;
    IF NOT are_events THEN
        PERFORM {schema}.refuse_event_v1();
    END IF;
    IF have_rotations THEN
        marks := ARRAY(
            SELECT event.data -> 'rotates'
            FROM unnest(new) WITH ORDINALITY AS event
            ORDER BY event.ordinality
        );
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
            CASE
                WHEN have_exits AND event.type = 'LeaseAcquired' THEN
                    {schema}.with_exit_v1(
                        event.pool_id, event.proxy_id, event.lease_id, event.expires_at, event.data
                    )
                WHEN have_rotations THEN event.data - 'rotates'
                ELSE event.data
            END
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
    IF have_rotations THEN
        PERFORM {schema}.begin_rotations_v1(appended, marks, own_slot);
    END IF;
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

-- Append one event of a lease and fold it: the same as append_v1 of one, in fewer statements. It
-- is of no turn, under no id of its caller's, and without a cost: fold_one_v1 does not fold these.
CREATE OR REPLACE FUNCTION {schema}.append_one_v1(event {schema}.event_v1, own_slot smallint)
RETURNS {schema}.event_v1
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET jit = off
AS $$
BEGIN
    IF {schema}.is_event_v1(event) IS NOT TRUE
       OR event.type NOT IN ('LeaseAcquired', 'LeaseReleased', 'LeaseExpired')
       OR event.selector = 'round_robin' OR event.data ?| '{own_id,cost}' THEN
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

-- End the bans of some pools that are over: up to 1000, but for proxies that others have locked.
-- Each proxy gets the status that the ban kept for it. The locks are those of lease_commands_v2,
-- which may follow in the same transaction: cursors, counters, then proxies.
CREATE OR REPLACE FUNCTION {schema}.end_bans_v1(
    own_slot smallint,
    pools uuid[],
    actor text,
    correlation_id text
)
RETURNS void
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET jit = off
AS $$
#variable_conflict use_variable
DECLARE
    at timestamptz := {schema}.clock();
    found uuid[];
    events {schema}.event_v1[];
BEGIN
    IF NOT EXISTS (
        SELECT 1
        FROM {schema}.available_proxies AS banned
        WHERE banned.pool_id = ANY (pools) AND banned.banned_until <= at
    ) THEN
        RETURN;
    END IF;
    -- What others have locked is to be waited for (miss_reason_v1).
    PERFORM set_config('pharox.ends_bans', 'on', true);
    PERFORM 1
    FROM {schema}.selector_cursors AS cursor
    WHERE cursor.pool_id = ANY (pools) AND cursor.selector = 'round_robin'
    ORDER BY cursor.pool_id
    FOR UPDATE;
    PERFORM 1
    FROM {schema}.pool_stats AS counters
    WHERE counters.pool_id = ANY (pools) AND counters.slot = own_slot
    ORDER BY counters.pool_id
    FOR UPDATE SKIP LOCKED;

    -- The lock comes before the look: only then does the look see what others have done.
    found := ARRAY(
        SELECT banned.proxy_id
        FROM {schema}.available_proxies AS banned
        WHERE banned.pool_id = ANY (pools) AND banned.banned_until <= at
        ORDER BY banned.pool_id, banned.proxy_id
        LIMIT 1000
        FOR UPDATE SKIP LOCKED
    );
    events := ARRAY(
        SELECT ROW(
            NULL, NULL, NULL, NULL, NULL, banned.pool_id, banned.proxy_id, NULL, NULL,
            banned.current_leases, banned.current_leases, banned.max_concurrency,
            banned.max_concurrency, 1, 'ProxyChanged', banned.status, banned.returns_to, NULL,
            NULL, NULL, actor, correlation_id, NULL,
            jsonb_strip_nulls(jsonb_build_object(
                'host', proxy.host,
                'port', proxy.port,
                'protocol', proxy.protocol,
                'checked_at', banned.checked_at,
                'credential_id', proxy.credential_id,
                'source', proxy.source,
                'country', proxy.country,
                'city', proxy.city,
                'latitude', proxy.latitude,
                'longitude', proxy.longitude,
                'isp', proxy.isp,
                'asn', proxy.asn,
                'placeholders', proxy.placeholders,
                'rotate_id', proxy.rotate_id,
                'cost_per_gb', proxy.cost_per_gb,
                'cost_per_lease', proxy.cost_per_lease,
                'weight', proxy.weight,
                'reason', 'ban over'
            ))
        )::{schema}.event_v1
        FROM {schema}.available_proxies AS banned
        JOIN {schema}.proxies AS proxy
          ON proxy.id = banned.proxy_id AND proxy.pool_id = banned.pool_id
        WHERE banned.pool_id = ANY (pools) AND banned.proxy_id = ANY (found)
          AND banned.banned_until <= at
        ORDER BY banned.pool_id, banned.proxy_id
    );
    PERFORM {schema}.append_v1(events, own_slot);
END
$$;

-- The record of a pair after an outcome, with whether the outcome had it begin to rest.
CREATE FUNCTION {schema}.with_rest_v1(cool_downs_before integer, record jsonb)
RETURNS jsonb
LANGUAGE sql
IMMUTABLE
AS $$
    SELECT CASE
        WHEN (record ->> 'cool_downs')::integer > coalesce(cool_downs_before, 0)
        THEN record || '{"begins_rest": true}'
        ELSE record
    END
$$;

-- Report outcomes, of each pair one: what became of requests under leases, also of ended ones. The
-- answers are in the order of the reports; a lease of no pool is unknown.
CREATE OR REPLACE FUNCTION {schema}.report_outcomes_v1(
    own_slot smallint,
    actor text,
    correlation_id text,
    asked_ids uuid[],
    targets text[],
    outcomes text[],
    counts integer[],
    statuses integer[],
    asked_seconds double precision[],
    details jsonb[]
)
RETURNS TABLE (is_known boolean, target text, cools_until timestamptz, streak integer)
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    at timestamptz := {schema}.clock();
    pools uuid[];
    numbers integer[];
    events {schema}.event_v1[];
    records jsonb[] := array_fill(NULL::jsonb, ARRAY[cardinality(asked_ids)]);
BEGIN
    SELECT
        array_agg(lease.pool_id ORDER BY asked.number),
        array_agg(coalesce(targets[asked.number], lease.target) ORDER BY asked.number)
    INTO pools, targets
    FROM unnest(asked_ids) WITH ORDINALITY AS asked (id, number)
    LEFT JOIN {schema}.leases AS lease ON lease.id = asked.id;
    PERFORM {schema}.take_turns_v1(pools, targets);

    SELECT
        array_agg(asked.number::integer ORDER BY asked.number),
        array_agg({schema}.lease_event_v1(
            asked.number, 'OutcomeReported', lease.pool_id, lease.pool_name, lease.proxy_id,
            lease.id, lease.consumer_id, lease.consumer_name, NULL, NULL, NULL, NULL, NULL, NULL,
            NULL,
            details[asked.number]
            || {schema}.bytes_cost_v1(details[asked.number], lease.pool_id, lease.proxy_id)
            || CASE WHEN targets[asked.number] IS NULL THEN '{}' ELSE
                jsonb_build_object('target', targets[asked.number])
                || {schema}.with_rest_v1(pair.cool_downs, {schema}.pair_after_v1(
                    ROW(
                        pair.successes, pair.failures, pair.streak, pair.cool_downs,
                        pair.cools_until, pair.reported_at
                    )::{schema}.pair_record,
                    -- A target refuses an exit of a gateway, and the gateway has others.
                    CASE WHEN strpos(proxy.placeholders, 'session') > 0
                         THEN coalesce(pool.cool_down, '{}') || '{"base_seconds": 0}'
                         ELSE pool.cool_down END,
                    outcomes[asked.number], counts[asked.number],
                    statuses[asked.number], asked_seconds[asked.number],
                    lease.id || ':' || targets[asked.number], at,
                    EXISTS (
                        SELECT 1
                        FROM {schema}.troubled_targets AS trouble
                        WHERE trouble.pool_id = lease.pool_id
                          AND trouble.target = targets[asked.number]
                          AND {schema}.lasts_v1(trouble.since, at)
                    )
                ))
            END
        ) ORDER BY asked.number)
    INTO numbers, events
    FROM unnest(asked_ids) WITH ORDINALITY AS asked (id, number)
    JOIN {schema}.leases AS lease ON lease.id = asked.id
    JOIN {schema}.pools AS pool ON pool.id = lease.pool_id
    LEFT JOIN {schema}.proxies AS proxy
      ON proxy.pool_id = lease.pool_id AND proxy.id = lease.proxy_id
    LEFT JOIN {schema}.target_outcomes AS pair
      ON pair.pool_id = lease.pool_id AND pair.proxy_id = lease.proxy_id
     AND pair.target = targets[asked.number];
    IF numbers IS NOT NULL THEN
        PERFORM {schema}.append_v1(
            events, own_slot, array_fill(1, ARRAY[cardinality(events)]),
            ARRAY[actor], ARRAY[correlation_id]
        );
        FOR place IN 1 .. cardinality(events) LOOP
            records[numbers[place]] := events[place].data;
        END LOOP;
        PERFORM {schema}.judge_targets_v1(events, at, own_slot, actor, correlation_id);
    END IF;

    RETURN QUERY
    SELECT
        record.data IS NOT NULL,
        record.data ->> 'target',
        -- A rest that is over is in the record until a success, but is none.
        CASE WHEN (record.data ->> 'cools_until')::timestamptz > at
             THEN (record.data ->> 'cools_until')::timestamptz END,
        (record.data ->> 'streak')::integer
    FROM unnest(records) WITH ORDINALITY AS record (data, number)
    ORDER BY record.number;
END
$$;

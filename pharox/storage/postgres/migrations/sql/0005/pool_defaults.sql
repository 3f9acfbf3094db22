-- What a pool gives who does not say it: a selector, and how long a lease lasts.

-- The selectors of runs, and the durations of what is asked for in them, as lease_commands_v3 takes
-- them: null is the pool's, or the default of who asks.
CREATE FUNCTION {schema}.with_defaults_v1(
    run_ends integer[],
    run_pools text[],
    run_selectors text[],
    asked_durations double precision[],
    default_durations double precision[],
    OUT selectors text[],
    OUT durations double precision[]
)
LANGUAGE plpgsql
STABLE
AS $$
DECLARE
    pool_seconds double precision[];
    number integer := 0;
BEGIN
    SELECT
        array_agg(
            coalesce(run.selector, pool.selector, 'first_available') ORDER BY run.number
        ),
        array_agg(pool.lease_seconds ORDER BY run.number)
    INTO selectors, pool_seconds
    FROM unnest(run_pools, run_selectors) WITH ORDINALITY AS run (name, selector, number)
    LEFT JOIN {schema}.pools AS pool ON pool.name = run.name;
    durations := asked_durations;
    FOR run IN 1 .. cardinality(run_ends) LOOP
        WHILE number < run_ends[run] LOOP
            number := number + 1;
            durations[number] := coalesce(
                durations[number], pool_seconds[run], default_durations[number]
            );
        END LOOP;
    END LOOP;
END
$$;

-- Acquire one lease: acquire_one_v1 while nobody waits in the pool, no turns are taken, and no ban
-- is over.
CREATE FUNCTION {schema}.acquire_one_v3(
    own_process uuid,
    own_slot smallint,
    with_stats boolean,
    actor text,
    correlation_id text,
    pool_name text,
    selector text,
    asked_id uuid,
    consumer text,
    duration double precision,
    default_duration double precision
)
RETURNS SETOF {schema}.lease_answer
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
AS $$
#variable_conflict use_variable
DECLARE
    pool_selector text;
    pool_seconds double precision;
    has_more_to_do boolean;
BEGIN
    SELECT
        pool.selector,
        pool.lease_seconds,
        EXISTS (
            SELECT 1 FROM {schema}.waiting_tickets AS ticket WHERE ticket.pool_id = pool.id
        )
        OR EXISTS (
            SELECT 1
            FROM {schema}.available_proxies AS banned
            WHERE banned.pool_id = pool.id AND banned.banned_until <= {schema}.clock()
        )
    INTO pool_selector, pool_seconds, has_more_to_do
    FROM {schema}.pools AS pool
    WHERE pool.name = pool_name;
    selector := coalesce(selector, pool_selector, 'first_available');
    duration := coalesce(duration, pool_seconds, default_duration);

    IF has_more_to_do OR selector = 'round_robin' THEN
        RETURN QUERY
        SELECT answer.*
        FROM {schema}.lease_commands_v3(
            own_process, 0, false, false, own_slot, with_stats, '{}', ARRAY[actor],
            ARRAY[correlation_id], '{}',
            '{}', ARRAY[1], ARRAY['each'], ARRAY[0], ARRAY[false], ARRAY[pool_name],
            ARRAY[selector], ARRAY[NULL::text], ARRAY[NULL::jsonb], ARRAY[NULL::jsonb],
            ARRAY[asked_id], ARRAY[false], ARRAY[consumer], ARRAY[duration]
        ) AS answer;
        RETURN;
    END IF;
    RETURN QUERY
    SELECT answer.*
    FROM {schema}.acquire_one_v1(
        own_slot, with_stats, actor, correlation_id, pool_name, selector, asked_id, consumer,
        duration
    ) AS answer;
END
$$;

-- Wait for locks as wait_v1 does. Where somebody waits for round-robin, its cursor comes before the
-- proxies, as in lease_commands_v2. Without a selector it is that of the pool.
CREATE OR REPLACE FUNCTION {schema}.wait_v2(
    chosen_ids uuid[],
    released_id uuid,
    pool_name text,
    selector text,
    condition text,
    arguments jsonb,
    wanted integer
)
RETURNS void
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
AS $$
#variable_conflict use_variable
BEGIN
    PERFORM {schema}.wait_for_turn_v1(chosen.id)
    FROM (SELECT id FROM unnest(chosen_ids) AS given (id) ORDER BY hashtext(id::text)) AS chosen;
    PERFORM 1
    FROM {schema}.selector_cursors AS cursor
    WHERE cursor.selector = 'round_robin'
      AND cursor.pool_id IN (
          SELECT pool.id FROM {schema}.pools AS pool WHERE pool.name = pool_name
          UNION ALL
          SELECT lease.pool_id FROM {schema}.leases AS lease WHERE lease.id = released_id
      )
      AND EXISTS (
          SELECT 1
          FROM {schema}.waiting_tickets AS ticket
          WHERE ticket.pool_id = cursor.pool_id AND ticket.selector = 'round_robin'
      )
    FOR UPDATE OF cursor;
    selector := coalesce(
        selector, (SELECT pool.selector FROM {schema}.pools AS pool WHERE pool.name = pool_name)
    );
    PERFORM {schema}.wait_v1(
        chosen_ids, released_id, pool_name, selector, condition, arguments, wanted
    );
END
$$;

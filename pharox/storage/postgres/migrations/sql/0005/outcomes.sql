-- What holders say of targets: outcomes are recorded, and pairs of proxy and target rest.
--
--   outcomes of requests ──> the record of each pair after them ──> events ──> target_outcomes
--
-- The rules are those of pharox.models.outcome: PairRecord.after says them in Python.
--
-- Locks: pools by id, so that none is removed meanwhile; then one turn for each target of a pool,
-- by its number. Nothing else takes such a turn, so nobody waits in a circle.

-- How long a pair rests that has rested so many times since its last success, in seconds.
CREATE FUNCTION {schema}.cool_down_s_v1(policy jsonb, times integer, seed text)
RETURNS double precision
LANGUAGE sql
IMMUTABLE
AS $$
    SELECT least(
        coalesce((policy ->> 'max_seconds')::double precision, 900),
        coalesce((policy ->> 'base_seconds')::double precision, 30)
        * power(coalesce((policy ->> 'factor')::double precision, 2), least(times, 60))
    ) * (
        1 + coalesce((policy ->> 'jitter')::double precision, 0.1)
        * (2 * ('x' || left(md5(seed), 8))::bit(32)::bigint / 4294967296.0 - 1)
    )
$$;

-- What is known of a pair. A type of its own: a rebuild exchanges the read models, on whose rows no
-- function may depend.
CREATE TYPE {schema}.pair_record AS (
    successes double precision,
    failures double precision,
    streak integer,
    cool_downs integer,
    cools_until timestamptz,
    reported_at timestamptz
);

-- The record of a pair after an outcome, as the data of its event.
CREATE FUNCTION {schema}.pair_after_v1(
    pair {schema}.pair_record,
    policy jsonb,
    kind text,
    count integer,
    status integer,
    asked_s double precision,
    seed text,
    at timestamptz,
    is_troubled boolean
)
RETURNS jsonb
LANGUAGE plpgsql
STABLE
AS $$
#variable_conflict use_variable
DECLARE
    is_ok boolean := kind = 'ok';
    is_refusal boolean := kind IN ('blocked', 'unclear');
    -- After a hundred half-lives nothing is left; a far smaller number would be an underflow.
    kept double precision := CASE WHEN pair.reported_at IS NULL THEN 0 ELSE power(
        0.5,
        least(100, greatest(0, extract(epoch FROM at - pair.reported_at)) / 3600)::double precision
    ) END;
    successes double precision := coalesce(pair.successes, 0) * kept;
    failures double precision := coalesce(pair.failures, 0) * kept;
    streak bigint := coalesce(pair.streak, 0);
    cool_downs integer := coalesce(pair.cool_downs, 0);
    cools_until timestamptz := pair.cools_until;
    wish_s double precision := nullif(asked_s, 0); -- Not to wait at all is to say nothing.
    is_cooling boolean := coalesce(pair.cools_until > at, false);
BEGIN
    IF is_ok THEN
        successes := successes + count;
        streak := greatest(streak, 0) + count;
        cool_downs := 0;
        cools_until := NULL;
    ELSE
        failures := failures + count;
        IF is_refusal THEN
            streak := least(streak, 0) - count;
        END IF;
    END IF;
    IF NOT is_ok AND kind <> 'proxy_failed' AND NOT is_troubled
       AND (policy ->> 'base_seconds')::double precision IS DISTINCT FROM 0 THEN
        IF wish_s IS NOT NULL THEN
            IF is_cooling THEN
                cools_until := greatest(cools_until, at + wish_s * interval '1 second');
            ELSE
                cools_until := at + wish_s * interval '1 second';
                cool_downs := cool_downs + 1;
            END IF;
        ELSIF is_refusal AND NOT is_cooling
              AND (status = 429 OR -streak >= coalesce((policy ->> 'after')::integer, 2)) THEN
            cools_until := at + interval '1 second' * {schema}.cool_down_s_v1(
                policy, cool_downs, seed || ':' || cool_downs
            );
            cool_downs := cool_downs + 1;
        END IF;
    END IF;
    RETURN jsonb_strip_nulls(jsonb_build_object(
        'successes', round(successes::numeric, 6),
        'failures', round(failures::numeric, 6),
        'streak', greatest(least(streak, 2147483647), -2147483647),
        'cool_downs', cool_downs,
        'cools_until', cools_until
    ));
END
$$;

-- Take the turn of each target of some pools, until the transaction ends. The first number is
-- pharox's own among the advisory locks of a database.
CREATE FUNCTION {schema}.take_turns_v1(pools uuid[], targets text[])
RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM 1
    FROM {schema}.pools AS pool
    WHERE pool.id = ANY (pools)
    ORDER BY pool.id
    FOR KEY SHARE;
    PERFORM pg_advisory_xact_lock(1885890931, turn.number)
    FROM (
        SELECT DISTINCT hashtext(asked.pool::text || asked.target) AS number
        FROM unnest(pools, targets) AS asked (pool, target)
        WHERE asked.target IS NOT NULL
        ORDER BY number
    ) AS turn;
END
$$;

-- Whether a target that is in trouble since a moment still is: nobody may say that it answers, and
-- then it is found to be in trouble again, or not.
CREATE FUNCTION {schema}.lasts_v1(since timestamptz, at timestamptz)
RETURNS boolean
LANGUAGE sql
STABLE
AS $$
    SELECT since > at - interval '15 minutes'
$$;

-- Record which targets are in trouble after some reports, and which are no more. A target is if
-- most of at least 10 proxies that were reported within a minute failed there last.
CREATE FUNCTION {schema}.judge_targets_v1(
    reports {schema}.event_v1[],
    at timestamptz,
    own_slot smallint,
    actor text,
    correlation_id text
)
RETURNS void
LANGUAGE plpgsql
AS $$
#variable_conflict use_variable
DECLARE
    site record;
    lately record;
    events {schema}.event_v1[] := '{}';
BEGIN
    FOR site IN
        SELECT
            report.pool_id,
            report.pool_name,
            report.data ->> 'target' AS target,
            bool_or(report.data ->> 'outcome' = 'ok') AS answers,
            bool_or(report.data ->> 'outcome' IN ('target_failed', 'unclear')) AS fails,
            bool_or(trouble.target IS NOT NULL) AS was_troubled,
            bool_or(coalesce({schema}.lasts_v1(trouble.since, at), false)) AS is_troubled
        FROM unnest(reports) AS report
        LEFT JOIN {schema}.troubled_targets AS trouble
          ON trouble.pool_id = report.pool_id AND trouble.target = report.data ->> 'target'
        WHERE report.data ? 'target'
        GROUP BY report.pool_id, report.pool_name, report.data ->> 'target'
        ORDER BY report.pool_id, (report.data ->> 'target') COLLATE "C"
    LOOP
        IF site.was_troubled AND site.answers THEN
            events := events || {schema}.lease_event_v1(
                1, 'TargetRecovered', site.pool_id, site.pool_name, NULL, NULL, NULL, NULL, NULL,
                NULL, NULL, NULL, NULL, NULL, NULL, jsonb_build_object('target', site.target)
            );
        ELSIF site.fails AND NOT site.answers AND NOT site.is_troubled THEN
            SELECT
                count(*) AS proxies,
                count(*) FILTER (WHERE pair.outcome IN ('target_failed', 'unclear')) AS failed
            INTO lately
            FROM {schema}.target_outcomes AS pair
            WHERE pair.pool_id = site.pool_id AND pair.target = site.target
              AND pair.reported_at > at - interval '1 minute';
            IF lately.proxies >= 10 AND 2 * lately.failed > lately.proxies THEN
                events := events || {schema}.lease_event_v1(
                    1, 'TargetTroubled', site.pool_id, site.pool_name, NULL, NULL, NULL, NULL,
                    NULL, NULL, NULL, NULL, NULL, NULL, NULL,
                    jsonb_build_object(
                        'target', site.target,
                        'proxies', lately.proxies,
                        'failed', lately.failed
                    )
                );
            END IF;
        END IF;
    END LOOP;
    IF events <> '{}' THEN
        PERFORM {schema}.append_v1(
            events, own_slot, array_fill(1, ARRAY[cardinality(events)]),
            ARRAY[actor], ARRAY[correlation_id]
        );
    END IF;
END
$$;

-- Report outcomes, of each pair one: what became of requests under leases, also of ended ones. The
-- answers are in the order of the reports; a lease of no pool is unknown.
CREATE FUNCTION {schema}.report_outcomes_v1(
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
            || CASE WHEN targets[asked.number] IS NULL THEN '{}' ELSE
                jsonb_build_object('target', targets[asked.number])
                || {schema}.pair_after_v1(
                    ROW(
                        pair.successes, pair.failures, pair.streak, pair.cool_downs,
                        pair.cools_until, pair.reported_at
                    )::{schema}.pair_record,
                    pool.cool_down, outcomes[asked.number], counts[asked.number],
                    statuses[asked.number], asked_seconds[asked.number],
                    lease.id || ':' || targets[asked.number], at,
                    EXISTS (
                        SELECT 1
                        FROM {schema}.troubled_targets AS trouble
                        WHERE trouble.pool_id = lease.pool_id
                          AND trouble.target = targets[asked.number]
                          AND {schema}.lasts_v1(trouble.since, at)
                    )
                )
            END
        ) ORDER BY asked.number)
    INTO numbers, events
    FROM unnest(asked_ids) WITH ORDINALITY AS asked (id, number)
    JOIN {schema}.leases AS lease ON lease.id = asked.id
    JOIN {schema}.pools AS pool ON pool.id = lease.pool_id
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

-- Have a proxy rest for one target so many seconds, or, if that is null, end its rest. No answer
-- if there is no such proxy.
CREATE FUNCTION {schema}.set_cool_down_v1(
    own_slot smallint,
    actor text,
    correlation_id text,
    proxy uuid,
    wanted text,
    seconds double precision,
    why text
)
RETURNS TABLE (cools_until timestamptz)
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
AS $$
#variable_conflict use_column
DECLARE
    at timestamptz := {schema}.clock();
    pool uuid := (SELECT known.pool_id FROM {schema}.proxies AS known WHERE known.id = proxy);
    until timestamptz := at + seconds * interval '1 second';
    pair record;
    data jsonb;
BEGIN
    IF pool IS NULL THEN
        RETURN;
    END IF;
    PERFORM {schema}.take_turns_v1(ARRAY[pool], ARRAY[wanted]);
    IF NOT EXISTS (
        SELECT 1 FROM {schema}.proxies AS known WHERE known.id = proxy AND known.pool_id = pool
    ) THEN
        RETURN; -- It was removed while the turn was waited for.
    END IF;
    SELECT known.* INTO pair
    FROM {schema}.target_outcomes AS known
    WHERE known.pool_id = pool AND known.proxy_id = proxy AND known.target = wanted;
    data := jsonb_strip_nulls(jsonb_build_object(
        'target', wanted,
        'successes', coalesce(pair.successes, 0),
        'failures', coalesce(pair.failures, 0),
        -- Who ends a rest gives the pair a new start.
        'streak', greatest(coalesce(pair.streak, 0), CASE WHEN until IS NULL THEN 0 END),
        'cool_downs', CASE WHEN until IS NULL THEN 0 ELSE coalesce(pair.cool_downs, 0) END,
        'cools_until', until,
        'outcome', pair.outcome,
        'status', pair.status,
        'reported_at', pair.reported_at,
        'reason', why
    ));
    PERFORM {schema}.append_v1(
        ARRAY[{schema}.lease_event_v1(
            1, 'CoolDownSet', pool, NULL, proxy, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
            NULL, NULL, data
        )],
        own_slot, ARRAY[1], ARRAY[actor], ARRAY[correlation_id]
    );
    cools_until := until;
    RETURN NEXT;
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
            WHEN 'OutcomeReported' THEN
                event.lease_id IS NOT NULL AND event.consumer IS NOT NULL
                AND event.consumer_id IS NOT NULL AND event.pool_name IS NOT NULL
                AND event.proxy_id IS NOT NULL AND event.status_before IS NULL
                AND event.data ? 'outcome'
            WHEN 'CoolDownSet' THEN
                event.proxy_id IS NOT NULL AND event.status_before IS NULL
                AND event.data ? 'target'
            WHEN 'TargetTroubled' THEN
                event.pool_name IS NOT NULL AND event.data ?& '{target,proxies,failed}'
            WHEN 'TargetRecovered' THEN event.pool_name IS NOT NULL AND event.data ? 'target'
            WHEN 'SessionBound' THEN
                event.pool_name IS NOT NULL AND event.proxy_id IS NOT NULL
                AND event.expires_at IS NOT NULL AND event.status_before IS NULL
                AND event.data ? 'key'
            WHEN 'SessionForgotten' THEN
                event.pool_name IS NOT NULL AND event.proxy_id IS NOT NULL
                AND event.status_before IS NULL AND event.data ? 'key'
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

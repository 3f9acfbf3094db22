-- Bound the leases of a pool: how many a consumer holds, how many are held for a target, and how many
-- begin in a window of time.
--
--   a request in a pool with limits ──> its condition ends with a mark ──> who looks for a proxy by a
--   marked condition has the turn of each limited key, then counts, then looks at proxies
--
-- The mark names pool and consumer: /*limits:POOL:CONSUMER*/. What it stands for is read from the pool
-- each time, so tickets are bound by what holds when they are served. The turn of a key is tried
-- where leases are decided: who does not get it is answered 'locked', and waits for it first of all
-- (wait_v3, wait_sticky_v2), before it has anything else. So nobody waits in a circle.
--
-- Whatever bounds a consumer, a target or the pool is a row of limits_v1, and its key one of
-- limit_keys_v1. What bounds proxies is part of paces_v1.

-- What events of leases in a pool with such limits say of that.
CREATE FUNCTION {schema}.limited_details_v1(limits jsonb)
RETURNS jsonb
LANGUAGE sql
IMMUTABLE
AS $$
    SELECT CASE WHEN limits IS NULL THEN '{}' ELSE jsonb_strip_nulls(jsonb_build_object(
        'limited', true,
        'paced_seconds', (
            SELECT max((pace.rule ->> 'seconds')::double precision)
            FROM jsonb_array_elements(limits -> 'paces') AS pace (rule)
        )
    )) END
$$;

-- A condition without its mark.
CREATE FUNCTION {schema}.unlimited_v1(condition text)
RETURNS text
LANGUAGE sql
IMMUTABLE
AS $$
    SELECT regexp_replace(condition, ' /\*limits:[-0-9a-f:]*\*/', '', 'g')
$$;

-- A condition with the mark of a consumer, in a pool with limits.
CREATE FUNCTION {schema}.limited_v1(condition text, pool uuid, consumer uuid)
RETURNS text
LANGUAGE sql
IMMUTABLE
AS $$
    SELECT '(' || coalesce({schema}.unlimited_v1(condition), 'true') || ') /*limits:'
        || pool || ':' || consumer || '*/'
$$;

-- The pool and the consumer of a mark, and the target of a condition with $5, if it is for one.
CREATE FUNCTION {schema}.limited_by_v1(
    condition text,
    arguments jsonb,
    OUT pool uuid,
    OUT consumer uuid,
    OUT target text
)
LANGUAGE sql
IMMUTABLE
AS $$
    SELECT
        mark.ids[1]::uuid,
        mark.ids[2]::uuid,
        CASE WHEN condition LIKE '%/*target*/%' THEN arguments ->> -1 END
    FROM regexp_match(condition, '/\*limits:([-0-9a-f]{36}):([-0-9a-f]{36})\*/') AS mark (ids)
$$;

-- The limits of a pool that bind a consumer's leases for a target: how much each allows and how much
-- is used, how many leases it has room for, and when time frees enough for so many.
CREATE FUNCTION {schema}.limits_v1(
    pool uuid,
    consumer uuid,
    target text,
    needed integer,
    at timestamptz
)
RETURNS TABLE (
    name text,
    per text,
    most double precision,
    used double precision,
    seconds double precision,
    room integer,
    frees_at timestamptz
)
LANGUAGE plpgsql
STABLE
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET jit = off
AS $$
#variable_conflict use_variable
DECLARE
    limits jsonb := (SELECT known.limits FROM {schema}.pools AS known WHERE known.id = pool);
    allowed integer;
    rule jsonb;
    times timestamptz[];
BEGIN
    allowed := (limits ->> 'leases_per_consumer')::integer;
    IF allowed IS NOT NULL THEN
        times := ARRAY(
            SELECT lease.expires_at
            FROM {schema}.leases AS lease
            WHERE lease.pool_id = pool AND lease.consumer_id = consumer
              AND lease.status = 'active' AND lease.limited
            ORDER BY lease.expires_at
        );
        RETURN QUERY SELECT
            'leases_per_consumer', 'consumer', allowed::double precision,
            cardinality(times)::double precision, NULL::double precision,
            allowed - cardinality(times), times[cardinality(times) - allowed + needed];
    END IF;
    allowed := (limits ->> 'leases_per_target')::integer;
    IF allowed IS NOT NULL AND target IS NOT NULL THEN
        times := ARRAY(
            SELECT lease.expires_at
            FROM {schema}.leases AS lease
            WHERE lease.pool_id = pool AND lease.target = target
              AND lease.status = 'active' AND lease.limited
            ORDER BY lease.expires_at
        );
        RETURN QUERY SELECT
            'leases_per_target', 'target', allowed::double precision,
            cardinality(times)::double precision, NULL::double precision,
            allowed - cardinality(times), times[cardinality(times) - allowed + needed];
    END IF;
    FOR rule IN
        SELECT pace.rule
        FROM jsonb_array_elements(limits -> 'paces') AS pace (rule)
        WHERE pace.rule ->> 'per' = 'consumer'
    LOOP
        allowed := (rule ->> 'starts')::integer;
        seconds := (rule ->> 'seconds')::double precision;
        -- No window has two starts that are further apart, whatever a clock has done.
        times := ARRAY(
            SELECT start.started_at
            FROM {schema}.lease_starts AS start
            WHERE start.pool_id = pool AND start.consumer_id = consumer
              AND start.started_at > at - seconds * interval '1 second'
              AND start.started_at < at + seconds * interval '1 second'
            ORDER BY start.started_at
        );
        RETURN QUERY SELECT
            'pace', 'consumer', allowed::double precision,
            cardinality(times)::double precision, seconds,
            allowed - cardinality(times),
            times[cardinality(times) - allowed + needed] + seconds * interval '1 second';
    END LOOP;
    IF {schema}.has_budget_v1(limits) THEN
        RETURN QUERY SELECT known.* FROM {schema}.budgets_v1(limits, pool, consumer, at) AS known;
    END IF;
END
$$;

-- How many more leases the limits of a pool allow a consumer for a target.
CREATE FUNCTION {schema}.limit_room_v1(pool uuid, consumer uuid, target text)
RETURNS integer
LANGUAGE sql
STABLE
AS $$
    SELECT coalesce(min(known.room), 2147483647)
    FROM {schema}.limits_v1(pool, consumer, target, 1, {schema}.clock()) AS known
$$;

-- The most leases that a consumer could have at once for a target, if nobody had any.
CREATE FUNCTION {schema}.limit_most_v1(pool uuid, consumer uuid, target text)
RETURNS double precision
LANGUAGE sql
STABLE
AS $$
    SELECT coalesce(min(known.most), 2147483647)
    FROM {schema}.limits_v1(pool, consumer, target, 1, {schema}.clock()) AS known
    WHERE known.per IN ('consumer', 'target') AND known.name NOT LIKE '%_per_day'
$$;

-- The numbers of the turns that a lease in a pool with limits needs, in their order.
CREATE FUNCTION {schema}.limit_keys_v1(limits jsonb, pool uuid, consumer uuid, target text)
RETURNS integer[]
LANGUAGE sql
IMMUTABLE
AS $$
    SELECT coalesce(array_agg(DISTINCT key.number ORDER BY key.number), '{}')
    FROM (
        SELECT hashtext(pool || ':consumer:' || consumer)
        WHERE limits ->> 'leases_per_consumer' IS NOT NULL
           OR jsonb_path_exists(limits, '$.paces[*] ? (@.per == "consumer")')
        UNION ALL
        SELECT hashtext(pool || ':target:' || target)
        WHERE limits ->> 'leases_per_target' IS NOT NULL AND target IS NOT NULL
    ) AS key (number)
$$;

-- Try to take the turns that a lease needs, until the transaction ends. The first number is pharox's
-- own among the advisory locks of a database.
CREATE FUNCTION {schema}.try_limits_v1(pool uuid, consumer uuid, target text)
RETURNS boolean
LANGUAGE sql
AS $$
    SELECT coalesce(bool_and(pg_try_advisory_xact_lock(1885890934, turn.number)), true)
    FROM {schema}.pools AS known,
    LATERAL unnest({schema}.limit_keys_v1(known.limits, pool, consumer, target))
        AS turn (number)
    WHERE known.id = pool
$$;

-- Wait for these turns. Whoever does has taken nothing else yet.
CREATE FUNCTION {schema}.wait_limits_v1(pool_name text, consumer text, target text)
RETURNS void
LANGUAGE plpgsql
AS $$
#variable_conflict use_variable
DECLARE
    key integer;
BEGIN
    FOR key IN
        SELECT turn.number
        FROM {schema}.pools AS known
        JOIN {schema}.consumers AS asking ON asking.name = consumer,
        LATERAL unnest({schema}.limit_keys_v1(known.limits, known.id, asking.id, target))
            AS turn (number)
        WHERE known.name = pool_name AND known.limits IS NOT NULL
        ORDER BY turn.number
    LOOP
        PERFORM pg_advisory_xact_lock(1885890934, key);
    END LOOP;
END
$$;

-- What a proxy must meet beside a condition, so that its starts and those of its pair stay within the
-- paces of a pool: text that begins with AND, or nothing.
CREATE FUNCTION {schema}.paces_v1(pool uuid, has_target boolean)
RETURNS text
LANGUAGE sql
STABLE
AS $$
    SELECT coalesce(string_agg(
        format(
            $sql$ AND NOT EXISTS (
                SELECT
                FROM {format}.lease_starts AS start
                WHERE start.pool_id = $1 AND start.proxy_id = availability.proxy_id
                  AND start.started_at > {format}.clock() - %1$L::interval
                  AND start.started_at < {format}.clock() + %1$L::interval %2$s
                OFFSET %3$s
            )$sql$,
            (pace.rule ->> 'seconds')::double precision * interval '1 second',
            CASE WHEN pace.rule ->> 'per' = 'pair' THEN 'AND start.target = $5 ->> -1' ELSE '' END,
            (pace.rule ->> 'starts')::integer - 1
        ),
        '' ORDER BY pace.number
    ), '')
    FROM {schema}.pools AS known,
    LATERAL jsonb_array_elements(known.limits -> 'paces') WITH ORDINALITY AS pace (rule, number)
    WHERE known.id = pool
      AND (pace.rule ->> 'per' = 'proxy' OR pace.rule ->> 'per' = 'pair' AND has_target)
$$;

-- What a condition is with its mark spelled out.
CREATE FUNCTION {schema}.for_limits_v1(condition text)
RETURNS text
LANGUAGE plpgsql
STABLE
AS $$
DECLARE
    mark record;
    has_target boolean := condition LIKE '%/*target*/%';
BEGIN
    IF condition NOT LIKE '%/*limits:%' THEN
        RETURN condition;
    END IF;
    SELECT * INTO mark FROM {schema}.limited_by_v1(condition, NULL);
    -- What depends on no proxy is asked once for all of them.
    RETURN '(' || {schema}.unlimited_v1(condition) || ')' || format(
        $sql$ AND (SELECT {format}.limit_room_v1(%L, %L, %s) > 0)$sql$,
        mark.pool, mark.consumer, CASE WHEN has_target THEN '$5 ->> -1' ELSE 'NULL' END
    ) || {schema}.paces_v1(mark.pool, has_target);
END
$$;

-- Where a statement that is made for a condition looks: at those of the pool $1 that meet it. $5 has
-- the values of the filters that it was made from, and the target.
CREATE OR REPLACE FUNCTION {schema}.matching_v1(condition text)
RETURNS text
LANGUAGE sql
STABLE
AS $$
    SELECT CASE
        WHEN condition IS NULL THEN $from$
            FROM {schema}.available_proxies AS availability
            WHERE availability.pool_id = $1 $from$
        ELSE $from$
            FROM {schema}.available_proxies AS availability
            JOIN {schema}.proxies AS description
              ON description.pool_id = availability.pool_id
             AND description.id = availability.proxy_id
            WHERE availability.pool_id = $1 AND ($from$
            || {schema}.for_target_v1({schema}.for_limits_v1(condition)) || ')'
    END
$$;

-- Up to so many free proxies for a marked condition, locked: as free_proxies_v1 finds them for the
-- same condition without its mark, as many as the limits have room for.
CREATE FUNCTION {schema}.limited_proxies_v1(
    selector text,
    pool uuid,
    lowest_rank integer,
    highest_rank integer,
    after uuid,
    upto uuid,
    wanted integer,
    condition text,
    arguments jsonb
)
RETURNS {schema}.lease_place[]
LANGUAGE plpgsql
AS $$
#variable_conflict use_variable
DECLARE
    mark record;
    paces text;
    found {schema}.lease_place[];
BEGIN
    SELECT * INTO mark FROM {schema}.limited_by_v1(condition, arguments);
    IF NOT {schema}.try_limits_v1(pool, mark.consumer, mark.target) THEN
        RETURN '{}';
    END IF;
    -- Only now: whoever had the turn before may have leased.
    wanted := least(wanted, {schema}.limit_room_v1(pool, mark.consumer, mark.target));
    IF wanted <= 0 THEN
        RETURN '{}';
    END IF;
    paces := {schema}.paces_v1(pool, mark.target IS NOT NULL);
    found := {schema}.free_proxies_v1(
        selector, pool, lowest_rank, highest_rank, after, upto, wanted,
        '(' || {schema}.unlimited_v1(condition) || ')' || paces, arguments
    );
    IF paces = '' OR found = '{}' THEN
        RETURN found;
    END IF;
    -- A proxy may have been leased between the look at its starts and its lock.
    EXECUTE format(
        $sql$
            SELECT coalesce(array_agg(
                ROW(
                    place.proxy_id, place.status, place.checked_at, place.max_concurrency,
                    place.current_leases, place.lease_rank
                )::{format}.lease_place ORDER BY place.ordinality
            ), '{}')
            FROM unnest($2) WITH ORDINALITY AS place
            JOIN {format}.available_proxies AS availability
              ON availability.pool_id = $1 AND availability.proxy_id = place.proxy_id
            WHERE $3 IS NULL AND $4 IS NULL AND ($5 IS NULL OR true) %s
        $sql$,
        paces
    )
    INTO found
    USING pool, found, NULL::text, NULL::text, arguments;
    RETURN found;
END
$$;

-- The limit that a request has reached, if it needs so many leases: of those without room the one
-- that time frees last. If ``of_proxies``, else that of the proxy which may begin a lease first, of
-- those that meet the condition and are free but for their paces.
CREATE FUNCTION {schema}.reached_limit_v1(
    pool uuid,
    consumer uuid,
    target text,
    needed integer,
    of_proxies boolean,
    condition text,
    arguments jsonb,
    at timestamptz,
    OUT reached jsonb,
    OUT frees_at timestamptz
)
LANGUAGE plpgsql
STABLE
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET jit = off
AS $$
#variable_conflict use_variable
DECLARE
    bound record;
    free_ids uuid[];
BEGIN
    SELECT known.* INTO bound
    FROM {schema}.limits_v1(pool, consumer, target, needed, at) AS known
    WHERE known.room < needed
    ORDER BY known.frees_at DESC NULLS FIRST, known.name, known.per, known.seconds
    LIMIT 1;
    IF NOT FOUND AND of_proxies THEN
        EXECUTE format(
            $sql$
                SELECT coalesce(array_agg(availability.proxy_id), '{}')
                %s
                  AND availability.lease_rank <= (
                      SELECT known.lease_slow::integer
                      FROM {format}.pools AS known
                      WHERE known.id = $1
                  )
                  AND (availability.rests_until IS NULL
                       OR availability.rests_until <= {format}.clock())
                  AND EXISTS (
                      SELECT
                      FROM {format}.lease_starts AS start
                      WHERE start.pool_id = $1 AND start.proxy_id = availability.proxy_id
                  )
            $sql$,
            {schema}.matching_v1({schema}.unlimited_v1(condition))
        )
        INTO free_ids
        USING pool, NULL::text, NULL::text, NULL::text, arguments;
        -- A proxy comes back when the last of its paces lets it.
        SELECT back.* INTO bound
        FROM (
            SELECT DISTINCT ON (paced.proxy_id) paced.*
            FROM (
                SELECT
                    'pace' AS name,
                    pace.rule ->> 'per' AS per,
                    (pace.rule ->> 'starts')::double precision AS most,
                    count(*)::double precision AS used,
                    (pace.rule ->> 'seconds')::double precision AS seconds,
                    (array_agg(start.started_at ORDER BY start.started_at DESC))[
                        (pace.rule ->> 'starts')::integer
                    ] + (pace.rule ->> 'seconds')::double precision * interval '1 second'
                        AS frees_at,
                    start.proxy_id
                FROM {schema}.pools AS known,
                LATERAL jsonb_array_elements(known.limits -> 'paces') WITH ORDINALITY
                    AS pace (rule, number)
                JOIN {schema}.lease_starts AS start
                  ON start.pool_id = pool
                 AND start.started_at
                     > at - (pace.rule ->> 'seconds')::double precision * interval '1 second'
                 AND start.started_at
                     < at + (pace.rule ->> 'seconds')::double precision * interval '1 second'
                 AND (pace.rule ->> 'per' = 'proxy' OR start.target = target)
                WHERE known.id = pool AND start.proxy_id = ANY (free_ids) AND pace.rule ->> 'per' IN ('proxy', 'pair')
                GROUP BY pace.number, pace.rule, start.proxy_id
                HAVING count(*) >= (pace.rule ->> 'starts')::integer
            ) AS paced
            ORDER BY paced.proxy_id, paced.frees_at DESC, paced.per, paced.seconds
        ) AS back
        ORDER BY back.frees_at, back.proxy_id
        LIMIT 1;
    END IF;
    IF FOUND THEN
        frees_at := bound.frees_at;
        reached := jsonb_strip_nulls(jsonb_build_object(
            'name', bound.name,
            'per', bound.per,
            'most', bound.most,
            'used', bound.used,
            'seconds', bound.seconds
        ));
    END IF;
END
$$;

-- What the event of a miss says of the limit that was reached, if that is its reason. It comes before
-- what a sticky session waits for.
CREATE FUNCTION {schema}.reached_details_v1(
    pool uuid,
    consumer text,
    target text,
    needs integer,
    reason text,
    condition text,
    arguments jsonb
)
RETURNS jsonb
LANGUAGE plpgsql
STABLE
AS $$
DECLARE
    at timestamptz := {schema}.clock();
    limits record;
BEGIN
    IF reason NOT IN ('limit_reached', 'session_busy', 'all_bound') THEN
        RETURN '{}';
    END IF;
    SELECT * INTO limits
    FROM {schema}.reached_limit_v1(
        pool,
        (SELECT known.id FROM {schema}.consumers AS known WHERE known.name = consumer),
        target, greatest(needs, 1), reason = 'limit_reached', condition, arguments, at
    );
    IF limits.reached IS NULL THEN
        RETURN '{}';
    END IF;
    RETURN jsonb_strip_nulls(jsonb_build_object(
        'limit', limits.reached,
        'retry_after_seconds', extract(epoch FROM limits.frees_at - at)
    ));
END
$$;

-- Free proxies that meet a condition, once for each lease they can take, but for those that are
-- kept for others. Nothing is locked. None are, if limits leave no room for as many as are wanted.
CREATE OR REPLACE FUNCTION {schema}.unreserved_v1(
    pool uuid,
    highest_rank integer,
    wanted integer,
    is_distinct boolean,
    condition text,
    arguments jsonb,
    reserved uuid[]
)
RETURNS uuid[]
LANGUAGE plpgsql
AS $$
DECLARE
    found uuid[];
BEGIN
    IF condition LIKE '%/*limits:%' AND (
        SELECT {schema}.limit_room_v1(mark.pool, mark.consumer, mark.target) < wanted
        FROM {schema}.limited_by_v1(condition, arguments) AS mark
    ) THEN
        RETURN '{}';
    END IF;
    IF condition IS NULL THEN
        SELECT array_agg(place.proxy_id) INTO found
        FROM (
            SELECT availability.proxy_id
            FROM {schema}.available_proxies AS availability,
            LATERAL generate_series(1, least(
                availability.max_concurrency - availability.current_leases
                    - cardinality(array_positions(reserved, availability.proxy_id)),
                CASE WHEN is_distinct THEN 1 ELSE wanted END
            ))
            WHERE availability.pool_id = pool AND availability.lease_rank <= highest_rank
              AND (availability.rests_until IS NULL
                   OR availability.rests_until <= {schema}.clock())
            LIMIT wanted
        ) AS place;
    ELSE
        EXECUTE format(
            $sql$
                SELECT array_agg(place.proxy_id)
                FROM (
                    SELECT free.proxy_id
                    FROM (
                        SELECT
                            availability.proxy_id,
                            availability.max_concurrency - availability.current_leases
                                - cardinality(array_positions($6, availability.proxy_id)) AS room
                        %s
                          AND availability.lease_rank <= $2
                          AND (availability.rests_until IS NULL
                               OR availability.rests_until <= {format}.clock())
                    ) AS free,
                    LATERAL generate_series(
                        1, least(free.room, CASE WHEN $4 THEN 1 ELSE $3 END)
                    )
                    LIMIT $3
                ) AS place
            $sql$,
            {schema}.matching_v1(condition)
        )
        INTO found
        USING pool, highest_rank, wanted, is_distinct, arguments, reserved;
    END IF;
    RETURN coalesce(found, '{}');
END
$$;

-- Whether a set could be had if all proxies of a pool were free, and nobody had reached a limit.
CREATE OR REPLACE FUNCTION {schema}.has_room_v1(
    pool uuid,
    highest_rank integer,
    needs integer,
    is_distinct boolean,
    condition text,
    arguments jsonb,
    only_healthy boolean
)
RETURNS boolean
LANGUAGE plpgsql
AS $$
DECLARE
    room bigint;
BEGIN
    IF condition LIKE '%/*limits:%' AND (
        SELECT {schema}.limit_most_v1(mark.pool, mark.consumer, mark.target) < needs
        FROM {schema}.limited_by_v1(condition, arguments) AS mark
    ) THEN
        RETURN false;
    END IF;
    EXECUTE format(
        $sql$
            SELECT sum(CASE WHEN $4 THEN 1 ELSE least(availability.max_concurrency, $3) END)
            %s
              AND (NOT $6 OR availability.status = 'active'
                   OR availability.status = 'slow' AND $2 = 1)
        $sql$,
        {schema}.matching_v1({schema}.unlimited_v1(condition))
    )
    INTO room
    USING pool, highest_rank, needs, is_distinct, arguments, only_healthy;
    RETURN coalesce(room, 0) >= needs;
END
$$;

-- Up to so many free proxies in a selector's order, locked. What others have locked is skipped,
-- and what rests.
CREATE OR REPLACE FUNCTION {schema}.free_proxies_v1(
    selector text,
    pool uuid,
    lowest_rank integer,
    highest_rank integer,
    after uuid,
    upto uuid,
    wanted integer,
    condition text,
    arguments jsonb
)
RETURNS {schema}.lease_place[]
LANGUAGE plpgsql
AS $$
#variable_conflict use_variable
DECLARE
    found {schema}.lease_place[];
BEGIN
    IF condition LIKE '%/*limits:%' THEN
        RETURN {schema}.limited_proxies_v1(
            selector, pool, lowest_rank, highest_rank, after, upto, wanted, condition, arguments
        );
    END IF;
    IF condition LIKE '%/*target*/%' AND selector <> 'round_robin' THEN
        RETURN {schema}.free_for_target_v1(
            selector, pool, lowest_rank, highest_rank, wanted, condition, arguments
        );
    END IF;
    IF selector = 'most_successful' THEN
        selector := 'first_available'; -- A lease for no target has no record to go by.
    END IF;
    IF condition IS NOT NULL THEN
        EXECUTE format(
            $sql$
                SELECT array_agg(free.proxy)
                FROM (
                    SELECT ROW(
                        availability.proxy_id, availability.status, availability.checked_at,
                        availability.max_concurrency, availability.current_leases,
                        availability.lease_rank
                    )::{format}.lease_place AS proxy
                    %s
                      AND availability.lease_rank BETWEEN $2 AND $4
                      AND (availability.rests_until IS NULL
                           OR availability.rests_until <= {format}.clock())
                      AND ($6 IS NULL OR availability.proxy_id > $6)
                      AND ($7 IS NULL OR availability.proxy_id <= $7)
                    ORDER BY %s
                    LIMIT $3
                    FOR UPDATE OF availability SKIP LOCKED
                ) AS free
            $sql$,
            {schema}.matching_v1(condition),
            {schema}.order_of_v1(selector)
        )
        INTO found
        USING pool, lowest_rank, wanted, highest_rank, arguments, after, upto;
        RETURN coalesce(found, '{}');
    END IF;
    CASE selector
    WHEN 'first_available' THEN
        SELECT array_agg(free.proxy) INTO found
        FROM (
            SELECT ROW(
                availability.proxy_id, availability.status, availability.checked_at,
                availability.max_concurrency, availability.current_leases,
                availability.lease_rank
            )::{schema}.lease_place AS proxy
            FROM {schema}.available_proxies AS availability
            WHERE availability.pool_id = pool
              AND availability.lease_rank BETWEEN lowest_rank AND highest_rank
              AND (availability.rests_until IS NULL
                   OR availability.rests_until <= {schema}.clock())
            ORDER BY availability.lease_rank, availability.checked_at DESC, availability.proxy_id
            LIMIT wanted
            FOR UPDATE SKIP LOCKED
        ) AS free;
    WHEN 'least_used' THEN
        SELECT array_agg(free.proxy) INTO found
        FROM (
            SELECT ROW(
                availability.proxy_id, availability.status, availability.checked_at,
                availability.max_concurrency, availability.current_leases,
                availability.lease_rank
            )::{schema}.lease_place AS proxy
            FROM {schema}.available_proxies AS availability
            WHERE availability.pool_id = pool
              AND availability.lease_rank BETWEEN lowest_rank AND highest_rank
              AND (availability.rests_until IS NULL
                   OR availability.rests_until <= {schema}.clock())
            ORDER BY availability.lease_rank, availability.current_leases, availability.checked_at,
                     availability.proxy_id
            LIMIT wanted
            FOR UPDATE SKIP LOCKED
        ) AS free;
    WHEN 'lowest_latency' THEN
        SELECT array_agg(free.proxy) INTO found
        FROM (
            SELECT ROW(
                availability.proxy_id, availability.status, availability.checked_at,
                availability.max_concurrency, availability.current_leases,
                availability.lease_rank
            )::{schema}.lease_place AS proxy
            FROM {schema}.available_proxies AS availability
            WHERE availability.pool_id = pool
              AND availability.lease_rank BETWEEN lowest_rank AND highest_rank
              AND (availability.rests_until IS NULL
                   OR availability.rests_until <= {schema}.clock())
            ORDER BY availability.lease_rank, availability.latency_ms, availability.proxy_id
            LIMIT wanted
            FOR UPDATE SKIP LOCKED
        ) AS free;
    WHEN 'least_recently_used' THEN
        SELECT array_agg(free.proxy) INTO found
        FROM (
            SELECT ROW(
                availability.proxy_id, availability.status, availability.checked_at,
                availability.max_concurrency, availability.current_leases,
                availability.lease_rank
            )::{schema}.lease_place AS proxy
            FROM {schema}.available_proxies AS availability
            WHERE availability.pool_id = pool
              AND availability.lease_rank BETWEEN lowest_rank AND highest_rank
              AND (availability.rests_until IS NULL
                   OR availability.rests_until <= {schema}.clock())
            ORDER BY availability.lease_rank, availability.leased_at NULLS FIRST,
                     availability.proxy_id
            LIMIT wanted
            FOR UPDATE SKIP LOCKED
        ) AS free;
    WHEN 'weighted' THEN
        SELECT array_agg(free.proxy) INTO found
        FROM (
            SELECT ROW(
                availability.proxy_id, availability.status, availability.checked_at,
                availability.max_concurrency, availability.current_leases,
                availability.lease_rank
            )::{schema}.lease_place AS proxy
            FROM {schema}.available_proxies AS availability
            WHERE availability.pool_id = pool
              AND availability.lease_rank BETWEEN lowest_rank AND highest_rank
              AND (availability.rests_until IS NULL
                   OR availability.rests_until <= {schema}.clock())
            ORDER BY availability.lease_rank, availability.next_turn NULLS FIRST,
                     availability.proxy_id
            LIMIT wanted
            FOR UPDATE SKIP LOCKED
        ) AS free;
    WHEN 'round_robin' THEN
        SELECT array_agg(free.proxy) INTO found
        FROM (
            SELECT ROW(
                availability.proxy_id, availability.status, availability.checked_at,
                availability.max_concurrency, availability.current_leases,
                availability.lease_rank
            )::{schema}.lease_place AS proxy
            FROM {schema}.available_proxies AS availability
            WHERE availability.pool_id = pool
              AND availability.lease_rank = lowest_rank
              AND (availability.rests_until IS NULL
                   OR availability.rests_until <= {schema}.clock())
              AND availability.proxy_id >= coalesce(after, '00000000-0000-0000-0000-000000000000')
              AND availability.proxy_id IS DISTINCT FROM after
              AND availability.proxy_id <= coalesce(upto, 'ffffffff-ffff-ffff-ffff-ffffffffffff')
            ORDER BY availability.proxy_id
            LIMIT wanted
            FOR UPDATE SKIP LOCKED
        ) AS free;
    END CASE;
    RETURN coalesce(found, '{}');
END
$$;

-- Why a run of requests got no more, as far as this transaction sees: 'free' if as much as it
-- needs is free (locked by others then) or due to be taken back; else the reason of the miss.
CREATE OR REPLACE FUNCTION {schema}.miss_reason_v1(
    pool uuid,
    highest_rank integer,
    needed integer,
    is_distinct boolean,
    condition text,
    arguments jsonb,
    expired uuid[],
    at timestamptz,
    OUT reason text,
    OUT free integer
)
LANGUAGE plpgsql
AS $$
DECLARE
    has_member boolean;
    has_healthy boolean;
    has_room boolean;
    is_free boolean;
    unlimited text := {schema}.unlimited_v1(condition);
    plain text := replace(unlimited, '/*target*/', '');
    has_limits boolean := condition LIKE '%/*limits:%';
    is_limited boolean;
BEGIN
    IF EXISTS (
        SELECT 1
        FROM {schema}.leases AS lease
        WHERE lease.pool_id = pool AND lease.status = 'active' AND lease.expires_at <= at
          AND lease.id <> ALL (expired)
    ) OR EXISTS (
        SELECT 1
        FROM {schema}.available_proxies AS banned
        WHERE banned.pool_id = pool AND banned.banned_until <= at
          AND current_setting('pharox.ends_bans', true) = 'on' -- Others would ask for ever.
    ) THEN
        reason := 'free';
        RETURN;
    END IF;
    IF has_limits THEN
        SELECT {schema}.limit_room_v1(mark.pool, mark.consumer, mark.target) < needed
        INTO is_limited
        FROM {schema}.limited_by_v1(condition, arguments) AS mark;
    END IF;
    EXECUTE format(
        $sql$
            SELECT coalesce(sum(
                CASE
                    WHEN $4 THEN 1
                    ELSE least(place.max_concurrency - place.current_leases, $3)
                END
            ), 0)
            FROM (
                SELECT availability.max_concurrency, availability.current_leases
                %s
                  AND availability.lease_rank <= $2
                  AND (availability.rests_until IS NULL
                       OR availability.rests_until <= {format}.clock())
                LIMIT $3
            ) AS place
        $sql$,
        {schema}.matching_v1(condition)
    )
    INTO free
    USING pool, highest_rank, needed, is_distinct, arguments;
    reason := CASE
        WHEN is_limited THEN NULL
        WHEN free >= needed THEN 'free'
        WHEN free > 0 THEN 'too_few'
    END;
    IF reason IS NOT NULL THEN
        RETURN;
    END IF;
    EXECUTE format(
        $sql$
            SELECT
                EXISTS (
                    SELECT 1
                    %1$s
                ),
                EXISTS (
                    SELECT 1
                    %1$s
                      AND (availability.status = 'active'
                           OR availability.status = 'slow' AND $2 = 1)
                ),
                EXISTS (
                    SELECT 1
                    %1$s
                      AND availability.lease_rank <= $2
                ),
                $6 AND EXISTS (
                    SELECT 1
                    %1$s
                      AND availability.lease_rank <= $2
                      AND (availability.rests_until IS NULL
                           OR availability.rests_until <= {format}.clock())
                )
        $sql$,
        {schema}.matching_v1(plain)
    )
    INTO has_member, has_healthy, has_room, is_free
    USING pool, highest_rank, needed, is_distinct, arguments, unlimited IS DISTINCT FROM plain;
    IF has_limits AND has_member AND NOT is_limited THEN
        -- What is free without the mark is passed over for a pace.
        is_limited := {schema}.unreserved_v1(
            pool, highest_rank, 1, is_distinct, unlimited, arguments, '{}'
        ) <> '{}';
    END IF;
    reason := CASE
        WHEN is_limited AND has_member THEN 'limit_reached'
        -- Whatever is free rests for the target.
        WHEN is_free AND EXISTS (
            SELECT 1
            FROM {schema}.troubled_targets AS trouble
            WHERE trouble.pool_id = pool AND trouble.target = arguments ->> -1
              AND {schema}.lasts_v1(trouble.since, at)
        ) THEN 'target_troubled'
        WHEN is_free THEN 'cooling_down'
        -- None that has room is free.
        WHEN has_room THEN {schema}.resting_reason_v1(pool, highest_rank, plain, arguments)
        WHEN has_healthy THEN 'at_capacity'
        WHEN has_member THEN 'none_healthy'
        WHEN EXISTS (
            SELECT 1
            FROM {schema}.available_proxies AS availability
            WHERE availability.pool_id = pool
        ) THEN 'no_match'
        ELSE 'empty_pool'
    END;
END
$$;

-- Record a miss. Return its answer. If the details do not name the limit that was reached yet, it is
-- that of any proxies which are free but for it.
CREATE OR REPLACE FUNCTION {schema}.missed_v1(
    own_slot smallint,
    with_stats boolean,
    actor text,
    correlation_id text,
    pool uuid,
    pool_name text,
    selector text,
    needs integer,
    count integer,
    details jsonb,
    consumer text,
    reason text,
    free integer
)
RETURNS {schema}.lease_answer
LANGUAGE plpgsql
AS $$
#variable_conflict use_variable
DECLARE
    consumer_id uuid := (
        SELECT known.id FROM {schema}.consumers AS known WHERE known.name = consumer
    );
    event {schema}.event_v1;
    answer {schema}.lease_answer;
BEGIN
    IF pool IS NULL THEN
        reason := coalesce({schema}.moved_reason_v1(pool_name), reason);
    END IF;
    IF NOT coalesce(details, '{}') ? 'limit' THEN
        details := coalesce(details, '{}') || {schema}.reached_details_v1(
            pool, consumer, details ->> 'target', needs, reason, NULL, NULL
        );
    END IF;
    IF details ? 'limit' THEN
        reason := 'limit_reached';
    END IF;
    IF current_setting('pharox.tries_pools', true) = 'on' THEN -- It may be had in another pool.
        answer.outcome := 'passed';
        answer.reason := reason;
        answer.free := free;
        RETURN answer;
    END IF;
    event := {schema}.lease_event_v1(
        1, 'AcquireMissed', coalesce(pool, '00000000-0000-0000-0000-000000000000'), pool_name,
        NULL, NULL, NULL, consumer, NULL, NULL, NULL, NULL, NULL, NULL, selector,
        coalesce(details, '{}') - 'limited' - 'paced_seconds'
        || jsonb_build_object('reason', reason)
        || CASE WHEN needs > 0 THEN jsonb_build_object('count', count, 'free', free) ELSE '{}' END
    );
    event := ({schema}.append_v1(
        ARRAY[event], own_slot, ARRAY[1], ARRAY[actor], ARRAY[correlation_id]
    ))[1];
    answer := {schema}.answer_one_v1(event, with_stats);
    answer.free := free;
    RETURN answer;
END
$$;

-- How many of the leases that a set asks for its limits have room for, one at least: so many of its ids
-- are passed on, as one statement may look for places more than once. All of them, if some are granted
-- already: then those are the answer.
CREATE FUNCTION {schema}.set_size_v1(
    condition text,
    arguments jsonb,
    ids uuid[],
    own_ids boolean
)
RETURNS integer
LANGUAGE plpgsql
AS $$
DECLARE
    mark record;
BEGIN
    IF own_ids AND EXISTS (
        SELECT 1
        FROM unnest(ids) AS asked (id)
        WHERE ({schema}.granted_before_v1(asked.id, {schema}.clock())).outcome IS NOT NULL
    ) THEN
        RETURN cardinality(ids);
    END IF;
    SELECT * INTO mark FROM {schema}.limited_by_v1(condition, arguments);
    IF NOT {schema}.try_limits_v1(mark.pool, mark.consumer, mark.target) THEN
        RETURN 1; -- Whoever has the turn may leave no more.
    END IF;
    RETURN least(cardinality(ids), greatest(
        1, {schema}.limit_room_v1(mark.pool, mark.consumer, mark.target)
    ));
END
$$;

-- Mark the ticket that was taken before its pool had limits, if there is one: unmarked it would be kept
-- what it may not have, round after round. Who serves it has it locked.
CREATE FUNCTION {schema}.mark_ticket_v1(pool uuid, own_consumer uuid, ticket_id uuid)
RETURNS void
LANGUAGE sql
AS $$
    UPDATE {schema}.waiting_tickets AS t
    SET condition = {schema}.limited_v1(t.condition, pool, own_consumer)
    FROM (
        SELECT own.pool_id, own.round, own.number
        FROM {schema}.waiting_tickets AS own
        WHERE own.pool_id = pool AND own.lease_ids[1] = ticket_id
        FOR UPDATE SKIP LOCKED
    ) AS own
    WHERE t.pool_id = own.pool_id AND t.round = own.round AND t.number = own.number
$$;

-- Ask for one request's leases, without recording a miss. It is bound by what limits its pool has now,
-- whatever it had when a ticket was taken.
CREATE OR REPLACE FUNCTION {schema}.try_request_v1(
    own_slot smallint,
    with_stats boolean,
    actor text,
    correlation_id text,
    kind text,
    needs integer,
    is_distinct boolean,
    pool_name text,
    selector text,
    condition text,
    arguments jsonb,
    details jsonb,
    ids uuid[],
    own_ids boolean,
    consumer text,
    duration double precision
)
RETURNS SETOF {schema}.lease_answer
LANGUAGE plpgsql
AS $$
#variable_conflict use_variable
DECLARE
    pool record;
BEGIN
    SELECT known.id, known.limits, asking.id AS consumer_id INTO pool
    FROM {schema}.pools AS known
    LEFT JOIN {schema}.consumers AS asking ON asking.name = consumer
    WHERE known.name = pool_name;
    IF pool.limits IS NOT NULL THEN
        IF (condition LIKE '%/*limits:%') IS NOT TRUE THEN
            PERFORM {schema}.mark_ticket_v1(pool.id, pool.consumer_id, ids[1]);
        END IF;
        condition := {schema}.limited_v1(condition, pool.id, pool.consumer_id);
        details := coalesce(details, '{}') || {schema}.limited_details_v1(pool.limits);
        is_distinct := is_distinct OR {schema}.paces_v1(pool.id, true) <> '';
        IF needs > 0 THEN
            ids := ids[1 : {schema}.set_size_v1(condition, arguments, ids, own_ids)];
        END IF;
    ELSIF condition LIKE '%/*limits:%' THEN
        condition := {schema}.unlimited_v1(condition);
        details := details - 'limited' - 'paced_seconds';
    END IF;
    RETURN QUERY
    SELECT answer.*
    FROM {schema}.lease_commands_v1(
        own_slot, with_stats, '{}',
        array_fill(actor, ARRAY[cardinality(ids)]),
        array_fill(correlation_id, ARRAY[cardinality(ids)]),
        '{}', '{}', ARRAY[cardinality(ids)], ARRAY[kind], ARRAY[needs], ARRAY[is_distinct],
        ARRAY[pool_name], ARRAY[selector], ARRAY[condition], ARRAY[arguments], ARRAY[details],
        ids, array_fill(own_ids, ARRAY[cardinality(ids)]),
        array_fill(consumer, ARRAY[cardinality(ids)]),
        array_fill(duration, ARRAY[cardinality(ids)])
    ) AS answer;
END
$$;

-- Carry out commands as lease_commands_v2 does, some of them in pools with limits: each request there
-- by itself, as it leaves less to the next.
CREATE FUNCTION {schema}.limited_commands_v1(
    own_process uuid,
    max_waiting integer,
    frees boolean,
    serves boolean,
    own_slot smallint,
    with_stats boolean,
    due_pools uuid[],
    actors text[],
    correlation_ids text[],
    released_ids uuid[],
    reasons text[],
    run_ends integer[],
    run_kinds text[],
    run_needs integer[],
    run_distinct boolean[],
    run_pools text[],
    run_selectors text[],
    run_conditions text[],
    run_arguments jsonb[],
    run_details jsonb[],
    asked_ids uuid[],
    own_ids boolean[],
    asked_consumers text[],
    durations double precision[]
)
RETURNS SETOF {schema}.lease_answer
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
    released integer := cardinality(released_ids);
    involved uuid[];
    pool record;
    kind text;
    condition text;
    details jsonb;
    is_distinct boolean;
    low integer;
    high integer;
    last integer;
    is_missed boolean;
    miss record;
    answer {schema}.lease_answer;
BEGIN
    FOR answer.number, answer.consumer IN
        SELECT released + asked.number, asked.name
        FROM unnest(asked_consumers) WITH ORDINALITY AS asked (name, number)
        WHERE NOT EXISTS (SELECT 1 FROM {schema}.consumers AS known WHERE known.name = asked.name)
    LOOP
        answer.outcome := 'unknown_consumer';
        RETURN NEXT answer;
    END LOOP;
    IF answer.outcome IS NOT NULL THEN
        RETURN; -- They are registered first, and then all is asked again.
    END IF;

    -- As this decides and appends several times, what is waited for comes first.
    involved := due_pools || ARRAY(
        SELECT known.id FROM {schema}.pools AS known WHERE known.name = ANY (run_pools)
    ) || ARRAY(
        SELECT lease.pool_id FROM {schema}.leases AS lease WHERE lease.id = ANY (released_ids)
    );
    IF 'round_robin' = ANY (run_selectors) OR EXISTS (
        SELECT 1
        FROM {schema}.waiting_tickets AS t
        WHERE t.pool_id = ANY (involved) AND t.selector = 'round_robin'
    ) THEN
        PERFORM 1
        FROM {schema}.selector_cursors AS cursor
        WHERE cursor.pool_id = ANY (involved) AND cursor.selector = 'round_robin'
        ORDER BY cursor.pool_id
        FOR UPDATE;
    END IF;
    PERFORM 1
    FROM {schema}.pool_stats AS counters
    WHERE counters.pool_id = ANY (involved) AND counters.slot = own_slot
    ORDER BY counters.pool_id
    FOR UPDATE SKIP LOCKED;

    -- What has run out is taken back before anything is counted.
    due_pools := due_pools || ARRAY(
        SELECT asked.id
        FROM {schema}.pools AS asked
        WHERE asked.name = ANY (run_pools) AND asked.limits IS NOT NULL AND EXISTS (
            SELECT 1
            FROM {schema}.leases AS lease
            WHERE lease.pool_id = asked.id AND lease.status = 'active' AND lease.expires_at <= at
        )
    );
    IF released > 0 OR due_pools <> '{}' THEN
        RETURN QUERY
        SELECT decided.*
        FROM {schema}.lease_commands_v2(
            own_process, max_waiting, frees, serves, own_slot, with_stats, due_pools,
            coalesce(nullif(actors[1 : released], '{}'), actors[1:1]),
            coalesce(nullif(correlation_ids[1 : released], '{}'), correlation_ids[1:1]),
            released_ids, reasons,
            '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}'
        ) AS decided;
    END IF;

    FOR run IN 1 .. cardinality(run_ends) LOOP
        low := coalesce(run_ends[run - 1], 0) + 1;
        SELECT known.id, known.limits, known.lease_slow::integer AS rank INTO pool
        FROM {schema}.pools AS known
        WHERE known.name = run_pools[run];
        WHILE low <= run_ends[run] LOOP
            high := CASE
                WHEN (pool.limits IS NOT NULL OR pool.id IS NULL) AND run_needs[run] = 0 THEN low
                ELSE run_ends[run]
            END;
            kind := run_kinds[run];
            condition := run_conditions[run];
            details := run_details[run];
            is_distinct := run_distinct[run];
            IF pool.limits IS NOT NULL THEN
                kind := CASE WHEN kind IN ('each', 'set') THEN 'try' ELSE kind END;
                condition := {schema}.limited_v1(condition, pool.id, (
                    SELECT known.id
                    FROM {schema}.consumers AS known
                    WHERE known.name = asked_consumers[low]
                ));
                details := coalesce(details, '{}') || {schema}.limited_details_v1(pool.limits);
                -- What one statement leases is in no read model yet: no proxy is leased twice.
                is_distinct := is_distinct OR {schema}.paces_v1(pool.id, true) <> '';
            END IF;
            IF pool.id IS NULL AND kind IN ('each', 'set') THEN
                kind := 'try'; -- It may have moved, which missed_v1 says.
            END IF;
            last := high;
            -- Who waits in turn does so for all it asked for.
            IF pool.limits IS NOT NULL AND run_needs[run] > 0 AND kind IN ('try', 'one') THEN
                last := low - 1 + {schema}.set_size_v1(
                    condition, run_arguments[run], asked_ids[low : high], own_ids[low]
                );
            END IF;
            is_missed := false;
            FOR answer IN
                SELECT decided.*
                FROM {schema}.lease_commands_v2(
                    own_process, max_waiting, false, false, own_slot, with_stats, '{}',
                    actors[released + low : released + last],
                    correlation_ids[released + low : released + last], '{}', '{}',
                    ARRAY[last - low + 1], ARRAY[kind], run_needs[run : run], ARRAY[is_distinct],
                    run_pools[run : run], run_selectors[run : run], ARRAY[condition],
                    run_arguments[run : run], ARRAY[details], asked_ids[low : last],
                    own_ids[low : last], asked_consumers[low : last], durations[low : last]
                ) AS decided
            LOOP
                IF answer.outcome = 'none' AND kind <> run_kinds[run] THEN
                    is_missed := true;
                    CONTINUE;
                END IF;
                IF answer.number > 0 THEN
                    answer.number := answer.number + released + low - 1;
                END IF;
                RETURN NEXT answer;
            END LOOP;
            IF is_missed THEN
                SELECT * INTO miss
                FROM {schema}.reason_v1(
                    pool.id, pool.rank, run_needs[run], high - low + 1, is_distinct, condition,
                    run_arguments[run], '{}', at
                );
                answer := {schema}.missed_v1(
                    own_slot, with_stats, actors[released + low], correlation_ids[released + low],
                    pool.id, run_pools[run], run_selectors[run], run_needs[run], high - low + 1,
                    coalesce(details, '{}') || {schema}.reached_details_v1(
                        pool.id, asked_consumers[low], details ->> 'target', run_needs[run],
                        miss.reason, condition, run_arguments[run]
                    ),
                    asked_consumers[low], miss.reason, miss.free
                );
                answer.number := released + low;
                RETURN NEXT answer;
            END IF;
            low := high + 1;
        END LOOP;
    END LOOP;
END
$$;

-- Carry out commands as lease_commands_v2 does, after the bans that are over in the pools that are
-- asked, or taken back in. Where a pool with limits is asked, limited_commands_v1 does it.
CREATE OR REPLACE FUNCTION {schema}.lease_commands_v3(
    own_process uuid,
    max_waiting integer,
    frees boolean,
    serves boolean,
    own_slot smallint,
    with_stats boolean,
    due_pools uuid[],
    actors text[],
    correlation_ids text[],
    released_ids uuid[],
    reasons text[],
    run_ends integer[],
    run_kinds text[],
    run_needs integer[],
    run_distinct boolean[],
    run_pools text[],
    run_selectors text[],
    run_conditions text[],
    run_arguments jsonb[],
    run_details jsonb[],
    asked_ids uuid[],
    own_ids boolean[],
    asked_consumers text[],
    durations double precision[]
)
RETURNS SETOF {schema}.lease_answer
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET jit = off
AS $$
DECLARE
    pools uuid[];
    has_limits boolean;
BEGIN
    SELECT coalesce(array_agg(pool.id), '{}'), bool_or(pool.limits IS NOT NULL)
    INTO pools, has_limits
    FROM {schema}.pools AS pool
    WHERE pool.name = ANY (run_pools);
    IF cardinality(due_pools) + cardinality(run_pools) > 0 THEN
        PERFORM {schema}.end_bans_v1(
            own_slot, due_pools || pools, actors[1], correlation_ids[1]
        );
    END IF;
    IF NOT coalesce(has_limits, false) AND cardinality(pools) < cardinality(run_pools) THEN
        -- Also where a pool has moved away: each run is decided by itself.
        has_limits := EXISTS (
            SELECT 1
            FROM unnest(run_pools) AS asked (name)
            WHERE NOT EXISTS (SELECT 1 FROM {schema}.pools AS pool WHERE pool.name = asked.name)
              AND {schema}.moved_reason_v1(asked.name) IS NOT NULL
        );
    END IF;
    IF has_limits THEN
        RETURN QUERY
        SELECT decided.*
        FROM {schema}.limited_commands_v1(
            own_process, max_waiting, frees, serves, own_slot, with_stats, due_pools, actors,
            correlation_ids, released_ids, reasons, run_ends, run_kinds, run_needs, run_distinct,
            run_pools, run_selectors, run_conditions, run_arguments, run_details, asked_ids,
            own_ids, asked_consumers, durations
        ) AS decided;
        RETURN;
    END IF;
    RETURN QUERY
    SELECT decided.*
    FROM {schema}.lease_commands_v2(
        own_process, max_waiting, frees, serves, own_slot, with_stats, due_pools, actors,
        correlation_ids, released_ids, reasons, run_ends, run_kinds, run_needs, run_distinct,
        run_pools, run_selectors, run_conditions, run_arguments, run_details, asked_ids, own_ids,
        asked_consumers, durations
    ) AS decided;
END
$$;

-- Acquire one lease: acquire_one_v1 while nobody waits in the pool, it has no limits and no template, no
-- turns are taken, no lease costs anything, and no ban is over.
CREATE OR REPLACE FUNCTION {schema}.acquire_one_v3(
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
SET jit = off
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
        pool.limits IS NOT NULL
        OR EXISTS (
            SELECT 1
            FROM {schema}.proxies AS template
            WHERE template.pool_id = pool.id AND template.placeholders IS NOT NULL
        )
        OR EXISTS (
            SELECT 1 FROM {schema}.waiting_tickets AS ticket WHERE ticket.pool_id = pool.id
        )
        OR EXISTS (
            SELECT 1
            FROM {schema}.available_proxies AS banned
            WHERE banned.pool_id = pool.id AND banned.banned_until <= {schema}.clock()
        )
        OR pool.cost_per_lease IS NOT NULL
        OR EXISTS (
            SELECT 1
            FROM {schema}.proxies AS priced
            WHERE priced.pool_id = pool.id AND priced.cost_per_lease IS NOT NULL
        )
    INTO pool_selector, pool_seconds, has_more_to_do
    FROM {schema}.pools AS pool
    WHERE pool.name = pool_name;
    selector := coalesce(selector, pool_selector, 'first_available');
    duration := coalesce(duration, pool_seconds, default_duration);

    IF has_more_to_do IS NOT FALSE OR selector = 'round_robin' THEN -- It is null if there is no pool.
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

-- Acquire one lease for a target: what lease_commands_v3 does for a single request that is answered
-- by a free proxy while nobody waits in the pool, it has neither limits nor a template and no lease
-- costs anything, in fewer statements.
CREATE OR REPLACE FUNCTION {schema}.acquire_for_target_v1(
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
    default_duration double precision,
    target text
)
RETURNS SETOF {schema}.lease_answer
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET jit = off
AS $$
#variable_conflict use_variable
DECLARE
    at timestamptz := {schema}.clock();
    pool_id uuid;
    highest_rank integer;
    consumer_id uuid;
    is_more_to_do boolean;
    pool_selector text;
    pool_seconds double precision;
    condition text := '(true) /*target*/';
    arguments jsonb := jsonb_build_array(target);
    details jsonb := jsonb_build_object('target', target);
    place {schema}.lease_place;
    event {schema}.event_v1;
BEGIN
    SELECT
        pool.id,
        pool.lease_slow::integer,
        asking.id,
        pool.selector,
        pool.lease_seconds,
        pool.limits IS NOT NULL
        OR EXISTS (
            SELECT 1
            FROM {schema}.proxies AS template
            WHERE template.pool_id = pool.id AND template.placeholders IS NOT NULL
        )
        OR EXISTS (
            SELECT 1
            FROM {schema}.leases AS lease
            WHERE lease.pool_id = pool.id AND lease.status = 'active' AND lease.expires_at <= at
        )
        OR EXISTS (
            SELECT 1 FROM {schema}.waiting_tickets AS ticket WHERE ticket.pool_id = pool.id
        )
        OR EXISTS (
            SELECT 1
            FROM {schema}.available_proxies AS banned
            WHERE banned.pool_id = pool.id AND banned.banned_until <= at
        )
        OR pool.cost_per_lease IS NOT NULL
        OR EXISTS (
            SELECT 1
            FROM {schema}.proxies AS priced
            WHERE priced.pool_id = pool.id AND priced.cost_per_lease IS NOT NULL
        )
    INTO pool_id, highest_rank, consumer_id, pool_selector, pool_seconds, is_more_to_do
    FROM {schema}.pools AS pool
    LEFT JOIN {schema}.consumers AS asking ON asking.name = consumer
    WHERE pool.name = pool_name;
    selector := coalesce(selector, pool_selector, 'first_available');
    duration := coalesce(duration, pool_seconds, default_duration);

    IF NOT is_more_to_do AND consumer_id IS NOT NULL AND selector <> 'round_robin' THEN
        place := ({schema}.free_for_target_v1(
            selector, pool_id, 0, highest_rank, 1, condition, arguments
        ))[1];
    END IF;
    IF place IS NULL THEN
        RETURN QUERY
        SELECT answer.*
        FROM {schema}.lease_commands_v3(
            own_process, 0, false, false, own_slot, with_stats, '{}', ARRAY[actor],
            ARRAY[correlation_id], '{}',
            '{}', ARRAY[1], ARRAY['each'], ARRAY[0], ARRAY[false], ARRAY[pool_name],
            ARRAY[selector], ARRAY[condition], ARRAY[arguments], ARRAY[details],
            ARRAY[asked_id], ARRAY[false], ARRAY[consumer], ARRAY[duration]
        ) AS answer;
        RETURN;
    END IF;

    -- Who is told that its outcome is unclear may ask under this id meanwhile.
    PERFORM {schema}.try_turn_v1(asked_id);
    event := {schema}.lease_event_v1(
        1, 'LeaseAcquired', pool_id, pool_name, place.proxy_id, asked_id, consumer_id, consumer,
        place.status, place.current_leases, place.current_leases + 1, place.max_concurrency,
        at + duration * interval '1 second', NULL, selector, details
    );
    event.actor := actor;
    event.correlation_id := correlation_id;
    event := {schema}.append_one_v1(event, own_slot);
    RETURN NEXT {schema}.answer_one_v1(event, with_stats);
END
$$;

-- Acquire one lease for a sticky session as acquire_sticky_v1 does, within the limits of its pool. Where
-- something is due or somebody waits, proxies are locked for that before the session's: then the turn
-- of bindings comes first, as it does in wait_sticky_v1.
CREATE FUNCTION {schema}.acquire_sticky_v2(
    own_process uuid,
    max_waiting integer,
    own_slot smallint,
    with_stats boolean,
    actor text,
    correlation_id text,
    pool_name text,
    selector text,
    asked_id uuid,
    own_id boolean,
    consumer text,
    duration double precision,
    default_duration double precision,
    filters text,
    arguments jsonb,
    target text,
    details jsonb,
    key text,
    seconds double precision,
    requires boolean,
    slides boolean,
    shares boolean,
    waits boolean
)
RETURNS SETOF {schema}.lease_answer
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET jit = off
AS $$
#variable_conflict use_variable
DECLARE
    at timestamptz := {schema}.clock();
    pool record;
BEGIN
    SELECT known.id, known.limits, asking.id AS consumer_id INTO pool
    FROM {schema}.pools AS known
    LEFT JOIN {schema}.consumers AS asking ON asking.name = consumer
    WHERE known.name = pool_name;
    IF EXISTS (
        SELECT 1
        FROM {schema}.leases AS lease
        WHERE lease.pool_id = pool.id AND lease.status = 'active' AND lease.expires_at <= at
        UNION ALL
        SELECT 1
        FROM {schema}.waiting_tickets AS ticket
        WHERE ticket.pool_id = pool.id
        UNION ALL
        SELECT 1
        FROM {schema}.available_proxies AS banned
        WHERE banned.pool_id = pool.id AND banned.banned_until <= at
    ) THEN
        PERFORM {schema}.take_turns_v1(ARRAY[pool.id], ARRAY[key]);
        PERFORM {schema}.binding_turn_v1(pool.id);
    END IF;
    IF pool.limits IS NOT NULL AND pool.consumer_id IS NOT NULL THEN
        filters := {schema}.limited_v1(filters, pool.id, pool.consumer_id);
    END IF;
    RETURN QUERY
    SELECT answer.*
    FROM {schema}.acquire_sticky_v1(
        own_process, max_waiting, own_slot, with_stats, actor, correlation_id, pool_name, selector,
        asked_id, own_id, consumer, duration, default_duration, filters, arguments, target,
        details, key, seconds, requires, slides, shares, waits
    ) AS answer;
END
$$;

-- Decide in all pools where a process waits. The last answer is 'served': how many of its tickets
-- are left, and when the next lease, rest, ban or rotation of these pools is over, or what they wait
-- for may be
-- granted for its target again, a start counts no more, or a day with a budget is over.
CREATE OR REPLACE FUNCTION {schema}.serve_v1(
    own_process uuid,
    own_slot smallint,
    actor text,
    correlation_id text
)
RETURNS SETOF {schema}.lease_answer
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET jit = off
AS $$
#variable_conflict use_variable
DECLARE
    pools uuid[] := ARRAY(
        SELECT DISTINCT t.pool_id
        FROM {schema}.waiting_tickets AS t
        WHERE t.process_id = own_process
    );
    answer {schema}.lease_answer;
BEGIN
    PERFORM {schema}.end_bans_v1(own_slot, pools, actor, correlation_id);
    RETURN QUERY
    SELECT decided.*
    FROM {schema}.lease_commands_v2(
        own_process, 0, false, true, own_slot, false, pools, ARRAY[actor], ARRAY[correlation_id],
        '{}', '{}',
        '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}'
    ) AS decided;
    answer.outcome := 'served';
    answer.decided_at := {schema}.clock();
    answer.number := (
        SELECT count(*) FROM {schema}.waiting_tickets AS t WHERE t.process_id = own_process
    );
    answer.expires_at := (
        SELECT min(least(
            (
                SELECT min(lease.expires_at)
                FROM {schema}.leases AS lease
                WHERE lease.pool_id = pool.id AND lease.status = 'active'
            ),
            CASE WHEN greatest(
                pool.rest_after_release_seconds, pool.rest_after_expiry_seconds
            ) > 0 THEN (
                SELECT min(availability.rests_until)
                FROM {schema}.available_proxies AS availability
                WHERE availability.pool_id = pool.id
                  AND availability.rests_until > answer.decided_at
            ) END,
            (
                SELECT min(banned.banned_until)
                FROM {schema}.available_proxies AS banned
                WHERE banned.pool_id = pool.id AND banned.banned_until IS NOT NULL
            ),
            (
                SELECT min(rotation.ends_at)
                FROM {schema}.rotations AS rotation
                WHERE rotation.pool_id = pool.id AND rotation.ends_at > answer.decided_at
            )
        ))
        FROM {schema}.pools AS pool
        WHERE pool.id = ANY (pools)
    );
    answer.expires_at := least(answer.expires_at, (
        SELECT min(pair.cools_until)
        FROM (
            SELECT DISTINCT t.pool_id, t.arguments ->> -1 AS target
            FROM {schema}.waiting_tickets AS t
            WHERE t.process_id = own_process AND t.condition LIKE '%/*target*/%'
        ) AS wanted,
        LATERAL (
            SELECT min(known.cools_until) AS cools_until
            FROM {schema}.target_outcomes AS known
            WHERE known.pool_id = wanted.pool_id AND known.target = wanted.target
              AND known.cools_until > answer.decided_at
        ) AS pair
    ));
    answer.expires_at := least(answer.expires_at, (
        SELECT min(back.at)
        FROM {schema}.pools AS pool,
        LATERAL jsonb_array_elements(pool.limits -> 'paces') AS pace (rule),
        LATERAL (
            SELECT min(start.started_at)
                + (pace.rule ->> 'seconds')::double precision * interval '1 second' AS at
            FROM {schema}.lease_starts AS start
            WHERE start.pool_id = pool.id
              AND start.started_at > answer.decided_at
                  - (pace.rule ->> 'seconds')::double precision * interval '1 second'
        ) AS back
        WHERE pool.id = ANY (pools)
    ));
    answer.expires_at := least(answer.expires_at, (
        SELECT {schema}.next_day_v1(answer.decided_at)
        FROM {schema}.pools AS pool
        WHERE pool.id = ANY (pools) AND {schema}.has_budget_v1(pool.limits)
        LIMIT 1
    ));
    RETURN NEXT answer;
END
$$;

-- Wait for locks as wait_v2 does, and before them for the turns of the limits of a pool.
CREATE FUNCTION {schema}.wait_v3(
    chosen_ids uuid[],
    released_id uuid,
    pool_name text,
    selector text,
    condition text,
    arguments jsonb,
    wanted integer,
    consumer text,
    target text
)
RETURNS void
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET jit = off
AS $$
BEGIN
    -- Whoever falls silent before it has asked again loses its turn soon.
    PERFORM set_config('idle_in_transaction_session_timeout', '5s', true);
    PERFORM {schema}.wait_limits_v1(pool_name, consumer, target);
    PERFORM {schema}.wait_v2(
        chosen_ids, released_id, pool_name, selector, condition, arguments, wanted
    );
END
$$;

-- Wait for locks as wait_sticky_v1 does, and before them for the turns of the limits of a pool.
CREATE FUNCTION {schema}.wait_sticky_v2(
    chosen_ids uuid[],
    pool_name text,
    selector text,
    filters text,
    arguments jsonb,
    target text,
    key text,
    requires boolean,
    shares boolean,
    consumer text
)
RETURNS void
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET jit = off
AS $$
BEGIN
    -- Whoever falls silent before it has asked again loses its turn soon.
    PERFORM set_config('idle_in_transaction_session_timeout', '5s', true);
    PERFORM {schema}.wait_limits_v1(pool_name, consumer, target);
    PERFORM {schema}.wait_sticky_v1(
        chosen_ids, pool_name, selector, filters, arguments, target, key, requires, shares
    );
END
$$;

-- Give up a place in the queue. Record a miss if it is waited for no longer; who was cancelled
-- records none. No answer if there is no such ticket: it was granted, or its process forgotten.
CREATE OR REPLACE FUNCTION {schema}.leave_queue_v1(
    own_process uuid,
    own_slot smallint,
    with_stats boolean,
    asked_id uuid,
    is_miss boolean
)
RETURNS SETOF {schema}.lease_answer
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET jit = off
AS $$
#variable_conflict use_variable
DECLARE
    at timestamptz := {schema}.clock();
    ticket record;
    pool record;
    miss record;
    answer {schema}.lease_answer;
BEGIN
    DELETE FROM {schema}.waiting_tickets AS t
    WHERE t.lease_ids[1] = asked_id AND t.process_id = own_process
    RETURNING t.* INTO ticket;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    answer.number := 1;
    answer.outcome := 'left';
    IF is_miss THEN
        SELECT known.* INTO pool FROM {schema}.pools AS known WHERE known.id = ticket.pool_id;
        SELECT * INTO miss
        FROM {schema}.reason_v1(
            pool.id, pool.lease_slow::integer, ticket.needs, cardinality(ticket.lease_ids),
            ticket.is_distinct, ticket.condition, ticket.arguments, '{}', at
        );
        answer := {schema}.missed_v1(
            own_slot, with_stats, ticket.actor, ticket.correlation_id, pool.id,
            coalesce(pool.name, ''), ticket.selector, ticket.needs, cardinality(ticket.lease_ids),
            coalesce(ticket.details, '{}') || jsonb_build_object(
                'waited_ms', {schema}.waited_ms_v1(ticket.since, at)
            ) || {schema}.reached_details_v1(
                pool.id, ticket.consumer, ticket.details ->> 'target', ticket.needs, miss.reason,
                ticket.condition, ticket.arguments
            ),
            ticket.consumer, miss.reason, miss.free
        );
    END IF;
    RETURN NEXT answer;
END
$$;

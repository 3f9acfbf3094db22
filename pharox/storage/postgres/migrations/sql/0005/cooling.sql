-- Pass over proxies that rest for the target of a lease.
--
-- A condition that ends with /*target*/ has the target as the last of its arguments. It is then also
-- met by no proxy that rests for it; one whose rest is over is leased once, until it succeeds;
-- and while the target itself is in trouble, one lease at a time is granted for it.

-- What a proxy must meet beside a condition, for the target in $5: in place of its mark.
CREATE FUNCTION {schema}.for_target_v1(condition text)
RETURNS text
LANGUAGE sql
IMMUTABLE
AS $$
    SELECT replace(condition, '/*target*/', $target$
        AND NOT EXISTS (
            SELECT
            FROM {schema}.target_outcomes AS pair
            WHERE pair.pool_id = $1 AND pair.proxy_id = availability.proxy_id
              AND pair.target = $5 ->> -1
              AND (pair.cools_until > {schema}.clock()
                   OR pair.cools_until IS NOT NULL AND EXISTS (
                       SELECT
                       FROM {schema}.leases AS probe
                       WHERE probe.pool_id = $1 AND probe.proxy_id = pair.proxy_id
                         AND probe.status = 'active' AND probe.target = pair.target
                   ))
        )
        AND NOT EXISTS (
            SELECT
            FROM {schema}.troubled_targets AS trouble
            JOIN {schema}.leases AS probe
              ON probe.pool_id = trouble.pool_id AND probe.status = 'active'
             AND probe.target = trouble.target AND probe.acquired_at >= trouble.since
            WHERE trouble.pool_id = $1 AND trouble.target = $5 ->> -1
              AND {schema}.lasts_v1(trouble.since, {schema}.clock())
        ) $target$)
$$;

-- Where a statement that is made for a condition looks: at those of the pool $1 that meet it. $5 has
-- the values of the filters that it was made from, and the target.
CREATE OR REPLACE FUNCTION {schema}.matching_v1(condition text)
RETURNS text
LANGUAGE sql
IMMUTABLE
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
            || {schema}.for_target_v1(condition) || ')'
    END
$$;

-- The order of a selector, for statements that are made. Statements that are kept say it themselves.
CREATE FUNCTION {schema}.order_of_v1(selector text)
RETURNS text
LANGUAGE sql
IMMUTABLE
AS $$
    SELECT CASE selector
        WHEN 'first_available' THEN
            'availability.lease_rank, availability.checked_at DESC, availability.proxy_id'
        WHEN 'least_used' THEN
            'availability.lease_rank, availability.current_leases, availability.checked_at, '
            'availability.proxy_id'
        WHEN 'lowest_latency' THEN
            'availability.lease_rank, availability.latency_ms, availability.proxy_id'
        WHEN 'least_recently_used' THEN
            'availability.lease_rank, availability.leased_at NULLS FIRST, availability.proxy_id'
        ELSE 'availability.lease_rank, availability.proxy_id'
    END
$$;

-- The first free proxies in a selector's order, locked by anybody or not.
CREATE FUNCTION {schema}.front_v1(
    selector text,
    pool uuid,
    lowest_rank integer,
    highest_rank integer,
    size integer
)
RETURNS uuid[]
LANGUAGE plpgsql
AS $$
#variable_conflict use_variable
BEGIN
    -- Only the branch of the selector is run.
    RETURN ARRAY(
        SELECT front.proxy_id
        FROM (
            (
                SELECT availability.proxy_id
                FROM {schema}.available_proxies AS availability
                WHERE selector = 'first_available' AND availability.pool_id = pool
                  AND availability.lease_rank BETWEEN lowest_rank AND highest_rank
                  AND (availability.rests_until IS NULL
                       OR availability.rests_until <= {schema}.clock())
                ORDER BY availability.lease_rank, availability.checked_at DESC,
                     availability.proxy_id
                LIMIT size
            )
            UNION ALL
            (
                SELECT availability.proxy_id
                FROM {schema}.available_proxies AS availability
                WHERE selector = 'least_used' AND availability.pool_id = pool
                  AND availability.lease_rank BETWEEN lowest_rank AND highest_rank
                  AND (availability.rests_until IS NULL
                       OR availability.rests_until <= {schema}.clock())
                ORDER BY availability.lease_rank, availability.current_leases,
                     availability.checked_at, availability.proxy_id
                LIMIT size
            )
            UNION ALL
            (
                SELECT availability.proxy_id
                FROM {schema}.available_proxies AS availability
                WHERE selector = 'lowest_latency' AND availability.pool_id = pool
                  AND availability.lease_rank BETWEEN lowest_rank AND highest_rank
                  AND (availability.rests_until IS NULL
                       OR availability.rests_until <= {schema}.clock())
                ORDER BY availability.lease_rank, availability.latency_ms,
                     availability.proxy_id
                LIMIT size
            )
            UNION ALL
            (
                SELECT availability.proxy_id
                FROM {schema}.available_proxies AS availability
                WHERE selector = 'least_recently_used' AND availability.pool_id = pool
                  AND availability.lease_rank BETWEEN lowest_rank AND highest_rank
                  AND (availability.rests_until IS NULL
                       OR availability.rests_until <= {schema}.clock())
                ORDER BY availability.lease_rank, availability.leased_at NULLS FIRST,
                     availability.proxy_id
                LIMIT size
            )
        ) AS front
    );
END
$$;

-- Whether this transaction may lease a proxy to try a target in trouble: nobody has one for that, or
-- is getting one. The first number of the lock is pharox's own among those of a database.
CREATE FUNCTION {schema}.may_try_v1(pool uuid, wished text)
RETURNS boolean
LANGUAGE plpgsql
AS $$
#variable_conflict use_variable
DECLARE
    site text := pool || ':' || wished || E'\n';
    tried text := coalesce(current_setting('pharox.tried', true), '');
BEGIN
    -- What this statement has leased is in no read model yet.
    IF position(site IN tried) > 0
       OR NOT pg_try_advisory_xact_lock(1885890933, hashtext(site)) THEN
        RETURN false;
    END IF;
    IF EXISTS (
        SELECT 1
        FROM {schema}.troubled_targets AS trouble
        JOIN {schema}.leases AS probe
          ON probe.pool_id = trouble.pool_id AND probe.status = 'active'
         AND probe.target = trouble.target AND probe.acquired_at >= trouble.since
        WHERE trouble.pool_id = pool AND trouble.target = wished
    ) THEN
        RETURN false;
    END IF;
    PERFORM set_config('pharox.tried', tried || site, true);
    RETURN true;
END
$$;

-- Up to so many free proxies that do not rest for a target, locked. They are looked for in front
-- of the selector's order; what is not found there is taken from all others, in the order of
-- their ids from an arbitrary one on. So finding one costs the same however many rest.
CREATE FUNCTION {schema}.free_for_target_v1(
    selector text,
    pool uuid,
    lowest_rank integer,
    highest_rank integer,
    wanted integer,
    condition text,
    arguments jsonb
)
RETURNS {schema}.lease_place[]
LANGUAGE plpgsql
AS $$
#variable_conflict use_variable
DECLARE
    wished text := arguments ->> -1;
    size integer := 8 + 2 * wanted;
    has_filter boolean := condition <> '(true) /*target*/';
    front uuid[];
    found {schema}.lease_place[] := '{}';
    more {schema}.lease_place[];
    -- Another one each second: what was read a moment ago is at hand.
    start uuid := md5(wished || extract(epoch FROM date_trunc('second', {schema}.clock())));
    lowest uuid;
    highest uuid;
    is_troubled boolean := EXISTS (
        SELECT 1
        FROM {schema}.troubled_targets AS trouble
        WHERE trouble.pool_id = pool AND trouble.target = wished
          AND {schema}.lasts_v1(trouble.since, {schema}.clock())
    );
BEGIN
    IF is_troubled THEN
        IF NOT {schema}.may_try_v1(pool, wished) THEN
            RETURN found;
        END IF;
        wanted := 1;
        size := 0; -- The first in the order may be the one that fails.
    END IF;
    IF size = 0 THEN
        front := '{}';
    ELSIF has_filter THEN
        EXECUTE format(
            $sql$
                SELECT array_agg(front.proxy_id)
                FROM (
                    SELECT availability.proxy_id
                    %s
                      AND availability.lease_rank BETWEEN $2 AND $4
                      AND (availability.rests_until IS NULL
                           OR availability.rests_until <= {format}.clock())
                    ORDER BY %s
                    LIMIT $3
                ) AS front
            $sql$,
            {schema}.matching_v1(replace(condition, '/*target*/', '')),
            {schema}.order_of_v1(selector)
        )
        INTO front
        USING pool, lowest_rank, size, highest_rank, arguments;
    ELSE
        front := {schema}.front_v1(selector, pool, lowest_rank, highest_rank, size);
    END IF;
    SELECT coalesce(array_agg(free.proxy), '{}') INTO found
    FROM (
        SELECT ROW(
            availability.proxy_id, availability.status, availability.checked_at,
            availability.max_concurrency, availability.current_leases,
            availability.lease_rank
        )::{schema}.lease_place AS proxy
        FROM unnest(front) WITH ORDINALITY AS ahead (proxy_id, number)
        JOIN {schema}.available_proxies AS availability
          ON availability.pool_id = pool AND availability.proxy_id = ahead.proxy_id
        WHERE availability.lease_rank BETWEEN lowest_rank AND highest_rank
          AND (availability.rests_until IS NULL
               OR availability.rests_until <= {schema}.clock())
          AND NOT EXISTS (
              SELECT
              FROM {schema}.target_outcomes AS pair
              WHERE pair.pool_id = pool AND pair.proxy_id = ahead.proxy_id
                AND pair.target = wished
                AND (pair.cools_until > {schema}.clock()
                     OR pair.cools_until IS NOT NULL AND EXISTS (
                         SELECT
                         FROM {schema}.leases AS probe
                         WHERE probe.pool_id = pool AND probe.proxy_id = pair.proxy_id
                           AND probe.status = 'active' AND probe.target = pair.target
                     ))
          )
        ORDER BY ahead.number
        LIMIT wanted
        FOR UPDATE OF availability SKIP LOCKED
    ) AS free;
    IF coalesce(cardinality(front), 0) < size THEN
        RETURN found; -- There are no others.
    END IF;

    FOR rank IN lowest_rank .. highest_rank LOOP
        FOR half IN 1 .. 2 LOOP
            EXIT WHEN cardinality(found) >= wanted;
            lowest := CASE half WHEN 1 THEN start END;
            highest := CASE half WHEN 2 THEN start END;
            IF has_filter THEN
                EXECUTE format(
                    $sql$
                        SELECT array_agg(free.proxy)
                        FROM (
                            SELECT ROW(
                                availability.proxy_id, availability.status,
                                availability.checked_at, availability.max_concurrency,
                                availability.current_leases, availability.lease_rank
                            )::{format}.lease_place AS proxy
                            %s
                              AND availability.lease_rank = $2
                              AND (availability.rests_until IS NULL
                                   OR availability.rests_until <= {format}.clock())
                              AND availability.proxy_id <> ALL ($4)
                              AND ($6 IS NULL OR availability.proxy_id > $6)
                              AND ($7 IS NULL OR availability.proxy_id <= $7)
                            ORDER BY availability.proxy_id
                            LIMIT $3
                            FOR UPDATE OF availability SKIP LOCKED
                        ) AS free
                    $sql$,
                    {schema}.matching_v1(condition)
                )
                INTO more
                USING pool, rank, wanted - cardinality(found), front, arguments, lowest, highest;
            ELSE
                SELECT array_agg(free.proxy) INTO more
                FROM (
                    SELECT ROW(
                        availability.proxy_id, availability.status, availability.checked_at,
                        availability.max_concurrency, availability.current_leases,
                        availability.lease_rank
                    )::{schema}.lease_place AS proxy
                    FROM {schema}.available_proxies AS availability
                    WHERE availability.pool_id = pool AND availability.lease_rank = rank
                      AND (availability.rests_until IS NULL
                           OR availability.rests_until <= {schema}.clock())
                      AND availability.proxy_id
                          >= coalesce(lowest, '00000000-0000-0000-0000-000000000000')
                      AND availability.proxy_id
                          <= coalesce(highest, 'ffffffff-ffff-ffff-ffff-ffffffffffff')
                      AND availability.proxy_id <> ALL (front)
                      AND NOT EXISTS (
                          SELECT
                          FROM {schema}.target_outcomes AS pair
                          WHERE pair.pool_id = pool AND pair.proxy_id = availability.proxy_id
                            AND pair.target = wished
                            AND (pair.cools_until > {schema}.clock()
                                 OR pair.cools_until IS NOT NULL AND EXISTS (
                                     SELECT
                                     FROM {schema}.leases AS probe
                                     WHERE probe.pool_id = pool
                                       AND probe.proxy_id = pair.proxy_id
                                       AND probe.status = 'active'
                                       AND probe.target = pair.target
                                 ))
                      )
                    ORDER BY availability.proxy_id
                    LIMIT wanted - cardinality(found)
                    FOR UPDATE OF availability SKIP LOCKED
                ) AS free;
            END IF;
            found := found || coalesce(more, '{}');
        END LOOP;
    END LOOP;
    RETURN found;
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
    plain text := replace(condition, '/*target*/', '');
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
    reason := CASE WHEN free >= needed THEN 'free' WHEN free > 0 THEN 'too_few' END;
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
    USING pool, highest_rank, needed, is_distinct, arguments, condition IS DISTINCT FROM plain;
    reason := CASE
        -- Whatever is free rests for the target.
        WHEN is_free AND EXISTS (
            SELECT 1
            FROM {schema}.troubled_targets AS trouble
            WHERE trouble.pool_id = pool AND trouble.target = arguments ->> -1
              AND {schema}.lasts_v1(trouble.since, at)
        ) THEN 'target_troubled'
        WHEN is_free THEN 'cooling_down'
        WHEN has_room THEN 'resting' -- None that has room is free.
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

-- Decide in all pools where a process waits. The last answer is 'served': how many of its tickets
-- are left, and when the next lease, rest or ban of these pools is over, or what they wait for may be
-- granted for its target again.
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
    RETURN NEXT answer;
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
    IF condition LIKE '%/*target*/%' AND selector <> 'round_robin' THEN
        RETURN {schema}.free_for_target_v1(
            selector, pool, lowest_rank, highest_rank, wanted, condition, arguments
        );
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

-- Acquire one lease for a target: what lease_commands_v3 does for a single request that is answered
-- by a free proxy while nobody waits in the pool, in fewer statements.
CREATE FUNCTION {schema}.acquire_for_target_v1(
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
        EXISTS (
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

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
-- are left, and when the next lease or rest of these pools is over, or what they wait for may be
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
            ) END
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

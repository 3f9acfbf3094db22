-- A proxy may rest after a lease on it has ended: whoever had the lease may still be using it. The
-- event that ends the lease says until when, and the pool how long. A rest is of the whole proxy, as
-- nobody knows which of its users is the old one; leases on it that have begun go on.

-- What the event that ends a lease says of the rest that follows: nothing if there is none. A rest
-- that goes on does not get shorter.
CREATE FUNCTION {schema}.rest_v1(
    seconds double precision,
    rests_until timestamptz,
    at timestamptz
)
RETURNS jsonb
LANGUAGE sql
STABLE
AS $$
    SELECT CASE
        WHEN seconds > 0 OR rests_until > at THEN jsonb_build_object(
            'rests_until', greatest(at + seconds * interval '1 second', rests_until)
        )
    END
$$;

CREATE FUNCTION {schema}.with_reason_v1(rest jsonb, reason text)
RETURNS jsonb
LANGUAGE sql
STABLE
AS $$
    SELECT CASE
        WHEN reason IS NULL THEN rest
        ELSE coalesce(rest, '{}') || jsonb_build_object('reason', reason)
    END
$$;

-- The leases of some pools that have run out, as events; their proxies are locked.
CREATE OR REPLACE FUNCTION {schema}.due_leases_v1(pools uuid[], at timestamptz)
RETURNS SETOF {schema}.event_v1
LANGUAGE sql
AS $$
    SELECT {schema}.lease_event_v1(
        row_number() OVER (ORDER BY due.pool_id, due.proxy_id, due.fencing_token),
        'LeaseExpired', due.pool_id, due.pool_name, due.proxy_id, due.id, due.consumer_id,
        due.consumer_name, due.proxy_status, due.leases_before, due.leases_before - 1,
        due.max_concurrency, due.expires_at, due.acquired_at, NULL,
        {schema}.rest_v1(due.rest_seconds, due.rests_until, at)
    )
    FROM (
        SELECT
            locked.*,
            locked.current_leases + 1 - (row_number() OVER (
                PARTITION BY locked.pool_id, locked.proxy_id ORDER BY locked.fencing_token
            ))::integer AS leases_before
        FROM (
            SELECT lease.*, availability.status AS proxy_status, availability.current_leases,
                   availability.max_concurrency, availability.rests_until,
                   pool.rest_after_expiry_seconds AS rest_seconds
            FROM {schema}.leases AS lease
            JOIN {schema}.available_proxies AS availability
              ON availability.pool_id = lease.pool_id AND availability.proxy_id = lease.proxy_id
            JOIN {schema}.pools AS pool ON pool.id = lease.pool_id
            WHERE lease.pool_id = ANY (pools) AND lease.status = 'active' AND lease.expires_at <= at
            ORDER BY lease.pool_id, lease.proxy_id, lease.fencing_token
            LIMIT 1000
            FOR UPDATE OF availability, lease SKIP LOCKED
        ) AS locked
    ) AS due
    ORDER BY due.pool_id, due.proxy_id, due.fencing_token
$$;

-- Leases that are given back, as events; what has ended, run out or is locked elsewhere is left.
CREATE OR REPLACE FUNCTION {schema}.returned_leases_v1(
    ids uuid[],
    reasons text[],
    at timestamptz
)
RETURNS TABLE (number integer, event {schema}.event_v1)
LANGUAGE plpgsql
AS $$
#variable_conflict use_column
DECLARE
    locked uuid[];
BEGIN
    -- The lock comes before the look: only then does the look see what others have done.
    locked := ARRAY(
        SELECT lease.id
        FROM {schema}.leases AS lease
        JOIN {schema}.available_proxies AS availability
          ON availability.pool_id = lease.pool_id AND availability.proxy_id = lease.proxy_id
        WHERE lease.id = ANY (ids) AND lease.status = 'active'
        ORDER BY availability.pool_id, availability.proxy_id
        FOR UPDATE OF availability, lease SKIP LOCKED
    );
    RETURN QUERY
    SELECT
        held.number,
        {schema}.lease_event_v1(
            held.number, 'LeaseReleased', held.pool_id, held.pool_name, held.proxy_id, held.id,
            held.consumer_id, held.consumer_name, held.proxy_status,
            held.leases_before, held.leases_before - 1, held.max_concurrency, NULL,
            held.acquired_at, NULL,
            {schema}.with_reason_v1(
                {schema}.rest_v1(held.rest_seconds, held.rests_until, at), reasons[held.number]
            )
        )
    FROM (
        SELECT
            lease.*,
            asked.number,
            availability.status AS proxy_status,
            availability.max_concurrency,
            availability.rests_until,
            pool.rest_after_release_seconds AS rest_seconds,
            availability.current_leases + 1 - (row_number() OVER (
                PARTITION BY lease.pool_id, lease.proxy_id ORDER BY asked.number
            ))::integer AS leases_before
        FROM (
            SELECT id, min(number)::integer AS number
            FROM unnest(ids) WITH ORDINALITY AS given (id, number)
            GROUP BY id
        ) AS asked
        JOIN {schema}.leases AS lease
          ON lease.id = asked.id AND lease.status = 'active' AND lease.expires_at > at
        JOIN {schema}.available_proxies AS availability
          ON availability.pool_id = lease.pool_id AND availability.proxy_id = lease.proxy_id
        JOIN {schema}.pools AS pool ON pool.id = lease.pool_id
        WHERE lease.id = ANY (locked)
    ) AS held
    ORDER BY held.number;
END
$$;

-- Release one lease: what lease_commands_v1 does for a single one that is active and not locked.
CREATE OR REPLACE FUNCTION {schema}.release_one_v1(
    own_slot smallint,
    with_stats boolean,
    actor text,
    correlation_id text,
    released_id uuid,
    reason text
)
RETURNS SETOF {schema}.lease_answer
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
AS $$
#variable_conflict use_variable
DECLARE
    at timestamptz := {schema}.clock();
    place record;
    event {schema}.event_v1;
BEGIN
    SELECT
        availability.proxy_id, availability.status, availability.max_concurrency,
        availability.current_leases, availability.rests_until
    INTO place
    FROM {schema}.leases AS lease
    JOIN {schema}.available_proxies AS availability
      ON availability.pool_id = lease.pool_id AND availability.proxy_id = lease.proxy_id
    WHERE lease.id = released_id AND lease.status = 'active'
    FOR UPDATE OF availability, lease SKIP LOCKED;

    -- The lock comes before the look: only then does the look see what others have done.
    SELECT (held.event).* INTO event
    FROM (
        SELECT {schema}.lease_event_v1(
            1, 'LeaseReleased', lease.pool_id, lease.pool_name, lease.proxy_id, lease.id,
            lease.consumer_id, lease.consumer_name, place.status, place.current_leases,
            place.current_leases - 1, place.max_concurrency, NULL, lease.acquired_at, NULL,
            {schema}.with_reason_v1(
                {schema}.rest_v1(pool.rest_after_release_seconds, place.rests_until, at), reason
            )
        ) AS event
        FROM {schema}.leases AS lease
        JOIN {schema}.pools AS pool ON pool.id = lease.pool_id
        WHERE lease.id = released_id AND lease.proxy_id = place.proxy_id
          AND lease.status = 'active' AND lease.expires_at > at
          -- It may be drained: append_v1 removes it then.
          AND NOT (place.status = 'banned' AND place.current_leases = 1)
    ) AS held;
    IF event.lease_id IS NULL THEN
        RETURN QUERY
        SELECT answer.*
        FROM {schema}.lease_commands_v1(
            own_slot, with_stats, '{}', ARRAY[actor], ARRAY[correlation_id], ARRAY[released_id],
            ARRAY[reason], '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}',
            '{}'
        ) AS answer;
        RETURN;
    END IF;

    event.actor := actor;
    event.correlation_id := correlation_id;
    event := {schema}.append_one_v1(event, own_slot);
    RETURN NEXT {schema}.answer_one_v1(event, with_stats);
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
            CASE selector
                WHEN 'first_available' THEN
                    'availability.lease_rank, availability.checked_at DESC, availability.proxy_id'
                WHEN 'least_used' THEN
                    'availability.lease_rank, availability.current_leases, '
                    'availability.checked_at, availability.proxy_id'
                WHEN 'lowest_latency' THEN
                    'availability.lease_rank, availability.latency_ms, availability.proxy_id'
                ELSE 'availability.lease_rank, availability.proxy_id'
            END
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

-- The next free proxy by id, locked by anybody or not: after one, up to another, but for some.
CREATE OR REPLACE FUNCTION {schema}.next_free_v1(
    pool uuid,
    rank integer,
    after uuid,
    upto uuid,
    ours uuid[],
    condition text,
    arguments jsonb
)
RETURNS uuid
LANGUAGE plpgsql
AS $$
DECLARE
    found uuid;
BEGIN
    IF condition IS NULL THEN
        SELECT availability.proxy_id INTO found
        FROM {schema}.available_proxies AS availability
        WHERE availability.pool_id = pool
          AND availability.lease_rank = rank
          AND (availability.rests_until IS NULL
               OR availability.rests_until <= {schema}.clock())
          AND availability.proxy_id >= coalesce(after, '00000000-0000-0000-0000-000000000000')
          AND availability.proxy_id IS DISTINCT FROM after
          AND availability.proxy_id <= coalesce(upto, 'ffffffff-ffff-ffff-ffff-ffffffffffff')
          AND availability.proxy_id <> ALL (ours)
        ORDER BY availability.proxy_id
        LIMIT 1;
    ELSE
        EXECUTE format(
            $sql$
                SELECT availability.proxy_id
                %s
                  AND availability.lease_rank = $2
                  AND (availability.rests_until IS NULL
                       OR availability.rests_until <= {format}.clock())
                  AND ($3 IS NULL OR availability.proxy_id > $3)
                  AND ($4 IS NULL OR availability.proxy_id <= $4)
                  AND availability.proxy_id <> ALL ($6)
                ORDER BY availability.proxy_id
                LIMIT 1
            $sql$,
            {schema}.matching_v1(condition)
        )
        INTO found
        USING pool, rank, after, upto, arguments, ours;
    END IF;
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
                )
        $sql$,
        {schema}.matching_v1(condition)
    )
    INTO has_member, has_healthy, has_room
    USING pool, highest_rank, needed, is_distinct, arguments;
    reason := CASE
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

-- Wait for what a command was answered 'locked' for, in the order of all locks: the turn under an
-- id that a caller chose, round-robin's cursor, proxies by id, then leases. The command is asked
-- again in the same transaction, in a statement of its own: it then sees what was committed
-- meanwhile, at the time that it is by then.
CREATE OR REPLACE FUNCTION {schema}.wait_v1(
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
#variable_conflict use_column
DECLARE
    at timestamptz := {schema}.clock();
    pool {schema}.pools;
    turn uuid;
    proxies uuid[] := '{}';
BEGIN
    -- Whoever falls silent before it has asked again loses its turn soon.
    PERFORM set_config('idle_in_transaction_session_timeout', '5s', true);
    PERFORM {schema}.wait_for_turn_v1(chosen.id)
    FROM (SELECT id FROM unnest(chosen_ids) AS given (id) ORDER BY hashtext(id::text)) AS chosen;

    IF released_id IS NOT NULL THEN
        SELECT p.* INTO pool
        FROM {schema}.leases AS lease
        JOIN {schema}.pools AS p ON p.id = lease.pool_id
        WHERE lease.id = released_id;
        proxies := ARRAY(
            SELECT lease.proxy_id FROM {schema}.leases AS lease WHERE lease.id = released_id
        );
    ELSE
        SELECT p.* INTO pool FROM {schema}.pools AS p WHERE p.name = wait_v1.pool_name;
        IF selector = 'round_robin' THEN
            SELECT last.proxy_id INTO turn
            FROM {schema}.selector_cursors AS last
            WHERE last.pool_id = pool.id AND last.selector = 'round_robin'
            FOR UPDATE;
            FOR rank IN 0 .. coalesce(pool.lease_slow::integer, -1) LOOP
                proxies := ARRAY[coalesce(
                    {schema}.next_free_v1(pool.id, rank, turn, NULL, '{}', condition, arguments),
                    {schema}.next_free_v1(pool.id, rank, NULL, turn, '{}', condition, arguments)
                )];
                EXIT WHEN proxies <> ARRAY[NULL::uuid];
            END LOOP;
        ELSE
            EXECUTE format(
                $sql$
                    SELECT ARRAY(
                        SELECT availability.proxy_id
                        %s
                          AND availability.lease_rank <= $2
                          AND (availability.rests_until IS NULL
                               OR availability.rests_until <= {format}.clock())
                        ORDER BY availability.proxy_id
                        LIMIT $3
                    )
                $sql$,
                {schema}.matching_v1(condition)
            )
            INTO proxies
            USING pool.id, pool.lease_slow::integer, wanted, NULL::boolean, arguments;
        END IF;
    END IF;
    proxies := proxies || ARRAY(
        SELECT lease.proxy_id
        FROM {schema}.leases AS lease
        WHERE lease.pool_id = pool.id AND lease.status = 'active' AND lease.expires_at <= at
    );
    PERFORM 1
    FROM {schema}.available_proxies AS availability
    WHERE availability.pool_id = pool.id AND availability.proxy_id = ANY (proxies)
    ORDER BY availability.proxy_id
    FOR UPDATE;
    PERFORM 1
    FROM {schema}.leases AS lease
    WHERE lease.id = released_id
       OR lease.pool_id = pool.id AND lease.status = 'active' AND lease.expires_at <= at
    ORDER BY lease.proxy_id, lease.fencing_token
    FOR UPDATE;
END
$$;

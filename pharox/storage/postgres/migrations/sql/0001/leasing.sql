-- Lease, release and take back: many commands in one statement and one commit.
--
--   what has run out ──> what is given back ──> what is asked for, in the order of asking
--
-- Each step decides by available_proxies and selector_cursors alone, so these two are folded
-- step by step; all else is appended and folded once, at the end.
--
-- Locks: round-robin's cursors by pool, then proxies, then whatever append_v1 takes. A proxy is
-- never waited for: by then others may be locked, and two that wait for each other's would wait
-- for ever. What is locked elsewhere is answered with 'locked'; the caller waits for it in a
-- transaction of its own and asks again there, where clock() is a fresh one.
--
-- Runs with the rights of the caller, whose conditions it executes; append_v1 has its owner's.

-- A locked proxy with room for a lease, as it is before that. A type of its own: a rebuild
-- exchanges the read models, on whose rows no function may depend.
CREATE TYPE {schema}.lease_place AS (
    proxy_id uuid,
    status text,
    checked_at timestamptz,
    max_concurrency integer,
    current_leases integer,
    lease_rank smallint
);

CREATE TYPE {schema}.lease_answer AS (
    number integer,
    outcome text,
    lease_id uuid,
    pool_id uuid,
    pool_name text,
    proxy_id uuid,
    consumer_id uuid,
    consumer text,
    acquired_at timestamptz,
    expires_at timestamptz,
    ended_at timestamptz,
    fencing_token bigint,
    reason text,
    free integer,
    decided_at timestamptz,
    total_proxies integer,
    active_proxies integer,
    available_proxies integer,
    leased_proxies integer,
    total_leases integer
);

-- The turn under the id of a lease: whoever asks under it has it until its transaction ends. The
-- first number is pharox's own among the advisory locks of a database.
CREATE FUNCTION {schema}.try_turn_v1(lease_id uuid)
RETURNS boolean
LANGUAGE sql
AS $$
    SELECT pg_try_advisory_xact_lock(1885890930, hashtext(lease_id::text))
$$;

CREATE FUNCTION {schema}.wait_for_turn_v1(lease_id uuid)
RETURNS void
LANGUAGE sql
AS $$
    SELECT pg_advisory_xact_lock(1885890930, hashtext(lease_id::text))
$$;

-- An event of a lease, or a miss. Its position is its place among the others for now.
CREATE FUNCTION {schema}.lease_event_v1(
    place bigint,
    type text,
    pool uuid,
    pool_name text,
    proxy uuid,
    lease uuid,
    consumer_id uuid,
    consumer text,
    status text,
    leases_before integer,
    leases_after integer,
    max_concurrency integer,
    expires_at timestamptz,
    acquired_at timestamptz,
    selector text,
    data jsonb
)
RETURNS {schema}.event_v1
LANGUAGE sql
IMMUTABLE
AS $$
    SELECT ROW(
        place, NULL, NULL, expires_at, acquired_at, pool, proxy, lease, consumer_id,
        leases_before, leases_after, max_concurrency, max_concurrency, 1, type, status, status,
        selector, consumer, pool_name, NULL, NULL, NULL, data
    )::{schema}.event_v1
$$;

-- The leases of some pools that have run out, as events; their proxies are locked.
CREATE FUNCTION {schema}.due_leases_v1(pools uuid[], at timestamptz)
RETURNS SETOF {schema}.event_v1
LANGUAGE sql
AS $$
    SELECT {schema}.lease_event_v1(
        row_number() OVER (ORDER BY due.pool_id, due.proxy_id, due.fencing_token),
        'LeaseExpired', due.pool_id, due.pool_name, due.proxy_id, due.id, due.consumer_id,
        due.consumer_name, due.proxy_status, due.leases_before, due.leases_before - 1,
        due.max_concurrency, due.expires_at, due.acquired_at, NULL, NULL
    )
    FROM (
        SELECT
            locked.*,
            locked.current_leases + 1 - (row_number() OVER (
                PARTITION BY locked.pool_id, locked.proxy_id ORDER BY locked.fencing_token
            ))::integer AS leases_before
        FROM (
            SELECT lease.*, availability.status AS proxy_status, availability.current_leases,
                   availability.max_concurrency
            FROM {schema}.leases AS lease
            JOIN {schema}.available_proxies AS availability
              ON availability.pool_id = lease.pool_id AND availability.proxy_id = lease.proxy_id
            WHERE lease.pool_id = ANY (pools) AND lease.status = 'active' AND lease.expires_at <= at
            ORDER BY lease.pool_id, lease.proxy_id, lease.fencing_token
            LIMIT 1000
            FOR UPDATE OF availability, lease SKIP LOCKED
        ) AS locked
    ) AS due
    ORDER BY due.pool_id, due.proxy_id, due.fencing_token
$$;

-- Leases that are given back, as events; what has ended, run out or is locked elsewhere is left.
CREATE FUNCTION {schema}.returned_leases_v1(
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
        SELECT availability.proxy_id
        FROM {schema}.leases AS lease
        JOIN {schema}.available_proxies AS availability
          ON availability.pool_id = lease.pool_id AND availability.proxy_id = lease.proxy_id
        WHERE lease.id = ANY (ids) AND lease.status = 'active'
        ORDER BY availability.pool_id, availability.proxy_id
        FOR UPDATE OF availability SKIP LOCKED
    );
    RETURN QUERY
    SELECT
        held.number,
        {schema}.lease_event_v1(
            held.number, 'LeaseReleased', held.pool_id, held.pool_name, held.proxy_id, held.id,
            held.consumer_id, held.consumer_name, held.proxy_status,
            held.leases_before, held.leases_before - 1, held.max_concurrency, NULL,
            held.acquired_at, NULL,
            CASE WHEN reasons[held.number] IS NOT NULL
                 THEN jsonb_build_object('reason', reasons[held.number]) END
        )
    FROM (
        SELECT
            lease.*,
            asked.number,
            availability.status AS proxy_status,
            availability.max_concurrency,
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
        WHERE availability.proxy_id = ANY (locked)
    ) AS held
    ORDER BY held.number;
END
$$;

-- Where a statement that is made for a condition looks: at those of the pool $1 that meet it. $5 has
-- the values of the filters that it was made from.
CREATE FUNCTION {schema}.matching_v1(condition text)
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
            WHERE availability.pool_id = $1 AND ($from$ || condition || ')'
    END
$$;

-- Up to so many free proxies in a selector's order, locked. What others have locked is skipped.
CREATE FUNCTION {schema}.free_proxies_v1(
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

-- Which of some locked proxies a run of requests gets, one after the other: the state of each
-- proxy before its lease. A proxy has as many places as it has room; FIRST_AVAILABLE and
-- LOWEST_LATENCY fill one before they go to the next, LEAST_USED and ROUND_ROBIN go around.
CREATE FUNCTION {schema}.places_v1(
    selector text,
    free {schema}.lease_place[],
    wanted integer,
    is_distinct boolean
)
RETURNS {schema}.lease_place[]
LANGUAGE sql
STABLE
AS $$
    SELECT coalesce(array_agg(place.proxy ORDER BY place.number), '{}')
    FROM (
        SELECT
            ROW(
                proxy.proxy_id, proxy.status, proxy.checked_at, proxy.max_concurrency,
                taken.leases, proxy.lease_rank
            )::{schema}.lease_place AS proxy,
            row_number() OVER (
                ORDER BY
                    proxy.lease_rank,
                    CASE selector
                        WHEN 'least_used' THEN taken.leases
                        WHEN 'round_robin' THEN taken.leases - proxy.current_leases
                        ELSE 0
                    END,
                    CASE WHEN selector = 'least_used' THEN proxy.checked_at END,
                    CASE WHEN selector = 'least_used' THEN proxy.proxy_id END,
                    proxy.ordinality,
                    taken.leases
            ) AS number
        FROM unnest(free) WITH ORDINALITY AS proxy,
        LATERAL generate_series(
            proxy.current_leases,
            least(
                proxy.max_concurrency - 1,
                proxy.current_leases + CASE WHEN is_distinct THEN 0 ELSE wanted - 1 END
            )
        ) AS taken (leases)
    ) AS place
    WHERE place.number <= wanted
$$;

-- The next free proxy by id, locked by anybody or not: after one, up to another, but for some.
CREATE FUNCTION {schema}.next_free_v1(
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

-- The places that round-robin gives, from the proxy after the cursor on: all ACTIVE proxies in
-- turn, and only then SLOW ones, from where the turn is by then. They end before the first that
-- somebody else has locked: to skip it would take its turn from it.
CREATE FUNCTION {schema}.next_turns_v1(
    pool uuid,
    highest_rank integer,
    wanted integer,
    is_distinct boolean,
    condition text,
    arguments jsonb
)
RETURNS {schema}.lease_place[]
LANGUAGE plpgsql
AS $$
DECLARE
    turn uuid;
    after uuid;
    upto uuid;
    locked uuid;
    free {schema}.lease_place[];
    found {schema}.lease_place[];
    places {schema}.lease_place[] := '{}';
    missing integer := wanted;
BEGIN
    SELECT last.proxy_id INTO turn
    FROM {schema}.selector_cursors AS last
    WHERE last.pool_id = pool AND last.selector = 'round_robin';
    FOR rank IN 0 .. highest_rank LOOP
        free := '{}';
        FOR part IN 1 .. CASE WHEN turn IS NULL THEN 1 ELSE 2 END LOOP
            after := CASE part WHEN 1 THEN turn END;
            upto := CASE part WHEN 2 THEN turn END;
            found := {schema}.free_proxies_v1(
                'round_robin', pool, rank, rank, after, upto, missing - cardinality(free),
                condition, arguments
            );
            locked := {schema}.next_free_v1(
                pool, rank, after, upto, ARRAY(SELECT f.proxy_id FROM unnest(found) AS f),
                condition, arguments
            );
            free := free || ARRAY(
                SELECT f FROM unnest(found) AS f WHERE locked IS NULL OR f.proxy_id < locked
            );
            EXIT WHEN cardinality(free) = missing OR locked IS NOT NULL;
        END LOOP;
        places := places || {schema}.places_v1(
            'round_robin', free,
            -- Nobody has a second turn before the one that is locked has its first.
            CASE WHEN locked IS NULL THEN missing ELSE cardinality(free) END,
            is_distinct
        );
        missing := wanted - cardinality(places);
        EXIT WHEN missing = 0 OR locked IS NOT NULL;
        IF cardinality(places) > 0 THEN
            turn := places[cardinality(places)].proxy_id;
        END IF;
    END LOOP;
    RETURN places;
END
$$;

-- Why a run of requests got no more, as far as this transaction sees: 'free' if as much as it
-- needs is free (locked by others then) or due to be taken back; else the reason of the miss.
CREATE FUNCTION {schema}.miss_reason_v1(
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
                )
        $sql$,
        {schema}.matching_v1(condition)
    )
    INTO has_member, has_healthy
    USING pool, highest_rank, needed, is_distinct, arguments;
    reason := CASE
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

-- Tell whether an id has the form that pharox gives the ids that nobody chose: the exclusive or
-- of its eight words is a constant. Others may have it by chance.
CREATE FUNCTION {schema}.is_made_v1(id uuid)
RETURNS boolean
LANGUAGE sql
IMMUTABLE
AS $$
    SELECT bit_xor((get_byte(uuid_send(id), 2 * word) << 8) | get_byte(uuid_send(id), 2 * word + 1))
           = 28776
    FROM generate_series(0, 7) AS word
$$;

-- What was granted under an id that a caller chose: no outcome if nothing was, by anybody. Two
-- transactions never get here at once under one id. Ids that callers chose are in lease_ids for
-- ever; one that pharox made, and that was pruned, only the log knows.
CREATE FUNCTION {schema}.granted_before_v1(
    lease_id uuid,
    at timestamptz
)
RETURNS {schema}.lease_answer
LANGUAGE plpgsql
AS $$
#variable_conflict use_column
DECLARE
    answer {schema}.lease_answer;
    id uuid := lease_id;
    was_granted boolean;
BEGIN
    answer.lease_id := id;
    IF NOT {schema}.try_turn_v1(id) THEN
        answer.outcome := 'locked';
        RETURN answer;
    END IF;
    SELECT
        'granted',
        lease.pool_id, lease.pool_name, lease.proxy_id, lease.consumer_id, lease.consumer_name,
        lease.acquired_at, lease.expires_at, lease.released_at, lease.fencing_token,
        CASE WHEN lease.status = 'active' AND lease.expires_at <= at THEN 'expired'
             ELSE lease.status END
    INTO
        answer.outcome,
        answer.pool_id, answer.pool_name, answer.proxy_id, answer.consumer_id, answer.consumer,
        answer.acquired_at, answer.expires_at, answer.ended_at, answer.fencing_token,
        answer.reason
    FROM {schema}.leases AS lease
    WHERE lease.id = granted_before_v1.lease_id;
    IF answer.outcome IS NULL THEN
        was_granted := EXISTS (SELECT 1 FROM {schema}.lease_ids AS own WHERE own.lease_id = id);
        -- A statement of its own: to begin it takes a look at each part of the log.
        IF NOT was_granted AND {schema}.is_made_v1(id) THEN
            was_granted := EXISTS (SELECT 1 FROM {schema}.events AS e WHERE e.lease_id = id);
        END IF;
        IF was_granted THEN
            answer.outcome := 'granted';
            answer.reason := 'pruned';
        END IF;
    END IF;
    RETURN answer;
END
$$;

-- Carry out commands: releases are numbered from 1, then the acquisitions in the order of asking.
-- Neighbours that ask alike make a run: one pool, selector and condition. Of a run that is
-- 'each' every request has its own answer; 'set' is had as a whole, with at least so many;
-- 'try' records no miss.
CREATE FUNCTION {schema}.lease_commands_v1(
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
AS $$
#variable_conflict use_column
DECLARE
    at timestamptz := {schema}.clock();
    released integer := cardinality(released_ids);
    pool_ids uuid[];
    ranks integer[];
    consumer_ids uuid[];
    pending {schema}.event_v1[] := '{}';
    numbers integer[] := '{}';
    more {schema}.event_v1[];
    more_numbers integer[];
    expired uuid[] := '{}';
    returned integer[] := '{}';
    settled integer[] := '{}';
    tokens bigint[];
    stats {schema}.pool_counts[] := '{}';
    free {schema}.lease_place[];
    size integer;
    wanted integer[];
    miss record;
    answer {schema}.lease_answer;
BEGIN
    SELECT array_agg(pool.id ORDER BY run.number), array_agg(pool.lease_slow::integer ORDER BY run.number)
    INTO pool_ids, ranks
    FROM unnest(run_pools) WITH ORDINALITY AS run (name, number)
    LEFT JOIN {schema}.pools AS pool ON pool.name = run.name;

    SELECT array_agg(consumer.id ORDER BY asked.number)
    INTO consumer_ids
    FROM unnest(asked_consumers) WITH ORDINALITY AS asked (name, number)
    LEFT JOIN {schema}.consumers AS consumer ON consumer.name = asked.name;

    IF array_position(consumer_ids, NULL) IS NOT NULL THEN
        -- They are registered first, and then all is asked again.
        RETURN QUERY
        SELECT (answered.told).*
        FROM (
            SELECT jsonb_populate_record(NULL::{schema}.lease_answer, jsonb_build_object(
                'number', released + asked.number,
                'outcome', 'unknown_consumer',
                'consumer', asked.name
            )) AS told
            FROM unnest(asked_consumers, consumer_ids) WITH ORDINALITY AS asked (name, id, number)
            WHERE asked.id IS NULL
        ) AS answered;
        RETURN;
    END IF;

    -- A cursor is waited for, so it comes before all that is locked without waiting.
    IF 'round_robin' = ANY (run_selectors) THEN
        PERFORM 1
        FROM {schema}.selector_cursors AS cursor
        WHERE cursor.selector = 'round_robin'
          AND cursor.pool_id IN (
              SELECT run.pool_id
              FROM unnest(pool_ids, run_selectors) AS run (pool_id, selector)
              WHERE run.selector = 'round_robin'
          )
        ORDER BY cursor.pool_id
        FOR UPDATE;
    END IF;

    -- Who asks again under an id of its own is told what was granted; that takes nothing back.
    FOR run IN 1 .. cardinality(run_ends) LOOP
        FOR number IN coalesce(run_ends[run - 1], 0) + 1 .. run_ends[run] LOOP
            answer := NULL;
            IF own_ids[number] THEN
                IF asked_ids[number] = ANY (asked_ids[: number - 1]) THEN
                    answer.outcome := 'again';
                ELSE
                    answer := {schema}.granted_before_v1(asked_ids[number], at);
                END IF;
            ELSIF run_needs[run] = 0 OR number = coalesce(run_ends[run - 1], 0) + 1 THEN
                -- Who is told that its outcome is unclear may ask under this id meanwhile.
                PERFORM {schema}.try_turn_v1(asked_ids[number]);
            END IF;
            IF answer.outcome IS NOT NULL THEN
                answer.number := released + number;
                answer.decided_at := at;
                RETURN NEXT answer;
                settled := settled || number;
            ELSIF pool_ids[run] <> ALL (due_pools) THEN
                due_pools := due_pools || pool_ids[run];
            END IF;
        END LOOP;
    END LOOP;

    IF released > 0 THEN
        due_pools := due_pools || ARRAY(
            SELECT lease.pool_id
            FROM {schema}.leases AS lease
            WHERE lease.id = ANY (released_ids)
              AND lease.status = 'active' AND lease.expires_at <= at
        );
    END IF;
    IF due_pools <> '{}' AND EXISTS (
        SELECT 1
        FROM {schema}.leases AS lease
        WHERE lease.pool_id = ANY (due_pools)
          AND lease.status = 'active' AND lease.expires_at <= at
    ) THEN
        -- Each is told in one answer: that of the first command in its pool.
        SELECT array_agg(due.event), array_agg(due.number), array_agg((due.event).lease_id)
        INTO more, more_numbers, expired
        FROM (
            SELECT event, coalesce(
                (SELECT min(given.number)::integer
                 FROM unnest(released_ids) WITH ORDINALITY AS given (id, number)
                 JOIN {schema}.leases AS lease ON lease.id = given.id
                 WHERE lease.pool_id = (event).pool_id),
                (SELECT released + coalesce(run_ends[min(run.number) - 1], 0) + 1
                 FROM unnest(pool_ids) WITH ORDINALITY AS run (pool_id, number)
                 WHERE run.pool_id = (event).pool_id),
                1
            ) AS number
            FROM {schema}.due_leases_v1(due_pools, at) AS event
        ) AS due;
        pending := coalesce(more, '{}');
        numbers := coalesce(more_numbers, '{}');
        expired := coalesce(expired, '{}');
        PERFORM {schema}.fold_available_proxies_v1(pending);
    END IF;

    IF released > 0 THEN
        SELECT array_agg(returned.event), array_agg(returned.number)
        INTO more, more_numbers
        FROM {schema}.returned_leases_v1(released_ids, reasons, at) AS returned;
        IF more IS NOT NULL THEN
            PERFORM {schema}.fold_available_proxies_v1(more);
            pending := pending || more;
            numbers := numbers || more_numbers;
            returned := more_numbers;
        END IF;
    END IF;

    FOR run IN 1 .. cardinality(run_ends) LOOP
        size := run_ends[run] - coalesce(run_ends[run - 1], 0);
        wanted := ARRAY(
            SELECT number
            FROM generate_series(run_ends[run] - size + 1, run_ends[run]) AS asked (number)
            WHERE number <> ALL (settled)
        );
        CONTINUE WHEN wanted = '{}';
        -- Of a set some of whose ids are granted already, those are the answer.
        CONTINUE WHEN run_needs[run] > 0 AND cardinality(wanted) < size;

        free := '{}';
        miss := NULL;
        IF pool_ids[run] IS NULL THEN
            SELECT 'unknown_pool' AS reason, 0 AS free INTO miss;
        ELSE
            IF run_selectors[run] = 'round_robin' THEN
                free := {schema}.next_turns_v1(
                    pool_ids[run], ranks[run], cardinality(wanted), run_distinct[run],
                    run_conditions[run], run_arguments[run]
                );
            ELSE
                free := {schema}.free_proxies_v1(
                    run_selectors[run], pool_ids[run], 0, ranks[run], NULL, NULL,
                    cardinality(wanted), run_conditions[run], run_arguments[run]
                );
                IF cardinality(wanted) > 1 THEN
                    free := {schema}.places_v1(
                        run_selectors[run], free, cardinality(wanted), run_distinct[run]
                    );
                END IF;
            END IF;
            IF cardinality(free) < run_needs[run] THEN
                free := '{}'; -- It is all or none.
            END IF;
            IF free <> '{}' THEN
                SELECT
                    array_agg({schema}.lease_event_v1(
                        proxy.ordinality, 'LeaseAcquired', pool_ids[run], run_pools[run],
                        proxy.proxy_id,
                        asked_ids[wanted[proxy.ordinality]],
                        consumer_ids[wanted[proxy.ordinality]],
                        asked_consumers[wanted[proxy.ordinality]],
                        proxy.status, proxy.current_leases, proxy.current_leases + 1,
                        proxy.max_concurrency,
                        at + durations[wanted[proxy.ordinality]] * interval '1 second', NULL,
                        CASE WHEN run_kinds[run] <> 'one' THEN run_selectors[run] END,
                        CASE
                            WHEN own_ids[wanted[proxy.ordinality]] THEN
                                coalesce(run_details[run], '{}') || '{"own_id": true}'
                            ELSE run_details[run]
                        END
                    ) ORDER BY proxy.ordinality),
                    array_agg(released + wanted[proxy.ordinality] ORDER BY proxy.ordinality)
                INTO more, more_numbers
                FROM unnest(free) WITH ORDINALITY AS proxy;
                PERFORM {schema}.fold_available_proxies_v1(more);
                IF run_selectors[run] = 'round_robin' THEN
                    PERFORM {schema}.fold_selector_cursors_v1(more);
                END IF;
                pending := pending || more;
                numbers := numbers || more_numbers;
            END IF;
            CONTINUE WHEN cardinality(free) = cardinality(wanted)
                OR run_needs[run] > 0 AND cardinality(free) > 0; -- A set has enough with that.
            SELECT * INTO miss
            FROM {schema}.miss_reason_v1(
                pool_ids[run], ranks[run], greatest(run_needs[run], 1), run_distinct[run],
                run_conditions[run], run_arguments[run], expired, at
            );
        END IF;

        wanted := wanted[cardinality(free) + 1 :];
        IF miss.reason = 'free' OR run_kinds[run] IN ('try', 'one') THEN
            FOREACH answer.number IN ARRAY wanted LOOP
                answer.number := released + answer.number;
                answer.outcome := CASE WHEN miss.reason = 'free' THEN 'locked' ELSE 'none' END;
                answer.decided_at := at;
                RETURN NEXT answer;
            END LOOP;
            CONTINUE;
        END IF;
        IF run_kinds[run] = 'set' THEN
            wanted := wanted[1:1];
        END IF;
        SELECT
            array_agg({schema}.lease_event_v1(
                asked.number, 'AcquireMissed',
                coalesce(pool_ids[run], '00000000-0000-0000-0000-000000000000'),
                run_pools[run], NULL, NULL, NULL, asked_consumers[asked.number], NULL, NULL, NULL,
                NULL, NULL, NULL, run_selectors[run],
                coalesce(run_details[run], '{}') || jsonb_build_object('reason', miss.reason)
                || CASE
                    WHEN run_kinds[run] = 'set' THEN jsonb_build_object(
                        'count', size,
                        'free', coalesce(miss.free, 0)
                    )
                    ELSE '{}'
                END
            ) ORDER BY asked.number),
            array_agg(released + asked.number ORDER BY asked.number)
        INTO more, more_numbers
        FROM unnest(wanted) AS asked (number);
        pending := pending || more;
        numbers := numbers || more_numbers;
    END LOOP;

    IF pending <> '{}' THEN
        pending := {schema}.append_v1(
            pending, own_slot, numbers, actors, correlation_ids, true
        );
        IF true = ANY (own_ids) THEN
            PERFORM {schema}.fold_lease_ids_v1(pending);
        END IF;
        IF with_stats THEN
            stats := ARRAY(SELECT counts FROM {schema}.counts_after_v1(pending) AS counts);
        END IF;
        IF expired <> '{}' THEN
            -- Only the lease itself knows its token.
            SELECT array_agg(ended.fencing_token ORDER BY told.number) INTO tokens
            FROM unnest(expired) WITH ORDINALITY AS told (id, number)
            JOIN {schema}.leases AS ended ON ended.id = told.id;
        END IF;
        RETURN QUERY
        SELECT
            numbers[event.ordinality],
            event.type,
            event.lease_id,
            event.pool_id,
            event.pool_name,
            event.proxy_id,
            event.consumer_id,
            event.consumer,
            coalesce(event.acquired_at, event.recorded_at),
            event.expires_at,
            CASE WHEN event.acquired_at IS NOT NULL THEN event.recorded_at END,
            CASE event.type
                WHEN 'LeaseAcquired' THEN event.position
                WHEN 'LeaseExpired' THEN tokens[event.ordinality]
            END,
            event.data ->> 'reason',
            (event.data ->> 'free')::integer,
            event.recorded_at,
            counts.total_proxies,
            counts.active_proxies,
            counts.available_proxies,
            counts.leased_proxies,
            counts.total_leases
        FROM unnest(pending) WITH ORDINALITY AS event
        LEFT JOIN unnest(stats) AS counts ON counts.position = event.position
        ORDER BY event.ordinality;
    END IF;

    -- Read models are folded by now, so what ended a moment ago has ended.
    IF cardinality(returned) < released THEN
        RETURN QUERY
        SELECT
            given.number::integer,
            CASE
                WHEN lease.id IS NULL THEN 'unknown'
                WHEN lease.status = 'active' THEN 'locked'
                ELSE 'ended'
            END,
            given.id,
            lease.pool_id,
            lease.pool_name,
            lease.proxy_id,
            lease.consumer_id,
            lease.consumer_name,
            lease.acquired_at,
            lease.expires_at,
            lease.released_at,
            lease.fencing_token,
            lease.status,
            NULL::integer,
            at,
            NULL::integer, NULL::integer, NULL::integer, NULL::integer, NULL::integer
        FROM unnest(released_ids) WITH ORDINALITY AS given (id, number)
        LEFT JOIN {schema}.leases AS lease ON lease.id = given.id
        WHERE given.number <> ALL (returned);
    END IF;
END
$$;

-- What the only command of a statement came to: its event, with the pool in numbers if asked for.
CREATE FUNCTION {schema}.answer_one_v1(event {schema}.event_v1, with_stats boolean)
RETURNS {schema}.lease_answer
LANGUAGE plpgsql
AS $$
DECLARE
    counts {schema}.pool_counts;
BEGIN
    IF with_stats THEN
        SELECT after.* INTO counts FROM {schema}.counts_after_v1(ARRAY[event]) AS after;
    END IF;
    RETURN ROW(
        1, event.type, event.lease_id, event.pool_id, event.pool_name, event.proxy_id,
        event.consumer_id, event.consumer, coalesce(event.acquired_at, event.recorded_at),
        event.expires_at, CASE WHEN event.acquired_at IS NOT NULL THEN event.recorded_at END,
        CASE WHEN event.acquired_at IS NULL THEN event.position END,
        event.data ->> 'reason', NULL, event.recorded_at,
        counts.total_proxies, counts.active_proxies, counts.available_proxies,
        counts.leased_proxies, counts.total_leases
    )::{schema}.lease_answer;
END
$$;

-- Acquire one lease: what lease_commands_v1 does for a single request that is answered by a free
-- proxy, in fewer statements. Whatever else there is to do is done there.
CREATE FUNCTION {schema}.acquire_one_v1(
    own_slot smallint,
    with_stats boolean,
    actor text,
    correlation_id text,
    pool_name text,
    selector text,
    asked_id uuid,
    consumer text,
    duration double precision
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
    is_due boolean;
    place {schema}.lease_place;
    event {schema}.event_v1;
BEGIN
    SELECT
        pool.id,
        pool.lease_slow::integer,
        asking.id,
        EXISTS (
            SELECT 1
            FROM {schema}.leases AS lease
            WHERE lease.pool_id = pool.id AND lease.status = 'active' AND lease.expires_at <= at
        )
    INTO pool_id, highest_rank, consumer_id, is_due
    FROM {schema}.pools AS pool, {schema}.consumers AS asking
    WHERE pool.name = pool_name AND asking.name = consumer;

    IF NOT is_due THEN
        place := ({schema}.free_proxies_v1(
            selector, pool_id, 0, highest_rank, NULL, NULL, 1, NULL, NULL
        ))[1];
    END IF;
    IF place IS NULL THEN
        RETURN QUERY
        SELECT answer.*
        FROM {schema}.lease_commands_v1(
            own_slot, with_stats, '{}', ARRAY[actor], ARRAY[correlation_id], '{}', '{}',
            ARRAY[1], ARRAY['each'], ARRAY[0], ARRAY[false], ARRAY[pool_name], ARRAY[selector],
            ARRAY[NULL::text], ARRAY[NULL::jsonb], ARRAY[NULL::jsonb],
            ARRAY[asked_id], ARRAY[false], ARRAY[consumer], ARRAY[duration]
        ) AS answer;
        RETURN;
    END IF;

    -- Who is told that its outcome is unclear may ask under this id meanwhile.
    PERFORM {schema}.try_turn_v1(asked_id);
    event := {schema}.lease_event_v1(
        1, 'LeaseAcquired', pool_id, pool_name, place.proxy_id, asked_id, consumer_id, consumer,
        place.status, place.current_leases, place.current_leases + 1, place.max_concurrency,
        at + duration * interval '1 second', NULL, selector, NULL
    );
    event.actor := actor;
    event.correlation_id := correlation_id;
    event := {schema}.append_one_v1(event, own_slot);
    RETURN NEXT {schema}.answer_one_v1(event, with_stats);
END
$$;

-- Release one lease: what lease_commands_v1 does for a single one that is active and not locked.
CREATE FUNCTION {schema}.release_one_v1(
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
    place {schema}.lease_place;
    event {schema}.event_v1;
BEGIN
    SELECT
        availability.proxy_id, availability.status, availability.checked_at,
        availability.max_concurrency, availability.current_leases, availability.lease_rank
    INTO place
    FROM {schema}.leases AS lease
    JOIN {schema}.available_proxies AS availability
      ON availability.pool_id = lease.pool_id AND availability.proxy_id = lease.proxy_id
    WHERE lease.id = released_id AND lease.status = 'active'
    FOR UPDATE OF availability SKIP LOCKED;

    -- The lock comes before the look: only then does the look see what others have done.
    SELECT (held.event).* INTO event
    FROM (
        SELECT {schema}.lease_event_v1(
            1, 'LeaseReleased', lease.pool_id, lease.pool_name, lease.proxy_id, lease.id,
            lease.consumer_id, lease.consumer_name, place.status, place.current_leases,
            place.current_leases - 1, place.max_concurrency, NULL, lease.acquired_at, NULL,
            CASE WHEN reason IS NOT NULL THEN jsonb_build_object('reason', reason) END
        ) AS event
        FROM {schema}.leases AS lease
        WHERE lease.id = released_id AND lease.proxy_id = place.proxy_id
          AND lease.status = 'active' AND lease.expires_at > at
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

-- Wait for what a command was answered 'locked' for, in the order of all locks: the turn under an
-- id that a caller chose, round-robin's cursor, then proxies by id. The command is asked again in
-- the same transaction, in a statement of its own: it then sees what was committed meanwhile, at
-- the time that it is by then.
CREATE FUNCTION {schema}.wait_v1(
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
            FOR rank IN 0 .. pool.lease_slow::integer LOOP
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
END
$$;

-- Try several pools in order: the first that has what is asked for grants it.
--
--   the turns of a key ──> cursors ──> counters ──> what has run out ──> each pool, until one grants
--
-- Locks: all that is waited for in any of the pools is locked first, by the id of the pool, whatever
-- the order of trying; so who tries A and then B, and who tries B and then A, do not wait in a circle.
-- A proxy is never waited for here; wait_fallback_v1 waits for those of one pool only.

-- Take the turns of a session's key in some pools, and of their new bindings unless the key is bound
-- to a proxy that can be had. Return the first pool in which it is bound.
CREATE FUNCTION {schema}.session_turns_v1(pools uuid[], key text, at timestamptz)
RETURNS uuid
LANGUAGE plpgsql
AS $$
#variable_conflict use_variable
DECLARE
    home uuid;
BEGIN
    PERFORM {schema}.take_turns_v1(pools, array_fill(key, ARRAY[cardinality(pools)]));
    home := (
        SELECT session.pool_id
        FROM unnest(pools) WITH ORDINALITY AS asked (id, number)
        JOIN {schema}.sessions AS session ON session.pool_id = asked.id
        WHERE session.key = key AND session.expires_at > at
        ORDER BY asked.number
        LIMIT 1
    );
    PERFORM {schema}.binding_turn_v1(turn.pool_id)
    FROM (
        SELECT asked.id AS pool_id
        FROM unnest(pools) AS asked (id)
        WHERE home IS NULL OR asked.id = home AND NOT EXISTS (
            SELECT 1
            FROM {schema}.sessions AS session
            JOIN {schema}.available_proxies AS kept
              ON kept.pool_id = session.pool_id AND kept.proxy_id = session.proxy_id
             AND kept.status NOT IN ('banned', 'inactive')
            WHERE session.pool_id = home AND session.key = key
        )
        ORDER BY asked.id
    ) AS turn;
    RETURN home;
END
$$;

-- Lock round-robin's cursors of some pools if any of them may be needed, or ``always``.
CREATE FUNCTION {schema}.lock_cursors_v1(
    pools uuid[],
    selector text,
    at timestamptz,
    always boolean
)
RETURNS void
LANGUAGE plpgsql
AS $$
#variable_conflict use_variable
BEGIN
    IF always OR EXISTS (
        SELECT 1
        FROM {schema}.pools AS known
        WHERE known.id = ANY (pools) AND coalesce(selector, known.selector) = 'round_robin'
    ) OR EXISTS (
        SELECT 1
        FROM {schema}.waiting_tickets AS ticket
        WHERE ticket.pool_id = ANY (pools) AND ticket.selector = 'round_robin'
    ) OR EXISTS (
        SELECT 1
        FROM {schema}.available_proxies AS banned
        WHERE banned.pool_id = ANY (pools) AND banned.banned_until <= at
    ) THEN
        PERFORM 1
        FROM {schema}.selector_cursors AS cursor
        WHERE cursor.pool_id = ANY (pools) AND cursor.selector = 'round_robin'
        ORDER BY cursor.pool_id
        FOR UPDATE;
    END IF;
END
$$;

-- Ask one pool for what a request wants, as one command.
CREATE FUNCTION {schema}.ask_pool_v1(
    own_process uuid,
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
LANGUAGE sql
AS $$
    SELECT answer.*
    FROM {schema}.lease_commands_v3(
        own_process, 0, false, false, own_slot, with_stats, '{}',
        array_fill(actor, ARRAY[cardinality(ids)]),
        array_fill(correlation_id, ARRAY[cardinality(ids)]),
        '{}', '{}', ARRAY[cardinality(ids)], ARRAY[kind], ARRAY[needs], ARRAY[is_distinct],
        ARRAY[pool_name], ARRAY[selector], ARRAY[condition], ARRAY[arguments], ARRAY[details],
        ids, array_fill(own_ids, ARRAY[cardinality(ids)]),
        array_fill(consumer, ARRAY[cardinality(ids)]),
        array_fill(duration, ARRAY[cardinality(ids)])
    ) AS answer
$$;

-- Acquire one lease, or a set, of the first of several pools that has it. The answers are those of
-- lease_commands_v3 for one command, after one with the number 0 for each pool that had nothing:
-- 'passed', with the reason.
--
-- A request with a key is for the pool in which the key is bound first, which alone binds it. If it
-- has ``ticket_ids`` and may be granted later, it gets a ticket in each pool, of a caller who looks
-- for itself: under its own id in the first, and under one of these in each other. One that ``looks``
-- gets them at once. A pool that is moving or has moved is passed over like one that has nothing free.
-- ``filters`` and ``arguments`` are those of a run without a target.
CREATE FUNCTION {schema}.acquire_fallback_v1(
    own_process uuid,
    max_waiting integer,
    own_slot smallint,
    with_stats boolean,
    actor text,
    correlation_id text,
    pool_names text[],
    selector text,
    needs integer,
    is_distinct boolean,
    asked_ids uuid[],
    own_ids boolean,
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
    ticket_ids uuid[],
    looks boolean
)
RETURNS SETOF {schema}.lease_answer
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
    pools uuid[]; -- null where a pool has moved
    here uuid[];
    names text[] := pool_names;
    unknown text;
    home uuid;
    pool record;
    number integer := jsonb_array_length(coalesce(arguments, '[]'));
    items jsonb := coalesce(arguments, '[]')
        || CASE WHEN key IS NULL THEN '[]' ELSE jsonb_build_array(key) END
        || CASE WHEN target IS NULL THEN '[]' ELSE jsonb_build_array(target) END;
    plain text := CASE WHEN target IS NULL THEN filters
                       ELSE '(' || coalesce(filters, 'true') || ') /*target*/' END;
    condition text;
    waits_for text;
    given {schema}.lease_answer[];
    answer {schema}.lease_answer;
    miss record;
    outcome text;
    first record;
    sought text;
    own_limit jsonb;
    first_limit jsonb;
    missed jsonb := '[]';
    passed {schema}.lease_answer[] := '{}';
    may_wait boolean := false;
    consumer_id uuid := (
        SELECT known.id FROM {schema}.consumers AS known WHERE known.name = consumer
    );
BEGIN
    details := coalesce(details, '{}');
    IF consumer_id IS NULL THEN
        answer.number := 1;
        answer.outcome := 'unknown_consumer';
        answer.consumer := consumer;
        RETURN NEXT answer;
        RETURN;
    END IF;
    SELECT array_agg(known.id ORDER BY asked.number) INTO pools
    FROM unnest(pool_names) WITH ORDINALITY AS asked (name, number)
    LEFT JOIN {schema}.pools AS known ON known.name = asked.name;
    here := array_remove(pools, NULL);
    IF cardinality(here) < cardinality(pools) THEN
        unknown := (
            SELECT asked.name
            FROM unnest(pools, pool_names) WITH ORDINALITY AS asked (id, name, number)
            WHERE asked.id IS NULL AND {schema}.moved_reason_v1(asked.name) IS NULL
            ORDER BY asked.number
            LIMIT 1
        );
    END IF;
    IF unknown IS NOT NULL THEN
        answer.number := 0;
        answer.outcome := 'passed';
        answer.pool_id := '00000000-0000-0000-0000-000000000000';
        answer.pool_name := unknown;
        answer.reason := 'unknown_pool';
        RETURN NEXT answer;
        RETURN QUERY
        SELECT told.*
        FROM {schema}.ask_pool_v1(
            own_process, own_slot, with_stats, actor, correlation_id,
            CASE WHEN needs > 0 THEN 'set' ELSE 'each' END, needs, is_distinct, answer.pool_name,
            coalesce(selector, 'first_available'), plain, items, details, asked_ids, own_ids,
            consumer, coalesce(duration, default_duration)
        ) AS told;
        RETURN;
    END IF;

    IF key IS NOT NULL THEN
        home := {schema}.session_turns_v1(here, key, at);
        IF home IS NOT NULL THEN
            names := names[array_position(pools, home)] || CASE WHEN requires THEN '{}'
                ELSE array_remove(names, names[array_position(pools, home)]) END;
            pools := home || CASE WHEN requires THEN '{}' ELSE array_remove(pools, home) END;
            here := array_remove(pools, NULL);
        END IF;
    END IF;
    PERFORM {schema}.lock_cursors_v1(here, selector, at, false);
    PERFORM 1
    FROM {schema}.pool_stats AS counters
    WHERE counters.pool_id = ANY (here) AND counters.slot = own_slot
    ORDER BY counters.pool_id
    FOR UPDATE;
    IF (EXISTS (
        SELECT 1
        FROM {schema}.leases AS lease
        WHERE lease.pool_id = ANY (here) AND lease.status = 'active' AND lease.expires_at <= at
    ) OR EXISTS (
        SELECT 1
        FROM {schema}.available_proxies AS banned
        WHERE banned.pool_id = ANY (here) AND banned.banned_until <= at
    )) AND NOT (own_ids AND EXISTS (
        SELECT 1 FROM {schema}.lease_ids AS known WHERE known.lease_id = ANY (asked_ids)
    )) THEN
        RETURN QUERY
        SELECT told.*
        FROM {schema}.lease_commands_v3(
            own_process, 0, false, false, own_slot, with_stats, here, ARRAY[actor],
            ARRAY[correlation_id], '{}', '{}',
            '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}'
        ) AS told;
    END IF;

    FOR pool IN
        SELECT
            known.id,
            asked.name,
            known.lease_slow::integer AS rank,
            coalesce(selector, known.selector, 'first_available') AS selector,
            coalesce(duration, known.lease_seconds, default_duration) AS seconds,
            -- Elsewhere its key may be lent a proxy that no other key has.
            CASE WHEN home IS NULL OR home = known.id THEN plain
                 ELSE '(' || coalesce(filters, 'true') || ') AND '
                     || {schema}.unbound_v1(number, target, shares)
                     || CASE WHEN target IS NULL THEN '' ELSE ' /*target*/' END
            END AS condition,
            key IS NOT NULL AND (home IS NULL OR home = known.id) AS binds,
            known.limits IS NOT NULL AS is_limited,
            asked.number
        FROM unnest(pools, names) WITH ORDINALITY AS asked (id, name, number)
        LEFT JOIN {schema}.pools AS known ON known.id = asked.id
        WHERE known.id IS NOT NULL OR asked.id IS NULL
        ORDER BY asked.number
    LOOP
        given := '{}';
        IF looks OR pool.id IS NULL THEN
            NULL;
        ELSIF pool.binds THEN
            PERFORM set_config('pharox.tries_pools', 'on', true);
            given := ARRAY(
                SELECT told
                FROM {schema}.acquire_sticky_v2(
                    own_process, 0, own_slot, with_stats, actor, correlation_id, pool.name,
                    pool.selector, asked_ids[1], own_ids, consumer, pool.seconds, pool.seconds,
                    filters, arguments, target,
                    details || CASE WHEN missed = '[]' THEN '{}'
                                    ELSE jsonb_build_object('fallback_from', missed) END,
                    key, seconds, requires, slides, shares, false
                ) AS told
            );
            PERFORM set_config('pharox.tries_pools', '', true);
        ELSE
            given := ARRAY(
                SELECT told
                FROM {schema}.ask_pool_v1(
                    own_process, own_slot, with_stats, actor, correlation_id, 'try', needs,
                    is_distinct, pool.name, pool.selector, pool.condition, items,
                    details || CASE WHEN missed = '[]' THEN '{}'
                                    ELSE jsonb_build_object('fallback_from', missed) END,
                    asked_ids, own_ids, consumer, pool.seconds
                ) AS told
            );
        END IF;
        outcome := NULL;
        miss := NULL;
        FOREACH answer IN ARRAY given LOOP
            CONTINUE WHEN answer.outcome = 'none';
            IF answer.outcome = 'passed' THEN
                SELECT answer.reason AS reason, 0 AS free,
                       answer.reason NOT IN ('empty_pool', 'no_match') AS may_wait
                INTO miss;
                CONTINUE;
            END IF;
            IF answer.number > 0 AND answer.outcome NOT IN ('LeaseExpired', 'ProxyRemoved') THEN
                outcome := answer.outcome;
            END IF;
            RETURN NEXT answer;
        END LOOP;
        IF outcome IS NOT NULL THEN
            IF outcome = 'LeaseAcquired' THEN
                RETURN QUERY SELECT told.* FROM unnest(passed) AS told;
            END IF;
            RETURN;
        END IF;
        IF pool.id IS NULL THEN
            SELECT coalesce({schema}.moved_reason_v1(pool.name), 'pool_moving') AS reason,
                   0 AS free, false AS may_wait
            INTO miss;
        ELSIF miss IS NULL THEN
            SELECT * INTO miss
            FROM {schema}.reason_v1(
                pool.id, pool.rank, needs, cardinality(asked_ids), is_distinct,
                CASE
                    WHEN pool.is_limited THEN {schema}.limited_v1(plain, pool.id, consumer_id)
                    WHEN key IS NULL THEN plain
                    ELSE coalesce(plain, 'true')
                END,
                items, '{}', at
            );
            IF key IS NOT NULL AND miss.reason = 'at_capacity' AND {schema}.unreserved_v1(
                pool.id, pool.rank, 1, true, coalesce(plain, 'true'), items, '{}'
            ) <> '{}' THEN
                miss.reason := 'all_bound';
            END IF;
        END IF;
        may_wait := may_wait OR miss.may_wait;
        answer := NULL;
        answer.number := 0;
        answer.outcome := 'passed';
        answer.pool_id := coalesce(pool.id, '00000000-0000-0000-0000-000000000000');
        answer.pool_name := pool.name;
        answer.reason := miss.reason;
        passed := passed || answer;
        IF pool.number = 1 THEN
            SELECT pool.id, pool.name, pool.selector, miss.reason, miss.free,
                   CASE WHEN key IS NOT NULL THEN (
                       SELECT session.proxy_id
                       FROM {schema}.sessions AS session
                       JOIN {schema}.available_proxies AS kept
                         ON kept.pool_id = session.pool_id AND kept.proxy_id = session.proxy_id
                        AND kept.status NOT IN ('banned', 'inactive')
                       WHERE session.pool_id = pool.id AND session.key = key
                         AND session.expires_at > at
                   ) END AS session_proxy_id
            INTO first;
        END IF;
        sought := CASE
            WHEN requires AND pool.number = 1 AND first.session_proxy_id IS NOT NULL
                THEN '(' || coalesce(plain, 'true') || format(
                    ') AND availability.proxy_id = %L::uuid', first.session_proxy_id
                )
            ELSE plain
        END;
        own_limit := CASE WHEN looks OR pool.id IS NULL THEN '{}' ELSE {schema}.reached_details_v1(
            pool.id, consumer, target, needs, miss.reason, sought, items
        ) END;
        IF pool.number = 1 THEN
            first_limit := own_limit;
        END IF;
        missed := missed || jsonb_build_array(
            jsonb_build_object(
                'pool_id', answer.pool_id, 'pool_name', pool.name, 'reason', miss.reason
            )
            || CASE WHEN miss.reason = 'limit_reached' THEN own_limit ELSE '{}' END
        );
    END LOOP;

    answer := NULL;
    answer.pool_id := coalesce(first.id, here[1]);
    answer.decided_at := at;
    IF looks OR ticket_ids IS NOT NULL AND may_wait THEN
        condition := CASE WHEN key IS NULL THEN plain ELSE {schema}.fits_session_v1(
            filters, number, target, shares, requires
        ) END;
        FOR pool IN
            SELECT
                known.id,
                coalesce(selector, known.selector, 'first_available') AS selector,
                coalesce(duration, known.lease_seconds, default_duration) AS seconds,
                known.limits IS NOT NULL AS is_limited,
                asked.number
            FROM unnest(here) WITH ORDINALITY AS asked (id, number)
            JOIN {schema}.pools AS known ON known.id = asked.id
            ORDER BY asked.number
        LOOP
            answer.outcome := {schema}.queue_v1(
                own_process, max_waiting, pool.id, at, consumer, pool.selector,
                CASE WHEN pool.is_limited
                    THEN {schema}.limited_v1(condition, pool.id, consumer_id)
                    ELSE condition
                END,
                items, details, needs, is_distinct,
                CASE pool.number WHEN 1 THEN ARRAY[asked_ids[1]]
                                 ELSE ARRAY[ticket_ids[pool.number - 1]] END,
                own_ids, pool.seconds, actor, correlation_id, true
            );
            EXIT WHEN answer.outcome <> 'queued';
        END LOOP;
        answer.number := 1;
        RETURN NEXT answer;
        RETURN;
    END IF;
    RETURN QUERY SELECT told.* FROM unnest(passed) AS told;
    answer := {schema}.missed_v1(
        own_slot, with_stats, actor, correlation_id, first.id, first.name, first.selector, needs,
        cardinality(asked_ids),
        details
            || CASE WHEN jsonb_array_length(missed) = 1 THEN '{}'
                    ELSE jsonb_build_object('fallback', missed - 0) END
            || CASE WHEN first.session_proxy_id IS NULL THEN '{}'
                    ELSE jsonb_build_object('session_proxy_id', first.session_proxy_id) END
            || first_limit,
        consumer, first.reason, first.free
    );
    answer.number := 1;
    RETURN NEXT answer;
END
$$;

-- Wait for all that acquire_fallback_v1 may wait for, and then for what was locked in the first pool
-- that has something free, or due.
CREATE FUNCTION {schema}.wait_fallback_v1(
    chosen_ids uuid[],
    pool_names text[],
    selector text,
    filters text,
    arguments jsonb,
    target text,
    key text,
    requires boolean,
    shares boolean,
    wanted integer,
    consumer text
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
    pools uuid[];
    home uuid;
    pool record;
    number integer := jsonb_array_length(coalesce(arguments, '[]'));
    items jsonb := coalesce(arguments, '[]')
        || CASE WHEN key IS NULL THEN '[]' ELSE jsonb_build_array(key) END
        || CASE WHEN target IS NULL THEN '[]' ELSE jsonb_build_array(target) END;
    condition text := CASE
        WHEN key IS NOT NULL THEN
            {schema}.fits_session_v1(filters, number, target, shares, requires)
        WHEN target IS NULL THEN filters
        ELSE '(' || coalesce(filters, 'true') || ') /*target*/'
    END;
    miss record;
BEGIN
    SELECT array_agg(known.id ORDER BY asked.number) INTO pools
    FROM unnest(pool_names) WITH ORDINALITY AS asked (name, number)
    JOIN {schema}.pools AS known ON known.name = asked.name;
    IF pools IS NULL THEN
        RETURN;
    END IF;
    -- The turns of limits come before all else, as in wait_v3.
    PERFORM {schema}.wait_limits_v1(turn.name, consumer, target)
    FROM (
        SELECT known.name
        FROM {schema}.pools AS known
        WHERE known.id = ANY (pools) AND known.limits IS NOT NULL
        ORDER BY known.id
    ) AS turn;
    IF key IS NOT NULL THEN
        home := {schema}.session_turns_v1(pools, key, at);
        IF home IS NOT NULL THEN
            pools := home || CASE WHEN requires THEN '{}' ELSE array_remove(pools, home) END;
        END IF;
    END IF;
    PERFORM {schema}.wait_for_turn_v1(chosen.id)
    FROM (SELECT id FROM unnest(chosen_ids) AS given (id) ORDER BY hashtext(id::text)) AS chosen;
    -- Who waits meanwhile may do so for round-robin, and a cursor never comes after a proxy.
    PERFORM {schema}.lock_cursors_v1(pools, selector, at, true);
    FOR pool IN
        SELECT known.id, known.name, known.lease_slow::integer AS rank
        FROM unnest(pools) WITH ORDINALITY AS asked (id, number)
        JOIN {schema}.pools AS known ON known.id = asked.id
        ORDER BY asked.number
    LOOP
        SELECT * INTO miss
        FROM {schema}.miss_reason_v1(
            pool.id, pool.rank, greatest(wanted, 1), true, condition, items, '{}', at
        );
        IF miss.reason = 'free' THEN
            PERFORM {schema}.wait_v2(
                chosen_ids, NULL, pool.name, selector, condition, items, wanted
            );
            RETURN;
        END IF;
    END LOOP;
    -- It has been taken meanwhile. Who falls silent before it asks again loses its turn soon.
    PERFORM set_config('idle_in_transaction_session_timeout', '5s', true);
END
$$;

-- Give up the places of one caller in several queues. One answer for each that there was.
CREATE FUNCTION {schema}.leave_queues_v1(own_process uuid, asked_ids uuid[])
RETURNS SETOF {schema}.lease_answer
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET jit = off
AS $$
#variable_conflict use_variable
DECLARE
    answer {schema}.lease_answer;
BEGIN
    FOR answer.lease_id IN
        DELETE FROM {schema}.waiting_tickets AS t
        WHERE t.lease_ids[1] = ANY (asked_ids) AND t.process_id = own_process
        RETURNING t.lease_ids[1]
    LOOP
        answer.number := 1;
        answer.outcome := 'left';
        RETURN NEXT answer;
    END LOOP;
END
$$;

-- Keep one proxy for a key: sticky sessions.
--
-- The turn of a key comes first in a transaction, and then, if a binding is to be made, the turn of
-- the pool's bindings; so two callers with one key get one binding, and no two keys the same proxy.
-- Neither is taken by whoever holds a proxy or a cursor. What is asked for then is a command as any
-- other, whose condition names proxies, so who waits in the pool comes first.

-- Take the turn of all new bindings of a pool, until the transaction ends. The first number is
-- pharox's own among the advisory locks of a database.
CREATE FUNCTION {schema}.binding_turn_v1(pool uuid)
RETURNS void
LANGUAGE sql
AS $$
    SELECT pg_advisory_xact_lock(1885890932, hashtext(pool::text))
$$;

-- The condition that a proxy is bound to no other living key than the element ``number`` of $5, as far
-- as bindings to one proxy exclude each other. The target is the last element of $5.
CREATE FUNCTION {schema}.unbound_v1(number integer, target text, shares boolean)
RETURNS text
LANGUAGE sql
IMMUTABLE
AS $$
    SELECT $sql$ NOT EXISTS (
            SELECT
            FROM {schema}.sessions AS other
            WHERE other.pool_id = $1 AND other.proxy_id = availability.proxy_id
              AND other.expires_at > {schema}.clock()
              AND other.shared IN ($sql$
        || CASE WHEN shares THEN 'false' ELSE 'false, true' END || ')'
        || CASE WHEN target IS NULL THEN ''
                ELSE ' AND (other.target IS NULL OR other.target = $5 ->> -1)' END
        || ' AND other.key <> $5 ->> ' || number || ')'
$$;

-- The condition that a proxy may be leased for a key, whatever it is bound to at that time.
CREATE FUNCTION {schema}.fits_session_v1(
    filters text,
    number integer,
    target text,
    shares boolean,
    requires boolean
)
RETURNS text
LANGUAGE sql
IMMUTABLE
AS $$
    SELECT format(
        CASE WHEN requires THEN '(%s) AND coalesce(availability.proxy_id = (%s), %s)'
             ELSE '(%s) AND (coalesce(availability.proxy_id = (%s), false) OR %s)' END,
        coalesce(filters, 'true'),
        $sql$
            SELECT session.proxy_id
            FROM {schema}.sessions AS session
            JOIN {schema}.available_proxies AS kept
              ON kept.pool_id = session.pool_id AND kept.proxy_id = session.proxy_id
             AND kept.status NOT IN ('banned', 'inactive')
            WHERE session.pool_id = $1 AND session.expires_at > {schema}.clock()
              AND session.key = $5 ->> $sql$ || number,
        {schema}.unbound_v1(number, target, shares)
    ) || CASE WHEN target IS NULL THEN '' ELSE ' /*target*/' END
$$;

-- Free proxies for a binding, in a selector's order: of those in front of it, or else some others,
-- from a random id on. So finding one costs the same however many are bound. Nothing is locked.
CREATE FUNCTION {schema}.free_for_session_v1(
    selector text,
    pool uuid,
    highest_rank integer,
    filters text,
    condition text,
    arguments jsonb
)
RETURNS uuid[]
LANGUAGE plpgsql
AS $$
#variable_conflict use_variable
DECLARE
    size integer := 10;
    front uuid[];
    found uuid[];
    start uuid := gen_random_uuid();
BEGIN
    EXECUTE format(
        $sql$
            SELECT array_agg(front.proxy_id)
            FROM (
                SELECT availability.proxy_id
                %s
                  AND availability.lease_rank BETWEEN 0 AND $2
                  AND (availability.rests_until IS NULL
                       OR availability.rests_until <= {format}.clock())
                ORDER BY %s
                LIMIT $3
            ) AS front
        $sql$,
        {schema}.matching_v1(filters),
        {schema}.order_of_v1(selector)
    )
    INTO front
    USING pool, highest_rank, size, NULL::text, arguments;
    EXECUTE format(
        $sql$
            SELECT array_agg(availability.proxy_id)
            %s
              AND availability.proxy_id = ANY ($6)
        $sql$,
        {schema}.matching_v1(condition)
    )
    INTO found
    USING pool, highest_rank, size, NULL::text, arguments, front;
    IF found IS NOT NULL OR coalesce(cardinality(front), 0) < size THEN
        RETURN coalesce(found, '{}');
    END IF;
    FOR rank IN 0 .. highest_rank LOOP
        FOR half IN 1 .. 2 LOOP
            EXECUTE format(
                $sql$
                    SELECT array_agg(other.proxy_id)
                    FROM (
                        SELECT availability.proxy_id
                        %s
                          AND availability.lease_rank = $2
                          AND (availability.rests_until IS NULL
                               OR availability.rests_until <= {format}.clock())
                          AND availability.proxy_id %s $6
                        ORDER BY availability.proxy_id
                        LIMIT $3
                    ) AS other
                $sql$,
                {schema}.matching_v1(condition),
                CASE half WHEN 1 THEN '>' ELSE '<=' END
            )
            INTO found
            USING pool, rank, 4, NULL::text, arguments, start;
            IF found IS NOT NULL THEN
                RETURN found;
            END IF;
        END LOOP;
    END LOOP;
    RETURN '{}';
END
$$;

-- Record that a key is bound.
CREATE FUNCTION {schema}.bind_session_v1(
    own_slot smallint,
    actor text,
    correlation_id text,
    pool uuid,
    pool_name text,
    proxy uuid,
    lease uuid,
    consumer text,
    until timestamptz,
    facts jsonb
)
RETURNS void
LANGUAGE sql
AS $$
    SELECT {schema}.append_v1(
        ARRAY[{schema}.lease_event_v1(
            1, 'SessionBound', pool, pool_name, proxy, lease, NULL, consumer, NULL, NULL, NULL,
            NULL, until, NULL, NULL,
            jsonb_strip_nulls(facts || (
                SELECT jsonb_build_object(
                    'country', description.country, 'exit_ip', description.exit_ip
                )
                FROM {schema}.proxies AS description
                WHERE description.id = proxy AND description.pool_id = pool
            ))
        )],
        own_slot, ARRAY[1], ARRAY[actor], ARRAY[correlation_id]
    )
$$;

-- Ask for one lease as one command, without recording a miss unless its kind is 'each'.
CREATE FUNCTION {schema}.try_sticky_v1(
    own_process uuid,
    own_slot smallint,
    with_stats boolean,
    actor text,
    correlation_id text,
    kind text,
    pool_name text,
    selector text,
    condition text,
    arguments jsonb,
    details jsonb,
    asked_id uuid,
    own_id boolean,
    consumer text,
    duration double precision
)
RETURNS SETOF {schema}.lease_answer
LANGUAGE sql
AS $$
    SELECT answer.*
    FROM {schema}.lease_commands_v3(
        own_process, 0, false, false, own_slot, with_stats, '{}', ARRAY[actor],
        ARRAY[correlation_id], '{}', '{}',
        ARRAY[1], ARRAY[kind], ARRAY[0], ARRAY[false], ARRAY[pool_name], ARRAY[selector],
        ARRAY[condition], ARRAY[arguments], ARRAY[details], ARRAY[asked_id], ARRAY[own_id],
        ARRAY[consumer], ARRAY[duration]
    ) AS answer
$$;

-- Acquire one lease of the proxy that a key is bound to, and bind the key if it is not. The answers
-- are those of lease_commands_v3 for one command. If it ``waits``, a request that may be granted
-- later gets a ticket of a caller who looks for itself.
--
-- ``filters`` and ``arguments`` are those of a run without a target, and ``details`` what its event
-- says of the request. Without a selector or a duration they are those of the pool, or the defaults.
CREATE FUNCTION {schema}.acquire_sticky_v1(
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
SET enable_hashjoin = off
SET enable_mergejoin = off
AS $$
#variable_conflict use_variable
DECLARE
    at timestamptz := {schema}.clock();
    pool record;
    bound {schema}.sessions;
    status text;
    is_bound boolean := false;
    because text;
    is_more_to_do boolean;
    number integer := jsonb_array_length(coalesce(arguments, '[]'));
    items jsonb := coalesce(arguments, '[]') || jsonb_build_array(key)
        || CASE WHEN target IS NULL THEN '[]' ELSE jsonb_build_array(target) END;
    mark text := CASE WHEN target IS NULL THEN '' ELSE ' /*target*/' END;
    plain text := '(' || coalesce(filters, 'true') || ')';
    own text;
    unbound text := plain || ' AND ' || {schema}.unbound_v1(number, target, shares);
    bound_as text := $sql$
            FROM {schema}.sessions AS session
            WHERE session.pool_id = $1 AND session.key = $5 ->> $sql$ || number || ')';
    same_exit text := ' AND description.exit_ip = (SELECT session.exit_ip' || bound_as;
    same_country text := ' AND description.country = (SELECT session.country' || bound_as;
    alike text;
    condition text;
    offered uuid[];
    was_asked boolean := false;
    given {schema}.lease_answer[];
    answer {schema}.lease_answer;
    outcome text;
    until timestamptz := at + seconds * interval '1 second';
    miss record;
BEGIN
    SELECT known.id, known.lease_slow::integer AS rank, known.selector, known.lease_seconds INTO pool
    FROM {schema}.pools AS known
    WHERE known.name = pool_name;
    selector := coalesce(selector, pool.selector, 'first_available');
    duration := coalesce(duration, pool.lease_seconds, default_duration);
    IF pool.id IS NULL THEN
        RETURN QUERY
        SELECT told.*
        FROM {schema}.try_sticky_v1(
            own_process, own_slot, with_stats, actor, correlation_id, 'each', pool_name, selector,
            'false', '[]', details, asked_id, own_id, consumer, duration
        ) AS told;
        RETURN;
    END IF;
    PERFORM {schema}.take_turns_v1(ARRAY[pool.id], ARRAY[key]);
    is_more_to_do := own_id
        OR NOT EXISTS (SELECT 1 FROM {schema}.consumers AS known WHERE known.name = consumer)
        OR EXISTS (
            SELECT 1
            FROM {schema}.leases AS lease
            WHERE lease.pool_id = pool.id AND lease.status = 'active' AND lease.expires_at <= at
        )
        OR EXISTS (
            SELECT 1
            FROM {schema}.available_proxies AS banned
            WHERE banned.pool_id = pool.id AND banned.banned_until <= at
        )
        OR EXISTS (
            SELECT 1 FROM {schema}.waiting_tickets AS ticket WHERE ticket.pool_id = pool.id
        );

    FOR step IN 0 .. 4 LOOP
        IF step = 1 THEN
            -- Only now: what was due may have been the last lease of a proxy that drains.
            SELECT session.* INTO bound
            FROM {schema}.sessions AS session
            WHERE session.pool_id = pool.id AND session.key = key AND session.expires_at > at;
            status := (
                SELECT availability.status
                FROM {schema}.available_proxies AS availability
                WHERE availability.pool_id = pool.id AND availability.proxy_id = bound.proxy_id
            );
            because := CASE
                WHEN bound.proxy_id IS NULL THEN NULL
                WHEN status IS NULL THEN 'removed'
                WHEN status IN ('banned', 'inactive') THEN status
            END;
            is_bound := bound.proxy_id IS NOT NULL AND because IS NULL;
            own := plain || format(' AND availability.proxy_id = %L::uuid', bound.proxy_id);
            IF NOT is_bound THEN
                PERFORM {schema}.binding_turn_v1(pool.id);
            END IF;
        END IF;
        -- What is to be replaced is so by one that is like it, if there is one.
        alike := CASE step
            WHEN 2 THEN CASE WHEN because IS NOT NULL AND bound.exit_ip IS NOT NULL
                             THEN same_exit END
            WHEN 3 THEN CASE WHEN because IS NOT NULL AND bound.country IS NOT NULL
                             THEN same_country END
            WHEN 4 THEN CASE WHEN NOT is_bound OR NOT requires THEN '' END
        END;
        condition := CASE step
            WHEN 0 THEN CASE WHEN is_more_to_do THEN 'false' END
            WHEN 1 THEN CASE WHEN is_bound THEN own || mark END
            ELSE unbound || alike || mark
        END;
        CONTINUE WHEN condition IS NULL;
        IF step > 1 AND selector <> 'round_robin' THEN
            offered := {schema}.free_for_session_v1(
                selector, pool.id, pool.rank,
                plain || alike, condition, items
            );
            CONTINUE WHEN offered = '{}';
            condition := format('availability.proxy_id = ANY (%L::uuid[])', offered) || mark;
        END IF;
        was_asked := step > 1;
        given := ARRAY(
            SELECT told
            FROM {schema}.try_sticky_v1(
                own_process, own_slot, with_stats, actor, correlation_id,
                CASE WHEN step > 1 THEN 'try' ELSE 'one' END, pool_name,
                -- A cursor is waited for, so it comes before what is due.
                CASE WHEN step = 1 THEN 'first_available' ELSE selector END,
                condition, items, details, asked_id, own_id, consumer, duration
            ) AS told
        );
        outcome := 'none';
        FOREACH answer IN ARRAY given LOOP
            CONTINUE WHEN answer.outcome = 'none';
            IF answer.number = 1 AND answer.outcome NOT IN ('LeaseExpired', 'ProxyRemoved') THEN
                outcome := answer.outcome;
                IF outcome = 'LeaseAcquired' AND step > 1 AND NOT is_bound THEN
                    PERFORM {schema}.bind_session_v1(
                        own_slot, actor, correlation_id, pool.id, pool_name, answer.proxy_id,
                        asked_id, consumer, until,
                        jsonb_build_object(
                            'key', key,
                            'target', target,
                            'shared', CASE WHEN shares THEN true END,
                            'replaced', bound.proxy_id,
                            'because', because
                        )
                    );
                ELSIF outcome = 'LeaseAcquired' AND step = 1 AND slides
                      AND until > bound.expires_at THEN
                    PERFORM {schema}.bind_session_v1(
                        own_slot, actor, correlation_id, pool.id, pool_name, answer.proxy_id,
                        asked_id, consumer, until,
                        jsonb_build_object(
                            'key', key,
                            'target', bound.target,
                            'shared', CASE WHEN bound.shared THEN true END
                        )
                    );
                END IF;
            END IF;
            RETURN NEXT answer;
        END LOOP;
        IF outcome <> 'none' THEN
            RETURN;
        END IF;
    END LOOP;

    answer := NULL;
    answer.number := 1;
    answer.pool_id := pool.id;
    answer.decided_at := at;
    IF is_bound AND requires THEN
        SELECT * INTO miss
        FROM {schema}.reason_v1(
            pool.id, pool.rank, 0, 1, true, own || mark, items, '{}', at
        );
        IF miss.reason NOT IN ('no_match', 'target_troubled') THEN
            miss.reason := 'session_busy';
        END IF;
    ELSE
        SELECT * INTO miss
        FROM {schema}.reason_v1(
            pool.id, pool.rank, 0, 1, true, plain || mark, items, '{}', at
        );
        IF {schema}.unreserved_v1(
            pool.id, pool.rank, 1, true, unbound || mark, items, '{}'
        ) <> '{}' THEN
            IF NOT was_asked THEN
                answer.outcome := 'again'; -- It has become free meanwhile.
                RETURN NEXT answer;
                RETURN;
            END IF;
        ELSIF {schema}.unreserved_v1(
            pool.id, pool.rank, 1, true, plain || mark, items, '{}'
        ) <> '{}' THEN
            miss.reason := 'all_bound';
        END IF;
    END IF;
    IF waits AND miss.may_wait THEN
        answer.outcome := {schema}.queue_v1(
            own_process, max_waiting, pool.id, at, consumer, selector,
            {schema}.fits_session_v1(filters, number, target, shares, requires), items, details,
            0, false, ARRAY[asked_id], own_id, duration, actor, correlation_id, true
        );
    ELSE
        answer := {schema}.missed_v1(
            own_slot, with_stats, actor, correlation_id, pool.id, pool_name, selector, 0, 1,
            details || CASE WHEN is_bound THEN
                jsonb_build_object('session_proxy_id', bound.proxy_id) ELSE '{}' END,
            consumer, miss.reason, 0
        );
        answer.number := 1;
    END IF;
    RETURN NEXT answer;
END
$$;

-- Wait for all locks that acquire_sticky_v1 may need, in its order.
CREATE FUNCTION {schema}.wait_sticky_v1(
    chosen_ids uuid[],
    pool_name text,
    selector text,
    filters text,
    arguments jsonb,
    target text,
    key text,
    requires boolean,
    shares boolean
)
RETURNS void
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
AS $$
#variable_conflict use_variable
DECLARE
    pool uuid := (SELECT known.id FROM {schema}.pools AS known WHERE known.name = pool_name);
    number integer := jsonb_array_length(coalesce(arguments, '[]'));
BEGIN
    IF pool IS NOT NULL THEN
        PERFORM {schema}.take_turns_v1(ARRAY[pool], ARRAY[key]);
        PERFORM {schema}.binding_turn_v1(pool);
    END IF;
    PERFORM {schema}.wait_v2(
        chosen_ids, NULL, pool_name, selector,
        {schema}.fits_session_v1(filters, number, target, shares, requires),
        coalesce(arguments, '[]') || jsonb_build_array(key)
            || CASE WHEN target IS NULL THEN '[]' ELSE jsonb_build_array(target) END,
        1
    );
END
$$;

-- End a key's binding. The answer is the proxy that it was to; none if it was not bound.
CREATE FUNCTION {schema}.forget_session_v1(
    own_slot smallint,
    actor text,
    correlation_id text,
    pool_name text,
    key text
)
RETURNS TABLE (proxy_id uuid)
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
AS $$
#variable_conflict use_variable
DECLARE
    pool uuid := (SELECT known.id FROM {schema}.pools AS known WHERE known.name = pool_name);
BEGIN
    PERFORM {schema}.take_turns_v1(ARRAY[pool], ARRAY[key]);
    SELECT session.proxy_id INTO proxy_id
    FROM {schema}.sessions AS session
    WHERE session.pool_id = pool AND session.key = key AND session.expires_at > {schema}.clock();
    IF NOT FOUND THEN
        RETURN;
    END IF;
    PERFORM {schema}.append_v1(
        ARRAY[{schema}.lease_event_v1(
            1, 'SessionForgotten', pool, pool_name, proxy_id, NULL, NULL, NULL, NULL, NULL, NULL,
            NULL, NULL, NULL, NULL, jsonb_build_object('key', key)
        )],
        own_slot, ARRAY[1], ARRAY[actor], ARRAY[correlation_id]
    );
    RETURN NEXT;
END
$$;

-- Have one key take over the binding of another. The answer is 'done'; 'unknown' if there is no such
-- binding, and 'taken' if the heir is bound itself.
CREATE FUNCTION {schema}.inherit_session_v1(
    own_slot smallint,
    actor text,
    correlation_id text,
    pool_name text,
    old_key text,
    new_key text
)
RETURNS TABLE (outcome text)
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
AS $$
#variable_conflict use_variable
DECLARE
    pool uuid := (SELECT known.id FROM {schema}.pools AS known WHERE known.name = pool_name);
    at timestamptz;
    bound record;
BEGIN
    PERFORM {schema}.take_turns_v1(ARRAY[pool, pool], ARRAY[old_key, new_key]);
    at := {schema}.clock();
    SELECT session.* INTO bound
    FROM {schema}.sessions AS session
    WHERE session.pool_id = pool AND session.key = old_key AND session.expires_at > at;
    IF NOT FOUND THEN
        outcome := 'unknown';
    ELSIF EXISTS (
        SELECT 1
        FROM {schema}.sessions AS session
        WHERE session.pool_id = pool AND session.key = new_key AND session.expires_at > at
    ) THEN
        outcome := 'taken';
    ELSE
        outcome := 'done';
        PERFORM {schema}.append_v1(
            ARRAY[
                {schema}.lease_event_v1(
                    1, 'SessionForgotten', pool, pool_name, bound.proxy_id, NULL, NULL, NULL, NULL,
                    NULL, NULL, NULL, NULL, NULL, NULL,
                    jsonb_build_object('key', old_key, 'inherited_by', new_key)
                ),
                {schema}.lease_event_v1(
                    2, 'SessionBound', pool, pool_name, bound.proxy_id, NULL, NULL, NULL, NULL,
                    NULL, NULL, NULL, bound.expires_at, NULL, NULL,
                    jsonb_strip_nulls(jsonb_build_object(
                        'key', new_key,
                        'target', bound.target,
                        'shared', CASE WHEN bound.shared THEN true END,
                        'country', bound.country,
                        'exit_ip', bound.exit_ip,
                        'inherited_from', old_key
                    ))
                )
            ],
            own_slot, ARRAY[1, 1], ARRAY[actor], ARRAY[correlation_id]
        );
    END IF;
    RETURN NEXT;
END
$$;

-- Templates of gateways: for which exit each lease asks, and another exit in its place. Where a pool
-- has no template, leasing looks at one index that is empty.

-- The session id that follows from a lease's id, or from what was before it: eight letters and
-- digits, the same as session_id_after in pharox/models/gateway.py makes.
CREATE FUNCTION {schema}.exit_session_v1(what text)
RETURNS text
LANGUAGE sql
IMMUTABLE
AS $$
    SELECT string_agg(
        substr(
            '0123456789abcdefghijklmnopqrstuvwxyz',
            (hashed.number / (36::numeric ^ place)::bigint % 36)::integer + 1, 1
        ),
        '' ORDER BY place
    )
    FROM (SELECT ('x' || left(md5(what), 15))::bit(60)::bigint AS number) AS hashed,
         generate_series(0, 7) AS place
$$;

-- The country in which filters look for a proxy: wished_country in pharox/models/gateway.py.
CREATE FUNCTION {schema}.wished_country_v1(filters jsonb)
RETURNS text
LANGUAGE plpgsql
IMMUTABLE
AS $$
DECLARE
    wished text := nullif(filters ->> 'country', '');
    child jsonb;
BEGIN
    IF wished IS NOT NULL OR filters IS NULL THEN
        RETURN wished;
    END IF;
    FOR child IN
        SELECT each.value
        FROM jsonb_array_elements(
            coalesce(filters -> 'all_of', '[]') || coalesce(filters -> 'any_of', '[]')
        ) WITH ORDINALITY AS each (value, place)
        ORDER BY each.place
    LOOP
        wished := {schema}.wished_country_v1(child);
        EXIT WHEN wished IS NOT NULL;
    END LOOP;
    RETURN wished;
END
$$;

-- The data of a LeaseAcquired, with the exit if its proxy is a template: that of the session if the
-- proxy is the one that it is bound to, else one of the lease's own. For a session that is yet to be
-- bound, the ``minutes`` of its exit are in the data already.
CREATE FUNCTION {schema}.with_exit_v1(
    pool uuid,
    proxy_id uuid,
    lease_id uuid,
    expires_at timestamptz,
    data jsonb
)
RETURNS jsonb
LANGUAGE plpgsql
STABLE
AS $$
#variable_conflict use_variable
DECLARE
    template record;
    bound jsonb;
    wished text;
BEGIN
    SELECT proxy.placeholders, proxy.country INTO template
    FROM {schema}.proxies AS proxy
    WHERE proxy.pool_id = pool AND proxy.id = proxy_id;
    IF template.placeholders IS NULL THEN
        RETURN data - 'exit';
    END IF;
    wished := {schema}.wished_country_v1(data -> 'filters');
    IF data ? 'session' THEN
        SELECT session.exit INTO bound
        FROM {schema}.sessions AS session
        WHERE session.pool_id = pool AND session.key = data ->> 'session'
          AND session.proxy_id = proxy_id AND session.expires_at > {schema}.clock()
          AND (wished IS NULL OR coalesce(session.exit ->> 'country', wished) = wished);
    END IF;
    RETURN coalesce(data, '{}') || jsonb_build_object('exit', coalesce(
        bound,
        jsonb_strip_nulls(jsonb_build_object(
            'session', CASE WHEN strpos(template.placeholders, 'session') > 0
                            THEN {schema}.exit_session_v1(lease_id::text) END,
            'country', CASE WHEN strpos(template.placeholders, 'country') > 0
                            THEN coalesce(wished, template.country) END,
            'minutes', CASE WHEN strpos(template.placeholders, 'lifetime') > 0
                            THEN coalesce(
                                (data #>> '{exit,minutes}')::integer,
                                {schema}.minutes_v1(expires_at - {schema}.clock())
                            ) END
        ))
    ));
END
$$;

-- A length of time in whole minutes, at least one.
CREATE FUNCTION {schema}.minutes_v1(length interval)
RETURNS integer
LANGUAGE sql
IMMUTABLE
AS $$
    SELECT greatest(1, ceil(extract(epoch FROM length) / 60))::integer
$$;

-- What the holder of a proxy needs to use it: the proxy, its encrypted credentials, the exit of a
-- lease of a template, and whether it takes another exit after one.
CREATE TYPE {schema}.leased_exit AS (
    host text,
    port integer,
    protocol text,
    credential_id uuid,
    secret bytea,
    exit jsonb,
    rotates boolean
);

-- The proxy of a lease that was just granted. VOLATILE: it sees a proxy that was registered after
-- the statement that leases it began, as the lease does.
CREATE FUNCTION {schema}.leased_proxy_v2(pool uuid, proxy uuid, lease_id uuid)
RETURNS {schema}.leased_exit
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET jit = off
AS $$
DECLARE
    found {schema}.leased_exit;
BEGIN
    SELECT
        description.host, description.port, description.protocol, description.credential_id,
        kept.secret,
        CASE WHEN description.placeholders IS NOT NULL THEN (
            SELECT lease.exit
            FROM {schema}.leases AS lease
            WHERE lease.id = leased_proxy_v2.lease_id AND lease.pool_id = pool
        ) END,
        description.rotate_id IS NOT NULL AND EXISTS (
            SELECT 1
            FROM {schema}.pools AS lent
            WHERE lent.id = pool AND lent.rotation IS NOT NULL
        )
    INTO found
    FROM {schema}.proxies AS description
    LEFT JOIN {schema}.proxy_credentials AS kept
      ON kept.id = description.credential_id AND kept.proxy_id = description.id
     AND kept.pool_id = description.pool_id
    WHERE description.pool_id = pool AND description.id = proxy;
    RETURN found;
END
$$;

-- The condition that a proxy is bound to no other living key than the element ``number`` of $5, as far
-- as bindings to one proxy exclude each other: those to a template with session ids do not. The target
-- is the last element of $5.
CREATE OR REPLACE FUNCTION {schema}.unbound_v1(number integer, target text, shares boolean)
RETURNS text
LANGUAGE sql
IMMUTABLE
AS $$
    SELECT $sql$ (coalesce(strpos(description.placeholders, 'session') > 0, false) OR NOT EXISTS (
            SELECT
            FROM {schema}.sessions AS other
            WHERE other.pool_id = $1 AND other.proxy_id = availability.proxy_id
              AND other.expires_at > {schema}.clock()
              AND other.shared IN ($sql$
        || CASE WHEN shares THEN 'false' ELSE 'false, true' END || ')'
        || CASE WHEN target IS NULL THEN ''
                ELSE ' AND (other.target IS NULL OR other.target = $5 ->> -1)' END
        || ' AND other.key <> $5 ->> ' || number || '))'
$$;

-- Record that a key is bound: to the exit of the lease if the proxy is a template.
CREATE OR REPLACE FUNCTION {schema}.bind_session_v1(
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
            jsonb_strip_nulls(facts || jsonb_build_object('exit', (
                SELECT held.exit
                FROM {schema}.leases AS held
                WHERE held.id = lease AND held.pool_id = pool
            )) || (
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

-- Have one key take over the binding of another. The answer is 'done'; 'unknown' if there is no such
-- binding, and 'taken' if the heir is bound itself.
CREATE OR REPLACE FUNCTION {schema}.inherit_session_v1(
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
SET jit = off
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
                        'exit', bound.exit,
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

-- Acquire one lease of the proxy that a key is bound to, and bind the key if it is not. The answers
-- are those of lease_commands_v3 for one command. If it ``waits``, a request that may be granted
-- later gets a ticket of a caller who looks for itself.
--
-- ``filters`` and ``arguments`` are those of a run without a target, and ``details`` what its event
-- says of the request. Without a selector or a duration they are those of the pool, or the defaults.
CREATE OR REPLACE FUNCTION {schema}.acquire_sticky_v1(
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
SET jit = off
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
    -- What a new binding asks a template for lasts as long as the binding.
    lasting jsonb := '{}';
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
            own := plain || format(' AND availability.proxy_id = %L::uuid', bound.proxy_id)
                -- An exit in one country is none in another.
                || CASE WHEN bound.exit ->> 'country'
                             <> {schema}.wished_country_v1(details -> 'filters')
                        THEN ' AND false' ELSE '' END;
            IF NOT is_bound THEN
                IF EXISTS (
                    SELECT 1
                    FROM {schema}.proxies AS template
                    WHERE template.pool_id = pool.id AND template.placeholders IS NOT NULL
                ) THEN
                    lasting := jsonb_build_object('exit', jsonb_build_object(
                        'minutes', {schema}.minutes_v1(seconds * interval '1 second')
                    ));
                END IF;
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
                condition, items, details || lasting, asked_id, own_id, consumer, duration
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
        IF miss.reason NOT IN ('no_match', 'limit_reached', 'target_troubled') THEN
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
                jsonb_build_object('session_proxy_id', bound.proxy_id) ELSE '{}' END
                || {schema}.reached_details_v1(
                    pool.id, consumer, target, 0, miss.reason,
                    CASE WHEN is_bound AND requires THEN own ELSE plain END || mark, items
                ),
            consumer, miss.reason, 0
        );
        answer.number := 1;
    END IF;
    RETURN NEXT answer;
END
$$;

-- Have a lease of a template take another exit, and so the session that keeps it. The answer is 'done'
-- with the exit; 'unknown', 'ended' with the lease's status, or 'fixed' if there is no session id to
-- change. The turn of the session's key comes before the lease, as in acquire_sticky_v1.
CREATE FUNCTION {schema}.rotate_exit_v1(
    own_slot smallint,
    actor text,
    correlation_id text,
    lease_id uuid
)
RETURNS TABLE (outcome text, status text, exit jsonb)
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET jit = off
AS $$
#variable_conflict use_variable
DECLARE
    held {schema}.leases;
    bound_key text;
    next_session text;
BEGIN
    SELECT lease.* INTO held FROM {schema}.leases AS lease WHERE lease.id = lease_id;
    IF held.id IS NULL THEN
        outcome := 'unknown';
        RETURN NEXT;
        RETURN;
    END IF;
    SELECT session.key INTO bound_key
    FROM {schema}.sessions AS session
    WHERE session.pool_id = held.pool_id AND session.proxy_id = held.proxy_id
      AND session.expires_at > {schema}.clock()
      AND session.exit ->> 'session' = held.exit ->> 'session';
    IF bound_key IS NOT NULL THEN
        PERFORM {schema}.take_turns_v1(ARRAY[held.pool_id], ARRAY[bound_key]);
    END IF;
    SELECT lease.* INTO held
    FROM {schema}.leases AS lease
    WHERE lease.id = lease_id
    FOR UPDATE;
    IF held.status <> 'active' OR held.expires_at <= {schema}.clock() THEN
        outcome := 'ended';
        status := CASE WHEN held.status = 'active' THEN 'expired' ELSE held.status END;
        RETURN NEXT;
        RETURN;
    END IF;
    IF held.exit ->> 'session' IS NULL THEN
        outcome := 'fixed';
        RETURN NEXT;
        RETURN;
    END IF;
    -- Only now: somebody may have rotated either of them meanwhile.
    SELECT session.key INTO bound_key
    FROM {schema}.sessions AS session
    WHERE session.pool_id = held.pool_id AND session.key = bound_key
      AND session.proxy_id = held.proxy_id AND session.expires_at > {schema}.clock()
      AND session.exit ->> 'session' = held.exit ->> 'session';
    next_session := {schema}.exit_session_v1((held.exit ->> 'session') || ':' || held.id);
    PERFORM {schema}.append_v1(
        ARRAY[{schema}.lease_event_v1(
            1, 'ExitRotated', held.pool_id, held.pool_name, held.proxy_id, held.id,
            held.consumer_id, held.consumer_name, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
            jsonb_strip_nulls(jsonb_build_object(
                'session_before', held.exit ->> 'session',
                'session_after', next_session,
                'session', bound_key
            ))
        )],
        own_slot, ARRAY[1], ARRAY[actor], ARRAY[correlation_id]
    );
    outcome := 'done';
    exit := held.exit || jsonb_build_object('session', next_session);
    RETURN NEXT;
END
$$;

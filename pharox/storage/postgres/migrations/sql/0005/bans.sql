-- Bans that end by themselves. The end is an event like any other: who asks for a proxy records it,
-- who attends to those that wait, and whoever takes back leases that have run out. Until then the
-- proxy is banned in every read model, so nothing else knows of ends of bans.

-- End the bans of some pools that are over: up to 1000, but for proxies that others have locked.
-- Each proxy gets the status that the ban kept for it. The locks are those of lease_commands_v2,
-- which may follow in the same transaction: cursors, counters, then proxies.
CREATE FUNCTION {schema}.end_bans_v1(
    own_slot smallint,
    pools uuid[],
    actor text,
    correlation_id text
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
    at timestamptz := {schema}.clock();
    found uuid[];
    events {schema}.event_v1[];
BEGIN
    IF NOT EXISTS (
        SELECT 1
        FROM {schema}.available_proxies AS banned
        WHERE banned.pool_id = ANY (pools) AND banned.banned_until <= at
    ) THEN
        RETURN;
    END IF;
    -- What others have locked is to be waited for (miss_reason_v1).
    PERFORM set_config('pharox.ends_bans', 'on', true);
    PERFORM 1
    FROM {schema}.selector_cursors AS cursor
    WHERE cursor.pool_id = ANY (pools) AND cursor.selector = 'round_robin'
    ORDER BY cursor.pool_id
    FOR UPDATE;
    PERFORM 1
    FROM {schema}.pool_stats AS counters
    WHERE counters.pool_id = ANY (pools) AND counters.slot = own_slot
    ORDER BY counters.pool_id
    FOR UPDATE SKIP LOCKED;

    -- The lock comes before the look: only then does the look see what others have done.
    found := ARRAY(
        SELECT banned.proxy_id
        FROM {schema}.available_proxies AS banned
        WHERE banned.pool_id = ANY (pools) AND banned.banned_until <= at
        ORDER BY banned.pool_id, banned.proxy_id
        LIMIT 1000
        FOR UPDATE SKIP LOCKED
    );
    events := ARRAY(
        SELECT ROW(
            NULL, NULL, NULL, NULL, NULL, banned.pool_id, banned.proxy_id, NULL, NULL,
            banned.current_leases, banned.current_leases, banned.max_concurrency,
            banned.max_concurrency, 1, 'ProxyChanged', banned.status, banned.returns_to, NULL,
            NULL, NULL, actor, correlation_id, NULL,
            jsonb_strip_nulls(jsonb_build_object(
                'host', proxy.host,
                'port', proxy.port,
                'protocol', proxy.protocol,
                'checked_at', banned.checked_at,
                'credential_id', proxy.credential_id,
                'source', proxy.source,
                'country', proxy.country,
                'city', proxy.city,
                'latitude', proxy.latitude,
                'longitude', proxy.longitude,
                'isp', proxy.isp,
                'asn', proxy.asn,
                'reason', 'ban over'
            ))
        )::{schema}.event_v1
        FROM {schema}.available_proxies AS banned
        JOIN {schema}.proxies AS proxy
          ON proxy.id = banned.proxy_id AND proxy.pool_id = banned.pool_id
        WHERE banned.pool_id = ANY (pools) AND banned.proxy_id = ANY (found)
          AND banned.banned_until <= at
        ORDER BY banned.pool_id, banned.proxy_id
    );
    PERFORM {schema}.append_v1(events, own_slot);
END
$$;

-- Carry out commands as lease_commands_v2 does, after the bans that are over in the pools that are
-- asked, or taken back in.
CREATE FUNCTION {schema}.lease_commands_v3(
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
AS $$
BEGIN
    IF cardinality(due_pools) + cardinality(run_pools) > 0 THEN
        PERFORM {schema}.end_bans_v1(
            own_slot,
            due_pools || ARRAY(
                SELECT pool.id FROM {schema}.pools AS pool WHERE pool.name = ANY (run_pools)
            ),
            actors[1], correlation_ids[1]
        );
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
        UNION ALL
        SELECT banned.proxy_id
        FROM {schema}.available_proxies AS banned
        WHERE banned.pool_id = pool.id AND banned.banned_until <= at
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

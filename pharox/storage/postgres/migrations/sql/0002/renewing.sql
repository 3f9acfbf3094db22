-- Leases are renewed. Whoever ends a lease locks its row too, after its proxy's: so a renewal needs
-- no other lock, and nobody ends what is being renewed.

-- Renew leases, each named once: those that are active, have not run out, and have the fencing token
-- that is given, if one is. They then end so many seconds from now, by default as many as they were
-- last granted. What somebody else has locked is left as it is. The answers are in the order of the
-- ids. What is true of the nth is kept at the nth place: to look 500 up in 500 takes longer.
CREATE FUNCTION {schema}.renew_leases_v1(
    own_slot smallint,
    actor text,
    correlation_id text,
    asked_ids uuid[],
    tokens bigint[],
    durations double precision[]
)
RETURNS TABLE (
    is_renewed boolean,
    is_locked boolean,
    status text,
    expires_at timestamptz,
    renewed_at timestamptz,
    ended_at timestamptz,
    fencing_token bigint
)
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
AS $$
#variable_conflict use_column
DECLARE
    at timestamptz := {schema}.clock();
    ours boolean[] := array_fill(false, ARRAY[cardinality(asked_ids)]);
    renewed boolean[] := ours;
    place integer;
    places integer[];
    events {schema}.event_v1[];
BEGIN
    -- The lock comes before the look: only then does the look see what others have done.
    FOR place IN
        SELECT asked.number
        FROM unnest(asked_ids) WITH ORDINALITY AS asked (id, number)
        JOIN {schema}.leases AS lease ON lease.id = asked.id
        WHERE lease.status = 'active'
        ORDER BY lease.id
        FOR NO KEY UPDATE OF lease SKIP LOCKED
    LOOP
        ours[place] := true;
    END LOOP;

    SELECT
        array_agg(asked.number::integer ORDER BY asked.number),
        array_agg({schema}.lease_event_v1(
            asked.number, 'LeaseRenewed', lease.pool_id, lease.pool_name, lease.proxy_id, lease.id,
            lease.consumer_id, lease.consumer_name, NULL, NULL, NULL, NULL,
            at + coalesce(
                durations[asked.number] * interval '1 second',
                lease.expires_at - coalesce(lease.renewed_at, lease.acquired_at)
            ),
            lease.acquired_at, NULL, NULL
        ) ORDER BY asked.number)
    INTO places, events
    FROM unnest(asked_ids) WITH ORDINALITY AS asked (id, number)
    JOIN {schema}.leases AS lease ON lease.id = asked.id
    WHERE ours[asked.number]
      AND lease.status = 'active'
      AND lease.expires_at > at
      AND lease.fencing_token = coalesce(tokens[asked.number], lease.fencing_token);
    IF places IS NOT NULL THEN
        PERFORM {schema}.append_v1(
            events, own_slot, array_fill(1, ARRAY[cardinality(events)]),
            ARRAY[actor], ARRAY[correlation_id]
        );
        FOREACH place IN ARRAY places LOOP
            renewed[place] := true;
        END LOOP;
    END IF;

    RETURN QUERY
    SELECT
        renewed[asked.number],
        NOT ours[asked.number] AND lease.status = 'active' AND lease.expires_at > at,
        lease.status,
        lease.expires_at,
        lease.renewed_at,
        lease.released_at,
        lease.fencing_token
    FROM unnest(asked_ids) WITH ORDINALITY AS asked (id, number)
    LEFT JOIN {schema}.leases AS lease ON lease.id = asked.id
    ORDER BY asked.number;
END
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
    FOR UPDATE OF availability, lease SKIP LOCKED;

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
    PERFORM 1
    FROM {schema}.leases AS lease
    WHERE lease.id = released_id
       OR lease.pool_id = pool.id AND lease.status = 'active' AND lease.expires_at <= at
    ORDER BY lease.proxy_id, lease.fencing_token
    FOR UPDATE;
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

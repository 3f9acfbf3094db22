-- Rotations: a proxy with a link rests until its provider has given it another exit, or until a bound.
-- The event that ends a lease has the rest already, so that nobody is granted the proxy in between;
-- append_v1 then records that the rotation began. Who calls the link claims it first.

-- How a rotation that is asked for at a moment is bound, if its link may be called before that bound:
-- not sooner after the last exit than the pool says, nor after what the link asked for.
CREATE FUNCTION {schema}.rotation_times_v1(
    policy jsonb,
    known_calls_at timestamptz,
    rotated_at timestamptz,
    at timestamptz,
    OUT calls_at timestamptz,
    OUT ends_at timestamptz
)
LANGUAGE sql
STABLE
AS $$
    SELECT
        CASE WHEN times.calls_at < times.ends_at THEN nullif(times.calls_at, at) END,
        CASE WHEN times.calls_at < times.ends_at THEN times.ends_at END
    FROM (
        SELECT
            greatest(
                at,
                known_calls_at,
                rotated_at
                + (policy ->> 'every_seconds')::double precision * interval '1 second'
            ) AS calls_at,
            at + coalesce((policy ->> 'within_seconds')::double precision, 60)
            * interval '1 second' AS ends_at
    ) AS times
$$;

-- What the event that ends a lease says of the rest that follows, as rest_v1 does. If its proxy is to
-- take another exit, the rest lasts until the bound of that, and ``rotates`` says what append_v1
-- records of it. A rotation for a refusal begins while others hold the proxy, so that nobody else is
-- granted it, and anew with the end of the last lease.
CREATE FUNCTION {schema}.rest_or_rotation_v1(
    seconds double precision,
    rests_until timestamptz,
    at timestamptz,
    policy jsonb,
    pool uuid,
    proxy uuid,
    leases_after integer
)
RETURNS jsonb
LANGUAGE plpgsql
STABLE
AS $$
#variable_conflict use_variable
DECLARE
    rest jsonb := {schema}.rest_v1(seconds, rests_until, at);
    state {schema}.rotations;
    times record;
BEGIN
    IF policy IS NULL OR NOT EXISTS (
        SELECT 1
        FROM {schema}.proxies AS mobile
        WHERE mobile.pool_id = pool AND mobile.id = proxy AND mobile.rotate_id IS NOT NULL
    ) THEN
        RETURN rest;
    END IF;
    SELECT known.* INTO state
    FROM {schema}.rotations AS known
    WHERE known.pool_id = pool AND known.proxy_id = proxy;
    IF leases_after > 0 AND (policy ->> 'on' = 'release' OR state.ends_at > at) THEN
        RETURN rest;
    END IF;
    IF policy ->> 'on' = 'blocked' AND NOT EXISTS (
        SELECT 1
        FROM {schema}.target_outcomes AS pair
        WHERE pair.pool_id = pool AND pair.proxy_id = proxy AND pair.outcome = 'blocked'
          AND (state.rotated_at IS NULL OR pair.reported_at > state.rotated_at)
    ) THEN
        RETURN rest;
    END IF;
    SELECT * INTO times FROM {schema}.rotation_times_v1(
        policy, state.calls_at, state.rotated_at, at
    );
    IF times.ends_at IS NULL THEN
        RETURN rest;
    END IF;
    IF state.ends_at > times.ends_at THEN -- Somebody has asked for more.
        times.ends_at := state.ends_at;
    END IF;
    RETURN jsonb_build_object(
        'rests_until', greatest((rest ->> 'rests_until')::timestamptz, times.ends_at),
        'rotates', jsonb_build_object(
            'because', policy ->> 'on',
            'ends_at', times.ends_at,
            'calls_at', times.calls_at,
            'rotated_at', state.rotated_at,
            'rested_until', CASE
                WHEN state.ends_at > at THEN state.rested_until
                ELSE (rest ->> 'rests_until')::timestamptz
            END
        )
    );
END
$$;

-- An event of a proxy's rotations. The proxy is locked, and its state stays.
CREATE FUNCTION {schema}.rotation_event_v1(type text, pool uuid, proxy uuid, lease uuid, data jsonb)
RETURNS {schema}.event_v1
LANGUAGE sql
STABLE
AS $$
    SELECT {schema}.lease_event_v1(
        1, type, pool, known.name, proxy, lease, NULL, NULL, availability.status,
        availability.current_leases, availability.current_leases, availability.max_concurrency,
        NULL, NULL, NULL, jsonb_strip_nulls(data)
    )
    FROM {schema}.pools AS known
    JOIN {schema}.available_proxies AS availability ON availability.pool_id = known.id
    WHERE known.id = pool AND availability.proxy_id = proxy
$$;

-- Record the rotations that the ends of leases begin: ``ended`` are their events as appended, and
-- ``marks`` what rest_or_rotation_v1 said of each. Of several of one proxy the last counts.
CREATE FUNCTION {schema}.begin_rotations_v1(
    ended {schema}.event_v1[],
    marks jsonb[],
    own_slot smallint
)
RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    events {schema}.event_v1[];
    begun record;
BEGIN
    FOR begun IN
        SELECT DISTINCT ON (ending.pool_id, ending.proxy_id)
            ending.actor,
            ending.correlation_id,
            {schema}.rotation_event_v1(
                'RotationBegan', ending.pool_id, ending.proxy_id, ending.lease_id,
                marks[ending.ordinality] || jsonb_build_object(
                    'rests_until', ending.data -> 'rests_until'
                )
            ) AS event
        FROM unnest(ended) WITH ORDINALITY AS ending
        WHERE marks[ending.ordinality] IS NOT NULL
        ORDER BY ending.pool_id, ending.proxy_id, ending.ordinality DESC
    LOOP
        begun.event.actor := begun.actor;
        begun.event.correlation_id := begun.correlation_id;
        events := events || begun.event;
    END LOOP;
    PERFORM {schema}.append_v1(events, own_slot);
END
$$;

-- Have a proxy take another exit, as somebody asks for it. The answer is 'begun'; 'unknown' if there is
-- no such proxy, 'no_link' if it has none, and 'too_soon' if its link may not be called before the
-- bound, with the seconds until it may.
CREATE FUNCTION {schema}.begin_rotation_v1(
    own_slot smallint,
    actor text,
    correlation_id text,
    proxy uuid,
    within_seconds double precision
)
RETURNS TABLE (outcome text, seconds double precision)
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET jit = off
AS $$
#variable_conflict use_variable
DECLARE
    at timestamptz;
    place record;
    state {schema}.rotations;
    policy jsonb;
    times record;
BEGIN
    SELECT availability.pool_id, availability.rests_until INTO place
    FROM {schema}.available_proxies AS availability
    WHERE availability.proxy_id = proxy
    FOR UPDATE;
    IF NOT FOUND THEN
        outcome := 'unknown';
        RETURN NEXT;
        RETURN;
    END IF;
    at := {schema}.clock();
    SELECT coalesce(pool.rotation, '{}') INTO policy
    FROM {schema}.pools AS pool
    JOIN {schema}.proxies AS mobile ON mobile.pool_id = pool.id
    WHERE pool.id = place.pool_id AND mobile.id = proxy AND mobile.rotate_id IS NOT NULL;
    IF NOT FOUND THEN
        outcome := 'no_link';
        RETURN NEXT;
        RETURN;
    END IF;
    IF within_seconds IS NOT NULL THEN
        policy := policy || jsonb_build_object('within_seconds', within_seconds);
    END IF;
    SELECT known.* INTO state
    FROM {schema}.rotations AS known
    WHERE known.pool_id = place.pool_id AND known.proxy_id = proxy;
    SELECT * INTO times FROM {schema}.rotation_times_v1(
        policy, state.calls_at, state.rotated_at, at
    );
    IF state.ends_at > times.ends_at THEN -- Who asks for less takes nothing from who waits for more.
        times.ends_at := state.ends_at;
    END IF;
    outcome := 'begun';
    IF state.claimed_until > at THEN -- It is being called: that is what is asked for.
        RETURN NEXT;
        RETURN;
    END IF;
    IF times.ends_at IS NULL THEN
        outcome := 'too_soon';
        seconds := extract(epoch FROM greatest(
            state.calls_at,
            state.rotated_at
            + (policy ->> 'every_seconds')::double precision * interval '1 second'
        ) - at);
        RETURN NEXT;
        RETURN;
    END IF;
    PERFORM {schema}.append_v1(
        ARRAY[{schema}.rotation_event_v1(
            'RotationBegan', place.pool_id, proxy, NULL,
            jsonb_build_object(
                'because', 'asked',
                'ends_at', times.ends_at,
                'calls_at', times.calls_at,
                'rotated_at', state.rotated_at,
                'rested_until', CASE
                    WHEN state.ends_at > at THEN state.rested_until
                    WHEN place.rests_until > at THEN place.rests_until
                END,
                'rests_until', greatest(place.rests_until, times.ends_at)
            )
        )],
        own_slot, ARRAY[1], ARRAY[actor], ARRAY[correlation_id]
    );
    RETURN NEXT;
END
$$;

-- Claim links that are due, for so many seconds: those of proxies that no lease holds and whose links
-- nobody calls. Each proxy rests for as long as it is claimed. The answer has them with their encrypted
-- links, and at last a row without a proxy: in how many seconds the next may be due, when one of
-- these proxies last took another exit, and what the last call of a link of theirs failed with.
CREATE FUNCTION {schema}.claim_rotations_v1(
    own_slot smallint,
    actor text,
    correlation_id text,
    only_proxies uuid[],
    seconds double precision,
    most integer
)
RETURNS TABLE (
    pool_id uuid,
    proxy_id uuid,
    rotate_id uuid,
    secret bytea,
    claimed_until timestamptz,
    next_in_seconds double precision,
    failure text,
    http_status integer
)
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    at timestamptz := {schema}.clock();
    until timestamptz := at + claim_rotations_v1.seconds * interval '1 second';
    locked uuid[];
    events {schema}.event_v1[];
BEGIN
    locked := ARRAY(
        SELECT availability.proxy_id
        FROM {schema}.rotations AS rotation
        JOIN {schema}.available_proxies AS availability
          ON availability.pool_id = rotation.pool_id
         AND availability.proxy_id = rotation.proxy_id
        WHERE rotation.ends_at > at
          AND (only_proxies IS NULL OR rotation.proxy_id = ANY (only_proxies))
          AND coalesce(rotation.calls_at, at) <= at
          AND coalesce(rotation.claimed_until, at) <= at
          AND availability.current_leases = 0
        -- Who failed waits for the others. No lock is waited for, so any order will do.
        ORDER BY rotation.calls_at NULLS FIRST, availability.pool_id, availability.proxy_id
        LIMIT most
        FOR UPDATE OF availability SKIP LOCKED
    );
    -- The lock comes before the look: only then does the look see what others have done.
    events := ARRAY(
        SELECT {schema}.rotation_event_v1(
            'RotationCalled', rotation.pool_id, rotation.proxy_id, NULL,
            jsonb_build_object(
                'because', rotation.because,
                'ends_at', rotation.ends_at,
                'claimed_until', until,
                'rotated_at', rotation.rotated_at,
                'rested_until', rotation.rested_until,
                'rests_until', greatest(availability.rests_until, until)
            )
        )
        FROM {schema}.rotations AS rotation
        JOIN {schema}.available_proxies AS availability
          ON availability.pool_id = rotation.pool_id
         AND availability.proxy_id = rotation.proxy_id
        WHERE rotation.proxy_id = ANY (locked)
          AND rotation.ends_at > at
          AND coalesce(rotation.calls_at, at) <= at
          AND coalesce(rotation.claimed_until, at) <= at
          AND availability.current_leases = 0
        ORDER BY rotation.pool_id, rotation.proxy_id
    );
    PERFORM {schema}.append_v1(
        events, own_slot, array_fill(1, ARRAY[cardinality(events)]), ARRAY[actor],
        ARRAY[correlation_id]
    );
    RETURN QUERY
    SELECT event.pool_id, event.proxy_id, mobile.rotate_id, kept.secret, until,
        NULL::double precision, NULL::text, NULL::integer
    FROM unnest(events) WITH ORDINALITY AS event
    LEFT JOIN {schema}.proxies AS mobile
      ON mobile.pool_id = event.pool_id AND mobile.id = event.proxy_id
    LEFT JOIN {schema}.proxy_credentials AS kept
      ON kept.proxy_id = mobile.id AND kept.id = mobile.rotate_id AND kept.pool_id = mobile.pool_id
    ORDER BY event.ordinality;
    RETURN QUERY
    SELECT
        NULL::uuid, NULL::uuid, NULL::uuid, NULL::bytea,
        (
            SELECT max(known.rotated_at)
            FROM {schema}.rotations AS known
            WHERE known.proxy_id = ANY (only_proxies)
        ),
        min(extract(epoch FROM greatest(
            at,
            rotation.calls_at,
            rotation.claimed_until,
            -- Nobody knows when the last lease ends.
            CASE WHEN availability.current_leases > 0 THEN at + interval '1 second' END
        ) - at))::double precision,
        (
            SELECT min(known.failure)
            FROM {schema}.rotations AS known
            WHERE known.proxy_id = ANY (only_proxies)
        ),
        (
            SELECT min(known.status)
            FROM {schema}.rotations AS known
            WHERE known.proxy_id = ANY (only_proxies) AND known.failure IS NOT NULL
        )
    FROM {schema}.rotations AS rotation
    JOIN {schema}.available_proxies AS availability
      ON availability.pool_id = rotation.pool_id AND availability.proxy_id = rotation.proxy_id
    WHERE greatest(rotation.ends_at, rotation.claimed_until) > at AND rotation.ends_at IS NOT NULL
      AND (only_proxies IS NULL OR rotation.proxy_id = ANY (only_proxies));
END
$$;

-- Record what came of calling a link. The answer is 'done', or 'late' if it is not claimed until
-- ``claimed`` any more: then nothing is recorded. After a failure the link is called again after so
-- many seconds, if that is before the bound.
CREATE FUNCTION {schema}.answer_rotation_v1(
    own_slot smallint,
    actor text,
    correlation_id text,
    proxy uuid,
    claimed timestamptz,
    failure text,
    http_status integer,
    exit_ip text,
    retry_seconds double precision
)
RETURNS TABLE (outcome text)
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET jit = off
AS $$
#variable_conflict use_variable
DECLARE
    at timestamptz;
    state {schema}.rotations;
    settle double precision;
    again_at timestamptz;
    after jsonb;
    refusing text[];
    target text;
BEGIN
    IF failure IS NULL THEN
        -- The targets that have refused the exit, of which the proxy has another now. Their turns come
        -- before the lock, as with everybody else who takes both.
        refusing := ARRAY(
            SELECT pair.target
            FROM {schema}.target_outcomes AS pair
            JOIN {schema}.proxies AS known ON known.id = pair.proxy_id AND known.pool_id = pair.pool_id
            JOIN {schema}.pools AS pool ON pool.id = known.pool_id AND pool.rotation ->> 'on' = 'blocked'
            WHERE known.id = proxy AND pair.outcome = 'blocked' AND pair.cools_until > {schema}.clock()
            ORDER BY pair.target
        );
        PERFORM {schema}.take_turns_v1(
            array_fill(known.pool_id, ARRAY[cardinality(refusing)]), refusing
        )
        FROM {schema}.proxies AS known
        WHERE known.id = proxy AND cardinality(refusing) > 0;
    END IF;
    PERFORM 1
    FROM {schema}.available_proxies AS availability
    WHERE availability.proxy_id = proxy
    FOR UPDATE;
    at := {schema}.clock();
    SELECT known.* INTO state
    FROM {schema}.rotations AS known
    WHERE known.proxy_id = proxy AND known.claimed_until = claimed;
    outcome := 'late';
    IF NOT FOUND THEN
        RETURN NEXT;
        RETURN;
    END IF;
    IF state.rested_until <= at THEN
        state.rested_until := NULL;
    END IF;
    IF failure IS NULL THEN
        settle := (
            SELECT (pool.rotation ->> 'settle_seconds')::double precision
            FROM {schema}.pools AS pool
            WHERE pool.id = state.pool_id
        );
        after := jsonb_build_object(
            'rotated_at', at,
            'rests_until', greatest(
                state.rested_until,
                CASE WHEN settle > 0 THEN at + settle * interval '1 second' END
            ),
            'exit_ip', exit_ip
        );
    ELSE
        again_at := at + retry_seconds * interval '1 second';
        after := jsonb_build_object(
            'failure', failure, 'rotated_at', state.rotated_at, 'calls_at', again_at,
            'rests_until', state.rested_until
        );
        IF again_at < state.ends_at THEN
            after := after || jsonb_build_object(
                'because', state.because,
                'ends_at', state.ends_at,
                'rested_until', state.rested_until,
                'rests_until', greatest(state.rested_until, state.ends_at)
            );
        END IF;
    END IF;
    outcome := 'done';
    PERFORM {schema}.append_v1(
        ARRAY[{schema}.rotation_event_v1(
            'RotationAnswered', state.pool_id, proxy, NULL,
            after || jsonb_build_object('status', http_status)
        )],
        own_slot, ARRAY[1], ARRAY[actor], ARRAY[correlation_id]
    );
    FOREACH target IN ARRAY coalesce(refusing, '{}') LOOP
        PERFORM {schema}.set_cool_down_v1(
            own_slot, actor, correlation_id, proxy, target, NULL, 'another exit'
        );
    END LOOP;
    RETURN NEXT;
END
$$;

-- Why nothing is free where a proxy that fits has room: it rests, after its last lease or for another
-- exit.
CREATE FUNCTION {schema}.resting_reason_v1(
    pool uuid,
    highest_rank integer,
    condition text,
    arguments jsonb
)
RETURNS text
LANGUAGE plpgsql
AS $$
DECLARE
    is_rotating boolean;
BEGIN
    IF NOT EXISTS (
        SELECT 1
        FROM {schema}.rotations AS rotation
        WHERE rotation.pool_id = pool AND rotation.ends_at > {schema}.clock()
    ) THEN
        RETURN 'resting';
    END IF;
    EXECUTE format(
        $sql$
            SELECT EXISTS (
                SELECT 1
                %s
                  AND availability.lease_rank <= $2
                  AND EXISTS (
                      SELECT 1
                      FROM {format}.rotations AS rotation
                      WHERE rotation.pool_id = $1 AND rotation.proxy_id = availability.proxy_id
                        AND rotation.ends_at > {format}.clock()
                  )
            )
        $sql$,
        {schema}.matching_v1(condition)
    )
    INTO is_rotating
    USING pool, highest_rank, NULL::integer, NULL::boolean, arguments;
    RETURN CASE WHEN is_rotating THEN 'rotating' ELSE 'resting' END;
END
$$;

-- Delete the secrets of proxies that their last descriptions in the log do not refer to.
CREATE OR REPLACE FUNCTION {schema}.forget_credentials(pool uuid, proxies uuid[] DEFAULT NULL)
RETURNS void
LANGUAGE sql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    DELETE FROM {schema}.proxy_credentials AS kept
    USING (
        SELECT kept.id, described.credential_id, described.rotate_id
        FROM {schema}.proxy_credentials AS kept,
             LATERAL (
                 SELECT
                     event.data ->> 'credential_id' AS credential_id,
                     event.data ->> 'rotate_id' AS rotate_id
                 FROM {schema}.events AS event
                 WHERE event.proxy_id = kept.proxy_id
                   AND event.pool_id = kept.pool_id
                   AND event.type IN ('ProxyRegistered', 'ProxyChanged', 'ProxyRemoved')
                 ORDER BY event.position DESC
                 LIMIT 1
             ) AS described
        WHERE kept.pool_id = pool AND (proxies IS NULL OR kept.proxy_id = ANY (proxies))
    ) AS last
    WHERE kept.pool_id = pool
      AND kept.id = last.id
      AND kept.id::text IS DISTINCT FROM last.credential_id
      AND kept.id::text IS DISTINCT FROM last.rotate_id
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
        {schema}.rest_or_rotation_v1(
            due.rest_seconds, due.rests_until, at, due.rotation, due.pool_id, due.proxy_id,
            due.leases_before - 1
        )
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
                   pool.rest_after_expiry_seconds AS rest_seconds, pool.rotation
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
                {schema}.rest_or_rotation_v1(
                    held.rest_seconds, held.rests_until, at, held.rotation, held.pool_id,
                    held.proxy_id, held.leases_before - 1
                ),
                reasons[held.number]
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
            pool.rotation,
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
SET jit = off
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
          -- It may be drained, or take another exit: append_v1 sees to that.
          AND pool.rotation IS NULL
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

-- Leases are revoked as they are released: the same locks, in the same order, and whatever others
-- have locked is left. The answer has what was revoked, and as 'locked' what may be revoked later;
-- what has ended or run out is not in it.
CREATE OR REPLACE FUNCTION {schema}.revoke_leases_v1(
    own_slot smallint,
    with_stats boolean,
    actor text,
    correlation_id text,
    revoked_ids uuid[],
    reason text
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
    reasons text[] := array_fill(revoke_leases_v1.reason, ARRAY[cardinality(revoked_ids)]);
    ending record;
    event {schema}.event_v1;
    events {schema}.event_v1[] := '{}';
    stats {schema}.pool_counts[] := '{}';
BEGIN
    FOR ending IN
        SELECT
            returned.event,
            {schema}.rest_or_rotation_v1(
                pool.rest_after_expiry_seconds, availability.rests_until, at, pool.rotation, pool.id,
                availability.proxy_id, (returned.event).leases_after
            ) AS rest
        FROM {schema}.returned_leases_v1(revoked_ids, reasons, at) AS returned
        JOIN {schema}.pools AS pool ON pool.id = (returned.event).pool_id
        JOIN {schema}.available_proxies AS availability
          ON availability.pool_id = (returned.event).pool_id
         AND availability.proxy_id = (returned.event).proxy_id
        ORDER BY returned.number
    LOOP
        event := ending.event;
        event.type := 'LeaseRevoked';
        event.data := {schema}.with_reason_v1(ending.rest, revoke_leases_v1.reason);
        events := events || event;
    END LOOP;
    IF events <> '{}' THEN
        events := {schema}.append_v1(
            events, own_slot, array_fill(1, ARRAY[cardinality(events)]),
            ARRAY[actor], ARRAY[correlation_id]
        );
        IF with_stats THEN
            stats := ARRAY(SELECT counts FROM {schema}.counts_after_v1(events) AS counts);
        END IF;
    END IF;

    RETURN QUERY
    SELECT
        revoked.ordinality::integer,
        revoked.type,
        revoked.lease_id,
        revoked.pool_id,
        revoked.pool_name,
        revoked.proxy_id,
        revoked.consumer_id,
        revoked.consumer,
        revoked.acquired_at,
        lease.expires_at,
        revoked.recorded_at,
        lease.fencing_token,
        revoked.data ->> 'reason',
        NULL::integer,
        revoked.recorded_at,
        counts.total_proxies,
        counts.active_proxies,
        counts.available_proxies,
        counts.leased_proxies,
        counts.total_leases
    FROM unnest(events) WITH ORDINALITY AS revoked
    JOIN {schema}.leases AS lease ON lease.id = revoked.lease_id
    LEFT JOIN unnest(stats) AS counts ON counts.position = revoked.position
    ORDER BY revoked.ordinality;

    RETURN QUERY
    SELECT
        NULL::integer, 'locked', lease.id, lease.pool_id, lease.pool_name, lease.proxy_id,
        lease.consumer_id, lease.consumer_name, lease.acquired_at, lease.expires_at,
        NULL::timestamptz, lease.fencing_token, NULL::text, NULL::integer, at,
        NULL::integer, NULL::integer, NULL::integer, NULL::integer, NULL::integer
    FROM {schema}.leases AS lease
    WHERE lease.id = ANY (revoked_ids) AND lease.status = 'active' AND lease.expires_at > at
    ORDER BY lease.id;
END
$$;

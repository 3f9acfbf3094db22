-- Renew leases, each named once: those that are active, have not run out, and have the fencing token
-- that is given, if one is. They then end so many seconds from now, by default as many as they were
-- last granted, but no later than their pool lets them be held; what they had already, they keep.
-- What somebody else has locked is left as it is. The answers are in the order of the ids. What is
-- true of the nth is kept at the nth place: to look 500 up in 500 takes longer.
CREATE OR REPLACE FUNCTION {schema}.renew_leases_v1(
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
            least(ends.asked, ends.allowed), lease.acquired_at, NULL,
            CASE WHEN ends.asked > ends.allowed THEN '{"reason": "max_held"}'::jsonb END
        ) ORDER BY asked.number)
    INTO places, events
    FROM unnest(asked_ids) WITH ORDINALITY AS asked (id, number)
    JOIN {schema}.leases AS lease ON lease.id = asked.id
    JOIN {schema}.pools AS pool ON pool.id = lease.pool_id
    CROSS JOIN LATERAL (
        SELECT
            at + coalesce(
                durations[asked.number] * interval '1 second',
                lease.expires_at - coalesce(lease.renewed_at, lease.acquired_at)
            ) AS asked,
            CASE WHEN pool.max_held_seconds IS NOT NULL THEN greatest(
                lease.acquired_at + pool.max_held_seconds * interval '1 second',
                lease.expires_at
            ) END AS allowed
    ) AS ends
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

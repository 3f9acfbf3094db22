-- Have a proxy rest for one target so many seconds, or, if that is null, end its rest. No answer
-- if there is no such proxy. Where nothing rests, ending that records nothing.
CREATE OR REPLACE FUNCTION {schema}.set_cool_down_v1(
    own_slot smallint,
    actor text,
    correlation_id text,
    proxy uuid,
    wanted text,
    seconds double precision,
    why text
)
RETURNS TABLE (cools_until timestamptz)
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    at timestamptz := {schema}.clock();
    pool uuid := (SELECT known.pool_id FROM {schema}.proxies AS known WHERE known.id = proxy);
    until timestamptz := at + seconds * interval '1 second';
    pair record;
    data jsonb;
BEGIN
    IF pool IS NULL THEN
        RETURN;
    END IF;
    PERFORM {schema}.take_turns_v1(ARRAY[pool], ARRAY[wanted]);
    IF NOT EXISTS (
        SELECT 1 FROM {schema}.proxies AS known WHERE known.id = proxy AND known.pool_id = pool
    ) THEN
        RETURN; -- It was removed while the turn was waited for.
    END IF;
    SELECT known.* INTO pair
    FROM {schema}.target_outcomes AS known
    WHERE known.pool_id = pool AND known.proxy_id = proxy AND known.target = wanted;
    IF until IS NULL AND (pair.cools_until > at) IS NOT TRUE THEN
        RETURN NEXT;
        RETURN;
    END IF;
    data := jsonb_strip_nulls(jsonb_build_object(
        'target', wanted,
        'successes', coalesce(pair.successes, 0),
        'failures', coalesce(pair.failures, 0),
        -- Who ends a rest gives the pair a new start.
        'streak', greatest(coalesce(pair.streak, 0), CASE WHEN until IS NULL THEN 0 END),
        'cool_downs', CASE WHEN until IS NULL THEN 0 ELSE coalesce(pair.cool_downs, 0) END,
        'cools_until', until,
        'outcome', pair.outcome,
        'status', pair.status,
        'reported_at', pair.reported_at,
        'reason', why
    ));
    PERFORM {schema}.append_v1(
        ARRAY[{schema}.lease_event_v1(
            1, 'CoolDownSet', pool, NULL, proxy, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
            NULL, NULL, data
        )],
        own_slot, ARRAY[1], ARRAY[actor], ARRAY[correlation_id]
    );
    cools_until := until;
    RETURN NEXT;
END
$$;

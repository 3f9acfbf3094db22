-- The directory of a fleet: which ledger each pool is in. The home ledger keeps it.

-- Record that a pool is in a ledger from now on, unless it is said to be in another than ``instead_of``.
-- Returns where it was said to be, and whether that was recorded. Who places a pool of the same name
-- waits for its turn, so two who register it in two ledgers at once do not both succeed.
CREATE FUNCTION {schema}.place_pool_v1(
    own_slot smallint,
    actor text,
    correlation_id text,
    pool text,
    place text,
    instead_of text
)
RETURNS TABLE (known text, is_new boolean)
LANGUAGE plpgsql
AS $$
#variable_conflict use_variable
DECLARE
    placed {schema}.event_v1;
BEGIN
    PERFORM pg_advisory_xact_lock(1885890935, hashtext('{literal}' || ' ' || pool));
    SELECT found.ledger INTO known
    FROM {schema}.pool_places AS found
    WHERE found.pool_name = pool;
    is_new := known IS DISTINCT FROM place AND (known IS NULL OR known = instead_of) IS TRUE;
    IF is_new THEN
        placed.type := 'PoolPlaced';
        placed.pool_id := '00000000-0000-0000-0000-000000000000';
        placed.pool_name := pool;
        placed.actor := actor;
        placed.correlation_id := correlation_id;
        placed.data := jsonb_strip_nulls(
            jsonb_build_object('ledger', place, 'ledger_before', coalesce(known, instead_of))
        );
        PERFORM {schema}.append_v1(ARRAY[placed], own_slot);
    END IF;
    RETURN NEXT;
END
$$;

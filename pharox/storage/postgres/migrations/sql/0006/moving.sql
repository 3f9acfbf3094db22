-- Move pools between ledgers.
--
-- While a pool moves it goes by another name, so nobody who asks for it by its own is granted anything;
-- once it has left, it is removed. Its moves say where it is: only who finds no pool looks there.

-- Why there is no pool of this name; null if none moved away.
CREATE FUNCTION {schema}.moved_reason_v1(name text)
RETURNS text
LANGUAGE sql
STABLE
AS $$
    SELECT CASE
        WHEN last.stage IN ('began', 'departed') THEN 'pool_moving'
        WHEN last.stage = 'moved' THEN 'pool_moved'
    END
    FROM {schema}.pool_moves AS last
    WHERE last.pool_name = name
    ORDER BY last.position DESC
    LIMIT 1
$$;

-- Have positions go on after one of another ledger, so that fencing tokens never fall. The positions
-- in between are left out, and no partitions are made for them. Positions never reach 2^53: a jump to
-- the end of bigint would leave none, and above it numbers of JSON are not exact everywhere.
--
-- The lock waits for whoever has taken a position and not committed, and lets nobody take one: set
-- beside them, the sequence could go back.
CREATE FUNCTION {schema}.advance_positions_v1(beyond bigint)
RETURNS void
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    part text;
    name text;
BEGIN
    IF beyond > 9007199254740992 THEN
        RAISE 'position % is beyond 2^53: no ledger gets there', beyond
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF (SELECT sequence.last_value FROM {schema}.events_position_seq AS sequence) >= beyond THEN
        RETURN;
    END IF;
    LOCK TABLE ONLY {schema}.events IN SHARE ROW EXCLUSIVE MODE;
    PERFORM pg_advisory_xact_lock(1885890927, hashtext('{literal}'));
    IF (SELECT sequence.last_value FROM {schema}.events_position_seq AS sequence) >= beyond THEN
        RETURN;
    END IF;
    PERFORM setval('{literal}.events_position_seq', beyond);
    IF (SELECT max(known.end_position) FROM {schema}.partitions AS known) > beyond + 1 THEN
        RETURN;
    END IF;
    FOREACH name IN ARRAY ARRAY['events', 'seals'] LOOP
        part := format('%s.%I', '{literal}', name || '_' || beyond + 1);
        EXECUTE format(
            'CREATE TABLE %s (LIKE %s.%I INCLUDING DEFAULTS INCLUDING CONSTRAINTS)',
            part, '{literal}', name
        );
        EXECUTE format(
            'ALTER TABLE %s.%I ATTACH PARTITION %s FOR VALUES FROM (%s) TO (%s)',
            '{literal}', name, part, beyond + 1, beyond + 1 + {schema}.partition_rows()
        );
        PERFORM {schema}.protect(part::regclass);
    END LOOP;
    INSERT INTO {schema}.partitions (first_position, end_position)
    VALUES (beyond + 1, beyond + 1 + {schema}.partition_rows());
END
$$;

-- Seal all that is committed, and return the head of the chain. Its tick is complete: it stays as it is
-- in ``ticks``, so that a root which another ledger's log has can be compared with it later.
CREATE FUNCTION {schema}.head_v1()
RETURNS TABLE (last_seq bigint, root text)
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
BEGIN
    PERFORM {schema}.seal(true);
    PERFORM {schema}.complete_tick();
    RETURN QUERY
    SELECT last.last_seq, encode(last.root, 'hex')
    FROM {schema}.last_tick AS last;
END
$$;

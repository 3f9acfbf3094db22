-- Runs with its owner's rights, so that whoever may read the log need not be able
-- to write seals. Gives the events that became visible since the last tick their place in the
-- order that readers read. An event belongs to the new ticks if its transaction
-- had not begun at the last snapshot, or was running then, and has committed.
-- Transaction ids say nothing in a cluster that the log was restored into (or in
-- a copy of the same cluster that is behind): then whatever has no seal is taken,
-- and up to that position (the anchor) whatever transaction ids find is checked
-- against the seals from there on. What came with the restore can be without a
-- seal only by the old snapshot, what was appended since has a later position
-- than any that is sealed: so nobody searches the whole log for it.
-- A snapshot does not list the transaction that takes it. Its events are not
-- committed, so it is added: they are left out now and found later.
CREATE FUNCTION {schema}.seal(wait boolean DEFAULT false)
RETURNS bigint
LANGUAGE plpgsql
SECURITY DEFINER
SET plan_cache_mode = force_custom_plan
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    per_tick CONSTANT bigint := 100000;
    last {schema}.ticks;
    tick {schema}.ticks;
    cluster bigint;
    own xid8 := pg_current_xact_id_if_assigned();
    running xid8[];
    taken bigint;
    digests bytea;
BEGIN
    IF pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean THEN
        RETURN (SELECT coalesce(max(last_seq), 0) FROM {schema}.ticks);
    END IF;
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'seal() needs a transaction of isolation level READ COMMITTED'
            USING ERRCODE = 'invalid_transaction_state';
    END IF;
    IF wait THEN
        PERFORM pg_advisory_xact_lock(1885890928, hashtext('{literal}'));
    ELSIF NOT pg_try_advisory_xact_lock(1885890928, hashtext('{literal}')) THEN
        RETURN (SELECT coalesce(max(last_seq), 0) FROM {schema}.ticks);
    END IF;
    SELECT * INTO last FROM {schema}.ticks ORDER BY last_seq DESC LIMIT 1;
    SELECT system_identifier INTO cluster FROM pg_control_system();
    running := ARRAY(SELECT pg_snapshot_xip(last.snapshot));
    tick.snapshot := pg_current_snapshot();
    IF own < pg_snapshot_xmax(tick.snapshot) THEN
        SELECT format('%s:%s:%s', pg_snapshot_xmin(tick.snapshot), pg_snapshot_xmax(tick.snapshot),
                      string_agg(xid::text, ',' ORDER BY xid))
        INTO tick.snapshot
        FROM (SELECT pg_snapshot_xip(tick.snapshot) UNION SELECT own) AS unfinished (xid);
    END IF;
    IF last.system_identifier = cluster
       AND pg_snapshot_xmax(last.snapshot) <= pg_snapshot_xmax(tick.snapshot) THEN
        tick.anchor := last.anchor;
        INSERT INTO {schema}.seals
        SELECT last.last_seq + row_number() OVER (ORDER BY e.position), e.position,
               {schema}.digest(e)
        FROM {schema}.events AS e
        WHERE (e.tx >= pg_snapshot_xmax(last.snapshot) AND e.tx < pg_snapshot_xmax(tick.snapshot)
               OR e.tx = ANY (running))
          AND pg_visible_in_snapshot(e.tx, tick.snapshot)
          AND (e.position > tick.anchor
               OR NOT EXISTS (SELECT FROM {schema}.seals s WHERE s.position = e.position));
    ELSE
        SELECT coalesce(max(position), 0) INTO tick.anchor FROM {schema}.events;
        INSERT INTO {schema}.seals
        SELECT coalesce(last.last_seq, 0) + row_number() OVER (ORDER BY e.position), e.position,
               {schema}.digest(e)
        FROM {schema}.events AS e
        WHERE e.position <= tick.anchor
          AND e.tx IS DISTINCT FROM own
          AND (e.position > (SELECT coalesce(max(position), 0) FROM {schema}.seals)
               OR e.tx >= pg_snapshot_xmax(last.snapshot) OR e.tx = ANY (running))
          AND NOT EXISTS (SELECT FROM {schema}.seals s WHERE s.position = e.position);
    END IF;
    GET DIAGNOSTICS taken = ROW_COUNT;
    IF taken = 0 THEN
        RETURN coalesce(last.last_seq, 0);
    END IF;
    tick.system_identifier := cluster;
    tick.sealed_at := {schema}.clock();
    taken := taken + coalesce(last.last_seq, 0);
    last.root := coalesce(last.root, ''::bytea);
    last.last_seq := coalesce(last.last_seq, 0);
    WHILE last.last_seq < taken LOOP
        tick.first_seq := last.last_seq + 1;
        tick.last_seq := least(last.last_seq + per_tick, taken);
        SELECT string_agg(digest, ''::bytea ORDER BY seq) INTO digests
        FROM {schema}.seals WHERE seq BETWEEN tick.first_seq AND tick.last_seq;
        tick.root := {schema}.root(last.root, tick, digests);
        INSERT INTO {schema}.ticks SELECT tick.*;
        last := tick;
    END LOOP;
    PERFORM pg_notify('pharox.{literal}'::name, last.last_seq::text);
    RETURN last.last_seq;
END
$$;

-- The last tick grows with each sealing until it is complete. It is completed before,
-- where a part of the log leaves that ends within it.
CREATE FUNCTION {schema}.complete_tick()
RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT pg_advisory_xact_lock(1885890928, hashtext('{literal}'));
    INSERT INTO {schema}.ticks
    SELECT last_seq, first_seq, snapshot, anchor, system_identifier, sealed_at, root,
           after_position, last_position
    FROM {schema}.last_tick
    ON CONFLICT (last_seq) DO NOTHING;
$$;

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
-- Only positions after unsealed_after are looked at, so the planner leaves out the
-- partitions before it. A transaction has its id before it has a position. So what
-- has a later id than this sealer has later positions than were handed out before
-- the sealer got its id. Once all earlier transactions have ended and are sealed,
-- nothing up to there can be without a seal. That is so at once if they had all
-- ended when the snapshot was taken, and none has begun before the sealer got its id.
CREATE FUNCTION {schema}.seal(wait boolean DEFAULT false)
RETURNS bigint
LANGUAGE plpgsql
SECURITY DEFINER
SET plan_cache_mode = force_custom_plan
SET work_mem = '64MB'
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    complete CONSTANT bigint := 1000;
    largest CONSTANT bigint := 100000;
    last {schema}.last_tick;
    tick {schema}.ticks;
    kept {schema}.ticks;
    own xid8 := pg_current_xact_id_if_assigned();
    running xid8[];
    same_ids boolean;
    grows boolean;
    handed_out bigint;
    sealed bigint;
    taken bigint;
    looked_after bigint;
    before bytea;
    digests bytea;
BEGIN
    IF pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean THEN
        RETURN (SELECT coalesce(max(last_seq), 0) FROM {schema}.last_tick);
    END IF;
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'seal() needs a transaction of isolation level READ COMMITTED'
            USING ERRCODE = 'invalid_transaction_state';
    END IF;
    IF wait THEN
        PERFORM pg_advisory_xact_lock(1885890928, hashtext('{literal}'));
    ELSIF NOT pg_try_advisory_xact_lock(1885890928, hashtext('{literal}')) THEN
        RETURN (SELECT coalesce(max(last_seq), 0) FROM {schema}.last_tick);
    END IF;
    SELECT * INTO last FROM {schema}.last_tick;
    sealed := coalesce(last.last_seq, 0);
    last.unsealed_after := coalesce(last.unsealed_after, 0);
    running := ARRAY(SELECT pg_snapshot_xip(last.snapshot));
    -- Before the snapshot and before this transaction has an id; the last one may be unused.
    SELECT last_value - 1, system_identifier INTO handed_out, tick.system_identifier
    FROM {schema}.events_position_seq, pg_control_system();
    tick.snapshot := pg_current_snapshot();
    IF own < pg_snapshot_xmax(tick.snapshot) THEN
        SELECT format('%s:%s:%s', pg_snapshot_xmin(tick.snapshot), pg_snapshot_xmax(tick.snapshot),
                      string_agg(xid::text, ',' ORDER BY xid))
        INTO tick.snapshot
        FROM (SELECT pg_snapshot_xip(tick.snapshot) UNION SELECT own) AS unfinished (xid);
    END IF;
    same_ids := coalesce(last.system_identifier = tick.system_identifier
        AND pg_snapshot_xmax(last.snapshot) <= pg_snapshot_xmax(tick.snapshot), false);
    tick.sealed_at := {schema}.clock();
    tick.last_position := coalesce(last.last_position, 0);
    SELECT * INTO kept FROM {schema}.ticks
    WHERE last_seq IN (sealed, last.first_seq - 1) ORDER BY last_seq DESC LIMIT 1;
    -- A tick is of one cluster.
    grows := same_ids AND kept.last_seq IS DISTINCT FROM sealed;
    tick.first_seq := CASE WHEN grows THEN last.first_seq ELSE sealed + 1 END;
    IF same_ids THEN
        tick.anchor := last.anchor;
    ELSE
        SELECT coalesce(max(position), last.unsealed_after) INTO tick.anchor
        FROM {schema}.events WHERE position > last.unsealed_after;
    END IF;
    INSERT INTO {schema}.seals (seq, position, version, digest)
    SELECT sealed + row_number() OVER (ORDER BY position), position, 1, digest
    FROM (
        SELECT e.position, {schema}.digest(e, 1::smallint) AS digest
        FROM {schema}.events AS e
        WHERE e.position > last.unsealed_after
          AND CASE WHEN same_ids THEN
              (e.tx >= pg_snapshot_xmax(last.snapshot) AND e.tx < pg_snapshot_xmax(tick.snapshot)
               OR e.tx = ANY (running))
              AND pg_visible_in_snapshot(e.tx, tick.snapshot)
              AND (e.position > tick.anchor
                   OR NOT EXISTS (SELECT FROM {schema}.seals s
                                  WHERE s.position = e.position
                                    AND s.position > last.unsealed_after
                                    AND s.position <= tick.anchor))
          ELSE
              e.position <= tick.anchor
              AND e.tx IS DISTINCT FROM own
              AND (e.position > (SELECT coalesce(max(position), 0) FROM {schema}.seals
                                 WHERE position > last.unsealed_after)
                   OR e.tx >= pg_snapshot_xmax(last.snapshot) OR e.tx = ANY (running))
              AND NOT EXISTS (SELECT FROM {schema}.seals s
                              WHERE s.position = e.position
                                AND s.position > last.unsealed_after)
          END
        ORDER BY e.position
    ) AS found;
    GET DIAGNOSTICS taken = ROW_COUNT;
    IF taken = 0 THEN
        RETURN sealed;
    END IF;
    IF NOT grows AND sealed > 0 THEN
        PERFORM {schema}.complete_tick();
    END IF;
    looked_after := last.unsealed_after;
    IF NOT same_ids OR pg_snapshot_xmin(tick.snapshot) > last.sealer_tx THEN
        IF same_ids THEN
            last.unsealed_after := last.appended_upto;
        END IF;
        last.sealer_tx := pg_current_xact_id();
        last.appended_upto := CASE WHEN own IS NULL THEN handed_out ELSE last.unsealed_after END;
    END IF;
    IF own IS NULL AND pg_snapshot_xmin(tick.snapshot) = pg_current_xact_id() THEN
        last.unsealed_after := greatest(handed_out, last.unsealed_after);
    END IF;
    tick.after_position := CASE WHEN grows THEN last.after_position ELSE looked_after END;
    before := coalesce(CASE WHEN grows THEN kept.root ELSE last.root END, ''::bytea);
    LOOP
        tick.last_seq := least(tick.first_seq + largest - 1, sealed + taken);
        -- Its own events come after after_position, and so does all that is sealed later.
        SELECT string_agg(digest, ''::bytea ORDER BY seq),
               greatest(max(position), tick.last_position),
               least(min(position) - 1, last.unsealed_after)
        INTO digests, tick.last_position, tick.after_position
        FROM {schema}.seals
        WHERE seq BETWEEN tick.first_seq AND tick.last_seq AND position > tick.after_position;
        tick.root := {schema}.root(before, tick, digests);
        EXIT WHEN tick.last_seq = sealed + taken;
        INSERT INTO {schema}.ticks SELECT tick.*;
        before := tick.root;
        tick.first_seq := tick.last_seq + 1;
        tick.after_position := looked_after;
    END LOOP;
    IF tick.last_seq - tick.first_seq >= complete - 1 THEN
        INSERT INTO {schema}.ticks SELECT tick.*;
    END IF;
    UPDATE {schema}.last_tick SET
        (last_seq, first_seq, snapshot, anchor, system_identifier, sealed_at, root,
         after_position, last_position, unsealed_after, sealer_tx, appended_upto)
        = (SELECT tick.*, last.unsealed_after, last.sealer_tx, last.appended_upto);
    IF NOT FOUND THEN
        INSERT INTO {schema}.last_tick
        SELECT tick.*, last.unsealed_after, last.sealer_tx, last.appended_upto;
    END IF;
    PERFORM pg_notify('pharox.{literal}'::name, tick.last_seq::text);
    RETURN tick.last_seq;
END
$$;

-- The seq of the last event recorded at or before a moment, null if there is none. The index of
-- moments tells where a span may be, and no order: so it is looked for in ever wider ones. What
-- is still to come holds nothing, and would be looked through for nothing.
CREATE FUNCTION {schema}.seq_at_v1(moment timestamptz)
RETURNS bigint
LANGUAGE plpgsql
STABLE
AS $$
DECLARE
    latest timestamptz := moment;
    now timestamptz := {schema}.clock();
    since timestamptz;
    span interval := '1 minute';
    found bigint;
BEGIN
    IF latest > now AND NOT EXISTS (SELECT FROM {schema}.events AS e WHERE e.recorded_at > now) THEN
        latest := now;
    END IF;
    LOOP
        since := CASE WHEN span < '1000 years' THEN latest - span ELSE '-infinity' END;
        SELECT s.seq INTO found
        FROM {schema}.seals AS s
        JOIN {schema}.events AS e ON e.position = s.position
        WHERE e.recorded_at <= latest AND e.recorded_at > since
        ORDER BY e.recorded_at DESC, e.position DESC
        LIMIT 1;
        EXIT WHEN found IS NOT NULL OR since = '-infinity';
        span := span * 4;
    END LOOP;
    RETURN found;
END
$$;

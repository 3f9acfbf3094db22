-- ENABLE ALWAYS: it also fires where session_replication_role says that
-- ordinary triggers shall not, and for the owner as for everybody. A statement
-- against a partition fires the partition's own triggers, so each has them too.
CREATE FUNCTION {schema}.refuse_change()
RETURNS trigger
LANGUAGE plpgsql
AS $$
BEGIN
    RAISE EXCEPTION 'the log of events is append-only: % is refused', TG_OP
        USING ERRCODE = 'restrict_violation';
END
$$;
CREATE FUNCTION {schema}.protect(part regclass)
RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    EXECUTE format('CREATE TRIGGER events_are_append_only '
        'BEFORE UPDATE OR DELETE OR TRUNCATE ON %s '
        'FOR EACH STATEMENT EXECUTE FUNCTION %s.refuse_change()', part, '{literal}');
    EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER events_are_append_only', part);
END
$$;
SELECT {schema}.protect('{literal}.events');
SELECT {schema}.protect('{literal}.seals');
SELECT {schema}.protect('{literal}.ticks');
-- The last tick grows: it is changed, and only forward.
CREATE TRIGGER last_tick_goes_forward
    BEFORE UPDATE ON {schema}.last_tick
    FOR EACH ROW WHEN (NEW.last_seq <= OLD.last_seq)
    EXECUTE FUNCTION {schema}.refuse_change();
CREATE TRIGGER last_tick_stays
    BEFORE DELETE OR TRUNCATE ON {schema}.last_tick
    FOR EACH STATEMENT EXECUTE FUNCTION {schema}.refuse_change();
ALTER TABLE {schema}.last_tick ENABLE ALWAYS TRIGGER last_tick_goes_forward;
ALTER TABLE {schema}.last_tick ENABLE ALWAYS TRIGGER last_tick_stays;

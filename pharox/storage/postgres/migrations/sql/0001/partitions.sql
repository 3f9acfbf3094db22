-- Made by whoever first appends beyond the last one. ATTACH lets other writers
-- work meanwhile, which CREATE TABLE ... PARTITION OF does not. How large a
-- partition is, is a function so that it can be replaced.
CREATE FUNCTION {schema}.partition_rows()
RETURNS bigint
LANGUAGE sql
STABLE
AS 'SELECT 10000000::bigint';

CREATE FUNCTION {schema}.add_partition()
RETURNS void
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    lower_bound bigint;
    upper_bound bigint;
    name text;
    parent text;
    part text;
BEGIN
    PERFORM pg_advisory_xact_lock(1885890927, hashtext('{literal}'));
    LOOP
        SELECT coalesce(max(end_position), 0) INTO lower_bound FROM {schema}.partitions;
        EXIT WHEN lower_bound > (SELECT last_value + 1 FROM {schema}.events_position_seq);
        upper_bound := lower_bound + {schema}.partition_rows();
        FOREACH name IN ARRAY ARRAY['events', 'seals'] LOOP
            parent := format('%s.%I', '{literal}', name);
            part := format('%s.%I', '{literal}', name || '_' || lower_bound);
            EXECUTE format('CREATE TABLE %s (LIKE %s INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', part, parent);
            EXECUTE format('ALTER TABLE %s ATTACH PARTITION %s FOR VALUES FROM (%s) TO (%s)',
                parent, part, lower_bound, upper_bound);
            PERFORM {schema}.protect(part::regclass);
        END LOOP;
        INSERT INTO {schema}.partitions (first_position, end_position)
        VALUES (lower_bound, upper_bound);
    END LOOP;
END
$$;
SELECT {schema}.add_partition();

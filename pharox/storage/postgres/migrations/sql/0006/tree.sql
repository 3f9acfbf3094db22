-- The Merkle tree over the sealed log (RFC 6962): hashes of complete subtrees, each of which never
-- changes. They follow from the seals, and nobody that seals writes them: who publishes a checkpoint,
-- proves an event or archives a part has those kept that it needs. See pharox/log/tree.py.
CREATE TABLE {schema}.tree_nodes (
    level SMALLINT NOT NULL,
    index BIGINT NOT NULL,
    hash BYTEA NOT NULL,
    CONSTRAINT pk_tree_nodes PRIMARY KEY (level, index)
);
SELECT {schema}.protect('{literal}.tree_nodes');

-- The hash of a complete subtree, of the hashes of its nodes on a level below, one after another.
CREATE FUNCTION {schema}.tree_node_v1(hashes bytea)
RETURNS bytea
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    above bytea := hashes;
BEGIN
    WHILE length(above) > 32 LOOP
        SELECT string_agg(sha256(decode('01', 'hex') || substring(above FROM place * 64 + 1 FOR 64)),
                          ''::bytea ORDER BY place)
        INTO above
        FROM generate_series(0, length(above) / 64 - 1) AS place;
    END LOOP;
    RETURN above;
END
$$;

-- Keeps the nodes of every eighth level of the tree over the first events, and those that the
-- tree ends with; with_leaves also the leaves behind the last of the former, which later nodes
-- need once these events have left the database. Runs with its owner's rights, so that nobody
-- who may not write the log chooses a hash. What two of them keep at once is the same.
CREATE FUNCTION {schema}.keep_tree_v1(size bigint, with_leaves boolean DEFAULT false)
RETURNS void
LANGUAGE plpgsql
SECURITY DEFINER
SET plan_cache_mode = force_custom_plan
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    height CONSTANT int := 8;
    width CONSTANT bigint := 256;
    sealed bigint := (SELECT coalesce(max(last_seq), 0) FROM {schema}.last_tick);
    most bigint := least(size, sealed);
    above int := height;
    kept bigint;
    low bigint;
    high bigint;
    hashes bytea;
BEGIN
    IF pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean THEN
        RETURN;
    END IF;
    SELECT coalesce(max(n.index) + 1, 0) INTO kept
    FROM {schema}.tree_nodes AS n WHERE n.level = height;
    -- Between which positions the events are that follow: see pharox/storage/postgres/history.py.
    -- More tiles may be kept than the size has: its tail is then before the last of them.
    SELECT coalesce((SELECT t.after_position FROM {schema}.ticks AS t
                     WHERE t.last_seq > least(kept, most >> height) * width
                     ORDER BY t.last_seq LIMIT 1),
                    (SELECT after_position FROM {schema}.last_tick), 0),
           coalesce((SELECT t.last_position FROM {schema}.ticks AS t
                     WHERE t.last_seq >= most ORDER BY t.last_seq LIMIT 1),
                    (SELECT last_position FROM {schema}.last_tick), 0)
    INTO low, high;
    -- The first may have leaves that were archived; all others are of seals.
    IF kept < most >> height THEN
        hashes := {schema}.tree_leaves_v1(kept * width, (kept + 1) * width, low, high);
        IF length(hashes) IS DISTINCT FROM width * 32 THEN
            RETURN; -- some of these events were archived before there was a tree
        END IF;
        INSERT INTO {schema}.tree_nodes
        VALUES (height, kept, {schema}.tree_node_v1(hashes)) ON CONFLICT DO NOTHING;
    END IF;
    INSERT INTO {schema}.tree_nodes
    SELECT height, (s.seq - 1) >> height, {schema}.tree_node_v1(
        string_agg(sha256(decode('00', 'hex') || s.digest), ''::bytea ORDER BY s.seq))
    FROM {schema}.seals AS s
    WHERE s.seq > (kept + 1) * width AND s.seq <= (most >> height) * width
      AND s.position > low AND s.position <= high
    GROUP BY (s.seq - 1) >> height
    HAVING count(*) = width
    ON CONFLICT DO NOTHING;
    WHILE most >> (above + height) > 0 LOOP
        SELECT coalesce(max(n.index) + 1, 0) INTO kept
        FROM {schema}.tree_nodes AS n WHERE n.level = above + height;
        INSERT INTO {schema}.tree_nodes
        SELECT above + height, parent, {schema}.tree_node_v1(
            (SELECT string_agg(n.hash, ''::bytea ORDER BY n.index) FROM {schema}.tree_nodes AS n
             WHERE n.level = above AND n.index >= parent * width AND n.index < (parent + 1) * width))
        FROM generate_series(kept, (most >> (above + height)) - 1) AS parent
        ON CONFLICT DO NOTHING;
        above := above + height;
    END LOOP;
    FOR bit IN 0 .. height - 1 LOOP
        CONTINUE WHEN (most >> bit) & 1 = 0;
        hashes := {schema}.tree_leaves_v1(
            ((most >> bit) - 1) << bit, (most >> bit) << bit, low, high);
        CONTINUE WHEN length(hashes) IS DISTINCT FROM (1 << bit) * 32;
        INSERT INTO {schema}.tree_nodes
        VALUES (bit, (most >> bit) - 1, {schema}.tree_node_v1(hashes)) ON CONFLICT DO NOTHING;
    END LOOP;
    IF with_leaves THEN
        INSERT INTO {schema}.tree_nodes
        SELECT 0, s.seq - 1, sha256(decode('00', 'hex') || s.digest)
        FROM {schema}.seals AS s
        WHERE s.seq > (most >> height) * width AND s.seq <= most
          AND s.position > low AND s.position <= high
        ON CONFLICT DO NOTHING;
    END IF;
END
$$;

-- The hashes of leaves from one index up to another, one after another: of seals, and of those
-- that were kept when their seals left the database.
CREATE FUNCTION {schema}.tree_leaves_v1(first bigint, ends bigint, low bigint, high bigint)
RETURNS bytea
LANGUAGE plpgsql
STABLE
SET plan_cache_mode = force_custom_plan
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN (
        SELECT string_agg(leaf.hash, ''::bytea ORDER BY leaf.index)
        FROM (SELECT s.seq - 1 AS index, sha256(decode('00', 'hex') || s.digest) AS hash
              FROM {schema}.seals AS s
              WHERE s.seq > first AND s.seq <= ends
                AND s.position > low AND s.position <= high
              UNION
              SELECT n.index, n.hash FROM {schema}.tree_nodes AS n
              WHERE n.level = 0 AND n.index >= first AND n.index < ends) AS leaf);
END
$$;

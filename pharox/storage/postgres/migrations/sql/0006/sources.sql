-- The URLs of sources with their headers, encrypted, and who refreshes which source now. Neither is in
-- the log: the one is secret, and the other changes with every look at a list that stays as it is.
CREATE TABLE {schema}.source_secrets (
    id UUID NOT NULL,
    source_id UUID NOT NULL,
    secret BYTEA NOT NULL,
    CONSTRAINT pk_source_secrets PRIMARY KEY (id)
);

CREATE TABLE {schema}.source_turns (
    source_id UUID NOT NULL,
    holder UUID,
    held_until timestamptz,
    checked_at timestamptz,
    succeeded_at timestamptz,
    failures INTEGER NOT NULL DEFAULT 0,
    secret_id UUID,
    etag TEXT,
    last_modified TEXT,
    owned BIGINT,
    CONSTRAINT pk_source_turns PRIMARY KEY (source_id)
);

-- Delete what sources have left behind: it runs with its owner's rights, as nobody else may delete
-- secrets. A secret in use stays, whoever calls this.
CREATE FUNCTION {schema}.forget_source_secrets_v1()
RETURNS void
LANGUAGE sql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    DELETE FROM {schema}.source_secrets AS kept
    WHERE NOT EXISTS (SELECT FROM {schema}.sources AS source WHERE source.secret_id = kept.id)
      -- What a pool takes along that has left and is not in its next ledger yet.
      AND NOT EXISTS (SELECT FROM {schema}.pool_moves AS move WHERE move.stage = 'departed');
    DELETE FROM {schema}.source_turns AS turn
    WHERE NOT EXISTS (SELECT FROM {schema}.sources AS source WHERE source.id = turn.source_id)
$$;

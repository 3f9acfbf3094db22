-- When proxies rest for a target, what each lease is for, and what each proxy has come to where.
ALTER TABLE {schema}.pools
    ADD COLUMN cool_down jsonb;
ALTER TABLE {schema}.leases
    ADD COLUMN target text;

CREATE TABLE {schema}.target_outcomes (
    pool_id UUID NOT NULL,
    proxy_id UUID NOT NULL,
    target TEXT NOT NULL,
    successes DOUBLE PRECISION NOT NULL,
    failures DOUBLE PRECISION NOT NULL,
    streak INTEGER NOT NULL,
    cool_downs INTEGER NOT NULL,
    cools_until timestamptz,
    outcome TEXT,
    status INTEGER,
    reported_at timestamptz,
    CONSTRAINT pk_target_outcomes PRIMARY KEY (pool_id, proxy_id, target)
) WITH (fillfactor = 80);
CREATE INDEX ix_target_outcomes_cooling
    ON {schema}.target_outcomes (pool_id, target, cools_until) WHERE cools_until IS NOT NULL;
CREATE INDEX ix_target_outcomes_reported
    ON {schema}.target_outcomes (pool_id, target, reported_at);

CREATE TABLE {schema}.troubled_targets (
    pool_id UUID NOT NULL,
    target TEXT NOT NULL,
    since timestamptz NOT NULL,
    CONSTRAINT pk_troubled_targets PRIMARY KEY (pool_id, target)
);

-- Until when a ban lasts and the status that follows it, and the address from which targets see a
-- proxy.
ALTER TABLE {schema}.available_proxies
    ADD COLUMN banned_until timestamptz,
    ADD COLUMN returns_to text;
CREATE INDEX ix_available_proxies_banned
    ON {schema}.available_proxies (pool_id, banned_until)
    WHERE banned_until IS NOT NULL;
ALTER TABLE {schema}.proxies
    ADD COLUMN exit_ip text;
-- What a pool gives who asks for nothing else, and when a proxy was last leased.
ALTER TABLE {schema}.pools
    ADD COLUMN selector text,
    ADD COLUMN lease_seconds double precision,
    ADD COLUMN max_concurrency integer;
ALTER TABLE {schema}.available_proxies
    ADD COLUMN leased_at timestamptz;

-- The log says when proxies were last leased; what is archived of it is in the snapshot after it,
-- which does not. Other snapshots were taken without it, and are made again when they are needed.
DO $$
DECLARE
    base bigint := (
        SELECT coalesce(max(part.last_seq), 0)
        FROM {schema}.partitions AS part
    );
BEGIN
    UPDATE {schema}.available_proxies AS availability
    SET leased_at = event.recorded_at
    FROM (
        SELECT e.pool_id, e.proxy_id, max(e.position) AS position
        FROM {schema}.events AS e
        WHERE e.type = 'LeaseAcquired'
          AND (base = 0 OR NOT EXISTS (
              SELECT 1
              FROM {schema}.seals AS seal
              WHERE seal.position = e.position AND seal.seq <= base
          ))
        GROUP BY e.pool_id, e.proxy_id
    ) AS last
    JOIN {schema}.events AS event ON event.position = last.position
    WHERE availability.pool_id = last.pool_id AND availability.proxy_id = last.proxy_id;
    DELETE FROM {schema}.snapshot_rows AS stored WHERE stored.seq > base;
    DELETE FROM {schema}.snapshots AS stored WHERE stored.seq > base;
END
$$;

CREATE INDEX ix_available_proxies_least_recently_used
    ON {schema}.available_proxies (pool_id, lease_rank, leased_at NULLS FIRST, proxy_id)
    WHERE lease_rank IS NOT NULL;

-- Which proxy each key of a pool is bound to.
CREATE TABLE {schema}.sessions (
    pool_id UUID NOT NULL,
    key TEXT COLLATE "C" NOT NULL,
    proxy_id UUID NOT NULL,
    target TEXT,
    shared BOOLEAN NOT NULL,
    country TEXT,
    exit_ip TEXT,
    bound_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    CONSTRAINT pk_sessions PRIMARY KEY (pool_id, key)
);
CREATE INDEX ix_sessions_proxy
    ON {schema}.sessions (pool_id, proxy_id, shared, expires_at);
CREATE INDEX ix_sessions_expires ON {schema}.sessions (pool_id, expires_at);

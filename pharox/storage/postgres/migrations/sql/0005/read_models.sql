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

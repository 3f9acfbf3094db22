-- What is folded from the log, and the credentials of proxies, which are not.
CREATE TABLE {schema}.pools (
    id UUID NOT NULL,
    name TEXT NOT NULL,
    description TEXT,
    lease_slow BOOLEAN NOT NULL,
    CONSTRAINT pk_pools PRIMARY KEY (id),
    CONSTRAINT uq_pools_name UNIQUE (name)
);

CREATE TABLE {schema}.consumers (
    name TEXT NOT NULL,
    id UUID NOT NULL,
    CONSTRAINT pk_consumers PRIMARY KEY (name),
    CONSTRAINT uq_consumers_id UNIQUE (id)
);

CREATE TABLE {schema}.proxies (
    id UUID NOT NULL,
    pool_id UUID NOT NULL,
    protocol TEXT NOT NULL,
    host TEXT NOT NULL,
    port INTEGER NOT NULL,
    credential_id UUID,
    source TEXT,
    country TEXT,
    city TEXT,
    latitude DOUBLE PRECISION,
    longitude DOUBLE PRECISION,
    isp TEXT,
    asn BIGINT,
    CONSTRAINT pk_proxies PRIMARY KEY (id, pool_id),
    CONSTRAINT ck_proxies_port CHECK (port BETWEEN 1 AND 65535)
);
CREATE INDEX ix_proxies_identity
    ON {schema}.proxies (pool_id, host, port, protocol);
CREATE INDEX ix_proxies_page
    ON {schema}.proxies (pool_id, id);

CREATE TABLE {schema}.proxy_credentials (
    id UUID NOT NULL,
    pool_id UUID NOT NULL,
    proxy_id UUID NOT NULL,
    secret BYTEA NOT NULL,
    account BYTEA NOT NULL,
    identity BYTEA NOT NULL,
    CONSTRAINT pk_proxy_credentials PRIMARY KEY (proxy_id, id, pool_id)
);
CREATE INDEX ix_proxy_credentials_identity
    ON {schema}.proxy_credentials (account, identity);

CREATE TABLE {schema}.available_proxies (
    proxy_id UUID NOT NULL,
    pool_id UUID NOT NULL,
    status TEXT NOT NULL,
    checked_at timestamptz NOT NULL,
    max_concurrency INTEGER,
    current_leases INTEGER NOT NULL,
    latency_ms INTEGER,
    probed_at timestamptz,
    streak INTEGER NOT NULL,
    lease_rank SMALLINT GENERATED ALWAYS AS (
        CASE
            WHEN current_leases >= max_concurrency THEN NULL
            WHEN status = 'active' THEN 0
            WHEN status = 'slow' THEN 1
        END
    ) STORED,
    CONSTRAINT pk_available_proxies PRIMARY KEY (proxy_id, pool_id),
    CONSTRAINT ck_available_proxies_status
        CHECK (status IN ('active', 'inactive', 'slow', 'banned')),
    CONSTRAINT ck_available_proxies_current_leases CHECK (current_leases >= 0),
    CONSTRAINT ck_available_proxies_max_concurrency CHECK (max_concurrency > 0)
) WITH (
    fillfactor = 70,
    autovacuum_vacuum_threshold = 2000,
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_cost_delay = 0
);
CREATE INDEX ix_available_proxies_first_available
    ON {schema}.available_proxies (pool_id, lease_rank, checked_at DESC, proxy_id)
    WHERE lease_rank IS NOT NULL;
CREATE INDEX ix_available_proxies_least_used
    ON {schema}.available_proxies (pool_id, lease_rank, current_leases, checked_at, proxy_id)
    WHERE lease_rank IS NOT NULL;
CREATE INDEX ix_available_proxies_lowest_latency
    ON {schema}.available_proxies (pool_id, lease_rank, latency_ms, proxy_id)
    WHERE lease_rank IS NOT NULL;
CREATE INDEX ix_available_proxies_round_robin
    ON {schema}.available_proxies (pool_id, lease_rank, proxy_id)
    WHERE lease_rank IS NOT NULL;

CREATE TABLE {schema}.leases (
    id UUID NOT NULL,
    pool_id UUID NOT NULL,
    pool_name TEXT NOT NULL,
    proxy_id UUID NOT NULL,
    consumer_id UUID NOT NULL,
    consumer_name TEXT NOT NULL,
    status TEXT NOT NULL,
    acquired_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    released_at timestamptz,
    fencing_token BIGINT NOT NULL,
    CONSTRAINT pk_leases PRIMARY KEY (id, pool_id),
    CONSTRAINT ck_leases_status CHECK (status IN ('active', 'released', 'expired')),
    CONSTRAINT ck_leases_released_at CHECK ((status = 'active') = (released_at IS NULL))
) WITH (fillfactor = 70);
CREATE INDEX ix_leases_due
    ON {schema}.leases (pool_id, expires_at)
    WHERE status = 'active';
CREATE INDEX ix_leases_held
    ON {schema}.leases (pool_id, proxy_id)
    WHERE status = 'active';

CREATE TABLE {schema}.lease_ids (
    lease_id UUID NOT NULL,
    pool_id UUID NOT NULL,
    CONSTRAINT pk_lease_ids PRIMARY KEY (lease_id)
);

CREATE TABLE {schema}.pool_stats (
    pool_id UUID NOT NULL,
    slot SMALLINT NOT NULL,
    total_proxies BIGINT NOT NULL,
    active_proxies BIGINT NOT NULL,
    available_proxies BIGINT NOT NULL,
    leased_proxies BIGINT NOT NULL,
    total_leases BIGINT NOT NULL,
    CONSTRAINT pk_pool_stats PRIMARY KEY (pool_id, slot)
) WITH (
    fillfactor = 50,
    autovacuum_vacuum_threshold = 2000,
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_cost_delay = 0
);

CREATE TABLE {schema}.selector_cursors (
    pool_id UUID NOT NULL,
    selector TEXT NOT NULL,
    proxy_id UUID,
    CONSTRAINT pk_selector_cursors PRIMARY KEY (pool_id, selector)
) WITH (
    fillfactor = 50,
    autovacuum_vacuum_threshold = 2000,
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_cost_delay = 0
);

CREATE TABLE {schema}.proxy_health (
    proxy_id UUID NOT NULL,
    pool_id UUID NOT NULL,
    status TEXT NOT NULL,
    latency_ms INTEGER,
    protocol TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    status_code INTEGER,
    checked_at timestamptz NOT NULL,
    error TEXT,
    failure TEXT,
    CONSTRAINT pk_proxy_health PRIMARY KEY (proxy_id, pool_id)
);

-- A pool in numbers right after an event.
CREATE TYPE {schema}.pool_counts AS (
    "position" bigint,
    total_proxies integer,
    active_proxies integer,
    available_proxies integer,
    leased_proxies integer,
    total_leases integer
);

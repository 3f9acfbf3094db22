-- The log of events, what orders it, and what reads it.
CREATE SEQUENCE {schema}.events_position_seq;
CREATE TABLE {schema}.events (
    -- A transaction has its id before it has a position: see seal().
    position BIGINT DEFAULT
        CASE WHEN pg_current_xact_id() IS NOT NULL THEN nextval('{literal}.events_position_seq') END
        NOT NULL,
    tx xid8 DEFAULT pg_current_xact_id() NOT NULL,
    recorded_at timestamptz NOT NULL,
    expires_at timestamptz,
    acquired_at timestamptz,
    pool_id UUID NOT NULL,
    proxy_id UUID,
    lease_id UUID,
    consumer_id UUID,
    leases_before INTEGER,
    leases_after INTEGER,
    max_concurrency_before INTEGER,
    max_concurrency_after INTEGER,
    schema_version SMALLINT DEFAULT 1 NOT NULL,
    type TEXT NOT NULL,
    status_before TEXT,
    status_after TEXT,
    selector TEXT,
    consumer TEXT,
    pool_name TEXT,
    actor TEXT,
    correlation_id TEXT,
    proxy_ids UUID[],
    data JSONB,
    CONSTRAINT pk_events PRIMARY KEY (position),
    CONSTRAINT ck_events_recorded_at CHECK (isfinite(recorded_at)),
    CONSTRAINT ck_events_data CHECK (jsonb_typeof(data) = 'object')
) PARTITION BY RANGE (position);
ALTER SEQUENCE {schema}.events_position_seq OWNED BY {schema}.events.position;
CREATE INDEX ix_events_recorded_at ON {schema}.events
    USING brin (recorded_at) WITH (autosummarize = on, pages_per_range = 32);
CREATE INDEX ix_events_lease ON {schema}.events (lease_id) WHERE lease_id IS NOT NULL;
CREATE INDEX ix_events_proxy ON {schema}.events (proxy_id) WHERE proxy_id IS NOT NULL;
-- Of events that are about many proxies. Not updated by and by: each search would read the list of
-- what is pending, and it takes more room.
CREATE INDEX ix_events_proxies ON {schema}.events
    USING gin (proxy_ids) WITH (fastupdate = off) WHERE proxy_ids IS NOT NULL;
CREATE INDEX ix_events_consumer ON {schema}.events (consumer) WHERE consumer IS NOT NULL;
CREATE INDEX ix_events_described
    ON {schema}.events (proxy_id, position)
    WHERE type IN ('ProxyRegistered', 'ProxyChanged', 'ProxyRemoved');
CREATE INDEX ix_events_health
    ON {schema}.events (proxy_id, position)
    WHERE type = 'HealthChecked';
CREATE INDEX ix_events_pools
    ON {schema}.events (position)
    WHERE type IN ('PoolRegistered', 'PoolChanged', 'PoolRemoved');

-- An event as functions and clients hand it on. It never changes: the table may get more columns,
-- and whoever was written before goes on. What needs them uses a type of a later version.
CREATE TYPE {schema}.event_v1 AS (
    "position" bigint,
    tx xid8,
    recorded_at timestamptz,
    expires_at timestamptz,
    acquired_at timestamptz,
    pool_id uuid,
    proxy_id uuid,
    lease_id uuid,
    consumer_id uuid,
    leases_before integer,
    leases_after integer,
    max_concurrency_before integer,
    max_concurrency_after integer,
    schema_version smallint,
    type text,
    status_before text,
    status_after text,
    selector text,
    consumer text,
    pool_name text,
    actor text,
    correlation_id text,
    proxy_ids uuid[],
    data jsonb
);

CREATE TABLE {schema}.seals (
    seq BIGINT NOT NULL,
    position BIGINT NOT NULL,
    version SMALLINT DEFAULT 1 NOT NULL,
    digest BYTEA NOT NULL,
    CONSTRAINT pk_seals PRIMARY KEY (position)
) PARTITION BY RANGE (position);
CREATE INDEX ix_seals_seq ON {schema}.seals (seq);

CREATE TABLE {schema}.ticks (
    last_seq BIGINT NOT NULL,
    first_seq BIGINT NOT NULL,
    snapshot pg_snapshot NOT NULL,
    anchor BIGINT NOT NULL,
    system_identifier BIGINT NOT NULL,
    sealed_at timestamptz NOT NULL,
    root BYTEA NOT NULL,
    after_position BIGINT NOT NULL,
    last_position BIGINT NOT NULL,
    CONSTRAINT pk_ticks PRIMARY KEY (last_seq)
);

-- One row at the most. Without an index, so that an update can stay in its page.
CREATE TABLE {schema}.last_tick (
    last_seq BIGINT NOT NULL,
    first_seq BIGINT NOT NULL,
    snapshot pg_snapshot NOT NULL,
    anchor BIGINT NOT NULL,
    system_identifier BIGINT NOT NULL,
    sealed_at timestamptz NOT NULL,
    root BYTEA NOT NULL,
    after_position BIGINT NOT NULL,
    last_position BIGINT NOT NULL,
    unsealed_after BIGINT NOT NULL,
    sealer_tx xid8 NOT NULL,
    appended_upto BIGINT NOT NULL
);

CREATE TABLE {schema}.partitions (
    first_position BIGINT NOT NULL,
    end_position BIGINT NOT NULL,
    first_seq BIGINT,
    last_seq BIGINT,
    first_recorded_at timestamptz,
    last_recorded_at timestamptz,
    archived_at timestamptz,
    archive TEXT,
    CONSTRAINT pk_partitions PRIMARY KEY (first_position)
);

CREATE TABLE {schema}.snapshots (
    seq BIGINT NOT NULL,
    taken_at timestamptz NOT NULL,
    projections TEXT[] NOT NULL,
    CONSTRAINT pk_snapshots PRIMARY KEY (seq)
);

CREATE TABLE {schema}.snapshot_rows (
    seq BIGINT NOT NULL,
    projection TEXT NOT NULL,
    row JSONB NOT NULL
);
CREATE INDEX ix_snapshot_rows_seq ON {schema}.snapshot_rows (seq, projection);

CREATE TABLE {schema}.subscriptions (
    name TEXT NOT NULL,
    checkpoint BIGINT NOT NULL,
    epoch BIGINT NOT NULL,
    owner UUID,
    seen_at timestamptz,
    CONSTRAINT pk_subscriptions PRIMARY KEY (name)
);

CREATE TABLE {schema}.parked_events (
    subscription TEXT NOT NULL,
    seq BIGINT NOT NULL,
    key TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    error TEXT,
    parked_at timestamptz NOT NULL,
    retry BOOLEAN DEFAULT false NOT NULL,
    CONSTRAINT pk_parked_events PRIMARY KEY (subscription, seq)
);
CREATE INDEX ix_parked_events_key ON {schema}.parked_events (subscription, key, seq);

CREATE TABLE {schema}.fleet_counts (
    subscription TEXT NOT NULL,
    name TEXT NOT NULL,
    labels TEXT[] NOT NULL,
    value DOUBLE PRECISION NOT NULL,
    CONSTRAINT pk_fleet_counts PRIMARY KEY (subscription, name, labels)
);

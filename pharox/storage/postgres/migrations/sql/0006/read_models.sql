-- What bounds the leases of a pool, which leases count, and when those began that a pace counts.
ALTER TABLE {schema}.pools
    ADD COLUMN limits jsonb;
ALTER TABLE {schema}.leases
    ADD COLUMN limited boolean;
CREATE INDEX ix_leases_of_consumer
    ON {schema}.leases (pool_id, consumer_id) WHERE status = 'active' AND limited;
CREATE INDEX ix_leases_for_target
    ON {schema}.leases (pool_id, target) WHERE status = 'active' AND limited AND target IS NOT NULL;

CREATE TABLE {schema}.lease_starts (
    pool_id UUID NOT NULL,
    started_at timestamptz NOT NULL,
    lease_id UUID NOT NULL,
    proxy_id UUID NOT NULL,
    consumer_id UUID NOT NULL,
    target TEXT,
    counts_until timestamptz NOT NULL,
    CONSTRAINT pk_lease_starts PRIMARY KEY (pool_id, started_at, lease_id)
);
CREATE INDEX ix_lease_starts_proxy
    ON {schema}.lease_starts (pool_id, proxy_id, started_at);
CREATE INDEX ix_lease_starts_consumer
    ON {schema}.lease_starts (pool_id, consumer_id, started_at);

-- What proxies cost, unless a proxy says it what its pool does; null is nothing.
ALTER TABLE {schema}.pools
    ADD COLUMN cost_per_gb numeric,
    ADD COLUMN cost_per_lease numeric;
ALTER TABLE {schema}.proxies
    ADD COLUMN cost_per_gb numeric,
    ADD COLUMN cost_per_lease numeric;

CREATE INDEX ix_proxies_cost_per_lease
    ON {schema}.proxies (pool_id)
    WHERE cost_per_lease IS NOT NULL;

-- What was used of pools on each day of UTC; '' is the whole pool.
CREATE TABLE {schema}.spending (
    pool_id UUID NOT NULL,
    day DATE NOT NULL,
    consumer TEXT NOT NULL,
    slot SMALLINT NOT NULL,
    bytes NUMERIC NOT NULL,
    money NUMERIC NOT NULL,
    leases BIGINT NOT NULL,
    CONSTRAINT pk_spending PRIMARY KEY (pool_id, day, consumer, slot)
) WITH (fillfactor = 80);

-- The log says what was used before. Of what is archived nothing is known, and the snapshot after it,
-- from which all folds start, says that.
DO $$
DECLARE
    base bigint := (
        SELECT coalesce(max(part.last_seq), 0)
        FROM {schema}.partitions AS part
    );
BEGIN
    INSERT INTO {schema}.spending (pool_id, day, consumer, slot, bytes, money, leases)
    SELECT
        event.pool_id,
        (event.recorded_at AT TIME ZONE 'UTC')::date AS day,
        coalesce(event.consumer, ''),
        0,
        sum((event.data ->> 'bytes')::numeric),
        0,
        0
    FROM {schema}.events AS event
    JOIN {schema}.pools AS pool ON pool.id = event.pool_id
    WHERE event.type = 'OutcomeReported'
      AND event.data ? 'bytes'
      AND NOT EXISTS (
          SELECT 1
          FROM {schema}.events AS pruned
          WHERE pruned.type = 'LeasesPruned'
            AND pruned.pool_id = event.pool_id
            AND pruned.position > event.position
            AND (event.recorded_at AT TIME ZONE 'UTC')::date
                < ((pruned.data ->> 'ended_before')::timestamptz AT TIME ZONE 'UTC')::date
      )
    GROUP BY GROUPING SETS (
        (event.pool_id, (event.recorded_at AT TIME ZONE 'UTC')::date, event.consumer),
        (event.pool_id, (event.recorded_at AT TIME ZONE 'UTC')::date)
    );
    UPDATE {schema}.snapshots AS stored
    SET projections = stored.projections || '{spending}'::text[]
    WHERE stored.seq = base;
END
$$;
-- Which placeholders a template of a gateway has, and the exit that leases and sessions have of it.
ALTER TABLE {schema}.proxies
    ADD COLUMN placeholders text;
CREATE INDEX ix_proxies_templates
    ON {schema}.proxies (pool_id, id)
    WHERE placeholders IS NOT NULL;
ALTER TABLE {schema}.leases
    ADD COLUMN exit jsonb;
ALTER TABLE {schema}.sessions
    ADD COLUMN exit jsonb;
-- What answers of a target mean, and whether failures that holders report count as failed checks.
CREATE TABLE {schema}.target_rules (
    target TEXT COLLATE "C" NOT NULL,
    rules JSONB NOT NULL,
    set_at timestamptz NOT NULL,
    CONSTRAINT pk_target_rules PRIMARY KEY (target)
);
ALTER TABLE {schema}.pools
    ADD COLUMN reported_failures boolean;

-- The order in which MOST_SUCCESSFUL looks at the records of a target.
CREATE INDEX ix_target_outcomes_success ON {schema}.target_outcomes (
    pool_id, target, ((successes + 1) / (successes + failures + 2)) DESC, proxy_id
);

-- How often WEIGHTED leases a proxy, beside one of weight 1, which null is. The turn of its last lease
-- by that selector, and of its next one.
ALTER TABLE {schema}.proxies
    ADD COLUMN weight integer;
ALTER TABLE {schema}.available_proxies
    ADD COLUMN turn bigint,
    ADD COLUMN next_turn bigint;
CREATE INDEX ix_available_proxies_weighted
    ON {schema}.available_proxies (pool_id, lease_rank, next_turn NULLS FIRST, proxy_id)
    WHERE lease_rank IS NOT NULL;
CREATE INDEX ix_available_proxies_turns
    ON {schema}.available_proxies (pool_id, status, turn)
    WHERE turn IS NOT NULL;

-- The URLs whose lists pools are kept in step with.
CREATE TABLE {schema}.sources (
    id UUID NOT NULL,
    name TEXT NOT NULL,
    pool_id UUID NOT NULL,
    host TEXT NOT NULL,
    every_seconds DOUBLE PRECISION NOT NULL,
    max_removed TEXT NOT NULL,
    enabled BOOLEAN NOT NULL,
    options JSONB NOT NULL,
    secret_id UUID NOT NULL,
    saved_at timestamptz NOT NULL,
    refreshed_at timestamptz,
    counts JSONB,
    failed_at timestamptz,
    failure TEXT,
    CONSTRAINT pk_sources PRIMARY KEY (id)
);
CREATE INDEX ix_sources_name ON {schema}.sources (name);

-- Links that give proxies another exit, when pools have them called, and what is under way.
ALTER TABLE {schema}.proxies
    ADD COLUMN rotate_id uuid;
ALTER TABLE {schema}.pools
    ADD COLUMN rotation jsonb;
CREATE TABLE {schema}.rotations (
    proxy_id UUID NOT NULL,
    pool_id UUID NOT NULL,
    because TEXT,
    ends_at timestamptz,
    calls_at timestamptz,
    claimed_until timestamptz,
    rotated_at timestamptz,
    rested_until timestamptz,
    failure TEXT,
    status INTEGER,
    CONSTRAINT pk_rotations PRIMARY KEY (proxy_id, pool_id)
);
CREATE INDEX ix_rotations_under_way
    ON {schema}.rotations (pool_id, ends_at) WHERE ends_at IS NOT NULL;

-- The tokens with which programs lease over HTTP, known by digests of them.
CREATE TABLE {schema}.api_tokens (
    id UUID NOT NULL,
    digest TEXT NOT NULL,
    consumer TEXT NOT NULL,
    rights JSONB NOT NULL,
    pools JSONB NOT NULL,
    expires_at timestamptz,
    issued_at timestamptz NOT NULL,
    CONSTRAINT pk_api_tokens PRIMARY KEY (id)
);

-- Which ledger of a fleet each pool is in; only the home ledger has rows.
CREATE TABLE {schema}.pool_places (
    pool_name TEXT COLLATE "C" NOT NULL,
    ledger TEXT NOT NULL,
    placed_at timestamptz NOT NULL,
    CONSTRAINT pk_pool_places PRIMARY KEY (pool_name)
);
-- The moves of pools between this ledger and others.
CREATE TABLE {schema}.pool_moves (
    move_id UUID NOT NULL,
    pool_id UUID NOT NULL,
    pool_name TEXT NOT NULL,
    ledger TEXT NOT NULL,
    stage TEXT NOT NULL,
    position BIGINT NOT NULL,
    changed_at timestamptz NOT NULL,
    last_seq BIGINT,
    last_position BIGINT,
    root TEXT,
    CONSTRAINT pk_pool_moves PRIMARY KEY (move_id)
);
CREATE INDEX ix_pool_moves_name ON {schema}.pool_moves (pool_name, position);
CREATE INDEX ix_pool_moves_pool ON {schema}.pool_moves (pool_id, position);

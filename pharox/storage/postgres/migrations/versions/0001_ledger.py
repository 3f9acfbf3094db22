"""The log of events, and the read models that are folded from it."""

import re

from alembic import op

from pharox.storage.postgres.sql import quoted

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TABLES = """
CREATE SEQUENCE {schema}.events_position_seq;
CREATE TABLE {schema}.events (
    position BIGINT DEFAULT nextval('{literal}.events_position_seq') NOT NULL,
    tx xid8 DEFAULT pg_current_xact_id() NOT NULL,
    recorded_at timestamptz NOT NULL,
    type TEXT NOT NULL,
    schema_version SMALLINT DEFAULT 1 NOT NULL,
    pool_id UUID NOT NULL,
    proxy_id UUID,
    lease_id UUID,
    consumer TEXT,
    actor TEXT,
    correlation_id TEXT,
    data JSONB NOT NULL,
    CONSTRAINT pk_events PRIMARY KEY (position, pool_id)
) PARTITION BY RANGE (position);
ALTER SEQUENCE {schema}.events_position_seq OWNED BY {schema}.events.position;
CREATE INDEX ix_events_tx ON {schema}.events (tx);
CREATE INDEX ix_events_recorded_at ON {schema}.events (recorded_at);
CREATE INDEX ix_events_lease ON {schema}.events (lease_id) WHERE lease_id IS NOT NULL;
CREATE INDEX ix_events_proxy ON {schema}.events (proxy_id, position) WHERE proxy_id IS NOT NULL;
CREATE INDEX ix_events_consumer ON {schema}.events (consumer, position) WHERE consumer IS NOT NULL;
CREATE INDEX ix_events_health
    ON {schema}.events (proxy_id, position)
    WHERE type = 'HealthChecked';
CREATE INDEX ix_events_pools
    ON {schema}.events (position)
    WHERE type IN ('PoolRegistered', 'PoolChanged', 'PoolRemoved');

CREATE TABLE {schema}.seals (
    seq BIGINT NOT NULL,
    position BIGINT NOT NULL,
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
    CONSTRAINT pk_ticks PRIMARY KEY (last_seq)
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
) WITH (fillfactor = 70);
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

CREATE TABLE {schema}.pool_stats (
    pool_id UUID NOT NULL,
    slot SMALLINT NOT NULL,
    total_proxies BIGINT NOT NULL,
    active_proxies BIGINT NOT NULL,
    available_proxies BIGINT NOT NULL,
    leased_proxies BIGINT NOT NULL,
    total_leases BIGINT NOT NULL,
    CONSTRAINT pk_pool_stats PRIMARY KEY (pool_id, slot)
) WITH (fillfactor = 50);

CREATE TABLE {schema}.selector_cursors (
    pool_id UUID NOT NULL,
    selector TEXT NOT NULL,
    proxy_id UUID,
    CONSTRAINT pk_selector_cursors PRIMARY KEY (pool_id, selector)
) WITH (fillfactor = 50);

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
"""

# The one place where the ledger asks for the time. Being a function of the
# schema, a test can put another clock there; a planner inlines this one.
CLOCK = """
CREATE FUNCTION {schema}.clock()
RETURNS timestamptz
LANGUAGE sql
STABLE
AS 'SELECT statement_timestamp()';
"""

# ENABLE ALWAYS: it also fires where session_replication_role says that
# ordinary triggers shall not, and for the owner as for everybody. A statement
# against a partition fires the partition's own triggers, so each has them too.
IMMUTABLE = """
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
"""

# Made by whoever first appends beyond the last one. ATTACH lets other writers
# work meanwhile, which CREATE TABLE ... PARTITION OF does not. How large a
# partition is, is a function so that it can be replaced.
PARTITIONS = """
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
            EXECUTE format('CREATE TABLE %s (LIKE %s INCLUDING DEFAULTS)', part, parent);
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
"""

# Runs with its owner's rights, as nobody else may delete credentials: only what
# the log says is not in use any more. Where a proxy's last description was
# archived, the log says nothing here, and its credentials stay.
CREDENTIALS = """
CREATE FUNCTION {schema}.forget_credentials(pool uuid, proxies uuid[] DEFAULT NULL)
RETURNS void
LANGUAGE sql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    DELETE FROM {schema}.proxy_credentials AS kept
    USING (
        SELECT kept.id, described.credential_id
        FROM {schema}.proxy_credentials AS kept,
             LATERAL (
                 SELECT event.data ->> 'credential_id' AS credential_id
                 FROM {schema}.events AS event
                 WHERE event.proxy_id = kept.proxy_id
                   AND event.pool_id = kept.pool_id
                   AND event.type IN ('ProxyRegistered', 'ProxyChanged', 'ProxyRemoved')
                 ORDER BY event.position DESC
                 LIMIT 1
             ) AS described
        WHERE kept.pool_id = pool AND (proxies IS NULL OR kept.proxy_id = ANY (proxies))
    ) AS last
    WHERE kept.pool_id = pool
      AND kept.id = last.id
      AND kept.id::text IS DISTINCT FROM last.credential_id
$$;
"""

# The bytes of an event that its digest covers: every column. JSON, so that any
# language can make them again; see pharox/log/canonical.py.
DIGEST = """
CREATE FUNCTION {schema}.digest(event {schema}.events)
RETURNS bytea
LANGUAGE sql
STABLE
AS $$
    SELECT sha256(convert_to(json_build_array(
        event.position, event.tx::text, extract(epoch FROM event.recorded_at), event.type,
        event.schema_version, event.pool_id, event.proxy_id, event.lease_id, event.consumer,
        event.actor, event.correlation_id, event.data)::text, 'UTF8'))
$$;

CREATE FUNCTION {schema}.root(before bytea, tick {schema}.ticks, digests bytea)
RETURNS bytea
LANGUAGE sql
STABLE
AS $$
    SELECT sha256(before || convert_to(json_build_array(
        tick.first_seq, tick.last_seq, tick.snapshot::text, tick.anchor, tick.system_identifier,
        extract(epoch FROM tick.sealed_at))::text, 'UTF8') || digests)
$$;
"""

# Runs with its owner's rights, so that whoever may read the log need not be able
# to write seals. Gives the events that became visible since the last tick their place in the
# order that readers read. An event belongs to the new ticks if its transaction
# had not begun at the last snapshot, or was running then, and has committed.
# Transaction ids say nothing in a cluster that the log was restored into (or in
# a copy of the same cluster that is behind): then whatever has no seal is taken,
# and up to that position (the anchor) whatever transaction ids find is checked
# against the seals from there on. What came with the restore can be without a
# seal only by the old snapshot, what was appended since has a later position
# than any that is sealed: so nobody searches the whole log for it.
# A snapshot does not list the transaction that takes it. Its events are not
# committed, so it is added: they are left out now and found later.
SEAL = """
CREATE FUNCTION {schema}.seal(wait boolean DEFAULT false)
RETURNS bigint
LANGUAGE plpgsql
SECURITY DEFINER
SET plan_cache_mode = force_custom_plan
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    per_tick CONSTANT bigint := 100000;
    last {schema}.ticks;
    tick {schema}.ticks;
    cluster bigint;
    own xid8 := pg_current_xact_id_if_assigned();
    running xid8[];
    taken bigint;
    digests bytea;
BEGIN
    IF pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean THEN
        RETURN (SELECT coalesce(max(last_seq), 0) FROM {schema}.ticks);
    END IF;
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'seal() needs a transaction of isolation level READ COMMITTED'
            USING ERRCODE = 'invalid_transaction_state';
    END IF;
    IF wait THEN
        PERFORM pg_advisory_xact_lock(1885890928, hashtext('{literal}'));
    ELSIF NOT pg_try_advisory_xact_lock(1885890928, hashtext('{literal}')) THEN
        RETURN (SELECT coalesce(max(last_seq), 0) FROM {schema}.ticks);
    END IF;
    SELECT * INTO last FROM {schema}.ticks ORDER BY last_seq DESC LIMIT 1;
    SELECT system_identifier INTO cluster FROM pg_control_system();
    running := ARRAY(SELECT pg_snapshot_xip(last.snapshot));
    tick.snapshot := pg_current_snapshot();
    IF own < pg_snapshot_xmax(tick.snapshot) THEN
        SELECT format('%s:%s:%s', pg_snapshot_xmin(tick.snapshot), pg_snapshot_xmax(tick.snapshot),
                      string_agg(xid::text, ',' ORDER BY xid))
        INTO tick.snapshot
        FROM (SELECT pg_snapshot_xip(tick.snapshot) UNION SELECT own) AS unfinished (xid);
    END IF;
    IF last.system_identifier = cluster
       AND pg_snapshot_xmax(last.snapshot) <= pg_snapshot_xmax(tick.snapshot) THEN
        tick.anchor := last.anchor;
        INSERT INTO {schema}.seals
        SELECT last.last_seq + row_number() OVER (ORDER BY e.position), e.position,
               {schema}.digest(e)
        FROM {schema}.events AS e
        WHERE (e.tx >= pg_snapshot_xmax(last.snapshot) AND e.tx < pg_snapshot_xmax(tick.snapshot)
               OR e.tx = ANY (running))
          AND pg_visible_in_snapshot(e.tx, tick.snapshot)
          AND (e.position > tick.anchor
               OR NOT EXISTS (SELECT FROM {schema}.seals s WHERE s.position = e.position));
    ELSE
        SELECT coalesce(max(position), 0) INTO tick.anchor FROM {schema}.events;
        INSERT INTO {schema}.seals
        SELECT coalesce(last.last_seq, 0) + row_number() OVER (ORDER BY e.position), e.position,
               {schema}.digest(e)
        FROM {schema}.events AS e
        WHERE e.position <= tick.anchor
          AND e.tx IS DISTINCT FROM own
          AND (e.position > (SELECT coalesce(max(position), 0) FROM {schema}.seals)
               OR e.tx >= pg_snapshot_xmax(last.snapshot) OR e.tx = ANY (running))
          AND NOT EXISTS (SELECT FROM {schema}.seals s WHERE s.position = e.position);
    END IF;
    GET DIAGNOSTICS taken = ROW_COUNT;
    IF taken = 0 THEN
        RETURN coalesce(last.last_seq, 0);
    END IF;
    tick.system_identifier := cluster;
    tick.sealed_at := {schema}.clock();
    taken := taken + coalesce(last.last_seq, 0);
    last.root := coalesce(last.root, ''::bytea);
    last.last_seq := coalesce(last.last_seq, 0);
    WHILE last.last_seq < taken LOOP
        tick.first_seq := last.last_seq + 1;
        tick.last_seq := least(last.last_seq + per_tick, taken);
        SELECT string_agg(digest, ''::bytea ORDER BY seq) INTO digests
        FROM {schema}.seals WHERE seq BETWEEN tick.first_seq AND tick.last_seq;
        tick.root := {schema}.root(last.root, tick, digests);
        INSERT INTO {schema}.ticks SELECT tick.*;
        last := tick;
    END LOOP;
    PERFORM pg_notify('pharox.{literal}'::name, last.last_seq::text);
    RETURN last.last_seq;
END
$$;
"""


def upgrade() -> None:
    """Create the tables, the clock, the guard of the log and what seals it."""
    schema = quoted(op.get_context().version_table_schema or "pharox")
    # In what alembic executes a colon would begin a parameter.
    spelled = schema.replace(":", "\\:")
    names = {"{schema}": spelled, "{literal}": spelled.replace("'", "''")}
    for part in (TABLES, CLOCK, IMMUTABLE, PARTITIONS, CREDENTIALS, DIGEST, SEAL):
        # At once, as one name may contain the other's place.
        op.execute(re.sub(r"\{(schema|literal)\}", lambda place: names[place[0]], part))

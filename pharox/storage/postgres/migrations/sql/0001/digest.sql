-- The bytes of an event that its digest covers: every column. JSON, so that any
-- language can make them again; see pharox/log/canonical.py.
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

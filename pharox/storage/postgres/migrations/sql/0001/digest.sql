-- The digest of an event in one of its versions, null in one that is not known here. It covers the
-- version and every column that there was then. JSON, so that any language can make the bytes
-- again; see pharox/log/canonical.py. A later version is added here, and the others stay.
CREATE FUNCTION {schema}.digest(event {schema}.events, version smallint)
RETURNS bytea
LANGUAGE sql
STABLE
AS $$
    SELECT CASE version
        WHEN 1 THEN sha256(convert_to(json_build_array(
            1, event.position, event.tx::text, extract(epoch FROM event.recorded_at), event.type,
            event.schema_version, event.pool_id, event.proxy_id, event.lease_id, event.consumer,
            event.consumer_id, event.pool_name, extract(epoch FROM event.expires_at),
            extract(epoch FROM event.acquired_at), event.status_before, event.status_after,
            event.leases_before, event.leases_after, event.max_concurrency_before,
            event.max_concurrency_after, event.selector, event.actor, event.correlation_id,
            event.proxy_ids, event.data)::text, 'UTF8'))
    END
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

-- The digest of an event in one of its versions, null in one that is not known here. It covers the
-- version and every column that there was then. One line of text, so that any language can make
-- the bytes again; see pharox/log/canonical.py. Numbers, ids and moments hold no comma, texts are
-- quoted, and what is null leaves its place empty: so no two events have the same line. JSON would
-- take half as long again. A later version is added here, and the others stay.
CREATE FUNCTION {schema}.digest(event {schema}.events, version smallint)
RETURNS bytea
LANGUAGE sql
STABLE
PARALLEL SAFE
AS $$
    SELECT CASE version
        WHEN 1 THEN sha256(convert_to(concat_ws(',',
            1, event.position, event.tx, extract(epoch FROM event.recorded_at),
            quote_nullable(event.type), event.schema_version, event.pool_id,
            coalesce(event.proxy_id::text, ''), coalesce(event.lease_id::text, ''),
            quote_nullable(event.consumer), coalesce(event.consumer_id::text, ''),
            quote_nullable(event.pool_name),
            coalesce(extract(epoch FROM event.expires_at)::text, ''),
            coalesce(extract(epoch FROM event.acquired_at)::text, ''),
            quote_nullable(event.status_before), quote_nullable(event.status_after),
            coalesce(event.leases_before::text, ''), coalesce(event.leases_after::text, ''),
            coalesce(event.max_concurrency_before::text, ''),
            coalesce(event.max_concurrency_after::text, ''),
            quote_nullable(event.selector), quote_nullable(event.actor),
            quote_nullable(event.correlation_id), coalesce(event.proxy_ids::text, ''),
            coalesce(event.data::text, '')), 'UTF8'))
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

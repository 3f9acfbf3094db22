-- Runs with its owner's rights, as nobody else may delete credentials: only what
-- the log says is not in use any more. Where a proxy's last description was
-- archived, the log says nothing here, and its credentials stay.
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

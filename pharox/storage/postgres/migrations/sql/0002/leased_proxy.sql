-- What the holder of a proxy needs to use it. Its credentials are encrypted.
CREATE TYPE {schema}.leased_proxy AS (
    host text,
    port integer,
    protocol text,
    credential_id uuid,
    secret bytea
);

-- The proxy of a lease that was just granted. VOLATILE: it sees a proxy that was registered after
-- the statement that leases it began, as the lease does.
CREATE FUNCTION {schema}.leased_proxy_v1(pool uuid, proxy uuid)
RETURNS {schema}.leased_proxy
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
AS $$
DECLARE
    found {schema}.leased_proxy;
BEGIN
    SELECT
        description.host, description.port, description.protocol, description.credential_id,
        kept.secret
    INTO found
    FROM {schema}.proxies AS description
    LEFT JOIN {schema}.proxy_credentials AS kept
      ON kept.id = description.credential_id AND kept.proxy_id = description.id
     AND kept.pool_id = description.pool_id
    WHERE description.pool_id = pool AND description.id = proxy;
    RETURN found;
END
$$;

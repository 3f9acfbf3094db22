-- Which proxy a selector offers. LEAST_RECENTLY_USED goes by leased_at, the time of the last lease.

-- An event of a lease, or a miss. Its position is its place among the others for now. Its time is
-- that of the statement, which append_v1 gives it too: a fold before that has leased_at right.
CREATE OR REPLACE FUNCTION {schema}.lease_event_v1(
    place bigint,
    type text,
    pool uuid,
    pool_name text,
    proxy uuid,
    lease uuid,
    consumer_id uuid,
    consumer text,
    status text,
    leases_before integer,
    leases_after integer,
    max_concurrency integer,
    expires_at timestamptz,
    acquired_at timestamptz,
    selector text,
    data jsonb
)
RETURNS {schema}.event_v1
LANGUAGE sql
STABLE
AS $$
    SELECT ROW(
        place, NULL, {schema}.clock(), expires_at, acquired_at, pool, proxy, lease, consumer_id,
        leases_before, leases_after, max_concurrency, max_concurrency, 1, type, status, status,
        selector, consumer, pool_name, NULL, NULL, NULL, data
    )::{schema}.event_v1
$$;

-- Which of some locked proxies a run of requests gets, one after the other: the state of each
-- proxy before its lease. A proxy has as many places as it has room; FIRST_AVAILABLE and
-- LOWEST_LATENCY fill one before they go to the next, the others go around.
CREATE OR REPLACE FUNCTION {schema}.places_v1(
    selector text,
    free {schema}.lease_place[],
    wanted integer,
    is_distinct boolean
)
RETURNS {schema}.lease_place[]
LANGUAGE sql
STABLE
AS $$
    SELECT coalesce(array_agg(place.proxy ORDER BY place.number), '{}')
    FROM (
        SELECT
            ROW(
                proxy.proxy_id, proxy.status, proxy.checked_at, proxy.max_concurrency,
                taken.leases, proxy.lease_rank
            )::{schema}.lease_place AS proxy,
            row_number() OVER (
                ORDER BY
                    proxy.lease_rank,
                    CASE selector
                        WHEN 'least_used' THEN taken.leases
                        WHEN 'round_robin' THEN taken.leases - proxy.current_leases
                        WHEN 'least_recently_used' THEN taken.leases - proxy.current_leases
                        ELSE 0
                    END,
                    CASE WHEN selector = 'least_used' THEN proxy.checked_at END,
                    CASE WHEN selector = 'least_used' THEN proxy.proxy_id END,
                    proxy.ordinality,
                    taken.leases
            ) AS number
        FROM unnest(free) WITH ORDINALITY AS proxy,
        LATERAL generate_series(
            proxy.current_leases,
            least(
                proxy.max_concurrency - 1,
                proxy.current_leases + CASE WHEN is_distinct THEN 0 ELSE wanted - 1 END
            )
        ) AS taken (leases)
    ) AS place
    WHERE place.number <= wanted
$$;

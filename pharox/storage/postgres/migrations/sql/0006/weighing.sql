-- WEIGHTED leases proxies in proportion to their weights, as start-time fair queueing does.
--
-- A lease has a turn: how far its proxy has come, on a scale along which all proxies of a pool
-- move. The next turn is a step later, and the step is the shorter the more weight the proxy has.
-- The earliest next turn is leased first. Events have both, so a fold has nothing to compute.

-- The turn of a proxy's next lease, the one after that, and the step from then on. Who was away
-- goes on where the others of its status are, so nobody saves up turns. Who is new comes again
-- somewhere within its first step, by its id: else all proxies of a weight would be leased in a row.
CREATE FUNCTION {schema}.turns_v1(
    proxy uuid,
    OUT turn bigint,
    OUT next_turn bigint,
    OUT step bigint,
    OUT leases integer
)
LANGUAGE sql
STABLE
AS $$
    SELECT
        place.turn,
        place.turn + CASE
            WHEN place.next_turn IS NULL THEN
                1 + (place.step * ('x' || substr(md5(proxy::text), 1, 8))::bit(32)::bigint >> 32)
            ELSE place.step
        END,
        place.step,
        place.current_leases
    FROM (
        SELECT
            availability.current_leases,
            availability.next_turn,
            306306000 / coalesce(description.weight, 1)::bigint AS step,
            greatest(0, availability.next_turn, (
                SELECT ahead.turn
                FROM {schema}.available_proxies AS ahead
                WHERE ahead.pool_id = availability.pool_id AND ahead.status = availability.status
                  AND ahead.turn IS NOT NULL
                ORDER BY ahead.turn DESC
                LIMIT 1
            )) AS turn
        FROM {schema}.available_proxies AS availability
        JOIN {schema}.proxies AS description
          ON description.pool_id = availability.pool_id
         AND description.id = availability.proxy_id
        WHERE availability.proxy_id = proxy
    ) AS place
$$;

-- The turn of a lease as its event says it. A proxy may have got leases before by this
-- statement, which are folded after it.
CREATE FUNCTION {schema}.recorded_turn_v1(proxy uuid, leases_before integer)
RETURNS jsonb
LANGUAGE sql
STABLE
AS $$
    SELECT CASE leases_before - own.leases
        WHEN 0 THEN jsonb_build_object('turn', own.turn, 'next_turn', own.next_turn)
        ELSE jsonb_build_object(
            'turn', own.next_turn + own.step * (leases_before - own.leases - 1),
            'next_turn', own.next_turn + own.step * (leases_before - own.leases)
        )
    END
    FROM {schema}.turns_v1(proxy) AS own
$$;

-- Where a proxy stands in the order before each of so many leases.
CREATE FUNCTION {schema}.places_in_turn_v1(proxy uuid, wanted integer)
RETURNS bigint[]
LANGUAGE sql
STABLE
AS $$
    SELECT ARRAY[coalesce(availability.next_turn, -1)] || ARRAY(
        SELECT own.next_turn + own.step * number
        FROM {schema}.turns_v1(proxy) AS own,
        generate_series(0, wanted - 2) AS later (number)
        ORDER BY number
    )
    FROM {schema}.available_proxies AS availability
    WHERE availability.proxy_id = proxy
$$;

-- An event of a lease, or a miss. Its position is its place among the others for now. Its time is
-- that of the statement, which append_v1 gives it too: a fold before that has leased_at right. A
-- lease by WEIGHTED has its turn.
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
        selector, consumer, pool_name, NULL, NULL, NULL,
        -- The data is named once: else this is no longer a part of the statement that calls it.
        nullif(
            coalesce(data, '{}') || CASE
                WHEN selector = 'weighted' AND type = 'LeaseAcquired'
                    THEN {schema}.recorded_turn_v1(proxy, leases_before)
                ELSE '{}'
            END,
            '{}'
        )
    )::{schema}.event_v1
$$;

-- Which of some locked proxies a run of requests gets, one after the other: the state of each
-- proxy before its lease. A proxy has as many places as it has room; FIRST_AVAILABLE and
-- LOWEST_LATENCY fill one before they go to the next, WEIGHTED goes by turns, the others around.
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
                        WHEN 'weighted' THEN
                            in_turn.places[1 + taken.leases - proxy.current_leases]
                        WHEN 'round_robin' THEN taken.leases - proxy.current_leases
                        WHEN 'least_recently_used' THEN taken.leases - proxy.current_leases
                        ELSE 0
                    END,
                    CASE WHEN selector = 'least_used' THEN proxy.checked_at END,
                    CASE WHEN selector IN ('least_used', 'weighted') THEN proxy.proxy_id END,
                    proxy.ordinality,
                    taken.leases
            ) AS number
        FROM unnest(free) WITH ORDINALITY AS proxy,
        LATERAL (
            SELECT CASE
                WHEN selector = 'weighted' THEN
                    {schema}.places_in_turn_v1(proxy.proxy_id, wanted)
            END AS places
            OFFSET 0 -- Once for each proxy.
        ) AS in_turn,
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

-- The order of a selector, for statements that are made. Those that are kept say it themselves.
CREATE OR REPLACE FUNCTION {schema}.order_of_v1(selector text)
RETURNS text
LANGUAGE sql
IMMUTABLE
AS $$
    SELECT CASE selector
        WHEN 'first_available' THEN
            'availability.lease_rank, availability.checked_at DESC, availability.proxy_id'
        WHEN 'least_used' THEN
            'availability.lease_rank, availability.current_leases, availability.checked_at, '
            'availability.proxy_id'
        WHEN 'lowest_latency' THEN
            'availability.lease_rank, availability.latency_ms, availability.proxy_id'
        WHEN 'least_recently_used' THEN
            'availability.lease_rank, availability.leased_at NULLS FIRST, availability.proxy_id'
        WHEN 'weighted' THEN
            'availability.lease_rank, availability.next_turn NULLS FIRST, availability.proxy_id'
        ELSE 'availability.lease_rank, availability.proxy_id'
    END
$$;

-- The first free proxies in a selector's order, locked by anybody or not.
CREATE OR REPLACE FUNCTION {schema}.front_v1(
    selector text,
    pool uuid,
    lowest_rank integer,
    highest_rank integer,
    size integer
)
RETURNS uuid[]
LANGUAGE plpgsql
AS $$
#variable_conflict use_variable
BEGIN
    -- Only the branch of the selector is run.
    RETURN ARRAY(
        SELECT front.proxy_id
        FROM (
            (
                SELECT availability.proxy_id
                FROM {schema}.available_proxies AS availability
                WHERE selector = 'first_available' AND availability.pool_id = pool
                  AND availability.lease_rank BETWEEN lowest_rank AND highest_rank
                  AND (availability.rests_until IS NULL
                       OR availability.rests_until <= {schema}.clock())
                ORDER BY availability.lease_rank, availability.checked_at DESC,
                     availability.proxy_id
                LIMIT size
            )
            UNION ALL
            (
                SELECT availability.proxy_id
                FROM {schema}.available_proxies AS availability
                WHERE selector = 'least_used' AND availability.pool_id = pool
                  AND availability.lease_rank BETWEEN lowest_rank AND highest_rank
                  AND (availability.rests_until IS NULL
                       OR availability.rests_until <= {schema}.clock())
                ORDER BY availability.lease_rank, availability.current_leases,
                     availability.checked_at, availability.proxy_id
                LIMIT size
            )
            UNION ALL
            (
                SELECT availability.proxy_id
                FROM {schema}.available_proxies AS availability
                WHERE selector = 'lowest_latency' AND availability.pool_id = pool
                  AND availability.lease_rank BETWEEN lowest_rank AND highest_rank
                  AND (availability.rests_until IS NULL
                       OR availability.rests_until <= {schema}.clock())
                ORDER BY availability.lease_rank, availability.latency_ms,
                     availability.proxy_id
                LIMIT size
            )
            UNION ALL
            (
                SELECT availability.proxy_id
                FROM {schema}.available_proxies AS availability
                WHERE selector = 'least_recently_used' AND availability.pool_id = pool
                  AND availability.lease_rank BETWEEN lowest_rank AND highest_rank
                  AND (availability.rests_until IS NULL
                       OR availability.rests_until <= {schema}.clock())
                ORDER BY availability.lease_rank, availability.leased_at NULLS FIRST,
                     availability.proxy_id
                LIMIT size
            )
            UNION ALL
            (
                SELECT availability.proxy_id
                FROM {schema}.available_proxies AS availability
                WHERE selector = 'weighted' AND availability.pool_id = pool
                  AND availability.lease_rank BETWEEN lowest_rank AND highest_rank
                  AND (availability.rests_until IS NULL
                       OR availability.rests_until <= {schema}.clock())
                ORDER BY availability.lease_rank, availability.next_turn NULLS FIRST,
                     availability.proxy_id
                LIMIT size
            )
        ) AS front
    );
END
$$;

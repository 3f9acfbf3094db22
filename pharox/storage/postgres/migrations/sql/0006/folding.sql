-- Written by `python -m scripts.fold_functions` from projections/*.py.

-- What leases and their ends come to in available_proxies.
CREATE OR REPLACE FUNCTION {schema}.fold_available_proxies_v1(appended {schema}.event_v1[])
RETURNS void
LANGUAGE plpgsql
AS $$
#variable_conflict use_column
BEGIN
    UPDATE {schema}.available_proxies
    SET
        current_leases = newest.leases_after,
        rests_until = newest.rests_until,
        leased_at = coalesce(newest.leased_at, {schema}.available_proxies.leased_at),
        turn = coalesce(newest.turn, {schema}.available_proxies.turn),
        next_turn = coalesce(newest.next_turn, {schema}.available_proxies.next_turn)
    FROM (
        SELECT
            event.pool_id AS pool_id,
            event.proxy_id AS proxy_id,
            (
                array_agg(event.leases_after ORDER BY event.position DESC)
            )[1] AS leases_after,
            (
                array_agg(
                    CAST(event.data #>> '{rests_until}' AS TIMESTAMPTZ) ORDER BY event.position DESC
                )
            )[1] AS rests_until,
            (
                array_agg(event.recorded_at ORDER BY event.position DESC) FILTER(WHERE
                    event.type = 'LeaseAcquired')
            )[1] AS leased_at,
            (
                array_agg(
                    CAST(event.data #>> '{turn}' AS BIGINT) ORDER BY event.position DESC
                ) FILTER(WHERE
                    event.type = 'LeaseAcquired' AND event.selector = 'weighted')
            )[1] AS turn,
            (
                array_agg(
                    CAST(event.data #>> '{next_turn}' AS BIGINT) ORDER BY event.position DESC
                ) FILTER(WHERE
                    event.type = 'LeaseAcquired' AND event.selector = 'weighted')
            )[1] AS next_turn
        FROM UNNEST(appended) AS event
        WHERE
            event.type IN (
                'LeaseAcquired',
                'LeaseReleased',
                'LeaseExpired',
                'LeaseRevoked',
                'RotationBegan',
                'RotationCalled',
                'RotationAnswered'
            )
        GROUP BY
            event.pool_id,
            event.proxy_id
    ) AS newest
    WHERE
        {schema}.available_proxies.pool_id = newest.pool_id
        AND {schema}.available_proxies.proxy_id = newest.proxy_id;
END
$$;

-- What leases and their ends come to in selector_cursors.
CREATE OR REPLACE FUNCTION {schema}.fold_selector_cursors_v1(appended {schema}.event_v1[])
RETURNS void
LANGUAGE plpgsql
AS $$
#variable_conflict use_column
BEGIN
    UPDATE {schema}.selector_cursors
    SET
        proxy_id = event.proxy_id
    FROM UNNEST(appended) AS event
    WHERE
        {schema}.selector_cursors.pool_id = event.pool_id
        AND {schema}.selector_cursors.selector = 'round_robin'
        AND (event.pool_id, event.position) IN (
            SELECT
                event.pool_id,
                max(event.position)
            FROM UNNEST(appended) AS event
            WHERE
                event.type IN ('LeaseAcquired', 'CursorMoved')
                AND event.selector = 'round_robin'
            GROUP BY
                event.pool_id
        );
END
$$;

-- What leases and their ends come to in lease_ids.
CREATE OR REPLACE FUNCTION {schema}.fold_lease_ids_v1(appended {schema}.event_v1[])
RETURNS void
LANGUAGE plpgsql
AS $$
#variable_conflict use_column
BEGIN
    INSERT INTO {schema}.lease_ids (
        lease_id,
        pool_id
    )
    SELECT
        event.lease_id,
        event.pool_id
    FROM UNNEST(appended) AS event
    WHERE
        event.type = 'LeaseAcquired' AND (
            event.data ? 'own_id'
        )
    ORDER BY
        event.lease_id;
END
$$;

-- Each pool in numbers after each of some events, which are folded by now.
CREATE OR REPLACE FUNCTION {schema}.counts_after_v1(appended {schema}.event_v1[])
RETURNS SETOF {schema}.pool_counts
STABLE
LANGUAGE plpgsql
AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    SELECT
        event.position,
        CAST(now.total_proxies - coalesce(
            sum(
                CASE WHEN event.status_after IS NOT NULL THEN 1 ELSE 0 END - CASE WHEN event.status_before IS NOT NULL THEN 1 ELSE 0 END
            ) OVER (
                PARTITION BY event.pool_id
                ORDER BY event.position DESC
                ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
            ),
            0
        ) AS INT) AS total_proxies,
        CAST(now.active_proxies - coalesce(
            sum(
                CASE WHEN event.status_after = 'active' THEN 1 ELSE 0 END - CASE WHEN event.status_before = 'active' THEN 1 ELSE 0 END
            ) OVER (
                PARTITION BY event.pool_id
                ORDER BY event.position DESC
                ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
            ),
            0
        ) AS INT) AS active_proxies,
        CAST(now.available_proxies - coalesce(
            sum(
                CASE
                    WHEN event.status_after = 'active'
                    AND (
                        event.max_concurrency_after IS NULL
                        OR event.leases_after < event.max_concurrency_after
                    )
                    THEN 1
                    ELSE 0
                END - CASE
                    WHEN event.status_before = 'active'
                    AND (
                        event.max_concurrency_before IS NULL
                        OR event.leases_before < event.max_concurrency_before
                    )
                    THEN 1
                    ELSE 0
                END
            ) OVER (
                PARTITION BY event.pool_id
                ORDER BY event.position DESC
                ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
            ),
            0
        ) AS INT) AS available_proxies,
        CAST(now.leased_proxies - coalesce(
            sum(
                CASE WHEN event.leases_after > 0 THEN 1 ELSE 0 END - CASE WHEN event.leases_before > 0 THEN 1 ELSE 0 END
            ) OVER (
                PARTITION BY event.pool_id
                ORDER BY event.position DESC
                ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
            ),
            0
        ) AS INT) AS leased_proxies,
        CAST(now.total_leases - coalesce(
            sum(
                coalesce(event.leases_after, 0) - coalesce(event.leases_before, 0)
            ) OVER (
                PARTITION BY event.pool_id
                ORDER BY event.position DESC
                ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
            ),
            0
        ) AS INT) AS total_leases
    FROM UNNEST(appended) AS event
    JOIN (
        SELECT
            {schema}.pool_stats.pool_id AS pool_id,
            sum({schema}.pool_stats.total_proxies) AS total_proxies,
            sum({schema}.pool_stats.active_proxies) AS active_proxies,
            sum({schema}.pool_stats.available_proxies) AS available_proxies,
            sum({schema}.pool_stats.leased_proxies) AS leased_proxies,
            sum({schema}.pool_stats.total_leases) AS total_leases
        FROM {schema}.pool_stats
        WHERE
            {schema}.pool_stats.pool_id IN (
                SELECT
                    event.pool_id
                FROM UNNEST(appended) AS event
            )
        GROUP BY
            {schema}.pool_stats.pool_id
    ) AS now
        ON now.pool_id = event.pool_id;
END
$$;

-- What one event of a lease comes to in the read models, where nothing has to be grouped: a lease
-- of no turn, under no id of its caller's, in a pool without limits, and without a cost.
CREATE OR REPLACE FUNCTION {schema}.fold_one_v1(event {schema}.event_v1, own_slot smallint)
RETURNS void
LANGUAGE plpgsql
AS $$
#variable_conflict use_column
BEGIN
    IF event.type IN ('LeaseAcquired', 'LeaseExpired', 'LeaseReleased', 'LeaseRevoked') THEN
        UPDATE {schema}.available_proxies
        SET
            current_leases = event.leases_after,
            rests_until = CAST(event.data #>> '{rests_until}' AS TIMESTAMPTZ),
            leased_at = CASE
                WHEN event.type = 'LeaseAcquired'
                THEN event.recorded_at
                ELSE {schema}.available_proxies.leased_at
            END,
            turn = CASE
                WHEN event.type = 'LeaseAcquired' AND event.selector = 'weighted'
                THEN CAST(event.data #>> '{turn}' AS BIGINT)
                ELSE {schema}.available_proxies.turn
            END,
            next_turn = CASE
                WHEN event.type = 'LeaseAcquired' AND event.selector = 'weighted'
                THEN CAST(event.data #>> '{next_turn}' AS BIGINT)
                ELSE {schema}.available_proxies.next_turn
            END
        WHERE
            {schema}.available_proxies.pool_id = event.pool_id
            AND {schema}.available_proxies.proxy_id = event.proxy_id
            AND event.type IN (
                'LeaseAcquired',
                'LeaseReleased',
                'LeaseExpired',
                'LeaseRevoked',
                'RotationBegan',
                'RotationCalled',
                'RotationAnswered'
            );
    END IF;
    IF event.type IN ('LeaseAcquired') THEN
        INSERT INTO {schema}.leases (
            id,
            pool_id,
            pool_name,
            proxy_id,
            consumer_id,
            consumer_name,
            status,
            acquired_at,
            expires_at,
            fencing_token,
            target,
            limited,
            exit
        )
        SELECT
            event.lease_id,
            event.pool_id,
            event.pool_name,
            event.proxy_id,
            event.consumer_id,
            event.consumer,
            'active',
            event.recorded_at,
            event.expires_at,
            event.position,
            CAST(event.data #>> '{target}' AS TEXT),
            CAST(event.data #>> '{limited}' AS BOOLEAN),
            CAST(event.data #>> '{exit}' AS JSONB);
    END IF;
    IF event.type IN ('LeaseExpired', 'LeaseReleased', 'LeaseRevoked') THEN
        UPDATE {schema}.leases
        SET
            status = CASE
                WHEN event.type = 'LeaseReleased'
                THEN 'released'
                WHEN event.type = 'LeaseExpired'
                THEN 'expired'
                WHEN event.type = 'LeaseRevoked'
                THEN 'revoked'
            END,
            released_at = event.recorded_at,
            revoke_reason = CASE
                WHEN event.type = 'LeaseRevoked'
                THEN CAST(event.data #>> '{reason}' AS TEXT)
            END
        WHERE
            {schema}.leases.pool_id = event.pool_id
            AND {schema}.leases.id = event.lease_id
            AND event.type IN ('LeaseReleased', 'LeaseExpired', 'LeaseRevoked');
    END IF;
    IF event.type IN ('LeaseAcquired', 'LeaseExpired', 'LeaseReleased', 'LeaseRevoked') THEN
        UPDATE {schema}.pool_stats
        SET
            total_proxies = (
                {schema}.pool_stats.total_proxies + (
                    CASE WHEN event.status_after IS NOT NULL THEN 1 ELSE 0 END - CASE WHEN event.status_before IS NOT NULL THEN 1 ELSE 0 END
                )
            ),
            active_proxies = (
                {schema}.pool_stats.active_proxies + (
                    CASE WHEN event.status_after = 'active' THEN 1 ELSE 0 END - CASE WHEN event.status_before = 'active' THEN 1 ELSE 0 END
                )
            ),
            available_proxies = (
                {schema}.pool_stats.available_proxies + (
                    CASE
                        WHEN event.status_after = 'active'
                        AND (
                            event.max_concurrency_after IS NULL
                            OR event.leases_after < event.max_concurrency_after
                        )
                        THEN 1
                        ELSE 0
                    END - CASE
                        WHEN event.status_before = 'active'
                        AND (
                            event.max_concurrency_before IS NULL
                            OR event.leases_before < event.max_concurrency_before
                        )
                        THEN 1
                        ELSE 0
                    END
                )
            ),
            leased_proxies = (
                {schema}.pool_stats.leased_proxies + (
                    CASE WHEN event.leases_after > 0 THEN 1 ELSE 0 END - CASE WHEN event.leases_before > 0 THEN 1 ELSE 0 END
                )
            ),
            total_leases = (
                {schema}.pool_stats.total_leases + (
                    coalesce(event.leases_after, 0) - coalesce(event.leases_before, 0)
                )
            )
        WHERE
            {schema}.pool_stats.pool_id = event.pool_id
            AND {schema}.pool_stats.slot = own_slot;
    END IF;
END
$$;

-- What appended events come to in the read models. What commands decide by has those of leases
-- already if they are ``decided``.
CREATE OR REPLACE FUNCTION {schema}.fold_v1(
    appended {schema}.event_v1[],
    types text[],
    own_slot smallint,
    decided boolean
)
RETURNS void
LANGUAGE plpgsql
AS $$
#variable_conflict use_column
BEGIN
    IF types && ARRAY['PoolRegistered'] THEN
        INSERT INTO {schema}.pools (
            id,
            name,
            description,
            lease_slow,
            rest_after_release_seconds,
            rest_after_expiry_seconds,
            max_held_seconds,
            cool_down,
            selector,
            lease_seconds,
            max_concurrency,
            limits,
            cost_per_gb,
            cost_per_lease,
            reported_failures,
            rotation
        )
        SELECT
            event.pool_id,
            CAST(event.data #>> '{name}' AS TEXT),
            CAST(event.data #>> '{description}' AS TEXT),
            CAST(event.data #>> '{lease_slow}' AS BOOLEAN),
            CAST(event.data #>> '{rest_after_release_seconds}' AS DOUBLE PRECISION),
            CAST(event.data #>> '{rest_after_expiry_seconds}' AS DOUBLE PRECISION),
            CAST(event.data #>> '{max_held_seconds}' AS DOUBLE PRECISION),
            CAST(event.data #>> '{cool_down}' AS JSONB),
            CAST(event.data #>> '{selector}' AS TEXT),
            CAST(event.data #>> '{lease_seconds}' AS DOUBLE PRECISION),
            CAST(event.data #>> '{max_concurrency}' AS INT),
            CAST(event.data #>> '{limits}' AS JSONB),
            CAST(event.data #>> '{cost_per_gb}' AS DECIMAL),
            CAST(event.data #>> '{cost_per_lease}' AS DECIMAL),
            CAST(event.data #>> '{reported_failures}' AS BOOLEAN),
            CAST(event.data #>> '{rotation}' AS JSONB)
        FROM UNNEST(appended) AS event
        WHERE
            event.type = 'PoolRegistered';
    END IF;
    IF types && ARRAY['PoolChanged'] THEN
        UPDATE {schema}.pools
        SET
            name = CAST(event.data #>> '{name}' AS TEXT),
            description = CAST(event.data #>> '{description}' AS TEXT),
            lease_slow = CAST(event.data #>> '{lease_slow}' AS BOOLEAN),
            rest_after_release_seconds = CAST(event.data #>> '{rest_after_release_seconds}' AS DOUBLE PRECISION),
            rest_after_expiry_seconds = CAST(event.data #>> '{rest_after_expiry_seconds}' AS DOUBLE PRECISION),
            max_held_seconds = CAST(event.data #>> '{max_held_seconds}' AS DOUBLE PRECISION),
            cool_down = CAST(event.data #>> '{cool_down}' AS JSONB),
            selector = CAST(event.data #>> '{selector}' AS TEXT),
            lease_seconds = CAST(event.data #>> '{lease_seconds}' AS DOUBLE PRECISION),
            max_concurrency = CAST(event.data #>> '{max_concurrency}' AS INT),
            limits = CAST(event.data #>> '{limits}' AS JSONB),
            cost_per_gb = CAST(event.data #>> '{cost_per_gb}' AS DECIMAL),
            cost_per_lease = CAST(event.data #>> '{cost_per_lease}' AS DECIMAL),
            reported_failures = CAST(event.data #>> '{reported_failures}' AS BOOLEAN),
            rotation = CAST(event.data #>> '{rotation}' AS JSONB)
        FROM UNNEST(appended) AS event
        WHERE
            {schema}.pools.id = event.pool_id
            AND (event.pool_id, event.position) IN (
                SELECT
                    event.pool_id,
                    max(event.position)
                FROM UNNEST(appended) AS event
                WHERE
                    event.type = 'PoolChanged'
                GROUP BY
                    event.pool_id
            );
    END IF;
    IF types && ARRAY['PoolRemoved'] THEN
        DELETE FROM {schema}.pools
        USING UNNEST(appended) AS event
        WHERE
            {schema}.pools.id = event.pool_id AND event.type = 'PoolRemoved';
    END IF;
    IF types && ARRAY['ConsumerRegistered'] THEN
        INSERT INTO {schema}.consumers (
            name,
            id
        )
        SELECT
            event.consumer,
            event.consumer_id
        FROM UNNEST(appended) AS event
        WHERE
            event.type = 'ConsumerRegistered';
    END IF;
    IF types && ARRAY['PoolStateCarried'] THEN
        INSERT INTO {schema}.proxies (
            id,
            pool_id,
            protocol,
            host,
            port,
            credential_id,
            source,
            country,
            city,
            latitude,
            longitude,
            isp,
            asn,
            exit_ip,
            cost_per_gb,
            cost_per_lease,
            placeholders,
            weight,
            rotate_id
        )
        SELECT
            anon_1.id,
            anon_1.pool_id,
            anon_1.protocol,
            anon_1.host,
            anon_1.port,
            anon_1.credential_id,
            anon_1.source,
            anon_1.country,
            anon_1.city,
            anon_1.latitude,
            anon_1.longitude,
            anon_1.isp,
            anon_1.asn,
            anon_1.exit_ip,
            anon_1.cost_per_gb,
            anon_1.cost_per_lease,
            anon_1.placeholders,
            anon_1.weight,
            anon_1.rotate_id
        FROM UNNEST(appended) AS event
        JOIN jsonb_to_recordset(event.data -> 'rows') AS anon_1(id UUID, pool_id UUID, protocol TEXT, host TEXT, port INT, credential_id UUID, source TEXT, country TEXT, city TEXT, latitude DOUBLE PRECISION, longitude DOUBLE PRECISION, isp TEXT, asn BIGINT, exit_ip TEXT, cost_per_gb DECIMAL, cost_per_lease DECIMAL, placeholders TEXT, weight INT, rotate_id UUID)
            ON TRUE
        WHERE
            event.type = 'PoolStateCarried'
            AND CAST(event.data #>> '{read_model}' AS TEXT) = 'proxies'
            AND CAST(event.data #>> '{arrived}' AS BOOLEAN)
        ON CONFLICT ON CONSTRAINT pk_proxies DO UPDATE
        SET
            protocol = excluded.protocol,
            host = excluded.host,
            port = excluded.port,
            credential_id = excluded.credential_id,
            source = excluded.source,
            country = excluded.country,
            city = excluded.city,
            latitude = excluded.latitude,
            longitude = excluded.longitude,
            isp = excluded.isp,
            asn = excluded.asn,
            exit_ip = excluded.exit_ip,
            cost_per_gb = excluded.cost_per_gb,
            cost_per_lease = excluded.cost_per_lease,
            placeholders = excluded.placeholders,
            weight = excluded.weight,
            rotate_id = excluded.rotate_id;
    END IF;
    IF types && ARRAY['ProxyChanged', 'ProxyRegistered'] THEN
        INSERT INTO {schema}.proxies (
            id,
            pool_id,
            protocol,
            host,
            port,
            credential_id,
            source,
            country,
            city,
            latitude,
            longitude,
            isp,
            asn,
            cost_per_gb,
            cost_per_lease,
            placeholders,
            weight,
            rotate_id
        )
        SELECT
            event.proxy_id,
            event.pool_id,
            CAST(event.data #>> '{protocol}' AS TEXT),
            CAST(event.data #>> '{host}' AS TEXT),
            CAST(event.data #>> '{port}' AS INT),
            CAST(event.data #>> '{credential_id}' AS UUID),
            CAST(event.data #>> '{source}' AS TEXT),
            CAST(event.data #>> '{country}' AS TEXT),
            CAST(event.data #>> '{city}' AS TEXT),
            CAST(event.data #>> '{latitude}' AS DOUBLE PRECISION),
            CAST(event.data #>> '{longitude}' AS DOUBLE PRECISION),
            CAST(event.data #>> '{isp}' AS TEXT),
            CAST(event.data #>> '{asn}' AS BIGINT),
            CAST(event.data #>> '{cost_per_gb}' AS DECIMAL),
            CAST(event.data #>> '{cost_per_lease}' AS DECIMAL),
            CAST(event.data #>> '{placeholders}' AS TEXT),
            CAST(event.data #>> '{weight}' AS INT),
            CAST(event.data #>> '{rotate_id}' AS UUID)
        FROM UNNEST(appended) AS event
        WHERE
            (event.proxy_id, event.pool_id, event.position) IN (
                SELECT
                    event.proxy_id,
                    event.pool_id,
                    max(event.position)
                FROM UNNEST(appended) AS event
                WHERE
                    event.type IN ('ProxyRegistered', 'ProxyChanged')
                GROUP BY
                    event.proxy_id,
                    event.pool_id
            )
        ON CONFLICT ON CONSTRAINT pk_proxies DO UPDATE
        SET
            protocol = excluded.protocol,
            host = excluded.host,
            port = excluded.port,
            credential_id = excluded.credential_id,
            source = excluded.source,
            country = excluded.country,
            city = excluded.city,
            latitude = excluded.latitude,
            longitude = excluded.longitude,
            isp = excluded.isp,
            asn = excluded.asn,
            cost_per_gb = excluded.cost_per_gb,
            cost_per_lease = excluded.cost_per_lease,
            placeholders = excluded.placeholders,
            weight = excluded.weight,
            rotate_id = excluded.rotate_id;
    END IF;
    IF types && ARRAY['HealthChecked', 'RotationAnswered'] THEN
        UPDATE {schema}.proxies
        SET
            exit_ip = newest.exit_ip
        FROM (
            SELECT
                event.pool_id AS pool_id,
                event.proxy_id AS proxy_id,
                (
                    array_agg(
                        CAST(event.data #>> '{exit_ip}' AS TEXT) ORDER BY event.position DESC
                    )
                )[1] AS exit_ip
            FROM UNNEST(appended) AS event
            WHERE
                event.type = 'HealthChecked'
                AND CAST(event.data #>> '{exit_ip}' AS TEXT) IS NOT NULL
                AND CAST(event.data #>> '{applied}' AS BOOLEAN)
                OR event.type = 'RotationAnswered'
                AND CAST(event.data #>> '{failure}' AS TEXT) IS NULL
            GROUP BY
                event.pool_id,
                event.proxy_id
        ) AS newest
        WHERE
            {schema}.proxies.pool_id = newest.pool_id
            AND {schema}.proxies.id = newest.proxy_id;
    END IF;
    IF types && ARRAY['ProxyRemoved'] THEN
        DELETE FROM {schema}.proxies
        USING UNNEST(appended) AS event
        WHERE
            {schema}.proxies.pool_id = event.pool_id
            AND {schema}.proxies.id = event.proxy_id
            AND event.type = 'ProxyRemoved';
    END IF;
    IF types && ARRAY['ProxyRegistered'] THEN
        INSERT INTO {schema}.available_proxies (
            proxy_id,
            pool_id,
            status,
            checked_at,
            max_concurrency,
            current_leases,
            streak
        )
        SELECT
            event.proxy_id,
            event.pool_id,
            event.status_after,
            CAST(event.data #>> '{checked_at}' AS TIMESTAMPTZ),
            event.max_concurrency_after,
            event.leases_after,
            0
        FROM UNNEST(appended) AS event
        WHERE
            event.type = 'ProxyRegistered';
    END IF;
    IF types && ARRAY['PoolStateCarried'] THEN
        INSERT INTO {schema}.available_proxies (
            proxy_id,
            pool_id,
            status,
            checked_at,
            max_concurrency,
            current_leases,
            latency_ms,
            probed_at,
            streak,
            rests_until,
            drains,
            banned_until,
            returns_to,
            leased_at,
            turn,
            next_turn
        )
        SELECT
            anon_1.proxy_id,
            anon_1.pool_id,
            anon_1.status,
            anon_1.checked_at,
            anon_1.max_concurrency,
            anon_1.current_leases,
            anon_1.latency_ms,
            anon_1.probed_at,
            anon_1.streak,
            anon_1.rests_until,
            anon_1.drains,
            anon_1.banned_until,
            anon_1.returns_to,
            anon_1.leased_at,
            anon_1.turn,
            anon_1.next_turn
        FROM UNNEST(appended) AS event
        JOIN jsonb_to_recordset(event.data -> 'rows') AS anon_1(proxy_id UUID, pool_id UUID, status TEXT, checked_at TIMESTAMPTZ, max_concurrency INT, current_leases INT, latency_ms INT, probed_at TIMESTAMPTZ, streak INT, rests_until TIMESTAMPTZ, drains BOOLEAN, banned_until TIMESTAMPTZ, returns_to TEXT, leased_at TIMESTAMPTZ, turn BIGINT, next_turn BIGINT)
            ON TRUE
        WHERE
            event.type = 'PoolStateCarried'
            AND CAST(event.data #>> '{read_model}' AS TEXT) = 'available_proxies'
            AND CAST(event.data #>> '{arrived}' AS BOOLEAN)
        ON CONFLICT ON CONSTRAINT pk_available_proxies DO UPDATE
        SET
            status = excluded.status,
            checked_at = excluded.checked_at,
            max_concurrency = excluded.max_concurrency,
            current_leases = excluded.current_leases,
            latency_ms = excluded.latency_ms,
            probed_at = excluded.probed_at,
            streak = excluded.streak,
            rests_until = excluded.rests_until,
            drains = excluded.drains,
            banned_until = excluded.banned_until,
            returns_to = excluded.returns_to,
            leased_at = excluded.leased_at,
            turn = excluded.turn,
            next_turn = excluded.next_turn;
    END IF;
    IF types && ARRAY['RotationAnswered', 'RotationBegan', 'RotationCalled'] THEN
        UPDATE {schema}.available_proxies
        SET
            current_leases = newest.leases_after,
            rests_until = newest.rests_until,
            leased_at = coalesce(newest.leased_at, {schema}.available_proxies.leased_at),
            turn = coalesce(newest.turn, {schema}.available_proxies.turn),
            next_turn = coalesce(newest.next_turn, {schema}.available_proxies.next_turn)
        FROM (
            SELECT
                event.pool_id AS pool_id,
                event.proxy_id AS proxy_id,
                (
                    array_agg(event.leases_after ORDER BY event.position DESC)
                )[1] AS leases_after,
                (
                    array_agg(
                        CAST(event.data #>> '{rests_until}' AS TIMESTAMPTZ) ORDER BY event.position DESC
                    )
                )[1] AS rests_until,
                (
                    array_agg(event.recorded_at ORDER BY event.position DESC) FILTER(WHERE
                        event.type = 'LeaseAcquired')
                )[1] AS leased_at,
                (
                    array_agg(
                        CAST(event.data #>> '{turn}' AS BIGINT) ORDER BY event.position DESC
                    ) FILTER(WHERE
                        event.type = 'LeaseAcquired' AND event.selector = 'weighted')
                )[1] AS turn,
                (
                    array_agg(
                        CAST(event.data #>> '{next_turn}' AS BIGINT) ORDER BY event.position DESC
                    ) FILTER(WHERE
                        event.type = 'LeaseAcquired' AND event.selector = 'weighted')
                )[1] AS next_turn
            FROM UNNEST(appended) AS event
            WHERE
                event.type IN (
                    'LeaseAcquired',
                    'LeaseReleased',
                    'LeaseExpired',
                    'LeaseRevoked',
                    'RotationBegan',
                    'RotationCalled',
                    'RotationAnswered'
                )
            GROUP BY
                event.pool_id,
                event.proxy_id
        ) AS newest
        WHERE
            {schema}.available_proxies.pool_id = newest.pool_id
            AND {schema}.available_proxies.proxy_id = newest.proxy_id;
    END IF;
    IF NOT decided AND types && ARRAY['LeaseAcquired', 'LeaseExpired', 'LeaseReleased', 'LeaseRevoked'] THEN
        UPDATE {schema}.available_proxies
        SET
            current_leases = newest.leases_after,
            rests_until = newest.rests_until,
            leased_at = coalesce(newest.leased_at, {schema}.available_proxies.leased_at),
            turn = coalesce(newest.turn, {schema}.available_proxies.turn),
            next_turn = coalesce(newest.next_turn, {schema}.available_proxies.next_turn)
        FROM (
            SELECT
                event.pool_id AS pool_id,
                event.proxy_id AS proxy_id,
                (
                    array_agg(event.leases_after ORDER BY event.position DESC)
                )[1] AS leases_after,
                (
                    array_agg(
                        CAST(event.data #>> '{rests_until}' AS TIMESTAMPTZ) ORDER BY event.position DESC
                    )
                )[1] AS rests_until,
                (
                    array_agg(event.recorded_at ORDER BY event.position DESC) FILTER(WHERE
                        event.type = 'LeaseAcquired')
                )[1] AS leased_at,
                (
                    array_agg(
                        CAST(event.data #>> '{turn}' AS BIGINT) ORDER BY event.position DESC
                    ) FILTER(WHERE
                        event.type = 'LeaseAcquired' AND event.selector = 'weighted')
                )[1] AS turn,
                (
                    array_agg(
                        CAST(event.data #>> '{next_turn}' AS BIGINT) ORDER BY event.position DESC
                    ) FILTER(WHERE
                        event.type = 'LeaseAcquired' AND event.selector = 'weighted')
                )[1] AS next_turn
            FROM UNNEST(appended) AS event
            WHERE
                event.type IN (
                    'LeaseAcquired',
                    'LeaseReleased',
                    'LeaseExpired',
                    'LeaseRevoked',
                    'RotationBegan',
                    'RotationCalled',
                    'RotationAnswered'
                )
            GROUP BY
                event.pool_id,
                event.proxy_id
        ) AS newest
        WHERE
            {schema}.available_proxies.pool_id = newest.pool_id
            AND {schema}.available_proxies.proxy_id = newest.proxy_id;
    END IF;
    IF types && ARRAY['HealthChecked', 'ProxyChanged'] THEN
        UPDATE {schema}.available_proxies
        SET
            status = newest.status,
            checked_at = newest.checked_at,
            max_concurrency = newest.max_concurrency,
            latency_ms = coalesce(newest.latency_ms, {schema}.available_proxies.latency_ms),
            probed_at = coalesce(newest.probed_at, {schema}.available_proxies.probed_at),
            streak = coalesce(newest.streak, {schema}.available_proxies.streak),
            drains = CASE
                WHEN newest.is_changed
                THEN newest.drains
                ELSE {schema}.available_proxies.drains
            END,
            banned_until = CASE
                WHEN newest.is_changed
                THEN newest.banned_until
                ELSE {schema}.available_proxies.banned_until
            END,
            returns_to = CASE
                WHEN newest.is_changed
                THEN newest.returns_to
                ELSE {schema}.available_proxies.returns_to
            END
        FROM (
            SELECT
                event.pool_id AS pool_id,
                event.proxy_id AS proxy_id,
                (
                    array_agg(event.status_after ORDER BY event.position DESC)
                )[1] AS status,
                (
                    array_agg(event.max_concurrency_after ORDER BY event.position DESC)
                )[1] AS max_concurrency,
                (
                    array_agg(
                        CAST(event.data #>> '{checked_at}' AS TIMESTAMPTZ) ORDER BY event.position DESC
                    )
                )[1] AS checked_at,
                (
                    array_agg(
                        CAST(event.data #>> '{checked_at}' AS TIMESTAMPTZ) ORDER BY event.position DESC
                    ) FILTER(WHERE
                        event.type = 'HealthChecked')
                )[1] AS probed_at,
                (
                    array_agg(
                        CAST(event.data #>> '{mean_latency_ms}' AS INT) ORDER BY event.position DESC
                    ) FILTER(WHERE
                        CAST(event.data #>> '{mean_latency_ms}' AS INT) IS NOT NULL)
                )[1] AS latency_ms,
                (
                    array_agg(
                        coalesce(CAST(event.data #>> '{streak}' AS INT), 0) ORDER BY event.position DESC
                    ) FILTER(WHERE
                        event.type = 'HealthChecked'
                        OR event.status_before <> event.status_after)
                )[1] AS streak,
                bool_or(event.type = 'ProxyChanged') AS is_changed,
                (
                    array_agg(
                        CAST(event.data #>> '{drains}' AS BOOLEAN) ORDER BY event.position DESC
                    ) FILTER(WHERE
                        event.type = 'ProxyChanged')
                )[1] AS drains,
                (
                    array_agg(
                        CAST(event.data #>> '{until}' AS TIMESTAMPTZ) ORDER BY event.position DESC
                    ) FILTER(WHERE
                        event.type = 'ProxyChanged')
                )[1] AS banned_until,
                (
                    array_agg(
                        CAST(event.data #>> '{returns_to}' AS TEXT) ORDER BY event.position DESC
                    ) FILTER(WHERE
                        event.type = 'ProxyChanged')
                )[1] AS returns_to
            FROM UNNEST(appended) AS event
            WHERE
                event.type IN ('ProxyChanged', 'HealthChecked')
                AND coalesce(CAST(event.data #>> '{applied}' AS BOOLEAN), TRUE)
            GROUP BY
                event.pool_id,
                event.proxy_id
        ) AS newest
        WHERE
            {schema}.available_proxies.pool_id = newest.pool_id
            AND {schema}.available_proxies.proxy_id = newest.proxy_id;
    END IF;
    IF types && ARRAY['ProxyRemoved'] THEN
        DELETE FROM {schema}.available_proxies
        USING UNNEST(appended) AS event
        WHERE
            {schema}.available_proxies.pool_id = event.pool_id
            AND {schema}.available_proxies.proxy_id = event.proxy_id
            AND event.type = 'ProxyRemoved';
    END IF;
    IF types && ARRAY['LeaseAcquired'] THEN
        INSERT INTO {schema}.leases (
            id,
            pool_id,
            pool_name,
            proxy_id,
            consumer_id,
            consumer_name,
            status,
            acquired_at,
            expires_at,
            fencing_token,
            target,
            limited,
            exit,
            released_at,
            revoke_reason
        )
        SELECT
            event.lease_id,
            event.pool_id,
            event.pool_name,
            event.proxy_id,
            event.consumer_id,
            event.consumer,
            coalesce(
                CASE
                    WHEN (
                        ends.type = 'LeaseReleased'
                    )
                    THEN 'released'
                    WHEN (
                        ends.type = 'LeaseExpired'
                    )
                    THEN 'expired'
                    WHEN (
                        ends.type = 'LeaseRevoked'
                    )
                    THEN 'revoked'
                END,
                'active'
            ),
            event.recorded_at,
            event.expires_at,
            event.position,
            CAST(event.data #>> '{target}' AS TEXT),
            CAST(event.data #>> '{limited}' AS BOOLEAN),
            CAST(event.data #>> '{exit}' AS JSONB),
            ends.recorded_at,
            CASE
                WHEN (
                    ends.type = 'LeaseRevoked'
                )
                THEN CAST(ends.data #>> '{reason}' AS TEXT)
            END
        FROM UNNEST(appended) AS event
        LEFT OUTER JOIN UNNEST(appended) AS ends
            ON ends.lease_id = event.lease_id
            AND ends.type IN ('LeaseReleased', 'LeaseExpired', 'LeaseRevoked')
        WHERE
            event.type = 'LeaseAcquired'
        ORDER BY
            event.lease_id;
    END IF;
    IF types && ARRAY['LeaseExpired', 'LeaseReleased', 'LeaseRevoked'] THEN
        UPDATE {schema}.leases
        SET
            status = CASE
                WHEN event.type = 'LeaseReleased'
                THEN 'released'
                WHEN event.type = 'LeaseExpired'
                THEN 'expired'
                WHEN event.type = 'LeaseRevoked'
                THEN 'revoked'
            END,
            released_at = event.recorded_at,
            revoke_reason = CASE
                WHEN event.type = 'LeaseRevoked'
                THEN CAST(event.data #>> '{reason}' AS TEXT)
            END
        FROM UNNEST(appended) AS event
        WHERE
            {schema}.leases.pool_id = event.pool_id
            AND {schema}.leases.id = event.lease_id
            AND event.type IN ('LeaseReleased', 'LeaseExpired', 'LeaseRevoked')
            AND NOT (
                EXISTS(
                    SELECT
                        1
                    FROM UNNEST(appended) AS began
                    WHERE
                        began.lease_id = event.lease_id AND began.type = 'LeaseAcquired'
                )
            );
    END IF;
    IF types && ARRAY['LeaseRenewed'] THEN
        UPDATE {schema}.leases
        SET
            expires_at = renewed.expires_at,
            renewed_at = renewed.renewed_at
        FROM (
            SELECT
                event.lease_id AS lease_id,
                event.pool_id AS pool_id,
                (
                    array_agg(event.expires_at ORDER BY event.position DESC)
                )[1] AS expires_at,
                (
                    array_agg(event.recorded_at ORDER BY event.position DESC)
                )[1] AS renewed_at
            FROM UNNEST(appended) AS event
            WHERE
                event.type = 'LeaseRenewed'
            GROUP BY
                event.lease_id,
                event.pool_id
        ) AS renewed
        WHERE
            {schema}.leases.pool_id = renewed.pool_id
            AND {schema}.leases.id = renewed.lease_id;
    END IF;
    IF types && ARRAY['ExitRotated'] THEN
        UPDATE {schema}.leases
        SET
            exit = (
                coalesce({schema}.leases.exit, CAST('{}' AS JSONB)) || jsonb_build_object('session', rotated.session_after)
            )
        FROM (
            SELECT
                event.lease_id AS lease_id,
                event.pool_id AS pool_id,
                (
                    array_agg(
                        CAST(event.data #>> '{session_after}' AS TEXT) ORDER BY event.position DESC
                    )
                )[1] AS session_after
            FROM UNNEST(appended) AS event
            WHERE
                event.type = 'ExitRotated'
            GROUP BY
                event.lease_id,
                event.pool_id
        ) AS rotated
        WHERE
            {schema}.leases.pool_id = rotated.pool_id
            AND {schema}.leases.id = rotated.lease_id;
    END IF;
    IF types && ARRAY['LeasesPruned'] THEN
        DELETE FROM {schema}.leases
        USING UNNEST(appended) AS event
        WHERE
            {schema}.leases.pool_id = event.pool_id
            AND {schema}.leases.status <> 'active'
            AND {schema}.leases.released_at < CAST(event.data #>> '{ended_before}' AS TIMESTAMPTZ)
            AND event.type = 'LeasesPruned';
    END IF;
    IF NOT decided AND types && ARRAY['LeaseAcquired'] THEN
        INSERT INTO {schema}.lease_ids (
            lease_id,
            pool_id
        )
        SELECT
            event.lease_id,
            event.pool_id
        FROM UNNEST(appended) AS event
        WHERE
            event.type = 'LeaseAcquired' AND (
                event.data ? 'own_id'
            )
        ORDER BY
            event.lease_id;
    END IF;
    IF types && ARRAY['PoolRegistered'] THEN
        INSERT INTO {schema}.pool_stats (
            pool_id,
            slot,
            total_proxies,
            active_proxies,
            available_proxies,
            leased_proxies,
            total_leases
        )
        SELECT
            event.pool_id,
            anon_1.slot,
            0,
            0,
            0,
            0,
            0
        FROM UNNEST(appended) AS event, generate_series(0, 15) AS anon_1(slot)
        WHERE
            event.type = 'PoolRegistered';
    END IF;
    IF types && ARRAY['HealthChecked', 'LeaseAcquired', 'LeaseExpired', 'LeaseReleased', 'LeaseRevoked', 'ProxyChanged', 'ProxyRegistered', 'ProxyRemoved'] THEN
        UPDATE {schema}.pool_stats
        SET
            total_proxies = (
                {schema}.pool_stats.total_proxies + change.total_proxies
            ),
            active_proxies = (
                {schema}.pool_stats.active_proxies + change.active_proxies
            ),
            available_proxies = (
                {schema}.pool_stats.available_proxies + change.available_proxies
            ),
            leased_proxies = (
                {schema}.pool_stats.leased_proxies + change.leased_proxies
            ),
            total_leases = (
                {schema}.pool_stats.total_leases + change.total_leases
            )
        FROM (
            SELECT
                event.pool_id AS pool_id,
                sum(
                    CASE WHEN event.status_after IS NOT NULL THEN 1 ELSE 0 END - CASE WHEN event.status_before IS NOT NULL THEN 1 ELSE 0 END
                ) AS total_proxies,
                sum(
                    CASE WHEN event.status_after = 'active' THEN 1 ELSE 0 END - CASE WHEN event.status_before = 'active' THEN 1 ELSE 0 END
                ) AS active_proxies,
                sum(
                    CASE
                        WHEN event.status_after = 'active'
                        AND (
                            event.max_concurrency_after IS NULL
                            OR event.leases_after < event.max_concurrency_after
                        )
                        THEN 1
                        ELSE 0
                    END - CASE
                        WHEN event.status_before = 'active'
                        AND (
                            event.max_concurrency_before IS NULL
                            OR event.leases_before < event.max_concurrency_before
                        )
                        THEN 1
                        ELSE 0
                    END
                ) AS available_proxies,
                sum(
                    CASE WHEN event.leases_after > 0 THEN 1 ELSE 0 END - CASE WHEN event.leases_before > 0 THEN 1 ELSE 0 END
                ) AS leased_proxies,
                sum(
                    coalesce(event.leases_after, 0) - coalesce(event.leases_before, 0)
                ) AS total_leases
            FROM UNNEST(appended) AS event
            WHERE
                event.type IN (
                    'HealthChecked',
                    'LeaseAcquired',
                    'LeaseExpired',
                    'LeaseReleased',
                    'LeaseRevoked',
                    'ProxyChanged',
                    'ProxyRegistered',
                    'ProxyRemoved'
                )
            GROUP BY
                event.pool_id
        ) AS change
        WHERE
            {schema}.pool_stats.pool_id = change.pool_id
            AND {schema}.pool_stats.slot = own_slot;
    END IF;
    IF types && ARRAY['PoolRemoved'] THEN
        DELETE FROM {schema}.pool_stats
        USING UNNEST(appended) AS event
        WHERE
            {schema}.pool_stats.pool_id = event.pool_id
            AND event.type = 'PoolRemoved';
    END IF;
    IF types && ARRAY['PoolRegistered'] THEN
        INSERT INTO {schema}.selector_cursors (
            pool_id,
            selector
        )
        SELECT
            event.pool_id,
            'round_robin'
        FROM UNNEST(appended) AS event
        WHERE
            event.type = 'PoolRegistered';
    END IF;
    IF types && ARRAY['PoolStateCarried'] THEN
        INSERT INTO {schema}.selector_cursors (
            pool_id,
            selector,
            proxy_id
        )
        SELECT
            anon_1.pool_id,
            anon_1.selector,
            anon_1.proxy_id
        FROM UNNEST(appended) AS event
        JOIN jsonb_to_recordset(event.data -> 'rows') AS anon_1(pool_id UUID, selector TEXT, proxy_id UUID)
            ON TRUE
        WHERE
            event.type = 'PoolStateCarried'
            AND CAST(event.data #>> '{read_model}' AS TEXT) = 'selector_cursors'
            AND CAST(event.data #>> '{arrived}' AS BOOLEAN)
        ON CONFLICT ON CONSTRAINT pk_selector_cursors DO UPDATE
        SET
            proxy_id = excluded.proxy_id;
    END IF;
    IF types && ARRAY['CursorMoved'] THEN
        UPDATE {schema}.selector_cursors
        SET
            proxy_id = event.proxy_id
        FROM UNNEST(appended) AS event
        WHERE
            {schema}.selector_cursors.pool_id = event.pool_id
            AND {schema}.selector_cursors.selector = 'round_robin'
            AND (event.pool_id, event.position) IN (
                SELECT
                    event.pool_id,
                    max(event.position)
                FROM UNNEST(appended) AS event
                WHERE
                    event.type IN ('LeaseAcquired', 'CursorMoved')
                    AND event.selector = 'round_robin'
                GROUP BY
                    event.pool_id
            );
    END IF;
    IF NOT decided AND types && ARRAY['LeaseAcquired'] THEN
        UPDATE {schema}.selector_cursors
        SET
            proxy_id = event.proxy_id
        FROM UNNEST(appended) AS event
        WHERE
            {schema}.selector_cursors.pool_id = event.pool_id
            AND {schema}.selector_cursors.selector = 'round_robin'
            AND (event.pool_id, event.position) IN (
                SELECT
                    event.pool_id,
                    max(event.position)
                FROM UNNEST(appended) AS event
                WHERE
                    event.type IN ('LeaseAcquired', 'CursorMoved')
                    AND event.selector = 'round_robin'
                GROUP BY
                    event.pool_id
            );
    END IF;
    IF types && ARRAY['PoolRemoved'] THEN
        DELETE FROM {schema}.selector_cursors
        USING UNNEST(appended) AS event
        WHERE
            {schema}.selector_cursors.pool_id = event.pool_id
            AND event.type = 'PoolRemoved';
    END IF;
    IF types && ARRAY['PoolStateCarried'] THEN
        INSERT INTO {schema}.proxy_health (
            proxy_id,
            pool_id,
            status,
            latency_ms,
            protocol,
            attempts,
            status_code,
            checked_at,
            error,
            failure
        )
        SELECT
            anon_1.proxy_id,
            anon_1.pool_id,
            anon_1.status,
            anon_1.latency_ms,
            anon_1.protocol,
            anon_1.attempts,
            anon_1.status_code,
            anon_1.checked_at,
            anon_1.error,
            anon_1.failure
        FROM UNNEST(appended) AS event
        JOIN jsonb_to_recordset(event.data -> 'rows') AS anon_1(proxy_id UUID, pool_id UUID, status TEXT, latency_ms INT, protocol TEXT, attempts INT, status_code INT, checked_at TIMESTAMPTZ, error TEXT, failure TEXT)
            ON TRUE
        WHERE
            event.type = 'PoolStateCarried'
            AND CAST(event.data #>> '{read_model}' AS TEXT) = 'proxy_health'
            AND CAST(event.data #>> '{arrived}' AS BOOLEAN)
        ON CONFLICT ON CONSTRAINT pk_proxy_health DO UPDATE
        SET
            status = excluded.status,
            latency_ms = excluded.latency_ms,
            protocol = excluded.protocol,
            attempts = excluded.attempts,
            status_code = excluded.status_code,
            checked_at = excluded.checked_at,
            error = excluded.error,
            failure = excluded.failure;
    END IF;
    IF types && ARRAY['HealthChecked'] THEN
        INSERT INTO {schema}.proxy_health (
            proxy_id,
            pool_id,
            status,
            latency_ms,
            protocol,
            attempts,
            status_code,
            checked_at,
            error,
            failure
        )
        SELECT
            event.proxy_id,
            event.pool_id,
            CAST(event.data #>> '{status}' AS TEXT),
            CAST(event.data #>> '{latency_ms}' AS INT),
            CAST(event.data #>> '{protocol}' AS TEXT),
            CAST(event.data #>> '{attempts}' AS INT),
            CAST(event.data #>> '{status_code}' AS INT),
            CAST(event.data #>> '{checked_at}' AS TIMESTAMPTZ),
            CAST(event.data #>> '{error}' AS TEXT),
            CAST(event.data #>> '{failure}' AS TEXT)
        FROM UNNEST(appended) AS event
        WHERE
            (event.proxy_id, event.pool_id, event.position) IN (
                SELECT
                    event.proxy_id,
                    event.pool_id,
                    max(event.position)
                FROM UNNEST(appended) AS event
                WHERE
                    event.type = 'HealthChecked'
                    AND CAST(event.data #>> '{applied}' AS BOOLEAN)
                GROUP BY
                    event.proxy_id,
                    event.pool_id
            )
        ON CONFLICT ON CONSTRAINT pk_proxy_health DO UPDATE
        SET
            status = excluded.status,
            latency_ms = excluded.latency_ms,
            protocol = excluded.protocol,
            attempts = excluded.attempts,
            status_code = excluded.status_code,
            checked_at = excluded.checked_at,
            error = excluded.error,
            failure = excluded.failure;
    END IF;
    IF types && ARRAY['ProxyRemoved'] THEN
        DELETE FROM {schema}.proxy_health
        USING UNNEST(appended) AS event
        WHERE
            {schema}.proxy_health.pool_id = event.pool_id
            AND {schema}.proxy_health.proxy_id = event.proxy_id
            AND event.type = 'ProxyRemoved';
    END IF;
    IF types && ARRAY['PoolStateCarried'] THEN
        INSERT INTO {schema}.target_outcomes (
            pool_id,
            proxy_id,
            target,
            successes,
            failures,
            streak,
            cool_downs,
            cools_until,
            outcome,
            status,
            reported_at
        )
        SELECT
            anon_1.pool_id,
            anon_1.proxy_id,
            anon_1.target,
            anon_1.successes,
            anon_1.failures,
            anon_1.streak,
            anon_1.cool_downs,
            anon_1.cools_until,
            anon_1.outcome,
            anon_1.status,
            anon_1.reported_at
        FROM UNNEST(appended) AS event
        JOIN jsonb_to_recordset(event.data -> 'rows') AS anon_1(pool_id UUID, proxy_id UUID, target TEXT, successes DOUBLE PRECISION, failures DOUBLE PRECISION, streak INT, cool_downs INT, cools_until TIMESTAMPTZ, outcome TEXT, status INT, reported_at TIMESTAMPTZ)
            ON TRUE
        WHERE
            event.type = 'PoolStateCarried'
            AND CAST(event.data #>> '{read_model}' AS TEXT) = 'target_outcomes'
            AND CAST(event.data #>> '{arrived}' AS BOOLEAN)
        ON CONFLICT ON CONSTRAINT pk_target_outcomes DO UPDATE
        SET
            successes = excluded.successes,
            failures = excluded.failures,
            streak = excluded.streak,
            cool_downs = excluded.cool_downs,
            cools_until = excluded.cools_until,
            outcome = excluded.outcome,
            status = excluded.status,
            reported_at = excluded.reported_at;
    END IF;
    IF types && ARRAY['CoolDownSet', 'OutcomeReported'] THEN
        INSERT INTO {schema}.target_outcomes (
            pool_id,
            proxy_id,
            target,
            successes,
            failures,
            streak,
            cool_downs,
            cools_until,
            outcome,
            status,
            reported_at
        )
        SELECT
            event.pool_id,
            event.proxy_id,
            CAST(event.data #>> '{target}' AS TEXT),
            CAST(event.data #>> '{successes}' AS DOUBLE PRECISION),
            CAST(event.data #>> '{failures}' AS DOUBLE PRECISION),
            CAST(event.data #>> '{streak}' AS INT),
            CAST(event.data #>> '{cool_downs}' AS INT),
            coalesce(
                CAST(event.data #>> '{cools_until}' AS TIMESTAMPTZ),
                CASE
                    WHEN (
                        event.type = 'CoolDownSet'
                    )
                    THEN event.recorded_at
                END
            ),
            CAST(event.data #>> '{outcome}' AS TEXT),
            CAST(event.data #>> '{status}' AS INT),
            CASE
                WHEN (
                    event.type = 'OutcomeReported'
                )
                THEN event.recorded_at
                ELSE CAST(event.data #>> '{reported_at}' AS TIMESTAMPTZ)
            END
        FROM UNNEST(appended) AS event
        WHERE
            (
                event.pool_id,
                event.proxy_id,
                CAST(event.data #>> '{target}' AS TEXT),
                event.position
            ) IN (
                SELECT
                    event.pool_id,
                    event.proxy_id,
                    CAST(event.data #>> '{target}' AS TEXT),
                    max(event.position)
                FROM UNNEST(appended) AS event
                WHERE
                    event.type IN ('OutcomeReported', 'CoolDownSet')
                    AND CAST(event.data #>> '{target}' AS TEXT) IS NOT NULL
                GROUP BY
                    event.pool_id,
                    event.proxy_id,
                    CAST(event.data #>> '{target}' AS TEXT)
            )
        ON CONFLICT ON CONSTRAINT pk_target_outcomes DO UPDATE
        SET
            successes = excluded.successes,
            failures = excluded.failures,
            streak = excluded.streak,
            cool_downs = excluded.cool_downs,
            cools_until = excluded.cools_until,
            outcome = excluded.outcome,
            status = excluded.status,
            reported_at = excluded.reported_at;
    END IF;
    IF types && ARRAY['LeasesPruned'] THEN
        DELETE FROM {schema}.target_outcomes
        USING UNNEST(appended) AS event
        WHERE
            {schema}.target_outcomes.pool_id = event.pool_id
            AND coalesce(
                greatest(
                    {schema}.target_outcomes.reported_at,
                    {schema}.target_outcomes.cools_until
                ) < CAST(event.data #>> '{ended_before}' AS TIMESTAMPTZ),
                TRUE
            )
            AND event.type = 'LeasesPruned';
    END IF;
    IF types && ARRAY['PoolRemoved'] THEN
        DELETE FROM {schema}.target_outcomes
        USING UNNEST(appended) AS event
        WHERE
            {schema}.target_outcomes.pool_id = event.pool_id
            AND event.type = 'PoolRemoved';
    END IF;
    IF types && ARRAY['PoolStateCarried'] THEN
        INSERT INTO {schema}.troubled_targets (
            pool_id,
            target,
            since
        )
        SELECT
            anon_1.pool_id,
            anon_1.target,
            anon_1.since
        FROM UNNEST(appended) AS event
        JOIN jsonb_to_recordset(event.data -> 'rows') AS anon_1(pool_id UUID, target TEXT, since TIMESTAMPTZ)
            ON TRUE
        WHERE
            event.type = 'PoolStateCarried'
            AND CAST(event.data #>> '{read_model}' AS TEXT) = 'troubled_targets'
            AND CAST(event.data #>> '{arrived}' AS BOOLEAN)
        ON CONFLICT ON CONSTRAINT pk_troubled_targets DO UPDATE
        SET
            since = excluded.since;
    END IF;
    IF types && ARRAY['TargetRecovered', 'TargetTroubled'] THEN
        INSERT INTO {schema}.troubled_targets (
            pool_id,
            target,
            since
        )
        SELECT
            event.pool_id,
            CAST(event.data #>> '{target}' AS TEXT),
            event.recorded_at
        FROM UNNEST(appended) AS event
        WHERE
            (
                event.pool_id,
                CAST(event.data #>> '{target}' AS TEXT),
                event.position
            ) IN (
                SELECT
                    event.pool_id,
                    CAST(event.data #>> '{target}' AS TEXT),
                    max(event.position)
                FROM UNNEST(appended) AS event
                WHERE
                    event.type IN ('TargetTroubled', 'TargetRecovered')
                GROUP BY
                    event.pool_id,
                    CAST(event.data #>> '{target}' AS TEXT)
            )
            AND event.type = 'TargetTroubled'
        ON CONFLICT ON CONSTRAINT pk_troubled_targets DO UPDATE
        SET
            since = excluded.since;
    END IF;
    IF types && ARRAY['TargetRecovered', 'TargetTroubled'] THEN
        DELETE FROM {schema}.troubled_targets
        WHERE
            (
                {schema}.troubled_targets.pool_id,
                {schema}.troubled_targets.target
            ) IN (
                SELECT
                    event.pool_id,
                    CAST(event.data #>> '{target}' AS TEXT)
                FROM UNNEST(appended) AS event
                WHERE
                    (
                        event.pool_id,
                        CAST(event.data #>> '{target}' AS TEXT),
                        event.position
                    ) IN (
                        SELECT
                            event.pool_id,
                            CAST(event.data #>> '{target}' AS TEXT),
                            max(event.position)
                        FROM UNNEST(appended) AS event
                        WHERE
                            event.type IN ('TargetTroubled', 'TargetRecovered')
                        GROUP BY
                            event.pool_id,
                            CAST(event.data #>> '{target}' AS TEXT)
                    )
                    AND event.type = 'TargetRecovered'
            );
    END IF;
    IF types && ARRAY['PoolRemoved'] THEN
        DELETE FROM {schema}.troubled_targets
        USING UNNEST(appended) AS event
        WHERE
            {schema}.troubled_targets.pool_id = event.pool_id
            AND event.type = 'PoolRemoved';
    END IF;
    IF types && ARRAY['PoolStateCarried'] THEN
        INSERT INTO {schema}.sessions (
            pool_id,
            key,
            proxy_id,
            target,
            shared,
            country,
            exit_ip,
            bound_at,
            expires_at,
            exit
        )
        SELECT
            anon_1.pool_id,
            anon_1.key,
            anon_1.proxy_id,
            anon_1.target,
            anon_1.shared,
            anon_1.country,
            anon_1.exit_ip,
            anon_1.bound_at,
            anon_1.expires_at,
            anon_1.exit
        FROM UNNEST(appended) AS event
        JOIN jsonb_to_recordset(event.data -> 'rows') AS anon_1(pool_id UUID, key TEXT, proxy_id UUID, target TEXT, shared BOOLEAN, country TEXT, exit_ip TEXT, bound_at TIMESTAMPTZ, expires_at TIMESTAMPTZ, exit JSONB)
            ON TRUE
        WHERE
            event.type = 'PoolStateCarried'
            AND CAST(event.data #>> '{read_model}' AS TEXT) = 'sessions'
            AND CAST(event.data #>> '{arrived}' AS BOOLEAN)
        ON CONFLICT ON CONSTRAINT pk_sessions DO UPDATE
        SET
            proxy_id = excluded.proxy_id,
            target = excluded.target,
            shared = excluded.shared,
            country = excluded.country,
            exit_ip = excluded.exit_ip,
            bound_at = excluded.bound_at,
            expires_at = excluded.expires_at,
            exit = excluded.exit;
    END IF;
    IF types && ARRAY['SessionBound', 'SessionForgotten'] THEN
        INSERT INTO {schema}.sessions (
            pool_id,
            key,
            proxy_id,
            target,
            shared,
            country,
            exit_ip,
            bound_at,
            expires_at,
            exit
        )
        SELECT
            event.pool_id,
            CAST(event.data #>> '{key}' AS TEXT),
            event.proxy_id,
            CAST(event.data #>> '{target}' AS TEXT),
            coalesce(CAST(event.data #>> '{shared}' AS BOOLEAN), FALSE),
            CAST(event.data #>> '{country}' AS TEXT),
            CAST(event.data #>> '{exit_ip}' AS TEXT),
            event.recorded_at,
            event.expires_at,
            CAST(event.data #>> '{exit}' AS JSONB)
        FROM UNNEST(appended) AS event
        WHERE
            (
                event.pool_id,
                CAST(event.data #>> '{key}' AS TEXT),
                event.position
            ) IN (
                SELECT
                    event.pool_id,
                    CAST(event.data #>> '{key}' AS TEXT),
                    max(event.position)
                FROM UNNEST(appended) AS event
                WHERE
                    event.type IN ('SessionBound', 'SessionForgotten')
                GROUP BY
                    event.pool_id,
                    CAST(event.data #>> '{key}' AS TEXT)
            )
            AND event.type = 'SessionBound'
        ON CONFLICT ON CONSTRAINT pk_sessions DO UPDATE
        SET
            proxy_id = excluded.proxy_id,
            target = excluded.target,
            shared = excluded.shared,
            country = excluded.country,
            exit_ip = excluded.exit_ip,
            bound_at = excluded.bound_at,
            expires_at = excluded.expires_at,
            exit = excluded.exit;
    END IF;
    IF types && ARRAY['SessionBound', 'SessionForgotten'] THEN
        DELETE FROM {schema}.sessions
        WHERE
            ({schema}.sessions.pool_id, {schema}.sessions.key) IN (
                SELECT
                    event.pool_id,
                    CAST(event.data #>> '{key}' AS TEXT)
                FROM UNNEST(appended) AS event
                WHERE
                    (
                        event.pool_id,
                        CAST(event.data #>> '{key}' AS TEXT),
                        event.position
                    ) IN (
                        SELECT
                            event.pool_id,
                            CAST(event.data #>> '{key}' AS TEXT),
                            max(event.position)
                        FROM UNNEST(appended) AS event
                        WHERE
                            event.type IN ('SessionBound', 'SessionForgotten')
                        GROUP BY
                            event.pool_id,
                            CAST(event.data #>> '{key}' AS TEXT)
                    )
                    AND event.type = 'SessionForgotten'
            );
    END IF;
    IF types && ARRAY['ExitRotated', 'SessionBound', 'SessionForgotten'] THEN
        UPDATE {schema}.sessions
        SET
            exit = (
                coalesce({schema}.sessions.exit, CAST('{}' AS JSONB)) || jsonb_build_object('session', rotated.session_after)
            )
        FROM (
            SELECT
                event.pool_id AS pool_id,
                coalesce(
                    CAST(event.data #>> '{key}' AS TEXT),
                    CAST(event.data #>> '{session}' AS TEXT)
                ) AS key,
                CAST(event.data #>> '{session_after}' AS TEXT) AS session_after
            FROM UNNEST(appended) AS event
            WHERE
                (
                    event.pool_id,
                    coalesce(
                        CAST(event.data #>> '{key}' AS TEXT),
                        CAST(event.data #>> '{session}' AS TEXT)
                    ),
                    event.position
                ) IN (
                    SELECT
                        event.pool_id,
                        coalesce(
                            CAST(event.data #>> '{key}' AS TEXT),
                            CAST(event.data #>> '{session}' AS TEXT)
                        ),
                        max(event.position)
                    FROM UNNEST(appended) AS event
                    WHERE
                        event.type IN ('SessionBound', 'SessionForgotten', 'ExitRotated')
                    GROUP BY
                        event.pool_id,
                        coalesce(
                            CAST(event.data #>> '{key}' AS TEXT),
                            CAST(event.data #>> '{session}' AS TEXT)
                        )
                )
                AND event.type = 'ExitRotated'
        ) AS rotated
        WHERE
            {schema}.sessions.pool_id = rotated.pool_id
            AND {schema}.sessions.key = rotated.key;
    END IF;
    IF types && ARRAY['LeasesPruned'] THEN
        DELETE FROM {schema}.sessions
        USING UNNEST(appended) AS event
        WHERE
            {schema}.sessions.pool_id = event.pool_id
            AND {schema}.sessions.expires_at < CAST(event.data #>> '{ended_before}' AS TIMESTAMPTZ)
            AND event.type = 'LeasesPruned';
    END IF;
    IF types && ARRAY['PoolRemoved'] THEN
        DELETE FROM {schema}.sessions
        USING UNNEST(appended) AS event
        WHERE
            {schema}.sessions.pool_id = event.pool_id
            AND event.type = 'PoolRemoved';
    END IF;
    IF types && ARRAY['PoolStateCarried'] THEN
        INSERT INTO {schema}.lease_starts (
            pool_id,
            started_at,
            lease_id,
            proxy_id,
            consumer_id,
            target,
            counts_until
        )
        SELECT
            anon_1.pool_id,
            anon_1.started_at,
            anon_1.lease_id,
            anon_1.proxy_id,
            anon_1.consumer_id,
            anon_1.target,
            anon_1.counts_until
        FROM UNNEST(appended) AS event
        JOIN jsonb_to_recordset(event.data -> 'rows') AS anon_1(pool_id UUID, started_at TIMESTAMPTZ, lease_id UUID, proxy_id UUID, consumer_id UUID, target TEXT, counts_until TIMESTAMPTZ)
            ON TRUE
        WHERE
            event.type = 'PoolStateCarried'
            AND CAST(event.data #>> '{read_model}' AS TEXT) = 'lease_starts'
            AND CAST(event.data #>> '{arrived}' AS BOOLEAN)
        ON CONFLICT ON CONSTRAINT pk_lease_starts DO UPDATE
        SET
            proxy_id = excluded.proxy_id,
            consumer_id = excluded.consumer_id,
            target = excluded.target,
            counts_until = excluded.counts_until;
    END IF;
    IF types && ARRAY['LeaseAcquired'] THEN
        INSERT INTO {schema}.lease_starts (
            pool_id,
            started_at,
            lease_id,
            proxy_id,
            consumer_id,
            target,
            counts_until
        )
        SELECT
            event.pool_id,
            event.recorded_at,
            event.lease_id,
            event.proxy_id,
            event.consumer_id,
            CAST(event.data #>> '{target}' AS TEXT),
            event.recorded_at + CAST(event.data #>> '{paced_seconds}' AS DOUBLE PRECISION) * INTERVAL '1 SECOND'
        FROM UNNEST(appended) AS event
        WHERE
            event.type = 'LeaseAcquired'
            AND CAST(event.data #>> '{paced_seconds}' AS DOUBLE PRECISION) IS NOT NULL;
    END IF;
    IF types && ARRAY['LeasesPruned'] THEN
        DELETE FROM {schema}.lease_starts
        USING UNNEST(appended) AS event
        WHERE
            {schema}.lease_starts.pool_id = event.pool_id
            AND {schema}.lease_starts.counts_until < CAST(event.data #>> '{ended_before}' AS TIMESTAMPTZ)
            AND event.type = 'LeasesPruned';
    END IF;
    IF types && ARRAY['PoolRemoved'] THEN
        DELETE FROM {schema}.lease_starts
        USING UNNEST(appended) AS event
        WHERE
            {schema}.lease_starts.pool_id = event.pool_id
            AND event.type = 'PoolRemoved';
    END IF;
    IF types && ARRAY['PoolStateCarried'] THEN
        INSERT INTO {schema}.spending (
            pool_id,
            day,
            consumer,
            bytes,
            money,
            leases,
            slot
        )
        SELECT
            anon_1.pool_id,
            anon_1.day,
            anon_1.consumer,
            anon_1.bytes,
            anon_1.money,
            anon_1.leases,
            CAST(own_slot AS SMALLINT)
        FROM UNNEST(appended) AS event
        JOIN jsonb_to_recordset(event.data -> 'rows') AS anon_1(pool_id UUID, day DATE, consumer TEXT, bytes DECIMAL, money DECIMAL, leases BIGINT)
            ON TRUE
        WHERE
            event.type = 'PoolStateCarried'
            AND CAST(event.data #>> '{read_model}' AS TEXT) = 'spending'
            AND CAST(event.data #>> '{arrived}' AS BOOLEAN)
        ON CONFLICT ON CONSTRAINT pk_spending DO UPDATE
        SET
            bytes = excluded.bytes,
            money = excluded.money,
            leases = excluded.leases;
    END IF;
    IF types && ARRAY['LeaseAcquired', 'OutcomeReported'] THEN
        INSERT INTO {schema}.spending (
            pool_id,
            day,
            consumer,
            slot,
            bytes,
            money,
            leases
        )
        SELECT
            counted.pool_id,
            counted.day,
            coalesce(counted.consumer, '') AS name,
            CAST(own_slot AS SMALLINT),
            sum(counted.bytes) AS sum_1,
            sum(counted.money) AS sum_2,
            sum(counted.leases) AS sum_3
        FROM (
            SELECT
                event.pool_id AS pool_id,
                CAST(timezone('UTC', event.recorded_at) AS DATE) AS day,
                event.consumer AS consumer,
                coalesce(CAST(event.data #>> '{bytes}' AS DECIMAL), 0) AS bytes,
                coalesce(CAST(event.data #>> '{cost}' AS DECIMAL), 0) AS money,
                CAST(event.type = 'LeaseAcquired' AS INT) AS leases
            FROM UNNEST(appended) AS event
            WHERE
                event.type IN ('LeaseAcquired', 'OutcomeReported')
                AND (
                    (
                        event.data ? 'cost'
                    ) OR (
                        event.data ? 'bytes'
                    )
                )
        ) AS counted
        GROUP BY
            GROUPING SETS (
                (counted.pool_id, counted.day, counted.consumer),
                (counted.pool_id, counted.day)
            )
        ORDER BY
            counted.pool_id,
            counted.day,
            name
        ON CONFLICT ON CONSTRAINT pk_spending DO UPDATE
        SET
            bytes = (
                {schema}.spending.bytes + excluded.bytes
            ),
            money = (
                {schema}.spending.money + excluded.money
            ),
            leases = (
                {schema}.spending.leases + excluded.leases
            );
    END IF;
    IF types && ARRAY['LeasesPruned'] THEN
        DELETE FROM {schema}.spending
        USING UNNEST(appended) AS event
        WHERE
            {schema}.spending.pool_id = event.pool_id
            AND {schema}.spending.day < CAST(timezone('UTC', CAST(event.data #>> '{ended_before}' AS TIMESTAMPTZ)) AS DATE)
            AND event.type = 'LeasesPruned';
    END IF;
    IF types && ARRAY['PoolRemoved'] THEN
        DELETE FROM {schema}.spending
        USING UNNEST(appended) AS event
        WHERE
            {schema}.spending.pool_id = event.pool_id
            AND event.type = 'PoolRemoved';
    END IF;
    IF types && ARRAY['TargetRulesSet'] THEN
        INSERT INTO {schema}.target_rules (
            target,
            rules,
            set_at
        )
        SELECT
            CAST(event.data #>> '{target}' AS TEXT),
            CAST(event.data #>> '{rules}' AS JSONB),
            event.recorded_at
        FROM UNNEST(appended) AS event
        WHERE
            (CAST(event.data #>> '{target}' AS TEXT), event.position) IN (
                SELECT
                    CAST(event.data #>> '{target}' AS TEXT),
                    max(event.position)
                FROM UNNEST(appended) AS event
                WHERE
                    event.type = 'TargetRulesSet'
                GROUP BY
                    CAST(event.data #>> '{target}' AS TEXT)
            )
            AND CAST(event.data #>> '{rules}' AS JSONB) IS NOT NULL
        ON CONFLICT ON CONSTRAINT pk_target_rules DO UPDATE
        SET
            rules = excluded.rules,
            set_at = excluded.set_at;
    END IF;
    IF types && ARRAY['TargetRulesSet'] THEN
        DELETE FROM {schema}.target_rules
        WHERE
            {schema}.target_rules.target IN (
                SELECT
                    CAST(event.data #>> '{target}' AS TEXT)
                FROM UNNEST(appended) AS event
                WHERE
                    (CAST(event.data #>> '{target}' AS TEXT), event.position) IN (
                        SELECT
                            CAST(event.data #>> '{target}' AS TEXT),
                            max(event.position)
                        FROM UNNEST(appended) AS event
                        WHERE
                            event.type = 'TargetRulesSet'
                        GROUP BY
                            CAST(event.data #>> '{target}' AS TEXT)
                    )
                    AND CAST(event.data #>> '{rules}' AS JSONB) IS NULL
            );
    END IF;
    IF types && ARRAY['PoolStateCarried'] THEN
        INSERT INTO {schema}.sources (
            id,
            name,
            pool_id,
            host,
            every_seconds,
            max_removed,
            enabled,
            options,
            secret_id,
            saved_at,
            refreshed_at,
            counts,
            failed_at,
            failure
        )
        SELECT
            anon_1.id,
            anon_1.name,
            anon_1.pool_id,
            anon_1.host,
            anon_1.every_seconds,
            anon_1.max_removed,
            anon_1.enabled,
            anon_1.options,
            anon_1.secret_id,
            anon_1.saved_at,
            anon_1.refreshed_at,
            anon_1.counts,
            anon_1.failed_at,
            anon_1.failure
        FROM UNNEST(appended) AS event
        JOIN jsonb_to_recordset(event.data -> 'rows') AS anon_1(id UUID, name TEXT, pool_id UUID, host TEXT, every_seconds DOUBLE PRECISION, max_removed TEXT, enabled BOOLEAN, options JSONB, secret_id UUID, saved_at TIMESTAMPTZ, refreshed_at TIMESTAMPTZ, counts JSONB, failed_at TIMESTAMPTZ, failure TEXT)
            ON TRUE
        WHERE
            event.type = 'PoolStateCarried'
            AND CAST(event.data #>> '{read_model}' AS TEXT) = 'sources'
            AND CAST(event.data #>> '{arrived}' AS BOOLEAN)
        ON CONFLICT ON CONSTRAINT pk_sources DO UPDATE
        SET
            name = excluded.name,
            pool_id = excluded.pool_id,
            host = excluded.host,
            every_seconds = excluded.every_seconds,
            max_removed = excluded.max_removed,
            enabled = excluded.enabled,
            options = excluded.options,
            secret_id = excluded.secret_id,
            saved_at = excluded.saved_at,
            refreshed_at = excluded.refreshed_at,
            counts = excluded.counts,
            failed_at = excluded.failed_at,
            failure = excluded.failure;
    END IF;
    IF types && ARRAY['SourceSaved'] THEN
        INSERT INTO {schema}.sources (
            id,
            pool_id,
            name,
            host,
            every_seconds,
            max_removed,
            enabled,
            options,
            secret_id,
            saved_at
        )
        SELECT
            CAST(event.data #>> '{source_id}' AS UUID),
            event.pool_id,
            CAST(event.data #>> '{source}' AS TEXT),
            CAST(event.data #>> '{host}' AS TEXT),
            CAST(event.data #>> '{every_seconds}' AS DOUBLE PRECISION),
            CAST(event.data #>> '{max_removed}' AS TEXT),
            CAST(event.data #>> '{enabled}' AS BOOLEAN),
            CAST(event.data #>> '{options}' AS JSONB),
            CAST(event.data #>> '{secret_id}' AS UUID),
            event.recorded_at
        FROM UNNEST(appended) AS event
        WHERE
            (CAST(event.data #>> '{source_id}' AS UUID), event.position) IN (
                SELECT
                    CAST(event.data #>> '{source_id}' AS UUID),
                    max(event.position)
                FROM UNNEST(appended) AS event
                WHERE
                    event.type = 'SourceSaved'
                GROUP BY
                    CAST(event.data #>> '{source_id}' AS UUID)
            )
        ON CONFLICT ON CONSTRAINT pk_sources DO UPDATE
        SET
            name = excluded.name,
            pool_id = excluded.pool_id,
            host = excluded.host,
            every_seconds = excluded.every_seconds,
            max_removed = excluded.max_removed,
            enabled = excluded.enabled,
            options = excluded.options,
            secret_id = excluded.secret_id,
            saved_at = excluded.saved_at;
    END IF;
    IF types && ARRAY['SourceRefreshed'] THEN
        UPDATE {schema}.sources
        SET
            refreshed_at = event.recorded_at,
            counts = CAST(event.data #>> '{counts}' AS JSONB)
        FROM UNNEST(appended) AS event
        WHERE
            {schema}.sources.id = CAST(event.data #>> '{source_id}' AS UUID)
            AND (CAST(event.data #>> '{source_id}' AS UUID), event.position) IN (
                SELECT
                    CAST(event.data #>> '{source_id}' AS UUID),
                    max(event.position)
                FROM UNNEST(appended) AS event
                WHERE
                    event.type = 'SourceRefreshed'
                GROUP BY
                    CAST(event.data #>> '{source_id}' AS UUID)
            );
    END IF;
    IF types && ARRAY['SourceFailed'] THEN
        UPDATE {schema}.sources
        SET
            failed_at = event.recorded_at
        FROM UNNEST(appended) AS event
        WHERE
            {schema}.sources.id = CAST(event.data #>> '{source_id}' AS UUID)
            AND (CAST(event.data #>> '{source_id}' AS UUID), event.position) IN (
                SELECT
                    CAST(event.data #>> '{source_id}' AS UUID),
                    max(event.position)
                FROM UNNEST(appended) AS event
                WHERE
                    event.type = 'SourceFailed'
                GROUP BY
                    CAST(event.data #>> '{source_id}' AS UUID)
            );
    END IF;
    IF types && ARRAY['SourceFailed', 'SourceRefreshed'] THEN
        UPDATE {schema}.sources
        SET
            failure = CAST(event.data #>> '{reason}' AS TEXT)
        FROM UNNEST(appended) AS event
        WHERE
            {schema}.sources.id = CAST(event.data #>> '{source_id}' AS UUID)
            AND (CAST(event.data #>> '{source_id}' AS UUID), event.position) IN (
                SELECT
                    CAST(event.data #>> '{source_id}' AS UUID),
                    max(event.position)
                FROM UNNEST(appended) AS event
                WHERE
                    event.type IN ('SourceRefreshed', 'SourceFailed')
                GROUP BY
                    CAST(event.data #>> '{source_id}' AS UUID)
            );
    END IF;
    IF types && ARRAY['SourceRemoved'] THEN
        DELETE FROM {schema}.sources
        USING UNNEST(appended) AS event
        WHERE
            {schema}.sources.id = CAST(event.data #>> '{source_id}' AS UUID)
            AND event.type = 'SourceRemoved';
    END IF;
    IF types && ARRAY['PoolRemoved'] THEN
        DELETE FROM {schema}.sources
        USING UNNEST(appended) AS event
        WHERE
            {schema}.sources.pool_id = event.pool_id
            AND event.type = 'PoolRemoved';
    END IF;
    IF types && ARRAY['PoolStateCarried'] THEN
        INSERT INTO {schema}.rotations (
            proxy_id,
            pool_id,
            because,
            ends_at,
            calls_at,
            claimed_until,
            rotated_at,
            rested_until,
            failure,
            status
        )
        SELECT
            anon_1.proxy_id,
            anon_1.pool_id,
            anon_1.because,
            anon_1.ends_at,
            anon_1.calls_at,
            anon_1.claimed_until,
            anon_1.rotated_at,
            anon_1.rested_until,
            anon_1.failure,
            anon_1.status
        FROM UNNEST(appended) AS event
        JOIN jsonb_to_recordset(event.data -> 'rows') AS anon_1(proxy_id UUID, pool_id UUID, because TEXT, ends_at TIMESTAMPTZ, calls_at TIMESTAMPTZ, claimed_until TIMESTAMPTZ, rotated_at TIMESTAMPTZ, rested_until TIMESTAMPTZ, failure TEXT, status INT)
            ON TRUE
        WHERE
            event.type = 'PoolStateCarried'
            AND CAST(event.data #>> '{read_model}' AS TEXT) = 'rotations'
            AND CAST(event.data #>> '{arrived}' AS BOOLEAN)
        ON CONFLICT ON CONSTRAINT pk_rotations DO UPDATE
        SET
            because = excluded.because,
            ends_at = excluded.ends_at,
            calls_at = excluded.calls_at,
            claimed_until = excluded.claimed_until,
            rotated_at = excluded.rotated_at,
            rested_until = excluded.rested_until,
            failure = excluded.failure,
            status = excluded.status;
    END IF;
    IF types && ARRAY['RotationAnswered', 'RotationBegan', 'RotationCalled'] THEN
        INSERT INTO {schema}.rotations (
            proxy_id,
            pool_id,
            because,
            ends_at,
            calls_at,
            claimed_until,
            rotated_at,
            rested_until,
            failure,
            status
        )
        SELECT
            event.proxy_id,
            event.pool_id,
            CAST(event.data #>> '{because}' AS TEXT),
            CAST(event.data #>> '{ends_at}' AS TIMESTAMPTZ),
            CAST(event.data #>> '{calls_at}' AS TIMESTAMPTZ),
            CAST(event.data #>> '{claimed_until}' AS TIMESTAMPTZ),
            CAST(event.data #>> '{rotated_at}' AS TIMESTAMPTZ),
            CAST(event.data #>> '{rested_until}' AS TIMESTAMPTZ),
            CAST(event.data #>> '{failure}' AS TEXT),
            CAST(event.data #>> '{status}' AS INT)
        FROM UNNEST(appended) AS event
        WHERE
            (event.proxy_id, event.pool_id, event.position) IN (
                SELECT
                    event.proxy_id,
                    event.pool_id,
                    max(event.position)
                FROM UNNEST(appended) AS event
                WHERE
                    event.type IN ('RotationBegan', 'RotationCalled', 'RotationAnswered')
                GROUP BY
                    event.proxy_id,
                    event.pool_id
            )
        ON CONFLICT ON CONSTRAINT pk_rotations DO UPDATE
        SET
            because = excluded.because,
            ends_at = excluded.ends_at,
            calls_at = excluded.calls_at,
            claimed_until = excluded.claimed_until,
            rotated_at = excluded.rotated_at,
            rested_until = excluded.rested_until,
            failure = excluded.failure,
            status = excluded.status;
    END IF;
    IF types && ARRAY['ProxyRemoved'] THEN
        DELETE FROM {schema}.rotations
        USING UNNEST(appended) AS event
        WHERE
            {schema}.rotations.pool_id = event.pool_id
            AND {schema}.rotations.proxy_id = event.proxy_id
            AND event.type = 'ProxyRemoved';
    END IF;
    IF types && ARRAY['ApiTokenIssued'] THEN
        INSERT INTO {schema}.api_tokens (
            id,
            digest,
            consumer,
            rights,
            pools,
            expires_at,
            issued_at
        )
        SELECT
            CAST(event.data #>> '{token_id}' AS UUID),
            CAST(event.data #>> '{digest}' AS TEXT),
            event.consumer,
            CAST(event.data #>> '{rights}' AS JSONB),
            CAST(event.data #>> '{pools}' AS JSONB),
            CAST(event.data #>> '{token_expires_at}' AS TIMESTAMPTZ),
            event.recorded_at
        FROM UNNEST(appended) AS event
        WHERE
            event.type = 'ApiTokenIssued';
    END IF;
    IF types && ARRAY['ApiTokenWithdrawn'] THEN
        DELETE FROM {schema}.api_tokens
        WHERE
            {schema}.api_tokens.id IN (
                SELECT
                    CAST(event.data #>> '{token_id}' AS UUID)
                FROM UNNEST(appended) AS event
                WHERE
                    event.type = 'ApiTokenWithdrawn'
            );
    END IF;
    IF types && ARRAY['PoolPlaced'] THEN
        INSERT INTO {schema}.pool_places (
            pool_name,
            ledger,
            placed_at
        )
        SELECT
            event.pool_name,
            CAST(event.data #>> '{ledger}' AS TEXT),
            event.recorded_at
        FROM UNNEST(appended) AS event
        WHERE
            (event.pool_name, event.position) IN (
                SELECT
                    event.pool_name,
                    max(event.position)
                FROM UNNEST(appended) AS event
                WHERE
                    event.type = 'PoolPlaced'
                GROUP BY
                    event.pool_name
            )
        ON CONFLICT ON CONSTRAINT pk_pool_places DO UPDATE
        SET
            ledger = excluded.ledger,
            placed_at = excluded.placed_at;
    END IF;
    IF types && ARRAY['PoolArrived', 'PoolDeparted', 'PoolMoveBegan', 'PoolMoveCancelled', 'PoolMoved'] THEN
        INSERT INTO {schema}.pool_moves (
            move_id,
            pool_id,
            pool_name,
            ledger,
            stage,
            position,
            changed_at,
            last_seq,
            last_position,
            root
        )
        SELECT
            CAST(event.data #>> '{move_id}' AS UUID),
            event.pool_id,
            event.pool_name,
            CAST(event.data #>> '{ledger}' AS TEXT),
            CASE
                WHEN (
                    event.type = 'PoolMoveBegan'
                )
                THEN 'began'
                WHEN (
                    event.type = 'PoolDeparted'
                )
                THEN 'departed'
                WHEN (
                    event.type = 'PoolArrived'
                )
                THEN 'arrived'
                WHEN (
                    event.type = 'PoolMoved'
                )
                THEN 'moved'
                WHEN (
                    event.type = 'PoolMoveCancelled'
                )
                THEN 'cancelled'
            END,
            event.position,
            event.recorded_at,
            CAST(event.data #>> '{last_seq}' AS BIGINT),
            CAST(event.data #>> '{last_position}' AS BIGINT),
            CAST(event.data #>> '{root}' AS TEXT)
        FROM UNNEST(appended) AS event
        WHERE
            (CAST(event.data #>> '{move_id}' AS UUID), event.position) IN (
                SELECT
                    CAST(event.data #>> '{move_id}' AS UUID),
                    max(event.position)
                FROM UNNEST(appended) AS event
                WHERE
                    event.type IN (
                        'PoolMoveBegan',
                        'PoolDeparted',
                        'PoolArrived',
                        'PoolMoved',
                        'PoolMoveCancelled'
                    )
                GROUP BY
                    CAST(event.data #>> '{move_id}' AS UUID)
            )
            AND event.type IN (
                'PoolMoveBegan',
                'PoolDeparted',
                'PoolArrived',
                'PoolMoved',
                'PoolMoveCancelled'
            )
        ON CONFLICT ON CONSTRAINT pk_pool_moves DO UPDATE
        SET
            pool_id = excluded.pool_id,
            pool_name = excluded.pool_name,
            ledger = excluded.ledger,
            stage = excluded.stage,
            position = excluded.position,
            changed_at = excluded.changed_at,
            last_seq = excluded.last_seq,
            last_position = excluded.last_position,
            root = excluded.root;
    END IF;
END
$$;

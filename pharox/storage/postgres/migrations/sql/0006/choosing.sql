-- MOST_SUCCESSFUL: the proxy that has succeeded most at a target, and now and then any other.
--
-- The score of a proxy at a target is (successes + 1) / (successes + failures + 2) by its record; one
-- without a record has a half. It is looked for among the first 1024 records in the order of the
-- score, and among 32 free proxies from an arbitrary id on; so it costs the same in a pool of any
-- size, and a pool with at most 32 free proxies is looked through. One moment in twenty explores:
-- then it is any of those 32.
--
-- What is drawn depends on the target and on the time of the statement, which is that of its events:
-- whoever has the event can draw again.

-- What everything that is drawn for a target at a moment begins with.
CREATE FUNCTION {schema}.seed_v1(target text, at timestamptz)
RETURNS text
LANGUAGE sql
IMMUTABLE
AS $$
    SELECT target || ':' || (extract(epoch FROM at) * 1000000)::bigint
$$;

-- Whether a proxy is tried at a moment that is not the most successful one: in one of twenty.
CREATE FUNCTION {schema}.explores_v1(seed text)
RETURNS boolean
LANGUAGE sql
IMMUTABLE
AS $$
    SELECT ('x' || substr(md5(seed), 1, 8))::bit(32)::bigint < 214748365
$$;

-- The free proxies of a rank that meet a condition for a target, the best first; nothing is locked.
CREATE FUNCTION {schema}.most_successful_v1(
    pool uuid,
    rank integer,
    size integer,
    condition text,
    arguments jsonb
)
RETURNS uuid[]
LANGUAGE plpgsql
SET enable_seqscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET jit = off
AS $$
#variable_conflict use_variable
DECLARE
    seed text := {schema}.seed_v1(arguments ->> -1, {schema}.clock());
    found uuid[];
BEGIN
    EXECUTE format(
        $sql$
            SELECT ARRAY(
                SELECT candidate.proxy_id
                FROM (
                    (
                        SELECT known.proxy_id
                        FROM (
                            SELECT pair.proxy_id
                            FROM {format}.target_outcomes AS pair
                            WHERE pair.pool_id = $1 AND pair.target = $5 ->> -1 AND NOT $6
                            ORDER BY
                                (pair.successes + 1) / (pair.successes + pair.failures + 2) DESC,
                                pair.proxy_id
                            LIMIT 1024
                        ) AS known,
                        LATERAL (
                            SELECT 1
                            %1$s
                              AND availability.proxy_id = known.proxy_id
                              AND availability.lease_rank = $2
                              AND (availability.rests_until IS NULL
                                   OR availability.rests_until <= {format}.clock())
                            LIMIT 1
                        ) AS free
                        LIMIT $3
                    )
                    UNION
                    (
                        SELECT other.proxy_id
                        FROM (
                            (
                                SELECT availability.proxy_id
                                %1$s
                                  AND availability.lease_rank = $2
                                  AND (availability.rests_until IS NULL
                                       OR availability.rests_until <= {format}.clock())
                                  AND availability.proxy_id > md5($7)::uuid
                                ORDER BY availability.proxy_id
                                LIMIT 32
                            )
                            UNION ALL
                            (
                                SELECT availability.proxy_id
                                %1$s
                                  AND availability.lease_rank = $2
                                  AND (availability.rests_until IS NULL
                                       OR availability.rests_until <= {format}.clock())
                                  AND availability.proxy_id <= md5($7)::uuid
                                ORDER BY availability.proxy_id
                                LIMIT 32
                            )
                        ) AS other
                        LIMIT 32
                    )
                ) AS candidate
                LEFT JOIN {format}.target_outcomes AS record
                  ON record.pool_id = $1 AND record.proxy_id = candidate.proxy_id
                 AND record.target = $5 ->> -1
                ORDER BY
                    CASE WHEN NOT $6 THEN coalesce(
                        (record.successes + 1) / (record.successes + record.failures + 2), 0.5
                    ) END DESC,
                    md5($7 || ':' || candidate.proxy_id) COLLATE "C"
                LIMIT $3
            )
        $sql$,
        {schema}.matching_v1(condition)
    )
    INTO found
    USING pool, rank, size, NULL::text, arguments, {schema}.explores_v1(seed), seed;
    RETURN found;
END
$$;

ALTER FUNCTION {schema}.free_for_target_v1(text, uuid, integer, integer, integer, text, jsonb)
    RENAME TO free_in_order_for_target_v1;

-- Up to so many free proxies that do not rest for a target, locked, in a selector's order. While the
-- target is in trouble, one at a time is tried, whatever its record.
CREATE FUNCTION {schema}.free_for_target_v1(
    selector text,
    pool uuid,
    lowest_rank integer,
    highest_rank integer,
    wanted integer,
    condition text,
    arguments jsonb
)
RETURNS {schema}.lease_place[]
LANGUAGE plpgsql
AS $$
#variable_conflict use_variable
DECLARE
    front uuid[];
    more {schema}.lease_place[];
    found {schema}.lease_place[] := '{}';
BEGIN
    IF selector <> 'most_successful' OR EXISTS (
        SELECT 1
        FROM {schema}.troubled_targets AS trouble
        WHERE trouble.pool_id = pool AND trouble.target = arguments ->> -1
          AND {schema}.lasts_v1(trouble.since, {schema}.clock())
    ) THEN
        RETURN {schema}.free_in_order_for_target_v1(
            selector, pool, lowest_rank, highest_rank, wanted, condition, arguments
        );
    END IF;
    FOR rank IN lowest_rank .. highest_rank LOOP
        EXIT WHEN cardinality(found) >= wanted;
        front := {schema}.most_successful_v1(pool, rank, 32 + 2 * wanted, condition, arguments);
        SELECT array_agg(free.proxy) INTO more
        FROM (
            SELECT ROW(
                availability.proxy_id, availability.status, availability.checked_at,
                availability.max_concurrency, availability.current_leases, availability.lease_rank
            )::{schema}.lease_place AS proxy
            FROM unnest(front) WITH ORDINALITY AS ahead (proxy_id, number)
            JOIN {schema}.available_proxies AS availability
              ON availability.pool_id = pool AND availability.proxy_id = ahead.proxy_id
            WHERE availability.lease_rank = rank
              AND (availability.rests_until IS NULL
                   OR availability.rests_until <= {schema}.clock())
            ORDER BY ahead.number
            LIMIT wanted - cardinality(found)
            FOR UPDATE OF availability SKIP LOCKED
        ) AS free;
        found := found || coalesce(more, '{}');
    END LOOP;
    RETURN found;
END
$$;

ALTER FUNCTION {schema}.free_for_session_v1(text, uuid, integer, text, text, jsonb)
    RENAME TO free_in_order_for_session_v1;

-- Free proxies for a binding, in a selector's order. Nothing is locked.
CREATE FUNCTION {schema}.free_for_session_v1(
    selector text,
    pool uuid,
    highest_rank integer,
    filters text,
    condition text,
    arguments jsonb
)
RETURNS uuid[]
LANGUAGE plpgsql
AS $$
#variable_conflict use_variable
DECLARE
    found uuid[];
BEGIN
    IF selector <> 'most_successful' OR condition NOT LIKE '%/*target*/%' THEN
        RETURN {schema}.free_in_order_for_session_v1(
            CASE selector WHEN 'most_successful' THEN 'first_available' ELSE selector END,
            pool, highest_rank, filters, condition, arguments
        );
    END IF;
    FOR rank IN 0 .. highest_rank LOOP
        found := {schema}.most_successful_v1(pool, rank, 10, condition, arguments);
        EXIT WHEN found <> '{}';
    END LOOP;
    RETURN found;
END
$$;

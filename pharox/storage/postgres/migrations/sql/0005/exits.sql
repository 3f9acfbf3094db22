-- The address from which targets see a proxy, as its checks find it.

-- Tell whether the checks of a ProxiesChecked are whole. On its own, as what holds a subquery is
-- never part of the statement that calls it: is_event_v1 stays quick for all other types.
CREATE OR REPLACE FUNCTION {schema}.are_checks_v1(proxy_ids uuid[], data jsonb)
RETURNS boolean
LANGUAGE sql
IMMUTABLE
AS $$
    SELECT
        cardinality(proxy_ids) BETWEEN 1 AND 500
        AND array_ndims(proxy_ids) = 1
        AND array_lower(proxy_ids, 1) = 1
        AND array_position(proxy_ids, NULL) IS NULL
        AND (SELECT count(DISTINCT id) FROM unnest(proxy_ids) AS id) = cardinality(proxy_ids)
        AND data ? 'checked_at'
        AND jsonb_typeof(data -> 'groups') = 'array'
        AND (
            SELECT bool_and(coalesce(
                checks ?& '{applied,status,reachable,protocol}'
                AND checks ->> 'stays' IN ('active', 'inactive', 'slow', 'banned'),
                false))
            FROM jsonb_array_elements(
                CASE WHEN jsonb_typeof(data -> 'groups') = 'array' THEN data -> 'groups' END
            ) AS checks
        )
        AND (
            SELECT bool_and(coalesce(
                CASE WHEN jsonb_typeof(data -> name) = 'array' THEN
                    jsonb_array_length(data -> name) = cardinality(proxy_ids)
                END, false))
            FROM unnest('{group,age_us,leases,latency_ms,mean_latency_ms,streak}'::text[]) AS name
        )
        AND CASE jsonb_typeof(data -> 'exit_ip')
            WHEN 'array' THEN
                jsonb_array_length(data -> 'exit_ip') = cardinality(proxy_ids)
                AND NOT jsonb_path_exists(
                    data, '$.exit_ip[*] ? (@.type() != "string" && @.type() != "null")'
                )
            ELSE coalesce(jsonb_typeof(data -> 'exit_ip'), 'null') = 'null'
        END
        -- What is not a whole number, or out of range, is neither >= 0 nor unknown to be so.
        AND NOT jsonb_path_exists(
            data,
            '$.group[*] ? (!(@ >= 0 && @ < $.groups.size() && @ == @.floor())
                           || (@ >= 0 && @ == @.floor()) is unknown)'
        )
        AND NOT jsonb_path_exists(
            data,
            '$.leases[*] ? (!(@ >= 0 && @ == @.floor()) || (@ >= 0 && @ == @.floor()) is unknown)'
        )
$$;

-- The checks of a ProxiesChecked, or that of one proxy, each with what the data of a HealthChecked
-- has: what ProxiesChecked.checks() returns in Python.
CREATE OR REPLACE FUNCTION {schema}.checks_v1(proxy_ids uuid[], data jsonb, of_proxy uuid DEFAULT NULL)
RETURNS TABLE (
    proxy_id uuid, status text, leases integer, max_concurrency integer, attributes jsonb
)
LANGUAGE plpgsql
STABLE
ROWS 500
AS $$
#variable_conflict use_column
DECLARE
    -- Copies, which are not compressed as stored values are: else each look would unpack them.
    whole jsonb := data || '{}';
    ids uuid[] := proxy_ids || '{}';
    latest timestamptz := whole ->> 'checked_at';
    groups jsonb := whole -> 'groups';
    group_numbers jsonb := whole -> 'group';
    ages jsonb := whole -> 'age_us';
    lease_counts jsonb := whole -> 'leases';
    latencies jsonb := whole -> 'latency_ms';
    means jsonb := whole -> 'mean_latency_ms';
    streaks jsonb := whole -> 'streak';
    exits jsonb := whole -> 'exit_ip';
    single integer := array_position(ids, of_proxy);
BEGIN
    RETURN QUERY
    SELECT
        ids[place + 1],
        common.attributes ->> 'stays',
        (lease_counts -> place)::integer,
        (common.attributes ->> 'max_concurrency')::integer,
        (common.attributes - '{stays,max_concurrency}'::text[]) || jsonb_build_object(
            'checked_at', latest - (ages -> place)::bigint * interval '1 microsecond',
            'latency_ms', latencies -> place,
            'mean_latency_ms', means -> place,
            'streak', streaks -> place,
            'lease_ids', '[]'::jsonb
        ) || CASE
            WHEN jsonb_typeof(exits -> place) = 'string' THEN
                jsonb_build_object('exit_ip', exits -> place)
            ELSE '{}'
        END
    FROM generate_series(coalesce(single, 1) - 1, coalesce(single, cardinality(ids)) - 1) AS place,
         LATERAL (SELECT groups -> (group_numbers -> place)::integer) AS common (attributes)
    WHERE of_proxy IS NULL OR ids[place + 1] = of_proxy;
END
$$;

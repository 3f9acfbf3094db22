-- What leases and bytes cost. An event says what it cost by the prices at that time, so a change of
-- prices changes nothing that was recorded. A price of a proxy comes before that of its pool.

-- Events to append, of which the leases say what they cost by themselves. Costs are texts in JSON: a
-- number of many digits would be read as another.
CREATE FUNCTION {schema}.with_costs_v1(new {schema}.event_v1[])
RETURNS {schema}.event_v1[]
LANGUAGE plpgsql
STABLE
AS $$
DECLARE
    event {schema}.event_v1;
    price numeric;
BEGIN
    FOR place IN 1 .. cardinality(new) LOOP
        event := new[place];
        CONTINUE WHEN event.type <> 'LeaseAcquired';
        SELECT coalesce(proxy.cost_per_lease, pool.cost_per_lease)
        INTO price
        FROM {schema}.pools AS pool
        LEFT JOIN {schema}.proxies AS proxy
          ON proxy.pool_id = pool.id AND proxy.id = event.proxy_id
        WHERE pool.id = event.pool_id;
        CONTINUE WHEN price IS NULL OR price = 0;
        event.data := coalesce(event.data, '{}')
            || jsonb_build_object('cost', trim_scale(price)::text);
        new[place] := event;
    END LOOP;
    RETURN new;
END
$$;

-- What the bytes of an outcome cost, as a part of its event.
CREATE FUNCTION {schema}.bytes_cost_v1(details jsonb, pool uuid, proxy uuid)
RETURNS jsonb
LANGUAGE plpgsql
STABLE
AS $$
#variable_conflict use_variable
DECLARE
    price numeric;
BEGIN
    IF NOT details ? 'bytes' THEN
        RETURN '{}';
    END IF;
    SELECT coalesce(known.cost_per_gb, lent.cost_per_gb)
    INTO price
    FROM {schema}.pools AS lent
    LEFT JOIN {schema}.proxies AS known ON known.pool_id = lent.id AND known.id = proxy
    WHERE lent.id = pool;
    -- A product is exact; a quotient might not be.
    price := (details ->> 'bytes')::numeric * price * 0.000000001;
    RETURN CASE WHEN price > 0 THEN jsonb_build_object('cost', trim_scale(price)::text) ELSE '{}' END;
END
$$;

-- When the next day begins, in UTC.
CREATE FUNCTION {schema}.next_day_v1(at timestamptz)
RETURNS timestamptz
LANGUAGE sql
IMMUTABLE
AS $$
    SELECT ((at AT TIME ZONE 'UTC')::date + 1)::timestamp AT TIME ZONE 'UTC'
$$;

-- Whether limits have a budget.
CREATE FUNCTION {schema}.has_budget_v1(limits jsonb)
RETURNS boolean
LANGUAGE sql
IMMUTABLE
AS $$
    SELECT coalesce(
        limits ->> 'bytes_per_day',
        limits ->> 'money_per_day',
        limits ->> 'consumer_bytes_per_day',
        limits ->> 'consumer_money_per_day'
    ) IS NOT NULL
$$;

-- The budgets of a pool and of a consumer in it, as rows of limits_v1. Each has room until it is
-- used up; bytes and money are compared exactly, and shown as limits are.
CREATE FUNCTION {schema}.budgets_v1(limits jsonb, pool uuid, consumer uuid, at timestamptz)
RETURNS TABLE (
    name text,
    per text,
    most double precision,
    used double precision,
    seconds double precision,
    room integer,
    frees_at timestamptz
)
LANGUAGE sql
STABLE
AS $$
    SELECT
        budget.name,
        budget.per,
        budget.most::double precision,
        budget.used::double precision,
        NULL::double precision,
        CASE WHEN budget.used >= budget.most THEN 0 ELSE 2147483647 END,
        CASE WHEN budget.used >= budget.most THEN {schema}.next_day_v1(at) END
    FROM (
        SELECT
            kind.name,
            kind.per,
            (limits ->> kind.name)::numeric AS most,
            (
                SELECT coalesce(sum(CASE WHEN kind.unit = 'bytes' THEN used.bytes
                                         ELSE used.money END), 0)
                FROM {schema}.spending AS used
                WHERE used.pool_id = pool
                  AND used.day = (at AT TIME ZONE 'UTC')::date
                  AND used.consumer = CASE WHEN kind.per = 'pool' THEN ''
                      ELSE (
                          SELECT known.name
                          FROM {schema}.consumers AS known
                          WHERE known.id = budgets_v1.consumer
                      )
                  END
            ) AS used
        FROM (
            VALUES
                ('bytes_per_day', 'pool', 'bytes'),
                ('money_per_day', 'pool', 'money'),
                ('consumer_bytes_per_day', 'consumer', 'bytes'),
                ('consumer_money_per_day', 'consumer', 'money')
        ) AS kind (name, per, unit)
        WHERE limits ->> kind.name IS NOT NULL
    ) AS budget
$$;

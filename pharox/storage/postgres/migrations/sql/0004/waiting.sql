-- Wait for a proxy: one queue a pool, in the order of tickets.
--
--   what is given back ──> who waits, in turn ──> what is asked for now ──> a ticket, if it waits
--
-- A ticket is a request that nothing was free for. Whoever decides in the pool walks through the
-- queue first: tickets of its own process are granted, what fits one of another process is kept
-- for it, and that process is to be woken. Only then comes what is asked for now, so nobody
-- overtakes. While nobody waits in a pool, nothing of this runs.
--
-- Tickets are neither events nor a read model. They count while their process is seen.
--
-- Locks: round-robin's cursors and the counters of all pools come first here, as this decides and
-- appends several times in one transaction. A ticket of one's own is never waited for.

CREATE TABLE {schema}.waiting_processes (
    id uuid CONSTRAINT pk_waiting_processes PRIMARY KEY,
    seen_at timestamptz NOT NULL
);

-- Turns are taken by rounds: of the requests of one consumer, each is one round after the one
-- before; a consumer that comes later begins with the round whose turn it is.
CREATE TABLE {schema}.waiting_tickets (
    pool_id uuid NOT NULL,
    round bigint NOT NULL,
    number bigint GENERATED ALWAYS AS IDENTITY,
    process_id uuid NOT NULL
        CONSTRAINT fk_waiting_tickets_process_id
        REFERENCES {schema}.waiting_processes (id) ON DELETE CASCADE,
    since timestamptz NOT NULL,
    consumer text NOT NULL,
    selector text NOT NULL,
    condition text,
    arguments jsonb,
    details jsonb,
    needs integer NOT NULL,
    is_distinct boolean NOT NULL,
    lease_ids uuid[] NOT NULL,
    own_ids boolean NOT NULL,
    duration double precision NOT NULL,
    actor text,
    correlation_id text,
    looks boolean NOT NULL,
    CONSTRAINT pk_waiting_tickets PRIMARY KEY (pool_id, round, number)
);
CREATE UNIQUE INDEX uq_waiting_tickets_lease ON {schema}.waiting_tickets ((lease_ids[1]));
CREATE INDEX ix_waiting_tickets_consumer ON {schema}.waiting_tickets (pool_id, consumer, round);
CREATE INDEX ix_waiting_tickets_process ON {schema}.waiting_tickets (process_id);

-- How long ago a process may have been seen for its tickets to count.
CREATE FUNCTION {schema}.silence_v1()
RETURNS interval
LANGUAGE sql
IMMUTABLE
AS $$
    SELECT interval '6 seconds'
$$;

CREATE FUNCTION {schema}.is_seen_v1(seen_at timestamptz, at timestamptz)
RETURNS boolean
LANGUAGE sql
IMMUTABLE
AS $$
    SELECT seen_at BETWEEN at - {schema}.silence_v1() AND at + {schema}.silence_v1()
$$;

-- Forget the processes that have not been seen for long, and their tickets.
CREATE FUNCTION {schema}.forget_silent_v1(own_process uuid, at timestamptz)
RETURNS void
LANGUAGE sql
AS $$
    DELETE FROM {schema}.waiting_processes AS silent
    WHERE silent.id IN (
        SELECT process.id
        FROM {schema}.waiting_processes AS process
        WHERE process.seen_at NOT BETWEEN at - 10 * {schema}.silence_v1()
            AND at + 10 * {schema}.silence_v1() -- A clock may have been put back.
          AND process.id IS DISTINCT FROM own_process
        FOR UPDATE SKIP LOCKED
    );
$$;

-- Say that a process is there, and forget those that have not been seen for long.
CREATE FUNCTION {schema}.beat_v1(own_process uuid)
RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    at timestamptz := {schema}.clock();
BEGIN
    INSERT INTO {schema}.waiting_processes AS known (id, seen_at)
    VALUES (own_process, at)
    ON CONFLICT (id) DO UPDATE SET seen_at = at;
    PERFORM {schema}.forget_silent_v1(own_process, at);
END
$$;

-- Free proxies that meet a condition, once for each lease they can take, but for those that are
-- kept for others. Nothing is locked.
CREATE FUNCTION {schema}.unreserved_v1(
    pool uuid,
    highest_rank integer,
    wanted integer,
    is_distinct boolean,
    condition text,
    arguments jsonb,
    reserved uuid[]
)
RETURNS uuid[]
LANGUAGE plpgsql
AS $$
DECLARE
    found uuid[];
BEGIN
    IF condition IS NULL THEN
        SELECT array_agg(place.proxy_id) INTO found
        FROM (
            SELECT availability.proxy_id
            FROM {schema}.available_proxies AS availability,
            LATERAL generate_series(1, least(
                availability.max_concurrency - availability.current_leases
                    - cardinality(array_positions(reserved, availability.proxy_id)),
                CASE WHEN is_distinct THEN 1 ELSE wanted END
            ))
            WHERE availability.pool_id = pool AND availability.lease_rank <= highest_rank
              AND (availability.rests_until IS NULL
                   OR availability.rests_until <= {schema}.clock())
            LIMIT wanted
        ) AS place;
    ELSE
        EXECUTE format(
            $sql$
                SELECT array_agg(place.proxy_id)
                FROM (
                    SELECT free.proxy_id
                    FROM (
                        SELECT
                            availability.proxy_id,
                            availability.max_concurrency - availability.current_leases
                                - cardinality(array_positions($6, availability.proxy_id)) AS room
                        %s
                          AND availability.lease_rank <= $2
                          AND (availability.rests_until IS NULL
                               OR availability.rests_until <= {format}.clock())
                    ) AS free,
                    LATERAL generate_series(
                        1, least(free.room, CASE WHEN $4 THEN 1 ELSE $3 END)
                    )
                    LIMIT $3
                ) AS place
            $sql$,
            {schema}.matching_v1(condition)
        )
        INTO found
        USING pool, highest_rank, wanted, is_distinct, arguments, reserved;
    END IF;
    RETURN coalesce(found, '{}');
END
$$;

-- A condition that leaves out the proxies all of whose room is kept for others.
CREATE FUNCTION {schema}.without_reserved_v1(pool uuid, condition text, reserved uuid[])
RETURNS text
LANGUAGE plpgsql
AS $$
DECLARE
    full_ids uuid[];
BEGIN
    IF reserved = '{}' THEN
        RETURN condition;
    END IF;
    full_ids := ARRAY(
        SELECT availability.proxy_id
        FROM (SELECT id, count(*) AS times FROM unnest(reserved) AS id GROUP BY id) AS kept
        JOIN {schema}.available_proxies AS availability
          ON availability.pool_id = pool AND availability.proxy_id = kept.id
        WHERE availability.max_concurrency - availability.current_leases <= kept.times
    );
    IF full_ids = '{}' THEN
        RETURN condition;
    END IF;
    RETURN coalesce('(' || condition || ') AND ', '')
        || format('availability.proxy_id <> ALL (%L::uuid[])', full_ids);
END
$$;

-- Ask for one request's leases, without recording a miss.
CREATE FUNCTION {schema}.try_request_v1(
    own_slot smallint,
    with_stats boolean,
    actor text,
    correlation_id text,
    kind text,
    needs integer,
    is_distinct boolean,
    pool_name text,
    selector text,
    condition text,
    arguments jsonb,
    details jsonb,
    ids uuid[],
    own_ids boolean,
    consumer text,
    duration double precision
)
RETURNS SETOF {schema}.lease_answer
LANGUAGE sql
AS $$
    SELECT answer.*
    FROM {schema}.lease_commands_v1(
        own_slot, with_stats, '{}',
        array_fill(actor, ARRAY[cardinality(ids)]),
        array_fill(correlation_id, ARRAY[cardinality(ids)]),
        '{}', '{}', ARRAY[cardinality(ids)], ARRAY[kind], ARRAY[needs], ARRAY[is_distinct],
        ARRAY[pool_name], ARRAY[selector], ARRAY[condition], ARRAY[arguments], ARRAY[details],
        ids, array_fill(own_ids, ARRAY[cardinality(ids)]),
        array_fill(consumer, ARRAY[cardinality(ids)]),
        array_fill(duration, ARRAY[cardinality(ids)])
    ) AS answer
$$;

-- Record a miss. Return its answer.
CREATE FUNCTION {schema}.missed_v1(
    own_slot smallint,
    with_stats boolean,
    actor text,
    correlation_id text,
    pool uuid,
    pool_name text,
    selector text,
    needs integer,
    count integer,
    details jsonb,
    consumer text,
    reason text,
    free integer
)
RETURNS {schema}.lease_answer
LANGUAGE plpgsql
AS $$
#variable_conflict use_variable
DECLARE
    consumer_id uuid := (
        SELECT known.id FROM {schema}.consumers AS known WHERE known.name = consumer
    );
    event {schema}.event_v1;
    answer {schema}.lease_answer;
BEGIN
    event := {schema}.lease_event_v1(
        1, 'AcquireMissed', coalesce(pool, '00000000-0000-0000-0000-000000000000'), pool_name,
        NULL, NULL, NULL, consumer, NULL, NULL, NULL, NULL, NULL, NULL, selector,
        coalesce(details, '{}') || jsonb_build_object('reason', reason)
        || CASE WHEN needs > 0 THEN jsonb_build_object('count', count, 'free', free) ELSE '{}' END
    );
    event := ({schema}.append_v1(
        ARRAY[event], own_slot, ARRAY[1], ARRAY[actor], ARRAY[correlation_id]
    ))[1];
    answer := {schema}.answer_one_v1(event, with_stats);
    answer.free := free;
    RETURN answer;
END
$$;

-- Carry out commands as lease_commands_v1 does, in turn with who waits. A run that is 'wait' or
-- 'wait_set' gets a ticket if what it needs may become free; one that is 'look' gets one at once,
-- for a caller who looks for itself when it is woken.
--
-- ``frees`` says that something may have become free, so that others are woken to look;
-- ``serves``, that this process was woken or looks by itself.
--
-- Answers beside those of the commands have the number 0: the leases of tickets of this process,
-- 'look' for the tickets that are to look, and 'wake' for other processes, whose id it has.
CREATE FUNCTION {schema}.lease_commands_v2(
    own_process uuid,
    max_waiting integer,
    frees boolean,
    serves boolean,
    own_slot smallint,
    with_stats boolean,
    due_pools uuid[],
    actors text[],
    correlation_ids text[],
    released_ids uuid[],
    reasons text[],
    run_ends integer[],
    run_kinds text[],
    run_needs integer[],
    run_distinct boolean[],
    run_pools text[],
    run_selectors text[],
    run_conditions text[],
    run_arguments jsonb[],
    run_details jsonb[],
    asked_ids uuid[],
    own_ids boolean[],
    asked_consumers text[],
    durations double precision[]
)
RETURNS SETOF {schema}.lease_answer
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
AS $$
#variable_conflict use_column
DECLARE
    at timestamptz := {schema}.clock();
    released integer := cardinality(released_ids);
    pool_ids uuid[];
    ranks integer[];
    all_pools uuid[];
    queues uuid[];
    waits boolean := run_kinds && '{wait,wait_set,look}';
    is_freed boolean := frees;
    reserved uuid[] := '{}';
    woken uuid[] := '{}';
    unfit text[];
    wish text;
    queue record;
    ticket record;
    fitting uuid[];
    given {schema}.lease_answer[];
    miss record;
    low integer;
    high integer;
    answer {schema}.lease_answer;
BEGIN
    SELECT
        array_agg(pool.id ORDER BY run.number),
        array_agg(pool.lease_slow::integer ORDER BY run.number)
    INTO pool_ids, ranks
    FROM unnest(run_pools) WITH ORDINALITY AS run (name, number)
    LEFT JOIN {schema}.pools AS pool ON pool.name = run.name;
    all_pools := due_pools || pool_ids;
    IF released > 0 THEN
        all_pools := all_pools || ARRAY(
            SELECT lease.pool_id FROM {schema}.leases AS lease WHERE lease.id = ANY (released_ids)
        );
    END IF;
    queues := ARRAY(
        SELECT pool.id
        FROM unnest(all_pools) AS pool (id)
        WHERE EXISTS (SELECT 1 FROM {schema}.waiting_tickets AS t WHERE t.pool_id = pool.id)
        GROUP BY pool.id
        ORDER BY pool.id
    );
    IF queues = '{}' AND NOT waits THEN
        RETURN QUERY
        SELECT decided.*
        FROM {schema}.lease_commands_v1(
            own_slot, with_stats, due_pools, actors, correlation_ids, released_ids, reasons,
            run_ends, run_kinds, run_needs, run_distinct, run_pools, run_selectors, run_conditions,
            run_arguments, run_details, asked_ids, own_ids, asked_consumers, durations
        ) AS decided;
        RETURN;
    END IF;

    IF queues <> '{}' THEN
        -- If nobody waits any more, nobody else does it.
        PERFORM {schema}.forget_silent_v1(own_process, at);
    END IF;

    FOR answer.number, answer.consumer IN
        SELECT released + asked.number, asked.name
        FROM unnest(asked_consumers) WITH ORDINALITY AS asked (name, number)
        WHERE NOT EXISTS (SELECT 1 FROM {schema}.consumers AS known WHERE known.name = asked.name)
    LOOP
        answer.outcome := 'unknown_consumer';
        RETURN NEXT answer;
    END LOOP;
    IF answer.outcome IS NOT NULL THEN
        RETURN; -- They are registered first, and then all is asked again.
    END IF;

    IF 'round_robin' = ANY (run_selectors) OR EXISTS (
        SELECT 1
        FROM {schema}.waiting_tickets AS t
        WHERE t.pool_id = ANY (queues) AND t.selector = 'round_robin'
    ) THEN
        PERFORM 1
        FROM {schema}.selector_cursors AS cursor
        WHERE cursor.pool_id = ANY (all_pools) AND cursor.selector = 'round_robin'
        ORDER BY cursor.pool_id
        FOR UPDATE;
    END IF;
    -- Not waited for: what is decided afterwards is dated by the time before.
    PERFORM 1
    FROM {schema}.pool_stats AS counters
    WHERE counters.pool_id = ANY (all_pools) AND counters.slot = own_slot
    ORDER BY counters.pool_id
    FOR UPDATE SKIP LOCKED;

    FOR answer IN
        SELECT decided.*
        FROM {schema}.lease_commands_v1(
            own_slot, with_stats,
            ARRAY(
                SELECT DISTINCT involved.pool_id
                FROM unnest(due_pools || queues || pool_ids) AS involved (pool_id)
                WHERE involved.pool_id IS NOT NULL
            ),
            coalesce(nullif(actors[1 : released], '{}'), actors[1:1]),
            coalesce(nullif(correlation_ids[1 : released], '{}'), correlation_ids[1:1]),
            released_ids, reasons,
            '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}'
        ) AS decided
    LOOP
        is_freed := is_freed OR answer.outcome = 'LeaseExpired';
        RETURN NEXT answer;
    END LOOP;

    FOR queue IN
        SELECT pool.id, pool.name, pool.lease_slow::integer AS rank
        FROM unnest(queues) AS waited (pool_id)
        JOIN {schema}.pools AS pool ON pool.id = waited.pool_id
        ORDER BY pool.id
    LOOP
        unfit := '{}';
        FOR ticket IN
            SELECT t.*
            FROM {schema}.waiting_tickets AS t
            WHERE t.pool_id = queue.id
              AND (t.process_id = own_process OR EXISTS (
                  SELECT 1
                  FROM {schema}.waiting_processes AS process
                  WHERE process.id = t.process_id AND {schema}.is_seen_v1(process.seen_at, at)
              ))
            ORDER BY t.round, t.number
        LOOP
            wish := concat_ws(
                '|', ticket.needs, ticket.is_distinct, ticket.condition, ticket.arguments
            );
            CONTINUE WHEN wish = ANY (unfit);
            EXIT WHEN {schema}.unreserved_v1(
                queue.id, queue.rank, 1, true, NULL, NULL, reserved
            ) = '{}';
            fitting := {schema}.unreserved_v1(
                queue.id, queue.rank, greatest(ticket.needs, 1), ticket.is_distinct,
                ticket.condition, ticket.arguments, reserved
            );
            IF fitting = '{}' THEN
                unfit := unfit || wish;
                CONTINUE;
            END IF;
            IF ticket.looks THEN
                IF ticket.process_id = own_process AND (is_freed OR serves) THEN
                    answer := NULL;
                    answer.number := 0;
                    answer.outcome := 'look';
                    answer.lease_id := ticket.lease_ids[1];
                    RETURN NEXT answer;
                ELSIF is_freed THEN
                    woken := woken || ticket.process_id;
                END IF;
                CONTINUE;
            END IF;
            IF cardinality(fitting) < ticket.needs THEN
                IF {schema}.has_room_v1(
                    queue.id, queue.rank, ticket.needs, ticket.is_distinct, ticket.condition,
                    ticket.arguments, true
                ) THEN
                    reserved := reserved || fitting; -- Else a set would never have enough.
                END IF;
                CONTINUE;
            END IF;
            IF ticket.process_id IS DISTINCT FROM own_process THEN
                woken := woken || ticket.process_id;
                reserved := reserved || fitting;
                CONTINUE;
            END IF;
            PERFORM 1
            FROM {schema}.waiting_tickets AS t
            WHERE t.pool_id = ticket.pool_id AND t.round = ticket.round AND t.number = ticket.number
            FOR UPDATE SKIP LOCKED;
            IF NOT FOUND THEN
                IF EXISTS (
                    SELECT 1
                    FROM {schema}.waiting_tickets AS t
                    WHERE t.pool_id = ticket.pool_id AND t.round = ticket.round
                      AND t.number = ticket.number
                ) THEN
                    -- Another transaction of this process has it.
                    reserved := reserved || fitting;
                    woken := woken || own_process;
                END IF;
                CONTINUE;
            END IF;
            given := ARRAY(
                SELECT decided
                FROM {schema}.try_request_v1(
                    own_slot, with_stats, ticket.actor, ticket.correlation_id, 'try', ticket.needs,
                    ticket.is_distinct, queue.name, ticket.selector,
                    {schema}.without_reserved_v1(queue.id, ticket.condition, reserved),
                    ticket.arguments,
                    coalesce(ticket.details, '{}') || jsonb_build_object(
                        'waited_ms', {schema}.waited_ms_v1(ticket.since, at)
                    ),
                    ticket.lease_ids, ticket.own_ids, ticket.consumer, ticket.duration
                ) AS decided
            );
            IF EXISTS (
                SELECT 1
                FROM unnest(given) AS g
                WHERE g.outcome IN ('LeaseAcquired', 'granted')
            ) THEN
                DELETE FROM {schema}.waiting_tickets AS t
                WHERE t.pool_id = ticket.pool_id AND t.round = ticket.round
                  AND t.number = ticket.number;
            ELSE
                reserved := reserved || fitting; -- It is locked; whoever has it looks here next.
                woken := woken || own_process;
            END IF;
            FOREACH answer IN ARRAY given LOOP
                CONTINUE WHEN answer.outcome NOT IN ('LeaseAcquired', 'granted', 'LeaseExpired');
                answer.number := 0;
                RETURN NEXT answer;
            END LOOP;
        END LOOP;
    END LOOP;

    FOR run IN 1 .. cardinality(run_ends) LOOP
        low := coalesce(run_ends[run - 1], 0) + 1;
        IF (pool_ids[run] <> ALL (queues)) IS NOT FALSE
           AND run_kinds[run] NOT IN ('wait', 'wait_set', 'look') THEN
            high := run_ends[run];
            FOR answer IN
                SELECT decided.*
                FROM {schema}.lease_commands_v1(
                    own_slot, with_stats, '{}', actors[released + low : released + high],
                    correlation_ids[released + low : released + high], '{}', '{}',
                    ARRAY[high - low + 1], run_kinds[run : run], run_needs[run : run],
                    run_distinct[run : run], run_pools[run : run], run_selectors[run : run],
                    run_conditions[run : run], run_arguments[run : run], run_details[run : run],
                    asked_ids[low : high], own_ids[low : high], asked_consumers[low : high],
                    durations[low : high]
                ) AS decided
            LOOP
                answer.number := answer.number + released + low - 1;
                RETURN NEXT answer;
            END LOOP;
            CONTINUE;
        END IF;
        WHILE low <= run_ends[run] LOOP
            -- One after the other: each may leave less to the next.
            high := CASE WHEN run_kinds[run] = 'each' THEN low ELSE run_ends[run] END;
            given := '{}';
            IF run_kinds[run] <> 'look' THEN
                given := ARRAY(
                    SELECT decided
                    FROM {schema}.try_request_v1(
                        own_slot, with_stats, actors[released + low],
                        correlation_ids[released + low],
                        CASE WHEN run_kinds[run] = 'one' THEN 'one' ELSE 'try' END,
                        run_needs[run], run_distinct[run], run_pools[run], run_selectors[run],
                        {schema}.without_reserved_v1(pool_ids[run], run_conditions[run], reserved),
                        run_arguments[run], run_details[run], asked_ids[low : high], own_ids[low],
                        asked_consumers[low], durations[low]
                    ) AS decided
                );
            END IF;
            answer := NULL;
            IF run_kinds[run] IN ('each', 'set', 'wait', 'wait_set', 'look') AND NOT EXISTS (
                SELECT 1 FROM unnest(given) AS g WHERE g.outcome NOT IN ('none', 'LeaseExpired')
            ) THEN
                SELECT * INTO miss
                FROM {schema}.reason_v1(
                    pool_ids[run], ranks[run], run_needs[run], high - low + 1, run_distinct[run],
                    run_conditions[run], run_arguments[run], reserved, at
                );
                IF run_kinds[run] = 'look'
                   OR run_kinds[run] IN ('wait', 'wait_set') AND miss.may_wait THEN
                    answer.outcome := {schema}.queue_v1(
                        own_process, max_waiting, pool_ids[run], at, asked_consumers[low],
                        run_selectors[run], run_conditions[run], run_arguments[run],
                        run_details[run], run_needs[run], run_distinct[run],
                        asked_ids[low : high], own_ids[low], durations[low],
                        actors[released + low], correlation_ids[released + low],
                        run_kinds[run] = 'look'
                    );
                    answer.pool_id := pool_ids[run];
                    answer.decided_at := at;
                ELSE
                    answer := {schema}.missed_v1(
                        own_slot, with_stats, actors[released + low],
                        correlation_ids[released + low], pool_ids[run], run_pools[run],
                        run_selectors[run], run_needs[run], high - low + 1, run_details[run],
                        asked_consumers[low], miss.reason, miss.free
                    );
                END IF;
                answer.number := released + low;
                RETURN NEXT answer;
            END IF;
            FOREACH answer IN ARRAY given LOOP
                CONTINUE WHEN answer.outcome = 'none' AND run_kinds[run] NOT IN ('try', 'one');
                answer.number := answer.number + released + low - 1;
                RETURN NEXT answer;
            END LOOP;
            low := high + 1;
        END LOOP;
    END LOOP;

    FOR answer.consumer IN
        SELECT DISTINCT waiting.process_id::text FROM unnest(woken) AS waiting (process_id)
    LOOP
        answer.number := 0;
        answer.outcome := 'wake';
        RETURN NEXT answer;
    END LOOP;
END
$$;

-- How long somebody has waited, in whole milliseconds.
CREATE FUNCTION {schema}.waited_ms_v1(since timestamptz, at timestamptz)
RETURNS bigint
LANGUAGE sql
IMMUTABLE
AS $$
    SELECT greatest(0, floor(extract(epoch FROM at - since) * 1000))::bigint
$$;

-- Whether a set could be had if all proxies of a pool were free.
CREATE FUNCTION {schema}.has_room_v1(
    pool uuid,
    highest_rank integer,
    needs integer,
    is_distinct boolean,
    condition text,
    arguments jsonb,
    only_healthy boolean
)
RETURNS boolean
LANGUAGE plpgsql
AS $$
DECLARE
    room bigint;
BEGIN
    EXECUTE format(
        $sql$
            SELECT sum(CASE WHEN $4 THEN 1 ELSE least(availability.max_concurrency, $3) END)
            %s
              AND (NOT $6 OR availability.status = 'active'
                   OR availability.status = 'slow' AND $2 = 1)
        $sql$,
        {schema}.matching_v1(condition)
    )
    INTO room
    USING pool, highest_rank, needs, is_distinct, arguments, only_healthy;
    RETURN coalesce(room, 0) >= needs;
END
$$;

-- Why nothing could be had, how many are free that are not kept for others, and whether waiting
-- may help.
CREATE FUNCTION {schema}.reason_v1(
    pool uuid,
    highest_rank integer,
    needs integer,
    count integer,
    is_distinct boolean,
    condition text,
    arguments jsonb,
    reserved uuid[],
    at timestamptz,
    OUT reason text,
    OUT free integer,
    OUT may_wait boolean
)
LANGUAGE plpgsql
AS $$
BEGIN
    IF pool IS NULL THEN
        SELECT 'unknown_pool', 0, false INTO reason, free, may_wait;
        RETURN;
    END IF;
    SELECT miss.reason INTO reason
    FROM {schema}.miss_reason_v1(
        pool, highest_rank, greatest(needs, 1), is_distinct, condition, arguments,
        ARRAY(
            SELECT lease.id
            FROM {schema}.leases AS lease
            WHERE lease.pool_id = pool AND lease.status = 'active' AND lease.expires_at <= at
        ),
        at
    ) AS miss;
    free := 0;
    IF reason IN ('free', 'too_few') THEN
        IF needs > 0 THEN
            free := cardinality({schema}.unreserved_v1(
                pool, highest_rank, needs, is_distinct, condition, arguments, reserved
            ));
        END IF;
        reason := CASE WHEN free > 0 THEN 'too_few' ELSE 'at_capacity' END;
    END IF;
    may_wait := reason NOT IN ('empty_pool', 'no_match');
    IF may_wait AND needs > 1 THEN
        may_wait := {schema}.has_room_v1(
            pool, highest_rank, needs, is_distinct, condition, arguments, false
        );
    END IF;
END
$$;

-- Take a ticket. Return 'queued', or 'queue_full'.
CREATE FUNCTION {schema}.queue_v1(
    own_process uuid,
    max_waiting integer,
    pool uuid,
    at timestamptz,
    consumer text,
    selector text,
    condition text,
    arguments jsonb,
    details jsonb,
    needs integer,
    is_distinct boolean,
    lease_ids uuid[],
    own_ids boolean,
    duration double precision,
    actor text,
    correlation_id text,
    looks boolean
)
RETURNS text
LANGUAGE plpgsql
AS $$
#variable_conflict use_variable
DECLARE
    own_round bigint := (
        SELECT max(t.round) + 1
        FROM {schema}.waiting_tickets AS t
        JOIN {schema}.waiting_processes AS process ON process.id = t.process_id
        WHERE t.pool_id = pool AND t.consumer = consumer AND (
            process.id = own_process
            OR {schema}.is_seen_v1(process.seen_at, at)
        )
    );
    first_round bigint := (
        SELECT min(t.round)
        FROM {schema}.waiting_tickets AS t
        JOIN {schema}.waiting_processes AS process ON process.id = t.process_id
        WHERE t.pool_id = pool AND (
            process.id = own_process
            OR {schema}.is_seen_v1(process.seen_at, at)
        )
    );
BEGIN
    IF (SELECT count(*) FROM {schema}.waiting_tickets AS t WHERE t.pool_id = pool) >= max_waiting
        AND (
            SELECT count(*)
            FROM {schema}.waiting_tickets AS t
            JOIN {schema}.waiting_processes AS process ON process.id = t.process_id
            WHERE t.pool_id = pool AND {schema}.is_seen_v1(process.seen_at, at)
        ) >= max_waiting
    THEN
        RETURN 'queue_full'; -- Those of the silent count no more.
    END IF;
    LOOP
        INSERT INTO {schema}.waiting_processes (id, seen_at)
        VALUES (own_process, at)
        ON CONFLICT (id) DO NOTHING;
        PERFORM 1
        FROM {schema}.waiting_processes AS process
        WHERE process.id = own_process
        FOR KEY SHARE;
        EXIT WHEN FOUND; -- Else somebody has just forgotten it.
    END LOOP;
    INSERT INTO {schema}.waiting_tickets (
        pool_id, round, process_id, since, consumer, selector, condition, arguments, details,
        needs, is_distinct, lease_ids, own_ids, duration, actor, correlation_id, looks
    )
    VALUES (
        pool, coalesce(greatest(own_round, first_round), 0), own_process, at, consumer, selector,
        condition, arguments, details, needs, is_distinct, lease_ids, own_ids, duration, actor,
        correlation_id, looks
    )
    ON CONFLICT DO NOTHING;
    RETURN 'queued';
END
$$;

-- Decide in all pools where a process waits. The last answer is 'served': how many of its tickets
-- are left, and when the next lease or rest of these pools is over.
CREATE FUNCTION {schema}.serve_v1(
    own_process uuid,
    own_slot smallint,
    actor text,
    correlation_id text
)
RETURNS SETOF {schema}.lease_answer
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
AS $$
#variable_conflict use_variable
DECLARE
    pools uuid[] := ARRAY(
        SELECT DISTINCT t.pool_id
        FROM {schema}.waiting_tickets AS t
        WHERE t.process_id = own_process
    );
    answer {schema}.lease_answer;
BEGIN
    RETURN QUERY
    SELECT decided.*
    FROM {schema}.lease_commands_v2(
        own_process, 0, false, true, own_slot, false, pools, ARRAY[actor], ARRAY[correlation_id],
        '{}', '{}',
        '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}'
    ) AS decided;
    answer.outcome := 'served';
    answer.decided_at := {schema}.clock();
    answer.number := (
        SELECT count(*) FROM {schema}.waiting_tickets AS t WHERE t.process_id = own_process
    );
    answer.expires_at := (
        SELECT min(least(
            (
                SELECT min(lease.expires_at)
                FROM {schema}.leases AS lease
                WHERE lease.pool_id = pool.id AND lease.status = 'active'
            ),
            CASE WHEN greatest(
                pool.rest_after_release_seconds, pool.rest_after_expiry_seconds
            ) > 0 THEN (
                SELECT min(availability.rests_until)
                FROM {schema}.available_proxies AS availability
                WHERE availability.pool_id = pool.id
                  AND availability.rests_until > answer.decided_at
            ) END
        ))
        FROM {schema}.pools AS pool
        WHERE pool.id = ANY (pools)
    );
    RETURN NEXT answer;
END
$$;

-- Give up a place in the queue. Record a miss if it is waited for no longer; who was cancelled
-- records none. No answer if there is no such ticket: it was granted, or its process forgotten.
CREATE FUNCTION {schema}.leave_queue_v1(
    own_process uuid,
    own_slot smallint,
    with_stats boolean,
    asked_id uuid,
    is_miss boolean
)
RETURNS SETOF {schema}.lease_answer
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
AS $$
#variable_conflict use_variable
DECLARE
    at timestamptz := {schema}.clock();
    ticket record;
    pool record;
    miss record;
    answer {schema}.lease_answer;
BEGIN
    DELETE FROM {schema}.waiting_tickets AS t
    WHERE t.lease_ids[1] = asked_id AND t.process_id = own_process
    RETURNING t.* INTO ticket;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    answer.number := 1;
    answer.outcome := 'left';
    IF is_miss THEN
        SELECT known.* INTO pool FROM {schema}.pools AS known WHERE known.id = ticket.pool_id;
        SELECT * INTO miss
        FROM {schema}.reason_v1(
            pool.id, pool.lease_slow::integer, ticket.needs, cardinality(ticket.lease_ids),
            ticket.is_distinct, ticket.condition, ticket.arguments, '{}', at
        );
        answer := {schema}.missed_v1(
            own_slot, with_stats, ticket.actor, ticket.correlation_id, pool.id,
            coalesce(pool.name, ''), ticket.selector, ticket.needs, cardinality(ticket.lease_ids),
            coalesce(ticket.details, '{}') || jsonb_build_object(
                'waited_ms', {schema}.waited_ms_v1(ticket.since, at)
            ),
            ticket.consumer, miss.reason, miss.free
        );
    END IF;
    RETURN NEXT answer;
END
$$;

-- Wait for locks as wait_v1 does. Where somebody waits for round-robin, its cursor comes before the
-- proxies, as in lease_commands_v2.
CREATE FUNCTION {schema}.wait_v2(
    chosen_ids uuid[],
    released_id uuid,
    pool_name text,
    selector text,
    condition text,
    arguments jsonb,
    wanted integer
)
RETURNS void
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
AS $$
#variable_conflict use_variable
BEGIN
    PERFORM {schema}.wait_for_turn_v1(chosen.id)
    FROM (SELECT id FROM unnest(chosen_ids) AS given (id) ORDER BY hashtext(id::text)) AS chosen;
    PERFORM 1
    FROM {schema}.selector_cursors AS cursor
    WHERE cursor.selector = 'round_robin'
      AND cursor.pool_id IN (
          SELECT pool.id FROM {schema}.pools AS pool WHERE pool.name = pool_name
          UNION ALL
          SELECT lease.pool_id FROM {schema}.leases AS lease WHERE lease.id = released_id
      )
      AND EXISTS (
          SELECT 1
          FROM {schema}.waiting_tickets AS ticket
          WHERE ticket.pool_id = cursor.pool_id AND ticket.selector = 'round_robin'
      )
    FOR UPDATE OF cursor;
    PERFORM {schema}.wait_v1(
        chosen_ids, released_id, pool_name, selector, condition, arguments, wanted
    );
END
$$;

-- Acquire one lease: acquire_one_v1 while nobody waits in the pool.
CREATE FUNCTION {schema}.acquire_one_v2(
    own_process uuid,
    own_slot smallint,
    with_stats boolean,
    actor text,
    correlation_id text,
    pool_name text,
    selector text,
    asked_id uuid,
    consumer text,
    duration double precision
)
RETURNS SETOF {schema}.lease_answer
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
AS $$
#variable_conflict use_variable
BEGIN
    IF EXISTS (
        SELECT 1
        FROM {schema}.pools AS pool
        JOIN {schema}.waiting_tickets AS ticket ON ticket.pool_id = pool.id
        WHERE pool.name = pool_name
    ) THEN
        RETURN QUERY
        SELECT answer.*
        FROM {schema}.lease_commands_v2(
            own_process, 0, false, false, own_slot, with_stats, '{}', ARRAY[actor],
            ARRAY[correlation_id], '{}',
            '{}', ARRAY[1], ARRAY['each'], ARRAY[0], ARRAY[false], ARRAY[pool_name],
            ARRAY[selector], ARRAY[NULL::text], ARRAY[NULL::jsonb], ARRAY[NULL::jsonb],
            ARRAY[asked_id], ARRAY[false], ARRAY[consumer], ARRAY[duration]
        ) AS answer;
        RETURN;
    END IF;
    RETURN QUERY
    SELECT answer.*
    FROM {schema}.acquire_one_v1(
        own_slot, with_stats, actor, correlation_id, pool_name, selector, asked_id, consumer,
        duration
    ) AS answer;
END
$$;

-- Release one lease: release_one_v1 while nobody waits in the pool.
CREATE FUNCTION {schema}.release_one_v2(
    own_process uuid,
    own_slot smallint,
    with_stats boolean,
    actor text,
    correlation_id text,
    released_id uuid,
    reason text
)
RETURNS SETOF {schema}.lease_answer
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
AS $$
#variable_conflict use_variable
BEGIN
    IF EXISTS (
        SELECT 1
        FROM {schema}.leases AS lease
        JOIN {schema}.waiting_tickets AS ticket ON ticket.pool_id = lease.pool_id
        WHERE lease.id = released_id
    ) THEN
        RETURN QUERY
        SELECT answer.*
        FROM {schema}.lease_commands_v2(
            own_process, 0, true, false, own_slot, with_stats, '{}', ARRAY[actor],
            ARRAY[correlation_id],
            ARRAY[released_id], ARRAY[reason], '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}',
            '{}', '{}', '{}', '{}', '{}'
        ) AS answer;
        RETURN;
    END IF;
    RETURN QUERY
    SELECT answer.*
    FROM {schema}.release_one_v1(
        own_slot, with_stats, actor, correlation_id, released_id, reason
    ) AS answer;
END
$$;

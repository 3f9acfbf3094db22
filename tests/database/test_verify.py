"""``verify`` finds whatever somebody changes behind the ledger's back, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg import sql
from pydantic import SecretStr

import projections
from pharox import (
    ApiToken,
    Outcome,
    Pace,
    PoolLimits,
    ProxyCredentials,
    ProxyManager,
    ProxyPool,
    ProxyProtocol,
    ProxySource,
    ProxyStatus,
    RotationPolicy,
    SelectorStrategy,
    SourceCounts,
    Sticky,
    TargetRules,
)
from pharox.log import events, last_tick, seals, ticks
from pharox.log.tables import snapshot_rows
from pharox.models import HealthCheckResult
from pharox.models.ids import new_lease_id
from pharox.storage.moving import BeginMove
from pharox.storage.postgres import PostgresStorage
from pharox.storage.postgres.verifying_schema import defined_functions
from pharox.storage.reports import ReportRequest
from pharox.storage.sources import RefreshResult
from pharox.testing import checked
from projections import Finding
from tests.conftest import clock_of, fill, ledger, new_database, run_sql

TABLES = (
    *(projection.table for projection in projections.ALL),
    events,
    seals,
    ticks,
    last_tick,
    snapshot_rows,
)
HINTS = ("unsealed_after", "sealer_tx", "appended_upto")
"""What sealing goes by: where they are wrong, it is seen by what is not sealed."""
CELLS = [
    (table.name, column.name)
    for table in TABLES
    for column in table.c
    if column.computed is None and column.name not in HINTS
]

OTHER = {
    "uuid[]": "coalesce({}, '{{}}') || gen_random_uuid()",
    "uuid": "gen_random_uuid()",
    "text": "coalesce({}, '') || 'x'",
    "int2": "coalesce({}, 0) + 100",
    "int4": "coalesce({}, 0) + 100",
    "int8": "coalesce({}, 0) + 1000000",
    "numeric": "coalesce({}, 0) + 1",
    "date": "{} + 1",
    "float8": "coalesce({}, 0) + 0.5",
    "bool": "coalesce(NOT {}, true)",
    "timestamptz": "coalesce({}, now()) + interval '1 microsecond'",
    "bytea": "set_byte({0}, 3, (get_byte({0}, 3) + 1) % 256)",
    "jsonb": "CASE jsonb_typeof({0}) WHEN 'array' THEN {0} || 'true' "
    "ELSE jsonb_set(coalesce({0}, '{{}}'), '{{added}}', 'true') END",
    "xid8": "({}::text::bigint + 1)::text::xid8",
    "pg_snapshot": "'1:1:'::pg_snapshot",
}
"""For each type of column, a value that is not the one it has."""

NAMES = {
    "smallint": "int2",
    "integer": "int4",
    "bigint": "int8",
    "double precision": "float8",
    "boolean": "bool",
    "timestamp with time zone": "timestamptz",
}


@pytest.fixture(scope="module")
def lived_in(server_url: str, template: str) -> Iterator[PostgresStorage]:
    """A ledger with a row in each table, and nothing that keeps a forger from changing one."""
    name = f"pharox_{uuid4().hex[:12]}"
    with new_database(server_url, name, template) as url, ledger(url) as storage:
        _live(storage)
        for protected in ("events", "events_0", "seals", "seals_0", "ticks", "last_tick"):
            run_sql(storage.engine, f"ALTER TABLE pharox.{protected} DISABLE TRIGGER USER")
        for table, constraint in run_sql(
            storage.engine,
            "SELECT conrelid::regclass::text, conname FROM pg_constraint "
            "WHERE contype = 'c' AND coninhcount = 0 AND connamespace = 'pharox'::regnamespace",
        ):
            run_sql(storage.engine, f"ALTER TABLE {table} DROP CONSTRAINT {constraint}")
        yield storage


def _live(storage: PostgresStorage) -> None:
    clock = clock_of(storage)
    clock.advance(1)
    manager = ProxyManager(storage)
    _, proxies = fill(
        storage,
        3,
        name="a",
        country="AR",
        city="x",
        latitude=1.0,
        longitude=2.0,
        isp="y",
        asn=7,
        source="s",
    )
    storage.save_pool(ProxyPool(name="b", description="other"))
    lease = manager.acquire_proxy("a", "worker", selector=SelectorStrategy.ROUND_ROBIN)
    assert lease is not None
    refused = Outcome.blocked("shop.example", status=429)
    assert storage.report_outcomes([ReportRequest(lease, refused)])
    storage.set_target_rules(TargetRules(target="shop.example", blocked_statuses=(403,)))
    _administer(storage)
    storage.save_source(ProxySource(name="s", pool_name="a", url="http://provider.example/list"))
    for result in (
        RefreshResult(SourceCounts(listed=3, added=3), owned=3),
        RefreshResult(failure="http://provider.example answered 503"),
    ):
        claim = storage.claim_source("s")
        assert claim is not None
        assert storage.finish_refresh(claim, result)
    sticky = Sticky("account-42", shared=True)
    fill(storage, 1, name="d", country="AR")
    assert manager.acquire_proxy("d", target="shop.example", sticky=sticky)
    pool, _ = fill(storage, 1, name="e")
    limits = PoolLimits(leases_per_consumer=2, paces=(Pace(starts=1, seconds=60),))
    prices = {"cost_per_gb": Decimal("3.5"), "cost_per_lease": Decimal("0.25")}
    storage.save_pool(pool.model_copy(update={"limits": limits, **prices}))
    assert manager.acquire_proxy("e", target="shop.example")
    login = ProxyCredentials(user="user-{session}", password="p")
    fill(storage, 1, name="gateway", credentials=login, max_concurrency=None)
    through_gateway = manager.acquire_proxy("gateway", sticky=sticky)
    assert through_gateway is not None
    manager.rotate(through_gateway)
    mobile, (phone,) = fill(storage, 1, name="mobile", rotate_url=SecretStr("https://x.example/y"))
    policy = RotationPolicy(on="release")
    storage.save_pool(mobile.model_copy(update={"rotation": policy}))
    storage.begin_rotation(phone.id)
    storage.claim_rotations([phone.id])
    fill(storage, 10, name="c")
    down = Outcome.target_failed("down.example", status=503)
    leases = manager.acquire_proxies("c", 10)
    storage.report_outcomes([ReportRequest(each, down) for each in leases])
    manager.acquire_proxy("a", duration_seconds=5, lease_id=new_lease_id())
    manager.acquire_proxy("b", "worker")
    clock.advance(10)
    storage.cleanup_expired_leases()
    storage.apply_health_check_result(
        HealthCheckResult(
            proxy_id=proxies[0].id,
            status=ProxyStatus.SLOW,
            latency_ms=10,
            protocol=ProxyProtocol.HTTP,
            status_code=200,
            checked_at=datetime(2026, 1, 1, 0, 1, tzinfo=UTC),
            error_message="slow",
        )
    )
    storage.record_health_checks([checked(proxy, checked_at=clock.now) for proxy in proxies[1:]])
    storage.take_snapshot(storage.seal())
    run_sql(storage.engine, "SELECT pharox.complete_tick()")
    manager.acquire_proxy("a", "worker")
    storage.seal()


def _administer(storage: PostgresStorage) -> None:
    token, _ = ApiToken.draw("worker", pools=["a"])
    storage.add_api_token(token)
    storage.place_pool("a", "east")
    fill(storage, 0, name="moving")
    storage.carry_out_move(BeginMove("moving", "west", uuid4()))


def differences(storage: PostgresStorage) -> list[Finding]:
    """What verify finds, beside that the log's triggers are disabled here."""
    return [finding for finding in storage.verify() if finding.check != "triggers"]


def test_a_ledger_that_nobody_touched_is_right(lived_in: PostgresStorage) -> None:
    """There is no finding, and there is something to be found in each table."""
    assert differences(lived_in) == []
    for table in TABLES:
        assert run_sql(lived_in.engine, f"SELECT count(*) > 0 FROM pharox.{table.name}") == [
            (True,)
        ]


def test_a_wrong_hint_is_found_by_what_it_hides(postgres: PostgresStorage) -> None:
    """An event that sealing was kept from is named: it is committed and has no seal."""
    fill(postgres, 2)
    last = postgres.seal()
    run_sql(postgres.engine, "ALTER TABLE pharox.last_tick DISABLE TRIGGER USER")
    run_sql(postgres.engine, "UPDATE pharox.last_tick SET unsealed_after = 1000")
    postgres.ensure_consumer("hidden")
    assert postgres.seal() == last
    run_sql(postgres.engine, "SELECT setval('pharox.events_position_seq', 2000)")
    for number in range(2):
        postgres.ensure_consumer(f"later {number}")
        postgres.seal()
    (finding,) = [f for f in postgres.verify() if f.check == "events"]
    assert finding.expected is None


def test_every_function_is_compared(postgres: PostgresStorage) -> None:
    """Whichever revision made it: no function of the schema is left out."""
    query = "SELECT proname FROM pg_proc WHERE pronamespace = 'pharox'::regnamespace"
    assert {name for (name,) in run_sql(postgres.engine, query)} == set(defined_functions("pharox"))
    for name in ("renew_leases_v1", "lease_commands_v2", "acquire_one_v3"):
        run_sql(postgres.engine, f"ALTER FUNCTION pharox.{name} SET search_path = public")
        (finding,) = postgres.verify()
        assert (finding.check, finding.key) == ("functions", {"function": name})
        run_sql(postgres.engine, f"ALTER FUNCTION pharox.{name} RESET search_path")


@pytest.mark.one_server
@pytest.mark.parametrize(("table", "column"), CELLS)
@settings(max_examples=2)
@given(pick=st.integers(0, 10**6))
def test_a_changed_cell_is_found(
    lived_in: PostgresStorage, table: str, column: str, pick: int
) -> None:
    """Whichever cell of whichever row is changed, verify says so; changed back, all is well."""
    engine = lived_in.engine
    part = sql.Identifier("pharox", f"{table}_0" if table in {"events", "seals"} else table)
    cell = sql.Identifier(column)
    rows = run_sql(engine, sql.SQL("SELECT ctid::text FROM {} ORDER BY ctid").format(part))
    place = sql.Literal(rows[pick % len(rows)][0])
    ((type_, before),) = run_sql(
        engine,
        sql.SQL("SELECT pg_typeof({0})::text, {0}::text FROM {1} WHERE ctid = {2}::tid").format(
            cell, part, place
        ),
    )
    other = sql.SQL(OTHER[NAMES.get(str(type_), str(type_))]).format(cell)
    change = sql.SQL("UPDATE {} SET {} = {} WHERE ctid = {}::tid RETURNING ctid::text")
    ((now_at,),) = run_sql(engine, change.format(part, cell, other, place))
    try:
        findings = differences(lived_in)
    finally:
        back = sql.SQL("{}::{}").format(sql.Literal(before), sql.SQL(str(type_)))
        run_sql(engine, change.format(part, cell, back, sql.Literal(now_at)))
    assert findings, f"{table}.{column} was changed and nobody noticed"
    assert all(str(finding) for finding in findings)


@pytest.mark.parametrize("table", [table.name for table in TABLES])
def test_a_missing_row_is_found(lived_in: PostgresStorage, table: str) -> None:
    """A row that somebody deleted is missed."""
    part = f"pharox.{table}_0" if table in {"events", "seals"} else f"pharox.{table}"
    columns = ", ".join(
        column.name
        for column in next(known for known in TABLES if known.name == table).c
        if column.computed is None
    )
    run_sql(lived_in.engine, f"CREATE TABLE kept AS SELECT {columns} FROM {part} LIMIT 1 OFFSET 0")
    run_sql(
        lived_in.engine,
        f"DELETE FROM {part} WHERE ctid = (SELECT ctid FROM {part} LIMIT 1 OFFSET 0)",
    )
    try:
        findings = differences(lived_in)
    finally:
        run_sql(lived_in.engine, f"INSERT INTO {part} ({columns}) SELECT {columns} FROM kept")
        run_sql(lived_in.engine, "DROP TABLE kept")
    assert findings
    assert differences(lived_in) == []


def test_a_lease_that_was_due_and_left_is_found(postgres: PostgresStorage) -> None:
    """A cleanup that took back others and left one that had been due is told apart."""
    clock = clock_of(postgres)
    fill(postgres, 2, max_concurrency=None)
    manager = ProxyManager(postgres)
    for seconds in (5, 5):
        manager.acquire_proxy("pool", duration_seconds=seconds)
    clock.advance(200)
    run_sql(
        postgres.engine,
        "UPDATE pharox.leases SET expires_at = expires_at + interval '1 hour' "
        "WHERE id = (SELECT min(id::text)::uuid FROM pharox.leases)",
    )
    postgres.cleanup_expired_leases()
    run_sql(
        postgres.engine,
        "UPDATE pharox.leases SET expires_at = expires_at - interval '1 hour' "
        "WHERE status = 'active'",
    )
    assert postgres.verify() == []  # the cleanup may still be going on
    clock.advance(100)
    assert [finding.check for finding in postgres.verify()] == ["expiry"]


@pytest.mark.parametrize(
    "event",
    [
        "type = 'Unheard'",
        "type = 'LeaseReleased', lease_id = gen_random_uuid()",
        "type = 'ProxyRemoved', proxy_id = gen_random_uuid(), status_before = 'broken'",
    ],
)
def test_an_event_that_cannot_be_read_is_named(postgres: PostgresStorage, event: str) -> None:
    """Nothing in the log differs from its seal, and yet nobody could fold it."""
    columns, values = zip(*(part.split(" = ") for part in event.split(", ")), strict=True)
    (position,) = run_sql(
        postgres.engine,
        f"INSERT INTO pharox.events (recorded_at, pool_id, {', '.join(columns)}) "
        f"VALUES (now(), gen_random_uuid(), {', '.join(values)}) RETURNING position",
    )[0]
    findings = [each for each in postgres.verify() if each.check == "readable"]
    assert [each.key for each in findings] == [{"position": position}]


def test_verify_waits_for_nobody_and_keeps_nobody(postgres: PostgresStorage) -> None:
    """While a writer holds a proxy's row, verify ends, finds nothing and leaves no table behind."""
    fill(postgres, 2)
    with postgres.engine.connect().execution_options(isolation_level="READ COMMITTED") as writer:
        writer.exec_driver_sql("SELECT 1 FROM pharox.available_proxies FOR UPDATE")
        assert postgres.verify() == []
    temporary = "SELECT count(*) FROM pg_class WHERE relnamespace = pg_my_temp_schema()"
    assert run_sql(postgres.engine, temporary) == [(0,)]

"""``pharox doctor`` names what is wrong and what to do, and changes nothing."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from psycopg import sql
from sqlalchemy import make_url

from pharox import Proxy, ProxyCredentials
from pharox.ledger.diagnosis import Diagnosis, Result, access, judged_schema, log, server, upkeep
from pharox.ledger.roles import Roles, grant
from pharox.ledger.subscriptions import SubscriptionStatus
from pharox.observability.counting import FleetCounter
from pharox.observability.fleet import FleetCollector
from pharox.storage.moving import BeginMove, DepartPool
from pharox.storage.postgres import PostgresStorage
from pharox.storage.postgres.migrations import HEAD
from tests.conftest import fill, run_sql, types_of
from tests.database.sealing import connected, new_role

from .conftest import Outcome, Pharox

CHECKS = [
    *("package", "connection", "server", "server settings", "pooler", "clock", "connections"),
    *("transactions", "schema", "rights", "secret key", "log", "sealing", "subscriptions"),
    *("tables", "leases", "moves", "health checks"),
]


def diagnoses(outcome: Outcome) -> dict[str, Any]:
    """Return what was found, by its check."""
    return {each["check"]: each for each in json.loads(outcome.out)}


def problems(outcome: Outcome) -> set[str]:
    """Return what is a problem, but for the tests' servers, which do not wait for the disk."""
    found = {each["check"] for each in diagnoses(outcome).values() if each["result"] == "problem"}
    assert outcome.status == bool(found), outcome
    return found - {"server settings"}


def unexamined(outcome: Outcome) -> list[str]:
    """Return the checks that failed themselves."""
    found = diagnoses(outcome).values()
    return [each["check"] for each in found if each["finding"].startswith("cannot be examined")]


def written(storage: PostgresStorage) -> list[tuple[object, ...]]:
    """Return what would change if anything was sealed, recorded or ended."""
    name = sql.Identifier(storage.schema)
    query = "SELECT (SELECT count(*) FROM {0}.seals), (SELECT count(*) FROM {0}.events)"
    return run_sql(storage.engine, sql.SQL(query).format(name))


def test_a_ledger_in_order_has_no_problem(pharox: Pharox, storage: PostgresStorage) -> None:
    """Each check is a line, and nothing is written, not even a seal."""
    fill(storage, 2)
    before = written(storage)
    outcome = pharox("doctor", "-o", "json")
    assert (list(diagnoses(outcome)), problems(outcome), unexamined(outcome)) == (CHECKS, set(), [])
    assert written(storage) == before
    table = pharox("doctor")
    assert [line.split("  ")[0] for line in table.out.splitlines()[1:]] == CHECKS


def test_a_role_that_only_reads_is_enough(
    pharox: Pharox, storage: PostgresStorage, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader gets an answer to every check; a role without rights is told what to grant."""
    fill(storage, 1)
    with connected(database_url) as server, new_role(server) as reader, new_role(server) as nobody:
        grant(storage, Roles(reader=[reader]))
        for role, expected in ((reader, set()), (nobody, {"schema"})):
            url = make_url(database_url).set(username=role).render_as_string(hide_password=False)
            monkeypatch.setenv("PHAROX_DATABASE_URL", url)
            outcome = pharox("doctor", "-o", "json")
            assert (problems(outcome), unexamined(outcome)) == (expected, [])
            if role == reader:
                assert diagnoses(outcome)["rights"]["finding"] == f"{reader} may only read"


def test_what_is_wrong_is_a_problem(
    pharox: Pharox,
    storage: PostgresStorage,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No connection, no schema, or a key that opens nothing: status 1, and what can be said is."""
    pool, _ = fill(storage, 1)
    storage.save_proxy(
        Proxy(
            host="192.0.2.9",
            port=80,
            protocol="http",
            pool_id=pool.id,
            credentials=ProxyCredentials(user="u", password="hidden"),
            rotate_url="http://192.0.2.9/?key=hidden",
        )
    )
    assert diagnoses(pharox("doctor", "-o", "json"))["secret key"]["result"] == "ok"
    other = "5EYcIK4MHZyMVW1iZ0AeHT5qY8V1qXvXX3k0hZxBq5A="
    monkeypatch.setenv("PHAROX_SECRET_KEY", other)
    outcome = pharox("doctor", "-o", "json")
    key = diagnoses(outcome)["secret key"]
    assert (outcome.status, key["result"]) == (1, "problem")
    assert "PHAROX_SECRET_KEY" in key["advice"]
    assert "hidden" not in outcome.out + outcome.err
    outcome = pharox("--schema", "elsewhere", "doctor", "-o", "json")
    found = diagnoses(outcome)
    assert (outcome.status, list(found)[-1]) == (1, "schema")
    assert "pharox db upgrade" in found["schema"]["advice"]
    monkeypatch.setenv("PHAROX_DATABASE_URL", "postgresql://u:hidden@127.0.0.1:1/x")
    outcome = pharox("doctor", "-o", "json")
    found = diagnoses(outcome)
    assert (outcome.status, list(found)) == (1, ["package", "connection"])
    assert "hidden" not in outcome.out + outcome.err
    assert types_of(storage)[-1] == "ProxyRegistered"


def test_a_transaction_pooler_is_noticed(
    pharox: Pharox, pooled_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind it everything is examined, and it is said what will not work."""
    monkeypatch.setenv("PHAROX_DATABASE_URL", pooled_url)
    outcome = pharox("doctor", "-o", "json")
    assert (list(diagnoses(outcome)), problems(outcome), unexamined(outcome)) == (CHECKS, set(), [])
    pooler = diagnoses(outcome)["pooler"]
    assert pooler["result"] == "warning"
    assert "rebuild" in pooler["advice"]


def lagging(lag_s: float, parked: int = 0, *, active: bool = True) -> SubscriptionStatus:
    return SubscriptionStatus("mail", 4, 1, active, 7, lag_s, parked)


def table(dead: int, live: int, index_mib: int = 0) -> dict[str, Any]:
    sizes = {"bytes": 2**20, "index_bytes": index_mib * 2**20}
    return {"name": "leases", "dead": dead, "live": live, "vacuumed_s": None, **sizes}


DURABLE = {"fsync": "on", "default_transaction_isolation": "read committed"}
SECOND = timedelta(seconds=1)

JUDGED: list[tuple[Diagnosis, Result, str]] = [
    (server.judged_version(180004), Result.OK, "18.4"),
    (server.judged_version(130001), Result.PROBLEM, "13.1"),
    (server.judged_version(990000), Result.WARNING, "99.0"),
    (server.judged_settings(DURABLE), Result.OK, ""),
    (server.judged_settings({**DURABLE, "fsync": "off"}), Result.PROBLEM, "fsync"),
    (server.judged_settings({**DURABLE, "in_recovery": "true"}), Result.PROBLEM, "standby"),
    (
        server.judged_settings({"default_transaction_read_only": "on", "autovacuum": "off"}),
        Result.WARNING,
        "autovacuum",
    ),
    (server.judged_settings({"synchronous_commit": "off"}), Result.WARNING, "crash"),
    (
        server.judged_settings({"default_transaction_isolation": "serializable"}),
        Result.WARNING,
        "serializable",
    ),
    (server.judged_clock(SECOND, 3 * SECOND), Result.OK, "agrees"),
    (server.judged_clock(-9 * SECOND, 10 * SECOND), Result.WARNING, "9.0 s ahead of"),
    (server.judged_clock(10 * SECOND, -9 * SECOND), Result.WARNING, "9.0 s behind"),
    (server.judged_connections(100, 10, 2), Result.OK, "10 of 100"),
    (server.judged_connections(100, 80, 2), Result.WARNING, "80 of 100"),
    (judged_schema("s", HEAD, None), Result.OK, HEAD),
    (judged_schema("s", None, None), Result.PROBLEM, "no schema"),
    (judged_schema("s", "0001", None), Result.PROBLEM, "0001"),
    (judged_schema("s", "9999", HEAD), Result.WARNING, "newer"),
    (judged_schema("s", "9999", "9999"), Result.PROBLEM, "newer"),
    (access.judged_rights("r", False, False, False, False), Result.PROBLEM, "may not read"),
    (access.judged_rights("r", False, False, True, True), Result.OK, "r may lease"),
    (access.judged_rights("r", False, True, True, True), Result.OK, "owns"),
    (access.judged_key(True, [True, True]), Result.OK, "opens"),
    (access.judged_key(True, [True, False]), Result.PROBLEM, "1 of 2"),
    (access.judged_key(False, [False]), Result.PROBLEM, "no key"),
    (access.judged_key(False, []), Result.OK, "no key"),
    (log.judged_parts(1, 100, 9), Result.OK, "1 part, room for 90"),
    (log.judged_parts(900, 100, 9), Result.WARNING, "900 parts"),
    (log.judged_sealing(0, 0.0), Result.OK, "all"),
    (log.judged_sealing(10, 86400.0), Result.OK, "24 h"),
    (log.judged_sealing(2_000_000, 60.0), Result.WARNING, "2000000"),
    (log.judged_subscriptions([]), Result.OK, "none"),
    (log.judged_subscriptions([lagging(1.0)]), Result.OK, "mail"),
    (log.judged_subscriptions([lagging(90.0)]), Result.WARNING, "slow"),
    (log.judged_subscriptions([lagging(90.0, active=False)]), Result.WARNING, "no reader"),
    (log.judged_subscriptions([lagging(0.0, 2)]), Result.WARNING, "2 parked"),
    (upkeep.judged_tables([table(9, 0), table(20_000, 90_000)], "s"), Result.OK, ""),
    (upkeep.judged_tables([table(20_000, 5)], "s"), Result.WARNING, "20000 dead rows of 20005"),
    (upkeep.judged_tables([table(0, 5, 900)], "s"), Result.WARNING, "900 MiB"),
    (upkeep.judged_transactions(3.0, 7), Result.OK, ""),
    (upkeep.judged_transactions(7200.0, 7), Result.WARNING, "7 has a transaction open for 2 h"),
    (upkeep.judged_leases(0, 0.0), Result.OK, ""),
    (upkeep.judged_leases(3, 900.0), Result.WARNING, "3 ran out"),
    (upkeep.judged_health_checks(0, None), Result.OK, "ever checked"),
    (upkeep.judged_health_checks(4, 60.0), Result.OK, "60.0 s ago"),
    (upkeep.judged_health_checks(4, 7200.0), Result.WARNING, "2 h ago"),
]


def test_each_finding_has_its_result_and_advice() -> None:
    """What is not well comes with what to do, and names what was found."""
    for diagnosis, result, words in JUDGED:
        assert diagnosis.result is result, diagnosis
        assert words in diagnosis.finding, diagnosis
        assert (diagnosis.advice is None) == (result is Result.OK), diagnosis


@pytest.mark.parametrize(
    ("stages", "result"),
    [
        ([], Result.OK),
        ([("began", 60.0), ("departed", 60.0)], Result.OK),
        ([("began", 4000.0)], Result.WARNING),
        ([("began", 4000.0), ("departed", 400.0)], Result.PROBLEM),
    ],
)
def test_a_pool_that_stands_between_two_ledgers_is_named(
    stages: list[tuple[str, float]], result: Result
) -> None:
    """With what to run: nobody can lease from it."""
    rows = [
        {"pool_name": f"p {number}", "ledger": "west", "stage": stage, "age_s": age}
        for number, (stage, age) in enumerate(stages)
    ]
    found = upkeep.judged_moves(rows)
    assert found.result is result
    if result is not Result.OK:
        for row in rows:
            assert repr(row["pool_name"]) in found.finding
            assert f"pharox fleet move '{row['pool_name']}' --to west" in str(found.advice)


def test_a_move_that_is_cut_off_is_found(pharox: Pharox, storage: PostgresStorage) -> None:
    """A reader's statement reads it from the ledger, and the metric has its age."""
    fill(storage, 1)
    move = storage.carry_out_move(BeginMove("pool", "west", uuid4()))
    assert diagnoses(pharox("doctor", "-o", "json"))["moves"]["finding"] == "1 under way"
    storage.carry_out_move(DepartPool(move))
    with storage.engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE pharox.pool_moves SET changed_at = changed_at - interval '1 hour'"
        )
    found = diagnoses(pharox("doctor", "-o", "json"))["moves"]
    assert found["result"] == "problem"
    assert "pool 'pool' left for the ledger 'west' 60 min ago" in found["finding"]
    collected = FleetCollector(storage, FleetCounter(storage)).collect()
    ages = {
        sample.labels["stage"]: sample.value
        for metric in collected
        for sample in metric.samples
        if sample.name == "pharox_fleet_oldest_move_seconds"
    }
    assert ages["began"] == 0
    assert 3600 <= ages["departed"] < 7200

"""Nobody changes the log, its owner included."""

from __future__ import annotations

import psycopg
import pytest

from pharox.storage.postgres import PostgresStorage
from tests.conftest import fill, run_sql, types_of

CHANGES = (
    "UPDATE pharox.events SET type = 'Forged'",
    "UPDATE pharox.events SET type = 'Forged' WHERE false",
    "DELETE FROM pharox.events",
    "TRUNCATE pharox.events",
    "TRUNCATE pharox.events CASCADE",
)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("role", ["origin", "replica"])
def test_the_log_refuses_every_change(postgres: PostgresStorage, change: str, role: str) -> None:
    """UPDATE, DELETE and TRUNCATE are refused for the owner, as a replica's session too."""
    fill(postgres, 2)
    before = types_of(postgres)
    with postgres.engine.connect() as connection:
        connection.exec_driver_sql(f"SET session_replication_role = {role}")
        with pytest.raises(Exception, match="append-only") as refused:
            connection.exec_driver_sql(change)
        connection.exec_driver_sql("RESET session_replication_role")
    assert isinstance(refused.value.__cause__, psycopg.errors.RestrictViolation)
    assert types_of(postgres) == before


def test_the_guard_fires_always(postgres: PostgresStorage) -> None:
    """The trigger is enabled ALWAYS, on the table itself."""
    rows = run_sql(
        postgres.engine,
        "SELECT tgenabled::text FROM pg_trigger WHERE tgrelid = 'pharox.events'::regclass",
    )
    assert rows == [("A",)]

"""``pharox db grant``; what the rights are worth is in ``tests/database/test_privileges.py``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pharox.storage.postgres import PostgresStorage
from tests.conftest import run_sql
from tests.database.sealing import connected, new_role

from .conftest import Pharox


@pytest.fixture
def role(database_url: str) -> Iterator[str]:
    """A role that may do nothing yet."""
    with connected(database_url) as server, new_role(server) as role:
        yield role


def may_read(storage: PostgresStorage, role: str) -> bool:
    """Return whether a role can read the log."""
    query = f"SELECT has_table_privilege('{role}', 'pharox.events', 'SELECT')"
    return run_sql(storage.engine, query) == [(True,)]


class TestGrant:
    def test_it_prints_what_can_be_run(
        self, pharox: Pharox, storage: PostgresStorage, role: str, database_url: str
    ) -> None:
        """Without ``--apply`` nothing changes; what is printed grants when somebody runs it."""
        outcome = pharox("db", "grant", "--reader", role)
        assert (outcome.status, outcome.err) == (0, "")
        assert not may_read(storage, role)
        with connected(database_url) as server:
            server.execute(outcome.out.encode())
        assert may_read(storage, role)

    def test_it_applies(self, pharox: Pharox, storage: PostgresStorage, role: str) -> None:
        """With ``--apply`` it runs, and says who may do what now; a second time as well."""
        for _ in range(2):
            outcome = pharox("db", "grant", "--app", role, "--apply")
            assert outcome.status == 0
            assert outcome.out.startswith(f"{role} may lease")
            assert may_read(storage, role)

    @pytest.mark.parametrize(
        ("arguments", "status", "why"),
        [
            ((), 2, "give at least one role"),
            (("--app", "nobody here"), 1, 'CREATE ROLE "nobody here" LOGIN'),
            (("--app", ""), 2, "cannot be empty"),
            (("--app", "\x1b[2J"), 1, "\\+00001B"),
            (("--app", "a", "--reader", "a"), 2, "named twice"),
        ],
    )
    def test_what_makes_no_sense_is_one_sentence(
        self, pharox: Pharox, arguments: tuple[str, ...], status: int, why: str
    ) -> None:
        """Nobody, a role that is not there, and one that is to be two things."""
        outcome = pharox("db", "grant", *arguments)
        assert (outcome.status, outcome.out) == (status, "")
        assert why in outcome.err
        assert outcome.err.count("\n") == 1
        assert outcome.err.rstrip("\n").isprintable()

"""Reading a page of the log costs the same however long it is: counted, not timed."""

from __future__ import annotations

import pytest

from pharox.storage.postgres import PostgresStorage
from pharox.storage.postgres.history import page_statement, positions_statement
from tests.conftest import pages_read, run_sql

MORE = """
INSERT INTO pharox.events (recorded_at, schema_version, type, pool_id)
SELECT now(), 1, 'AcquireMissed', gen_random_uuid() FROM generate_series(1, {})
"""


@pytest.mark.parametrize("analyzed", [False, True])
def test_a_page_is_read_from_seal_to_event(postgres: PostgresStorage, analyzed: bool) -> None:
    """Also while the planner knows nothing of the tables, as after a busy hour."""

    def cost() -> int:
        last = postgres.seal()
        if analyzed:
            run_sql(postgres.engine, "ANALYZE pharox.events, pharox.seals")
        span = {"after": last - 500, "upto": last}
        with postgres.session() as session:
            (positions,) = session.rows(positions_statement(postgres.schema), **span)
        statement = page_statement(postgres.schema, frozenset(span))
        return pages_read(postgres, statement, {**span, **positions, "limit": 100})

    run_sql(postgres.engine, MORE.format(1_000))
    few = cost()
    run_sql(postgres.engine, MORE.format(50_000))
    assert cost() < 1.5 * few

"""Memory, PostgreSQL and the fold of the log have the same tokens."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import projections
from pharox import ApiRight, ApiToken, InMemoryStorage
from pharox.storage.postgres import PostgresStorage

TOKENS = st.builds(
    ApiToken.draw,
    st.sampled_from(["crawler", "Ünïcode", "a"]),
    st.sets(st.sampled_from(ApiRight), min_size=1),
    pools=st.sets(st.sampled_from(["residential", "mobile", "ü|'ö\""])),
    expires_at=st.one_of(
        st.none(), st.datetimes(datetime(2026, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC))
    ),
).map(lambda drawn: drawn[0])
WITHDRAWN = st.integers(0, 5)
"""Which of the tokens so far is withdrawn, if there are as many."""


def test_memory_postgres_and_the_fold_have_the_same_tokens(postgres: PostgresStorage) -> None:
    """Whatever is issued and withdrawn, in whatever order."""

    @given(st.lists(st.one_of(TOKENS, WITHDRAWN), min_size=1, max_size=12))
    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    def agree(steps: list[ApiToken | int]) -> None:
        memory, issued = InMemoryStorage(), list[ApiToken]()
        for token in postgres.list_api_tokens():
            assert postgres.withdraw_api_token(token.id)
        for step in steps:
            if isinstance(step, ApiToken):
                issued.append(step)
                memory.add_api_token(step)
                postgres.add_api_token(step)
            elif step < len(issued):
                known = issued[step].id
                assert memory.withdraw_api_token(known) is postgres.withdraw_api_token(str(known))
            assert facts(memory.list_api_tokens()) == facts(postgres.list_api_tokens())
        assert memory.verify() == []

    agree()
    assert postgres.verify() == []
    assert postgres.live_states() == projections.fold(postgres.events(), projections.ALL)


def facts(tokens: list[ApiToken]) -> list[dict[str, Any]]:
    """Return what was stored, in an order without the moments, which are each storage's own."""
    kept = (token.model_dump(exclude={"issued_at"}) for token in tokens)
    return sorted(kept, key=lambda token: (token["consumer"], str(token["id"])))

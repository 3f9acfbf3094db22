"""Memory, PostgreSQL and the fold of the log have the same rules for targets."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import projections
from pharox import InMemoryStorage, TargetRules
from pharox.models import rules_for
from pharox.storage.postgres import PostgresStorage
from tests.conftest import AnyStorage

TARGETS = st.sampled_from(
    ["a.example", "*.a.example", "b.a.example", "*.b.a.example", "münchen.example"]
)
STATUSES = st.lists(st.integers(100, 599), min_size=1, max_size=3, unique=True)
RULES = st.one_of(
    st.none(),
    st.builds(lambda statuses: {"blocked_statuses": tuple(statuses)}, STATUSES),
    st.builds(lambda statuses: {"ok_statuses": tuple(statuses)}, STATUSES),
    st.builds(
        lambda statuses, pattern: {
            "target_failed_statuses": tuple(statuses),
            "blocked_if_body": pattern,
        },
        STATUSES,
        st.sampled_from(["captcha", 'a "quoted" \\w{1,5}', "ü|'ö'"]),
    ),
)
STEPS = st.lists(st.tuples(TARGETS, RULES), min_size=1, max_size=15)


def do(storage: AnyStorage, target: str, rules: dict[str, Any] | None) -> bool:
    """Set the rules of a target, or unset them. Return whether that is a change."""
    if rules is None:
        return storage.unset_target_rules(target)
    return storage.set_target_rules(TargetRules(target=target, **rules))


def known(storage: AnyStorage) -> list[TargetRules]:
    return [each.rules for each in storage.list_target_rules()]


def test_memory_postgres_and_the_fold_have_the_same_rules(postgres: PostgresStorage) -> None:
    """Whatever is set and unset, in whatever order: a call tells whether it is a change."""

    @given(STEPS)
    @settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
    def agree(steps: list[tuple[str, dict[str, Any] | None]]) -> None:
        memory = InMemoryStorage()
        for each in known(postgres):
            postgres.unset_target_rules(each.target)
        for target, rules in steps:
            before = known(memory)
            changes = do(memory, target, rules)
            assert changes is do(postgres, target, rules)
            assert known(memory) == known(postgres)
            assert changes is (known(memory) != before)
        assert memory.verify() == []

    agree()
    assert postgres.verify() == []
    folded = projections.fold(postgres.events(), projections.ALL)
    assert postgres.live_states() == folded


@given(
    st.sets(TARGETS), st.sampled_from(["a.example", "x.a.example", "x.b.a.example", "b.a.example"])
)
def test_the_nearest_rules_are_those_of_the_longest_name(targets: set[str], asked: str) -> None:
    """An exact host comes before all; of those with * the longest holds."""
    rules = {each: TargetRules(target=each, ok_statuses=(404,)) for each in targets}
    below = [each for each in targets if each.startswith("*.") and asked.endswith(each[1:])]
    expected = asked if asked in targets else max(below, key=len, default=None)
    found = rules_for(rules, asked)
    assert (found and found.target) == expected

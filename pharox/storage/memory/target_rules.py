"""Say what answers of a target mean, for the whole fleet, and list what was said."""

from __future__ import annotations

from typing import Any

from projections import TargetRulesRow

from ...events import TargetRulesSet
from ...models import MAX_RULES, KnownTargetRules, TargetRules
from ..validation import too_many_rules
from .state import State


def set_rules(state: State, rules: TargetRules) -> bool:
    """Set the rules of a target. Return whether it had others."""
    known = state.rows["target_rules"]
    if (rules.target,) not in known and len(known) >= MAX_RULES:
        raise too_many_rules(rules.target)
    return _record(state, rules.target, rules.facts)


def unset_rules(state: State, target: str) -> bool:
    """Unset the rules of a target. Return whether it had some."""
    return _record(state, target, None)


def list_rules(state: State) -> list[KnownTargetRules]:
    """Return all rules, by target."""
    rows: list[TargetRulesRow] = sorted(
        state.rows["target_rules"].values(), key=lambda row: row.target
    )
    return [
        KnownTargetRules(rules=TargetRules(target=row.target, **row.rules), set_at=row.set_at)
        for row in rows
    ]


def _record(state: State, target: str, rules: dict[str, Any] | None) -> bool:
    known: TargetRulesRow | None = state.rows["target_rules"].get((target,))
    if (known and known.rules) == rules:
        return False
    state.append(TargetRulesSet, target=target, rules=rules)
    return True

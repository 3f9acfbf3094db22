"""Say what answers of a target mean, for the whole fleet, and list what was said."""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from projections.target_rules import target_rules

from ...models import MAX_RULES, KnownTargetRules, TargetRules
from ...models.ids import NIL
from ..validation import too_many_rules
from .appending import append, event_row, json_object, origin
from .driver import Program
from .reporting import in_utc
from .sql import ONE, Query, by_schema, parameter

_known = target_rules.c
_TARGET = parameter("target")
_RULES = parameter("rules", JSONB)


def set_rules(schema: str, rules: TargetRules) -> Program[bool]:
    """Set the rules of a target. Return whether it had others."""
    (is_changed,) = yield from _recorded(schema, rules.target, json.dumps(rules.facts))
    if is_changed is None:
        raise too_many_rules(rules.target)
    return bool(is_changed)


def unset_rules(schema: str, target: str) -> Program[bool]:
    """Unset the rules of a target. Return whether it had some."""
    (is_changed,) = yield from _recorded(schema, target, None)
    return bool(is_changed)


def list_rules(schema: str) -> Program[list[KnownTargetRules]]:
    """Return all rules, by target."""
    rows = yield Query(_list_statement(schema), {})
    return [
        KnownTargetRules(
            rules=TargetRules(target=row["target"], **row["rules"]), set_at=in_utc(row["set_at"])
        )
        for row in rows
    ]


def _recorded(schema: str, target: str, rules: str | None) -> Program[tuple[bool | None]]:
    values = {**origin(), "target": target, "rules": rules}
    rows = yield Query(_set_statement(schema), values)
    return (rows[0]["is_changed"],)


@by_schema
def _set_statement() -> sa.Select[Any]:
    """Append that a target has rules, or none; null if that would be too many."""
    # Who sets rules of the same target waits here, and sees them as they are then.
    known = sa.select(target_rules).where(_known.target == _TARGET).with_for_update().cte("known")
    one = sa.select(ONE.label("one")).subquery("one")
    is_known = known.c.target.is_not(None)
    number = sa.select(sa.func.count()).select_from(target_rules).scalar_subquery()
    is_full = sa.and_(
        ~sa.exists().where(_known.target == _TARGET), _RULES.is_not(None), number >= MAX_RULES
    )
    data = sa.func.jsonb_strip_nulls(json_object(target=_TARGET, rules=_RULES), type_=JSONB)
    row = event_row("TargetRulesSet", pool_id=sa.literal(NIL, sa.Uuid), data=data)
    appended = append(
        sa.select(row)
        .select_from(one.outerjoin(known, sa.true()))
        .where(
            ~is_full,
            sa.or_(is_known, _RULES.is_not(None)),
            known.c.rules.is_distinct_from(_RULES),
        )
    )
    is_changed = sa.select(sa.func.count() > 0).select_from(appended).scalar_subquery()
    return sa.select(sa.case((is_full, sa.null()), else_=is_changed).label("is_changed"))


@by_schema
def _list_statement() -> sa.Select[Any]:
    return sa.select(target_rules).order_by(_known.target)

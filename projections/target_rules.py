"""target_rules: what answers of a target mean, for the whole fleet, where somebody said it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import (
    Column,
    DateTime,
    PrimaryKeyConstraint,
    Table,
    Text,
    delete,
    select,
)
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.sql.dml import UpdateBase

from pharox.events import EventBase, TargetRulesSet

from .base import Events, Fold, Projection, fact, metadata, of_type


@dataclass(slots=True)
class TargetRulesRow:
    """The rules of one target, as its last event has them."""

    target: str
    rules: dict[str, Any]
    set_at: datetime


target_rules = Table(
    "target_rules",
    metadata,
    Column("target", Text(collation="C"), nullable=False),
    Column("rules", JSONB, nullable=False),
    Column("set_at", DateTime(timezone=True), nullable=False),
    PrimaryKeyConstraint("target"),
)

_TYPE = frozenset({"TargetRulesSet"})


class TargetRules(Projection):
    """Keeps the last rules of each target, and deletes those that were unset."""

    name = "target_rules"
    table = target_rules
    row: ClassVar[type] = TargetRulesRow
    key = ("target",)

    def apply(self, state: dict[Any, TargetRulesRow], event: EventBase) -> None:
        if not isinstance(event, TargetRulesSet):
            return
        if event.rules is None:
            state.pop((event.target,), None)
        else:
            row = TargetRulesRow(event.target, event.rules, event.recorded_at)
            state[(event.target,)] = row

    def folds(self) -> tuple[Fold, ...]:
        return Fold(_TYPE, _keep), Fold(_TYPE, _unset)


def _keep(events: Events) -> UpdateBase:
    """Keep the rules of the targets whose last event here has some."""
    target, rules = fact(events, "target", Text), fact(events, "rules", JSONB)
    latest = select(target, rules, events.c.recorded_at).where(
        events.is_latest(of_type(events, *_TYPE), target), rules.is_not(None)
    )
    upsert = insert(target_rules).from_select(["target", "rules", "set_at"], latest)
    return upsert.on_conflict_do_update(
        constraint=target_rules.primary_key,
        set_={"rules": upsert.excluded.rules, "set_at": upsert.excluded.set_at},
    )


def _unset(events: Events) -> UpdateBase:
    """Delete the targets whose last event here has no rules."""
    target, rules = fact(events, "target", Text), fact(events, "rules", JSONB)
    latest = select(target).where(
        events.is_latest(of_type(events, *_TYPE), target), rules.is_(None)
    )
    return delete(target_rules).where(target_rules.c.target.in_(latest))


TARGET_RULES = TargetRules()

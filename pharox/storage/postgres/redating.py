"""Re-date leases: the clock went back since they were granted (``sql/0003/redating.sql``)."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from functools import lru_cache

from ...events.attribution import current_attribution
from .driver import Program
from .sql import Query, Statement, call_of

LOOK_S = 1.0
"""How often a process looks in a pool at most, where acquisitions miss or wait."""

_PARAMETERS = {
    "own_slot": "smallint",
    "actor": "text",
    "correlation_id": "text",
    "pool_names": "text[]",
}


class Looks:
    """When a process may look again, by pool: as often as acquisitions miss costs too much."""

    def __init__(self) -> None:
        self._looks_at: dict[str, float] = {}

    def due(self, pool_names: Iterable[str]) -> list[str]:
        """Return those of some pools in which it is time to look, which is then done."""
        now = time.monotonic()
        due = [name for name in set(pool_names) if self._looks_at.get(name, now) <= now]
        self._looks_at.update(dict.fromkeys(due, now + LOOK_S))
        return due


def redate_leases(schema: str, pool_names: Sequence[str] | None = None) -> Program[None]:
    """Re-date the leases of some pools, by default of all, that were granted in the future."""
    actor, correlation_id = current_attribution()
    values = {
        "actor": actor,
        "correlation_id": correlation_id,
        "pool_names": None if pool_names is None else list(pool_names),
    }
    found = True
    while found:  # At most 500 in one commit.
        ((found,),) = yield Query(_redate_statement(schema), values)


@lru_cache(maxsize=8)
def _redate_statement(schema: str) -> Statement:
    statement = call_of(schema, "redate_leases_v1", _PARAMETERS)
    return statement._replace(columns=("redated",), writes=True, is_bare=True)

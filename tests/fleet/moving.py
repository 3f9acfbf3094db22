"""Ledgers to move a pool between, and what is the same of it before and after."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from uuid import UUID, uuid4

from pharox import InMemoryStorage
from pharox.storage.moving import CARRIED
from projections.carrying import recorded_row
from tests.conftest import AnyStorage, Clusters, ledger, new_database

MADE_UP = frozenset({"credential_id", "rotate_id", "secret_id", "consumer_id", "lease_id"})
"""Columns that each storage makes up for itself."""


class Here(NamedTuple):
    """A ledger that a pool leaves or comes to."""

    name: str
    storage: AnyStorage


@contextmanager
def ends(kinds: str, clusters: Clusters, server: str) -> Iterator[tuple[Here, Here]]:
    """Yield two ledgers, such as "memory postgres", named a and b."""
    first, second = kinds.split()
    with _storage(first, clusters, server) as one, _storage(second, clusters, server) as other:
        yield Here("a", one), Here("b", other)


@contextmanager
def _storage(kind: str, clusters: Clusters, server: str) -> Iterator[AnyStorage]:
    if kind == "memory":
        yield InMemoryStorage()
        return
    url, template = clusters.get(server)
    with (
        new_database(url, f"pharox_{uuid4().hex[:12]}", template) as own,
        ledger(own) as storage,
    ):
        yield storage


def state_of(storage: AnyStorage, pool_id: UUID) -> dict[str, list[dict[str, Any]]]:
    """Return what a pool takes along, field by field, but for what storages make up."""
    models = storage._state.rows if isinstance(storage, InMemoryStorage) else storage.live_states()
    state: dict[str, list[dict[str, Any]]] = {}
    for projection in CARRIED:
        own = "id" if projection.name == "pools" else "pool_id"
        rows = [
            recorded_row(row)
            for row in models[projection.name].values()
            if getattr(row, own) == pool_id
        ]
        made_up = {*MADE_UP, "id"} if projection.name == "sources" else MADE_UP
        kept = [{name: row[name] for name in row if name not in made_up} for row in rows]
        state[projection.name] = sorted(kept, key=str)
    return state

"""Compare read models with the fold of the log, row by row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from pharox.events import EventBase

from .base import Projection, ProjectionRow

State = dict[Any, ProjectionRow]


class Drift(NamedTuple):
    """A row in which a read model and the fold of the log differ; None where there is no row."""

    projection: str
    key: Any
    live: ProjectionRow | None
    folded: ProjectionRow | None


def fold(events: Iterable[EventBase], projections: Iterable[Projection]) -> dict[str, State]:
    """Fold events, in order, into fresh states by the projections' Python meaning."""
    states: dict[str, State] = {projection.name: {} for projection in projections}
    projections = tuple(projections)
    for event in events:
        for projection in projections:
            projection.apply(states[projection.name], event)
    return states


def standing(states: Mapping[str, State], projections: Iterable[Projection]) -> dict[str, State]:
    """Return how all stood: the states without the rows of what had ended."""
    return {
        projection.name: {
            key: row for key, row in states[projection.name].items() if projection.stands(row)
        }
        for projection in projections
    }


def drifts(live: Mapping[str, State], folded: Mapping[str, State]) -> Iterator[Drift]:
    """Yield every row in which the live read models differ from the folded ones."""
    for name in sorted(live.keys() | folded.keys()):
        ours, theirs = live.get(name, {}), folded.get(name, {})
        for key in sorted(ours.keys() | theirs.keys(), key=str):
            if ours.get(key) != theirs.get(key):
                yield Drift(name, key, ours.get(key), theirs.get(key))

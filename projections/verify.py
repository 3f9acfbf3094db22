"""Compare the live read models with the log, row by row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

from pharox.events import EventBase

from .base import Projection, ProjectionRow

State = dict[Any, ProjectionRow]


class Finding(NamedTuple):
    """A difference that verification found.

    ``check`` names the read model or the part of the log that was verified.
    ``key`` identifies the row in it. ``found`` and ``expected`` are the
    row's values by name, or None where there is, or should be, no row.
    """

    check: str
    key: dict[str, Any]
    found: dict[str, Any] | None
    expected: dict[str, Any] | None

    def __str__(self) -> str:
        where = f"{self.check} {' '.join(f'{name}={value}' for name, value in self.key.items())}"
        if self.found is None:
            return f"{where}: missing"
        if self.expected is None:
            return f"{where}: should not exist"
        differing = (
            f"{name} is {self.found.get(name)!r}, should be {value!r}"
            for name, value in self.expected.items()
            if self.found.get(name) != value
        )
        return f"{where}: {'; '.join(differing)}"


def fold(events: Iterable[EventBase], projections: Iterable[Projection]) -> dict[str, State]:
    """Fold events, in order, into empty states with :meth:`Projection.apply`."""
    states: dict[str, State] = {projection.name: {} for projection in projections}
    projections = tuple(projections)
    for event in events:
        for part in event.parts():
            for projection in projections:
                projection.apply(states[projection.name], part)
    return states


def current(states: Mapping[str, State], projections: Iterable[Projection]) -> dict[str, State]:
    """Return the states without rows that are not current, such as ended leases."""
    return {
        projection.name: {
            key: row for key, row in states[projection.name].items() if projection.is_current(row)
        }
        for projection in projections
    }


def differences(
    live: Mapping[str, State], folded: Mapping[str, State], projections: Iterable[Projection]
) -> Iterator[Finding]:
    """Yield a finding for each row in which the live and the folded read models differ."""
    for projection in projections:
        ours, theirs = live[projection.name], folded[projection.name]
        for key in sorted(ours.keys() | theirs.keys(), key=str):
            found, expected = ours.get(key), theirs.get(key)
            if found != expected:
                yield Finding(
                    projection.name,
                    dict(zip(projection.key, key, strict=True)),
                    found and asdict(found),
                    expected and asdict(expected),
                )

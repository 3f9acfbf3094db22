"""Old events in today's shape.

A fact is never rewritten: the log keeps an event in the shape that it had when
it was recorded, and ``schema_version`` says which one that is. Whoever reads
sees today's shape. So when an event's class changes in a way that its recorded
facts do not fit, the class gets the next number, and a small function here
makes of the facts of the version before what they would be now. Each step
knows its own two versions only; an old event takes one after another.

A version that is newer than this program is refused: leaving out what it does
not know would be a lie about the past.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..errors import EventVersionError

EventData = dict[str, Any]
"""An event as it is recorded: its columns and its data, by name."""

Step = Callable[[EventData], EventData]


class Upcaster:
    """Brings recorded facts, step by step, to the versions that the classes have now.

    Parameters
    ----------
    current:
        The version of each type of event now.
    """

    def __init__(self, current: Mapping[str, int]) -> None:
        self._current = current
        self._steps: dict[tuple[str, int], Step] = {}

    def step(self, type_: str, version: int) -> Callable[[Step], Step]:
        """Register the decorated function for facts of this version.

        It receives them as they were recorded and returns those of the next
        version; ``schema_version`` is taken care of.
        """

        def register(step: Step) -> Step:
            if (type_, version) in self._steps:
                raise ValueError(f"version {version} of {type_} has a step already")
            self._steps[type_, version] = step
            return step

        return register

    def upcast(self, data: EventData) -> EventData:
        """Return the facts in today's shape; if they have it, as they are.

        Raises
        ------
        EventVersionError
            If the type or the version is none that this program knows.
        """
        current = self._current.get(data["type"])
        if data["schema_version"] == current:
            return data
        if current is None or data["schema_version"] > current:
            raise _error(data, "newer than this pharox: upgrade pharox")
        for version in range(data["schema_version"], current):
            step = self._steps.get((data["type"], version))
            if step is None:
                raise _error(data, f"and there is no way to read version {version}")
            data = {**step(data), "schema_version": version + 1}
        return data


def _error(data: EventData, why: str) -> EventVersionError:
    position, type_, version = data.get("position"), data["type"], data["schema_version"]
    return EventVersionError(
        f"the event at position {position} is a {type_} of version {version}, {why}",
        position=position,
        type=type_,
        schema_version=version,
    )

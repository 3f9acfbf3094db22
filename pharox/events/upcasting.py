"""Convert recorded events to the current version of their type.

The log is never rewritten: it keeps an event in the version in which it was
recorded, which ``schema_version`` states. Readers see the current version. If an
event class changes so that recorded data no longer fits, increment its version and
add a function here that converts the data of the previous version. Each step
knows only its own two versions; an old event passes through several steps.

A version newer than this program is rejected: dropping unknown fields would
misrepresent the past.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..errors import EventVersionError

EventData = dict[str, Any]
"""An event as it is recorded: its columns and its data, by name."""

Step = Callable[[EventData], EventData]


class Upcaster:
    """Converts recorded events, step by step, to the current version of their class.

    Parameters
    ----------
    current:
        The current version of each event type.
    """

    def __init__(self, current: Mapping[str, int]) -> None:
        self._current = current
        self._steps: dict[tuple[str, int], Step] = {}

    def step(self, type_: str, version: int) -> Callable[[Step], Step]:
        """Register the decorated function as the step from this version.

        It receives the data of this version and returns the data of the next one.
        The caller sets ``schema_version``.
        """

        def register(step: Step) -> Step:
            if (type_, version) in self._steps:
                raise ValueError(f"version {version} of {type_} already has a step")
            self._steps[type_, version] = step
            return step

        return register

    def upcast(self, data: EventData) -> EventData:
        """Return the data in the current version, unchanged if it already has it.

        Raises
        ------
        EventVersionError
            If this program does not know the type or the version.
        """
        current = self._current.get(data["type"])
        if data["schema_version"] == current:
            return data
        if current is None or data["schema_version"] > current:
            raise _error(data, "newer than this pharox: upgrade pharox")
        for version in range(data["schema_version"], current):
            step = self._steps.get((data["type"], version))
            if step is None:
                raise _error(data, f"and no step reads version {version}")
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

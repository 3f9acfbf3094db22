"""Describe the part of the log that a reader asks for."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Any, NamedTuple, cast
from uuid import UUID

from pharox.errors import InvalidInputError
from pharox.events import Event, recorded_types
from pharox.models import check_aware, check_text, check_whole

BIGGEST = 2**63 - 1


class Extract(NamedTuple):
    """The events that meet all given conditions.

    ``after`` and ``upto`` are seqs, the first exclusive. ``since`` and
    ``until`` are times of recording, the second exclusive.

    HealthChecked includes ProxiesChecked, which keeps many checks in one event. If one proxy
    is asked for, only its check is returned of such an event, as a HealthChecked.
    """

    after: int = 0
    upto: int = BIGGEST
    types: Collection[str] | None = None
    pool_id: UUID | None = None
    proxy_id: UUID | None = None
    lease_id: UUID | None = None
    consumer: str | None = None
    target: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    @property
    def is_narrow(self) -> bool:
        """Whether an index finds these events without a scan of the log."""
        return (self.proxy_id, self.lease_id, self.consumer) != (None, None, None)

    def check(self) -> None:
        """Raise :class:`InvalidInputError` if a condition is invalid for every log."""
        check_whole(self.after, "after")
        check_whole(self.upto, "upto")
        if isinstance(self.types, str):
            raise InvalidInputError("types must be a collection, not a text", value=self.types)
        named = (text for text in (self.consumer, self.target) if text is not None)
        for text in (*(self.types or ()), *named):
            check_text(text)
        for moment in (self.since, self.until):
            if moment is not None:
                check_aware(moment)
        for uuid in (self.pool_id, self.proxy_id, self.lease_id):
            if uuid is not None and not isinstance(uuid, UUID):
                raise InvalidInputError(f"{uuid!r} is not a UUID", value=uuid)

    def given(self) -> dict[str, Any]:
        """Return the given conditions by name."""
        self.check()
        values = {name: value for name, value in self._asdict().items() if value is not None}
        if self.types is not None:
            values["types"] = sorted(recorded_types(self.types))
        for name in ("after", "upto"):
            values[name] = min(max(values[name], 0), BIGGEST)
        return values

    def part(self, event: Event) -> Event:
        """Return the part of a matching event that the reader asked for."""
        if self.proxy_id is None:
            return event
        return cast("Event", event.part_of(self.proxy_id) or event)

    def holds(self, event: Event) -> bool:
        """Return whether an event, or one of its parts, matches."""
        return (
            self.after < event.seq <= self.upto
            and (self.types is None or event.type in recorded_types(self.types))
            and (self.pool_id is None or event.pool_id == self.pool_id)
            and (self.proxy_id is None or event.part_of(self.proxy_id) is not None)
            and (self.lease_id is None or event.lease_id == self.lease_id)
            and (self.consumer is None or event.consumer == self.consumer)
            and (self.target is None or getattr(event, "target", None) == self.target)
            and (self.since is None or event.recorded_at >= self.since)
            and (self.until is None or event.recorded_at < self.until)
        )

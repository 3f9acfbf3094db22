"""Which part of the log a reader means."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from pharox.errors import InvalidInputError
from pharox.events import EventBase
from pharox.models import check_aware, check_text, check_whole

BIGGEST = 2**63 - 1


class Extract(NamedTuple):
    """Those events that fit all that is given.

    ``after`` and ``upto`` are seqs, the first exclusive; ``since`` and
    ``until`` moments of recording, the second exclusive.
    """

    after: int = 0
    upto: int = BIGGEST
    types: Collection[str] | None = None
    pool_id: UUID | None = None
    proxy_id: UUID | None = None
    lease_id: UUID | None = None
    consumer: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    @property
    def is_narrow(self) -> bool:
        """Whether an index leads to it, wherever in the log it is."""
        return (self.proxy_id, self.lease_id, self.consumer) != (None, None, None)

    def check(self) -> None:
        """Raise :class:`InvalidInputError` if a part is none that any log could have."""
        check_whole(self.after, "after")
        check_whole(self.upto, "upto")
        if isinstance(self.types, str):
            raise InvalidInputError("types must be several", value=self.types)
        for text in (*(self.types or ()), *([] if self.consumer is None else [self.consumer])):
            check_text(text)
        for moment in (self.since, self.until):
            if moment is not None:
                check_aware(moment)
        for uuid in (self.pool_id, self.proxy_id, self.lease_id):
            if uuid is not None and not isinstance(uuid, UUID):
                raise InvalidInputError(f"{uuid!r} is no UUID", value=uuid)

    def given(self) -> dict[str, Any]:
        """Return the values of the parts that are given, by name."""
        self.check()
        values = {name: value for name, value in self._asdict().items() if value is not None}
        if self.types is not None:
            values["types"] = sorted(self.types)
        for name in ("after", "upto"):
            values[name] = min(max(values[name], 0), BIGGEST)
        return values

    def holds(self, event: EventBase) -> bool:
        """Tell whether an event belongs to it."""
        return (
            self.after < event.seq <= self.upto
            and (self.types is None or event.type in self.types)  # type: ignore[attr-defined]
            and (self.pool_id is None or event.pool_id == self.pool_id)
            and (self.proxy_id is None or event.proxy_id == self.proxy_id)
            and (self.lease_id is None or event.lease_id == self.lease_id)
            and (self.consumer is None or event.consumer == self.consumer)
            and (self.since is None or event.recorded_at >= self.since)
            and (self.until is None or event.recorded_at < self.until)
        )

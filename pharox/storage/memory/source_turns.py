"""Who refreshes which source now, and what is remembered of its last answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from ..sources import Validators


@dataclass(slots=True)
class SourceTurn:
    """The turn of one source, as the table ``source_turns`` has it."""

    holder: UUID | None = None
    held_until: datetime | None = None
    checked_at: datetime | None = None
    succeeded_at: datetime | None = None
    failures: int = 0
    secret_id: UUID | None = None
    validators: Validators = field(default_factory=Validators)
    owned: int | None = None

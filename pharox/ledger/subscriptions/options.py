"""The options of a subscription: what is read, from where, by which handler, with what retries."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal, get_args
from uuid import UUID

from tenacity import wait_exponential
from tenacity.wait import wait_base

from pharox.effects import is_async
from pharox.errors import InvalidInputError
from pharox.events import Event
from pharox.models import check_name, check_pause, check_whole
from pharox.storage.validation import id_from_text

from .delivery import Delivery

Start = Literal["beginning", "now"] | int
"""Where to begin: at the first event, after the last one, or at a seq.

The seq may be at most that of the next event to come.
"""

_TYPES = frozenset(event.model_fields["type"].default for event in get_args(get_args(Event)[0]))


Handler = Callable[[Delivery], Any] | Callable[[list[Delivery]], Any]


@dataclass(frozen=True)
class SubscriptionOptions:
    """The options that a reader needs. :class:`Subscription` explains each."""

    name: str
    handler: Handler
    _: KW_ONLY
    start: Start = "beginning"
    types: Collection[str] | None = None
    pool: str | UUID | None = None
    proxy_id: UUID | None = None
    key: Callable[[Event], str] | None = None
    batch_size: int = 500
    whole_batches: bool = False
    in_transaction: bool = False
    attempts: int | None = 5
    pause: wait_base = field(default_factory=lambda: wait_exponential(multiplier=0.1, max=30))
    poll_s: float = 0.005
    temporary: bool = False

    def __post_init__(self) -> None:
        check_name(self.name, "subscription")
        check_start(self.start)
        for name in ("batch_size", "attempts"):
            count = getattr(self, name)
            if count is None and name == "attempts":
                continue
            if check_whole(count, name) < 1:
                raise InvalidInputError(f"{name} must be at least 1")
        check_pause(self.poll_s, "poll_s")
        if unknown := sorted(set(self.types or ()) - _TYPES):
            raise InvalidInputError(f"there is no event type {unknown[0]!r}", types=unknown)
        if self.proxy_id is not None and id_from_text(self.proxy_id) is None:
            raise InvalidInputError(f"{self.proxy_id!r} is not a proxy id", value=self.proxy_id)

    @property
    def is_async(self) -> bool:
        """Whether the handler is a coroutine function."""
        return is_async(self.handler)


def check_start(start: Start) -> None:
    """Raise InvalidInputError unless this is a valid place in the log."""
    if isinstance(start, int) and not isinstance(start, bool) and 1 <= start < 2**63:
        return
    if start not in ("beginning", "now"):
        raise InvalidInputError(f"{start!r} is not a start; give 'beginning', 'now' or a seq")

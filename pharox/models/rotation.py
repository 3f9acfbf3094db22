"""Rotations: a mobile proxy takes another exit when its provider's link is called.

The link stays the same, and so does the proxy's address; what changes is the address that targets
see. The link is a secret: whoever has it can cut every connection through the proxy. So it is
encrypted beside the credentials, and never in an event, a log line or an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal
from uuid import UUID

from pydantic import ConfigDict, Field, SecretStr

from .limits import _Number
from .refusing import Refusing

MAX_ROTATION_S = 3600
"""The longest time that a proxy rests for a rotation, in seconds."""

ROTATE_WITHIN_S = 60.0
"""How long a proxy rests for another exit at most, unless its pool says."""

RotationCause = Literal["release", "blocked", "asked"]
"""Why a proxy is to take another exit: a lease ended, a target refused it, or somebody asked."""

_Bound = Annotated[float, _Number, Field(gt=0, le=MAX_ROTATION_S, allow_inf_nan=False)]
_Pause = Annotated[float, _Number, Field(ge=0, le=86_400, allow_inf_nan=False)]


class RotationPolicy(Refusing):
    """When the proxies of a pool that have a ``rotate_url`` take another exit.

    Parameters
    ----------
    on:
        With "release" whenever the last lease of a proxy ends. With "blocked" when a lease ends and
        a target has refused the exit since it was taken.
    within_seconds:
        How long the proxy rests for it at most. Then it is leased again, with the exit it has.
    every_seconds:
        How much time passes at least between two exits of one proxy. A rotation that would have to
        wait for longer than ``within_seconds`` does not begin.
    settle_seconds:
        How long the proxy rests after the link has answered: some do before the modem is back.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    on: Literal["release", "blocked"]
    within_seconds: _Bound = ROTATE_WITHIN_S
    every_seconds: _Pause = 0.0
    settle_seconds: Annotated[
        float, _Number, Field(ge=0, le=MAX_ROTATION_S, allow_inf_nan=False)
    ] = 0.0


class RotationFailure(StrEnum):
    """Why a link did not give another exit."""

    REFUSED = "refused"
    """It answered another status than 2xx: 429, if it was called too soon."""
    TIMEOUT = "timeout"
    UNREACHABLE = "unreachable"
    UNREADABLE = "unreadable"
    """The link cannot be decrypted, or is no URL that can be called."""
    HELD = "held"
    """Leases held the proxy until the bound. The link was not called."""


@dataclass(frozen=True, slots=True)
class RotationAnswer:
    """What came of calling a link.

    ``exit_ip`` is the new address, if the answer says it. ``retry_after_seconds`` is how long the
    link asked to be left alone.
    """

    failure: RotationFailure | None = None
    status: int | None = None
    exit_ip: str | None = None
    retry_after_seconds: float | None = None

    @property
    def is_rotated(self) -> bool:
        """Whether the proxy has another exit, as far as its provider says."""
        return self.failure is None


@dataclass(frozen=True, slots=True)
class DueRotation:
    """A link that this process alone is to call now, until ``claimed_until``.

    ``url`` is None if it cannot be decrypted.
    """

    pool_id: UUID
    proxy_id: UUID
    url: SecretStr | None
    claimed_until: datetime


@dataclass(frozen=True, slots=True)
class RotationClaims:
    """The rotations that a process claimed, and in how many seconds the next may be due.

    ``next_in_seconds`` is None if no other is under way among those that were asked for.
    ``rotated_at`` is when one of the proxies that were asked for last took another exit, and
    ``failed`` what came of the last call of a link of theirs, if that was its last word.
    ``unreadable`` are proxies whose links are due, and that this process cannot decrypt: they are
    left to others.
    """

    due: tuple[DueRotation, ...] = ()
    next_in_seconds: float | None = None
    rotated_at: datetime | None = None
    unreadable: tuple[UUID, ...] = ()
    failed: RotationAnswer | None = None

"""What is known of proxies at targets, as it is listed."""

from __future__ import annotations

from uuid import UUID

from pydantic import ConfigDict

from .model import Model
from .outcome import OutcomeKind
from .validation import UtcDatetime


class TargetOutcomes(Model):
    """What a proxy has come to at a target.

    ``address`` is the proxy's URL without credentials, None if the proxy was removed.
    ``successes`` and ``failures`` have a half-life of an hour, and are as of ``reported_at``.
    ``streak`` counts successes in a row, or refusals and unclear outcomes as a negative number.
    ``cool_downs`` is how
    often the pair has rested since its last success. ``outcome`` and ``status`` are of the last
    report; None if there was none. ``remaining_seconds`` is how long the pair still rests, by the
    storage's clock, None if it does not rest.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    pool_id: UUID
    pool_name: str
    proxy_id: UUID
    address: str | None
    target: str
    successes: float
    failures: float
    streak: int
    cool_downs: int
    cools_until: UtcDatetime | None
    outcome: OutcomeKind | None
    status: int | None
    reported_at: UtcDatetime | None
    remaining_seconds: float | None

    @property
    def success_share(self) -> float | None:
        """The part of requests that succeeded lately, from 0 to 1; None if there were none."""
        return success_share_of(self.successes, self.failures)


class TargetSummary(Model):
    """What the proxies of a pool have come to at a target.

    ``pairs`` is how many proxies are known there, and ``cooling`` how many of them rest.
    ``successes`` and ``failures`` have a half-life of an hour, and are as of now. ``blocked``
    and ``unclear`` are how many of the proxies had this outcome last; ``refused_at`` is the newest
    report of those that are blocked. ``free_at`` is when the first of those that rest comes back.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    pool_id: UUID
    pool_name: str
    target: str
    pairs: int
    cooling: int
    blocked: int
    unclear: int
    successes: float
    failures: float
    refused_at: UtcDatetime | None
    free_at: UtcDatetime | None

    @property
    def success_share(self) -> float | None:
        """The part of requests that succeeded lately, from 0 to 1; None if there were none."""
        return success_share_of(self.successes, self.failures)


_NOTHING = 0.001
"""Fewer requests than that are so long ago that they say nothing."""


def success_share_of(successes: float, failures: float) -> float | None:
    """Return the part of requests that succeeded, from 0 to 1; None if there were next to none."""
    asked = successes + failures
    return successes / asked if asked >= _NOTHING else None

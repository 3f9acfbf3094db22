"""Reports of what targets said, and their outcomes in a storage."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from ..errors import InvalidInputError
from ..models import Lease, Outcome, check_pause, check_remark, target_of
from .requests import check_lease

REPORTS_AT_ONCE = 500
"""How many reports one commit has. More would keep those who report the same targets waiting."""


@dataclass(frozen=True, slots=True)
class ReportRequest:
    """A report of what became of requests under a lease, which is found by its id.

    It may have ended. If the outcome has no target, it is of the target that the lease is for.

    Raises
    ------
    InvalidInputError
        If it is not a lease, or not an outcome.
    """

    lease: Lease
    outcome: Outcome

    def __post_init__(self) -> None:
        check_lease(self.lease)
        if not isinstance(self.outcome, Outcome):
            raise no_outcome(self.outcome)

    @property
    def target(self) -> str | None:
        """The target of the outcome, or else of the lease."""
        return self.outcome.target or self.lease.target

    @property
    def pair(self) -> Hashable:
        """The proxy and the target."""
        return (self.lease.proxy_id, self.target)


@dataclass(frozen=True, slots=True)
class Reported:
    """A report as it was recorded.

    ``cools_until`` is until when proxy and target rest, None if they do not. ``streak`` counts
    successes in a row, or refusals as a negative number.
    """

    target: str | None
    cools_until: datetime | None = None
    streak: int = 0


@dataclass(frozen=True, slots=True)
class CoolDownRequest:
    """A request of a person to have a proxy rest for one target, or to end that.

    ``seconds`` is for how long from now; None ends the rest, and records nothing where there is
    none.

    Raises
    ------
    InvalidInputError
        If the target has no host, or the time or the reason is invalid.
    """

    proxy_id: UUID
    target: str
    seconds: float | None
    reason: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.proxy_id, UUID):
            raise InvalidInputError("proxy_id must be a UUID", value=self.proxy_id)
        object.__setattr__(self, "target", target_of(self.target))
        if self.seconds is not None and not check_pause(self.seconds, "seconds"):
            raise InvalidInputError(
                "seconds must be greater than zero; None ends the rest", value=self.seconds
            )
        if self.reason is not None:
            check_remark(self.reason, "reason")


def report_rounds(requests: Sequence[ReportRequest]) -> list[list[int]]:
    """Return the indexes of reports in rounds of one commit, each with one of each pair.

    The target of a lease may be known to the storage only: then there is one of the proxy.
    """
    rounds: list[list[int]] = []
    places: dict[Hashable, int] = {}
    unclear = {each.lease.proxy_id for each in requests if each.target is None}
    for index, request in enumerate(requests):
        proxy_id = request.lease.proxy_id
        key = proxy_id if proxy_id in unclear else request.pair
        place = places.get(key, 0)
        while place < len(rounds) and len(rounds[place]) >= REPORTS_AT_ONCE:
            place += 1
        if place == len(rounds):
            rounds.append([])
        rounds[place].append(index)
        places[key] = place + 1
    return rounds


def no_outcome(value: object) -> InvalidInputError:
    """Return the error for what is no outcome."""
    return InvalidInputError(
        f"an Outcome is needed, such as Outcome.blocked(), not a {_type(value)}", value=value
    )


def _type(value: object) -> str:
    return type(value).__name__

"""Revoke a lease."""

from __future__ import annotations

from typing import Any

from ...errors import InvalidInputError, LeaseEndedError, PharoxError
from ...incident.wording import full_moment
from ...models import LeaseStatus
from ...storage.requests import RevokeRequest
from ..access import Action
from .shapes import Deed, Subject, Values


def _find(storage: Any, name: str) -> Subject:
    lease = storage.get_lease(name)
    if lease is None:
        raise InvalidInputError(f"there is no lease {name!r}, or it ended long ago", value=name)
    if lease.status is not LeaseStatus.ACTIVE:
        raise LeaseEndedError(
            f"this lease has ended already: it is {lease.status.value}", lease_id=lease.id
        )
    return Subject(
        str(lease.id),
        [f"{lease.consumer_name} has it, until {full_moment(lease.expires_at)}."],
        page="lease",
        parameters={"lease": lease.id},
    )


def _revoke(storage: Any, name: str, _: Values, reason: str) -> str:
    (end,) = storage.revoke_leases(RevokeRequest((name,), reason))  # type: ignore[arg-type]
    if isinstance(end, PharoxError):
        raise end
    return "The lease has ended, and its proxy may be leased to somebody else."


DEEDS = (
    Deed(
        Action.REVOKE,
        "Revoke a lease",
        "Then its holder loses it: whoever keeps it alive is told at once, other programs when "
        "they use pharox next. What goes through the proxy is not cut.",
        _find,
        _revoke,
    ),
)

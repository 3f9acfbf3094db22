"""Where to look next: what an answer of a ledger says about a pool that it does not hold.

This is the only place that knows such answers. A ledger that lacks the pool answers a request for
a lease with the reason ``unknown_pool``, other commands with :class:`pharox.PoolNotFoundError`.
One that a pool has left answers ``pool_moved`` and :class:`pharox.PoolMovedError`.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

from ..errors import PoolMovedError, PoolNotFoundError
from ..models import MissReason, MoveStage, PoolMissed


class Look(Enum):
    """Where to look for a pool, if it is not in the ledger that was asked."""

    IN_THE_DIRECTORY = "in_the_directory"
    """The place that this process knew may be old: read it anew."""

    WHERE_IT_WENT = "where_it_went"
    """It has moved. If the directory does not say so yet, the ledger that it left says where to."""


_NOT_HERE = {
    MissReason.POOL_MOVED: Look.WHERE_IT_WENT,
    MissReason.UNKNOWN_POOL: Look.IN_THE_DIRECTORY,
}
"""Why a ledger grants nothing that the pool's own ledger may grant. One that is only about to move
is nowhere else."""


def elsewhere(answer: Any) -> Look | str | None:
    """Return where a pool is to be looked for after an answer, or None if the answer stands.

    Parameters
    ----------
    answer:
        What a ledger answered: an outcome of an acquisition, a pool that it missed in, an
        exception, or anything else.

    Returns
    -------
    Look, str or None
        The name of a ledger if the answer says it.
    """
    if isinstance(answer, PoolMovedError):
        return answer.ledger if answer.stage is MoveStage.MOVED else None
    if isinstance(answer, PoolNotFoundError):
        return Look.IN_THE_DIRECTORY
    reasons: set[MissReason | None]
    if isinstance(answer, PoolMissed):
        reasons = {answer.reason}
    else:
        missed_in = getattr(answer, "missed_in", ())
        reasons = {getattr(answer, "miss_reason", None), *(each.reason for each in missed_in)}
    return next((look for reason, look in _NOT_HERE.items() if reason in reasons), None)

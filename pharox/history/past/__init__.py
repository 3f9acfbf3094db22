"""A pool at a moment of the past, quickly enough to drag a slider over it.

A replay (:mod:`pharox.history.replay`) folds everything that is known of all pools. Here only what
is asked most is wanted: which proxies there were, in which state, and who held them. Events carry
the state of their proxy before and after, so a stretch of the log is one step, forward or back:

    forward    the last state after, for each proxy; leases that began and did not end
    back       the first state before, for each proxy; leases that ended and did not begin

:class:`.keyframes.Keyframes` begins at whatever is nearest: a moment that was asked for before, a
stored state of the ledger, or the present. So the cost is that of one stretch of the log, read once
in SQL, and of the rows that differ; it does not grow with the history before it.

The console's slider, ``why``, the incident report and the audit's statistics all read the past
here. A storage without SQL answers from its states, which is what the statements mean.
"""

from __future__ import annotations

from typing import Any

from .plain import PlainPast
from .shapes import Past


def past_of(log: Any) -> Past:
    """Return what reads the past of pools in a log: a storage, or an archive."""
    try:
        from ...storage.postgres import PostgresStorage  # noqa: PLC0415 - it comes with an extra
    except ImportError:
        return PlainPast(log)
    if isinstance(log, PostgresStorage):
        from .postgres import PostgresPast  # noqa: PLC0415

        return PostgresPast(log)
    return PlainPast(log)

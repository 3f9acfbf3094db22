"""Acquire in a commit of one's own: what looks for itself, and never runs in a batch.

That is a request with a predicate, which may be slow; one for a sticky session, which waits for the
turn of its key; and one with a fallback, which decides in several pools.
"""

from __future__ import annotations

from typing import cast

from ..requests import AcquireRequest, AcquireSetRequest, Acquisition, SetAcquisition
from . import predicate_search
from .batch import Acquire, Queued, command_of, has_predicate
from .commands import Commands
from .driver import Program


def acquire(
    commands: Commands,
    request: AcquireRequest | AcquireSetRequest,
    *,
    command: Acquire | None = None,
    waits: bool = False,
) -> Program[Acquisition | SetAcquisition | Queued]:
    """Lease a proxy or a set of them, or record a miss.

    The parameters are those of :func:`.predicate_search.acquire`. A request of the
    other kinds that waits is returned with its ticket.
    """
    if has_predicate(request):
        return predicate_search.acquire(commands, request, command=command, waits=waits)
    return commands.finish_acquisition(command or cast("Acquire", command_of(request)))

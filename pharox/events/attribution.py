"""Attribute events to an actor and a job.

Set it once around a job, so that no call has to pass it on:

    with pharox.attributed(actor="nightly-crawl", correlation_id="run-8812"):
        lease = manager.acquire_proxy("residential")

Without it the actor is this process, as ``host:pid``.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

from ..models import check_text

_HOST = socket.gethostname()


class Attribution(NamedTuple):
    """The actor and the job of an event."""

    actor: str
    correlation_id: str | None


_current: ContextVar[tuple[str | None, str | None]] = ContextVar(
    "pharox_attribution", default=(None, None)
)


def current_attribution() -> Attribution:
    """Return what the events of this context are attributed to."""
    actor, correlation_id = _current.get()
    return Attribution(actor or f"{_HOST}:{os.getpid()}", correlation_id)


@contextmanager
def attributed(*, actor: str | None = None, correlation_id: str | None = None) -> Iterator[None]:
    """Attribute the events of a ``with`` block. Omitted arguments keep their outer values.

    Parameters
    ----------
    actor:
        A person, service or job: any text.
    correlation_id:
        An id that the events of one job share.

    Raises
    ------
    InvalidInputError
        If a text cannot be stored.
    """
    outer_actor, outer_id = _current.get()
    for text in (actor, correlation_id):
        if text is not None:
            check_text(text)
    token = _current.set((actor or outer_actor, correlation_id or outer_id))
    try:
        yield
    finally:
        _current.reset(token)


@contextmanager
def attributed_to(attribution: tuple[str, str | None]) -> Iterator[None]:
    """Attribute the events of a ``with`` block as those of another context were."""
    token = _current.set(attribution)
    try:
        yield
    finally:
        _current.reset(token)

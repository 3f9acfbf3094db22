"""Decide who may see the console, and who may do what.

:class:`Access` says what one request may. An ``authorize`` function returns it for each request,
and each handler asks it: a page :attr:`Access.may_read`, an action :meth:`Access.may`. There is no
other place that decides.

Not known here: how somebody proves who they are. That is for ``authorize``, which may read a token,
a certificate, a session, or the header of a reverse proxy.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from ..models.text import is_loopback

if TYPE_CHECKING:
    from starlette.requests import Request


class Action(StrEnum):
    """The kinds of actions, each of which can be allowed by itself."""

    BAN = "ban"
    UNBAN = "unban"
    DRAIN = "drain"
    REVOKE = "revoke"
    RETRY_PARKED = "retry_parked"
    SWEEP = "sweep"
    REBUILD = "rebuild"
    CHANGE_POOL = "change_pool"


@dataclass(frozen=True, slots=True)
class Access:
    """What one request may see and do.

    Parameters
    ----------
    may_read:
        Whether it may see pages.
    actions:
        What it may do. Without reading it can do nothing.
    actor:
        Who it is, as its actions are recorded in the log; None if nobody knows.
    """

    may_read: bool = False
    actions: frozenset[Action] = field(default_factory=frozenset)
    actor: str | None = None

    @classmethod
    def none(cls) -> Access:
        """Return the access of somebody who may see nothing."""
        return cls()

    @classmethod
    def read(cls, actor: str | None = None) -> Access:
        """Return the access of somebody who may look and not touch."""
        return cls(may_read=True, actor=actor)

    @classmethod
    def act(cls, *actions: Action, actor: str | None = None) -> Access:
        """Return the access of somebody who may do these, or everything if none is named."""
        return cls(may_read=True, actions=frozenset(actions or Action), actor=actor)

    def may(self, action: Action) -> bool:
        """Return whether an action is allowed."""
        return self.may_read and action in self.actions


Authorize = Callable[["Request"], Access | Awaitable[Access]]
"""Returns what a request may see and do."""

_FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip", "via")


def from_loopback(request: Request) -> Access:
    """Let whoever asks from this machine read, and nobody else.

    A request that a proxy has passed on comes from this machine only in appearance, and one for
    another host's name may come from a page of that host in somebody's browser: both are refused.
    """
    client: Any = request.client
    is_forwarded = any(name in request.headers for name in _FORWARDED)
    if is_forwarded or not is_loopback(request.url.hostname):
        return Access.none()
    # A server on a Unix socket names no client.
    if client is None or is_loopback(client.host):
        return Access.read()
    return Access.none()

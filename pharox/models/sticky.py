"""Sticky sessions: keep one proxy for one account, and what is known of such a session."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, get_args
from uuid import UUID

from pydantic import ConfigDict

from ..errors import InvalidInputError
from .gateway import GatewayExit
from .model import Model
from .validation import UtcDatetime, check_duration, check_name

StickyPolicy = Literal["prefer", "require"]
"""What happens while the session's proxy cannot be had: "prefer" lends another, "require" none."""


@dataclass(frozen=True, slots=True)
class Sticky:
    """Ask for the same proxy each time, under a key of the caller's.

    The first lease under a key binds it to its proxy, in its pool. While the binding lives, leases
    under the key are of that proxy.

    Parameters
    ----------
    key:
        What the proxy is kept for, such as an account: 1 to 500 characters, not a secret. The log
        keeps it.
    seconds:
        How long a binding lives.
    policy:
        What happens while the proxy is leased, rests or cools down. With "prefer" another is lent,
        and the binding stays. With "require" it is waited for, or the request misses
        (``session_busy``).
    sliding:
        Whether each lease of the proxy has the binding live ``seconds`` from then.
    shared:
        Whether a new binding may be to a proxy that other keys share. A binding that is not
        shared has its proxy alone: among bindings for the same target if both have one, else in
        the pool.

    Raises
    ------
    InvalidInputError
        If a value is invalid.
    """

    key: str
    seconds: float = 1800
    policy: StickyPolicy = "prefer"
    sliding: bool = False
    shared: bool = False

    def __post_init__(self) -> None:
        check_name(self.key, "session")
        try:
            check_duration(self.seconds)
        except ValueError as error:
            raise InvalidInputError(f"a session's seconds: {error}", value=self.seconds) from None
        if self.policy not in get_args(StickyPolicy):
            raise InvalidInputError('policy must be "prefer" or "require"', value=self.policy)
        for name in ("sliding", "shared"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidInputError(f"{name} must be True or False")

    @property
    def lasts(self) -> timedelta:
        """How long a binding lives.

        :meta private:
        """
        return timedelta(seconds=self.seconds)


class StickySession(Model):
    """A living binding of a key to a proxy of a pool.

    ``address`` is the proxy's URL without credentials, None if the proxy was removed: the next
    lease replaces it. ``target`` is what the binding was made for, if it was for one.
    ``remaining_seconds`` is how long the binding lives on, by the storage's clock. ``exit`` is the
    exit of a gateway that the key keeps, if the proxy is a template.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    pool_id: UUID
    pool_name: str
    key: str
    proxy_id: UUID
    address: str | None
    target: str | None
    shared: bool
    bound_at: UtcDatetime
    expires_at: UtcDatetime
    remaining_seconds: float
    exit: GatewayExit | None = None

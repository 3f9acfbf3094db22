"""Models of leases, consumers and retries."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID, uuid4

from pydantic import Field

from ..errors import InvalidInputError, ProxyNotFoundError
from .gateway import GatewayExit
from .model import Model
from .proxy import LeasedProxy
from .validation import Name, UtcDatetime, utc_now


class LeaseStatus(StrEnum):
    """Whether a lease is held, released, expired or revoked."""

    ACTIVE = "active"
    RELEASED = "released"
    EXPIRED = "expired"
    REVOKED = "revoked"


class MissReason(StrEnum):
    """Why an acquisition granted nothing.

    TOO_FEW: a set was requested and only some were free. RESTING: a proxy that fits has room, but
    rests after its last lease. COOLING_DOWN: a proxy that fits is free, but rests for the target.
    TARGET_TROUBLED: the target itself fails, so only one lease at a time is granted to try it.
    SESSION_BUSY: the proxy that a sticky session requires is leased, rests or cools down, or is not
    healthy. ALL_BOUND: what is free and fits is bound to other sticky sessions. LIMIT_REACHED: a
    limit of the pool leaves no room; the outcome says which, and when there is some. ROTATING: a
    proxy that fits has room, but rests until it has another exit. POOL_MOVED: the pool has moved to
    another ledger, which ``storage.list_pool_moves`` names. POOL_MOVING: it is about to, and is
    there, or here again, in a moment.
    """

    UNKNOWN_POOL = "unknown_pool"
    EMPTY_POOL = "empty_pool"
    NO_MATCH = "no_match"
    NONE_HEALTHY = "none_healthy"
    AT_CAPACITY = "at_capacity"
    TOO_FEW = "too_few"
    RESTING = "resting"
    COOLING_DOWN = "cooling_down"
    TARGET_TROUBLED = "target_troubled"
    SESSION_BUSY = "session_busy"
    ALL_BOUND = "all_bound"
    LIMIT_REACHED = "limit_reached"
    ROTATING = "rotating"
    POOL_MOVING = "pool_moving"
    POOL_MOVED = "pool_moved"

    @property
    def may_pass(self) -> bool:
        """Whether the same request may be granted later, with the pool's proxies as they are."""
        never = (self.UNKNOWN_POOL, self.EMPTY_POOL, self.NO_MATCH, self.POOL_MOVED)
        return self not in never


class Countdown:
    """Until when a holder can count on its lease, by this process's monotonic clock.

    It starts before the lease is requested, so it ends before the lease does, whatever the
    clocks of this machine and of the storage say.
    """

    __slots__ = ("is_kept", "lost_because", "until")

    def __init__(self, until: float) -> None:
        self.until = until
        self.is_kept = False
        self.lost_because: str | None = None


_COUNTDOWN = "_countdown"
_PROXY = "_proxy"


class Lease(Model):
    """The right of one consumer to use one proxy until ``expires_at``.

    ``renewed_at`` is when it was last renewed, None if it never was. ``fencing_token`` is
    the log position of the event that granted the lease. Of two leases on one proxy the
    later one has the greater token. ``revoke_reason`` says why it was revoked, if it was.
    ``target`` is the host that it was asked for, if that was said. ``exit`` is the exit that it
    asks a gateway for, if the proxy is a template.
    """

    id: UUID = Field(default_factory=uuid4)
    proxy_id: UUID
    consumer_id: UUID
    pool_id: UUID | None = None
    pool_name: str | None = None
    consumer_name: str | None = None
    status: LeaseStatus = LeaseStatus.ACTIVE
    acquired_at: UtcDatetime = Field(default_factory=utc_now)
    expires_at: UtcDatetime
    released_at: UtcDatetime | None = None
    fencing_token: int | None = None
    renewed_at: UtcDatetime | None = None
    revoke_reason: str | None = None
    target: str | None = None
    exit: GatewayExit | None = None

    @property
    def proxy(self) -> LeasedProxy:
        """The proxy, with its credentials: ``lease.proxy.url`` is what an HTTP library takes.

        It comes with the acquisition, and is in no dump, repr or comparison.

        Raises
        ------
        ProxyNotFoundError
            If the lease was read from the ledger, which returns no proxy with it.
        """
        known: LeasedProxy | None = self.__dict__.get(_PROXY)
        if known is None:
            raise ProxyNotFoundError(
                f"The proxy of lease {self.id} is known where it was acquired; elsewhere, get it "
                "with storage.get_proxy(str(lease.proxy_id)).",
                proxy_id=self.proxy_id,
            )
        return known

    @property
    def rotates(self) -> bool:
        """Whether its proxy may take another exit after it, as its pool says.

        :meta private:
        """
        known: LeasedProxy | None = self.__dict__.get(_PROXY)
        return known is not None and known.rotates

    def carry(self, proxy: LeasedProxy | None) -> Lease:
        """Add the proxy to the lease of an acquisition, and return the lease.

        :meta private:
        """
        if proxy is not None:
            # It is not a field: see count_down.
            self.__dict__[_PROXY] = proxy
        return self

    def take_exit(self, gateway_exit: GatewayExit) -> None:
        """Note that the lease has another exit, so that its proxy's URL is for that one.

        :meta private:
        """
        self.exit = gateway_exit
        known: LeasedProxy | None = self.__dict__.get(_PROXY)
        if known is not None:
            self.__dict__[_PROXY] = known.with_exit(gateway_exit)

    @property
    def is_lost(self) -> bool:
        """Whether its holder can no longer count on it: it has run out, or was taken back.

        Only a lease that a manager of this process acquired is known to be lost, and only
        one that is kept alive is known to have been taken back early. One that was
        released is not lost.
        """
        countdown = self.countdown
        if countdown is None:
            return False
        if countdown.lost_because is not None or self.status is LeaseStatus.REVOKED:
            return True
        return self.status is not LeaseStatus.RELEASED and time.monotonic() >= countdown.until

    @property
    def countdown(self) -> Countdown | None:
        """Until when the process that acquired the lease can count on it.

        :meta private:
        """
        known: Countdown | None = self.__dict__.get(_COUNTDOWN)
        return known

    def count_down(self, until: float) -> Countdown:
        """Set the monotonic time until which the holder can count on the lease.

        :meta private:
        """
        countdown = self.countdown
        if countdown is None:
            # It is not a field: a lease is equal to the one that the storage returns.
            countdown = self.__dict__[_COUNTDOWN] = Countdown(until)
        countdown.until = until
        return countdown

    @property
    def duration_ms(self) -> int | None:
        """Milliseconds from acquisition to its end; None while the lease is held."""
        if self.released_at is None:
            return None
        return max(0, int((self.released_at - self.acquired_at).total_seconds() * 1000))


class HeldLease(Lease):
    """An active lease in a list, with its proxy's address and the time that it has left.

    ``address`` is the proxy's URL without credentials. ``remaining_seconds`` is until it runs out,
    by the storage's clock. It is negative if the lease has run out and was not taken back yet.
    ``session`` is the key of the sticky session that it was asked for, if that was said.
    """

    address: str
    remaining_seconds: float
    session: str | None = None


class Consumer(Model, extra="forbid"):
    """A worker, job or tenant that leases proxies."""

    id: UUID = Field(default_factory=uuid4)
    name: Name


@dataclass
class RetryConfig:
    """How often to try to acquire a proxy, and how many seconds to wait between attempts."""

    max_attempts: int = 3
    backoff_seconds: float = 0.5
    backoff_multiplier: float = 2.0
    max_backoff_seconds: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.max_attempts, bool) or not isinstance(self.max_attempts, int):
            raise InvalidInputError("max_attempts must be a whole number.")
        for name in ("backoff_seconds", "backoff_multiplier", "max_backoff_seconds"):
            value = getattr(self, name)
            is_missing = value is None and name == "max_backoff_seconds"
            if isinstance(value, bool) or not (is_missing or isinstance(value, int | float)):
                raise InvalidInputError(f"{name} must be a number.")
        if self.max_attempts < 1:
            raise InvalidInputError("max_attempts must be at least 1.")
        if not 0 <= self.backoff_seconds <= sys.float_info.max:  # also rejects NaN
            raise InvalidInputError("backoff_seconds must be non-negative.")
        if not 1 <= self.backoff_multiplier <= sys.float_info.max:
            raise InvalidInputError("backoff_multiplier must be at least 1.")
        if self.max_backoff_seconds is not None and not (
            0 < self.max_backoff_seconds <= sys.float_info.max
        ):
            raise InvalidInputError("max_backoff_seconds must be positive when provided.")

    def delays(self) -> Iterator[float]:
        """Yield the pause after each attempt but the last, in seconds."""
        delay, cap = self.backoff_seconds, self.max_backoff_seconds
        for _ in range(self.max_attempts - 1):
            yield delay if cap is None else min(delay, cap)
            delay = min(delay * self.backoff_multiplier, 1e9)

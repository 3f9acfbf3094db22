"""What becomes of each request through one exit: decided here, without a socket or a clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from types import MappingProxyType
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """How one proxy of a lab behaves.

    Parameters
    ----------
    protocol:
        What it speaks.
    user, password:
        What it requires; nothing if both are empty.
    blocks_after:
        After so many answers sites refuse it. Never if None.
    status:
        What they refuse it with.
    blocks_for_s:
        How long they refuse it, in seconds; then it begins anew. For ever if None.
    retry_after_s:
        The ``Retry-After`` of refusals, in whole seconds.
    dies_after:
        After so many answers it breaks off in the middle of each. Never if None.
    delay_s:
        How long each answer takes to begin, in seconds.
    stall_s:
        How long it then pauses in the middle of its body, in seconds.
    is_down:
        Whether nobody listens on its port.
    """

    protocol: Literal["http", "socks5"] = "http"
    user: str = ""
    password: str = ""
    blocks_after: int | None = None
    status: int = 403
    blocks_for_s: float | None = None
    retry_after_s: int | None = None
    dies_after: int | None = None
    delay_s: float = 0.0
    stall_s: float = 0.0
    is_down: bool = False


class Verdict(Enum):
    """What becomes of a request."""

    ANSWERED = auto()
    REFUSED = auto()
    BROKEN_OFF = auto()


class Script:
    """The requests through one exit so far, and what becomes of the next."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self._answers = self._answers_in_all = 0
        self._refused_until: float | None = None

    def decide(self, now: float) -> Verdict:
        """Count a request at a time in seconds, and return what becomes of it."""
        dies_after, blocks_after = self.behaviour.dies_after, self.behaviour.blocks_after
        if self.refused_for_s(now) > 0:
            return Verdict.REFUSED
        if dies_after is not None and self._answers_in_all >= dies_after:
            return Verdict.BROKEN_OFF
        if blocks_after is not None and self._answers >= blocks_after:
            for_s = self.behaviour.blocks_for_s
            self._refused_until = float("inf") if for_s is None else now + for_s
            self._answers = 0
            return Verdict.REFUSED
        self._answers += 1
        self._answers_in_all += 1
        return Verdict.ANSWERED

    def refused_for_s(self, now: float) -> float:
        """Return for how many seconds the exit is refused from now on; 0 if it is not."""
        return 0.0 if self._refused_until is None else max(0.0, self._refused_until - now)


FIVE: Mapping[str, Behaviour] = MappingProxyType(
    {
        "good": Behaviour(),
        "password": Behaviour(user="alice", password="open sesame: p@ss/w%rd"),  # noqa: S106
        "refusing": Behaviour(blocks_after=0),
        "dying": Behaviour(dies_after=0),
        "socks": Behaviour(protocol="socks5"),
    }
)
"""One proxy of each kind: what a lab has unless it is told otherwise."""

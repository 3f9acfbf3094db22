"""What the fleet's rules say of targets, as a process knows them.

A process reads all rules of a ledger every 30 seconds at most: before it opens a client, before it
judges a response for the caller, and in the background, together with writing reports, while
clients make requests. So no request waits for them. A new rule holds within some 40 seconds in a
client that makes requests; one that was idle goes by the rules that it knew for its first
responses.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from ..effects import Calls
from ..errors import PharoxError
from ..models import Lease, Outcome, TargetRules, rules_for
from .per_storage import PerStorage

PERIOD_S = 30.0
"""How long the rules hold that were read."""

logger = logging.getLogger("pharox")

OutcomeOf = Callable[[Any, Lease], Outcome | None]
"""A function that says what a response through a lease means; None for the fleet's rules."""


class KnownRules:
    """The rules of one ledger, as this process last read them."""

    def __init__(self, _: Any) -> None:
        self.start_empty()

    def start_empty(self) -> None:
        """Know no rules."""
        self._rules: dict[str, TargetRules] = {}
        self._read_at = -PERIOD_S
        self._is_used = False

    @property
    def is_over(self) -> bool:
        """They belong to no event loop."""
        return False

    @property
    def is_due(self) -> bool:
        """Whether they were used since they were last read, which is too long ago."""
        return self._is_used and self._is_old()

    def of(self, target: str | None) -> TargetRules | None:
        """Return the rules for a target, or None."""
        self._is_used = True
        return rules_for(self._rules, target)

    def reading(self, storage: Any) -> Calls[None]:
        """Read the rules, if that is due. If they cannot be read, the known ones hold."""
        if not self._is_old():
            return
        before, self._read_at = self._read_at, time.monotonic()
        try:
            listed = yield storage.list_target_rules
        except PharoxError as error:
            logger.warning("pharox.rules.failed: the known rules for targets hold: %s", error)
        except BaseException:
            self._read_at = before
            raise
        else:
            self._rules = {known.rules.target: known.rules for known in listed}
            self._is_used = False

    def _is_old(self) -> bool:
        return time.monotonic() - self._read_at >= PERIOD_S


_rules: PerStorage[KnownRules] = PerStorage()


def rules_of(storage: Any) -> KnownRules:
    """Return what is known of a storage's rules."""
    return _rules.of(storage, KnownRules)


def known_rules(storage: Any) -> KnownRules | None:
    """Return what is known of a storage's rules, if anybody has asked for them."""
    return _rules.get(storage)

"""What the answers of one target mean, where the default rules say it wrongly.

A shop that answers "captcha" with 200, or a site whose 404 is a refusal: its rules say which
statuses are of which kind, and which words in a body are a refusal. They are of the whole fleet.

Rules of ``shop.example`` are of exactly this host; those of ``*.shop.example`` of all hosts below
it, at any depth, but not of ``shop.example`` itself. The nearest rules hold, and they alone.

A pattern is looked for in the first 64 KiB of a body, whatever its case. Python's regular
expressions have no time limit, so a pattern may not have ways to go back without a bound:
repetitions have a bound (``.{0,100}``, not ``.*``), and how often the parts of a pattern may be
tried again is limited as a whole.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any, Self

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from ..errors import InvalidInputError
from .model import Model
from .outcome import Outcome, OutcomeKind, target_of
from .refusing import Refusing
from .responses import status_of
from .validation import UtcDatetime, check_text

MOST_BODY_BYTES = 64 * 1024
"""How much of a body is looked at."""

MAX_PATTERN_LENGTH = 500
"""In characters."""

MAX_PATTERN_STEPS = 20_000
"""How much work a pattern may be at one place of a body: its ways times its length."""

MAX_RULES = 1000
"""How many targets may have rules: every process reads them all."""

_BELOW = "*."
_UNBOUNDED = {"ASSERT", "ASSERT_NOT", "ATOMIC_GROUP", "GROUPREF", "GROUPREF_EXISTS"}
"""Parts of a pattern whose cost is not told here."""


def rule_target_of(text: str) -> str:
    """Return the host that rules are of, in its normal form: ``shop.example``, ``*.shop.example``.

    Raises
    ------
    InvalidInputError
        If the text has no host.
    """
    stripped = check_text(text).strip()
    if stripped.startswith(_BELOW):
        return _BELOW + target_of(stripped.removeprefix(_BELOW))
    return target_of(stripped)


def check_pattern(text: str) -> str:
    """Return a regular expression if it can be searched for at a bounded cost.

    Raises
    ------
    InvalidInputError
        If it does not compile, matches an empty text, is too long or may take too long.
    """
    if not check_text(text) or len(text) > MAX_PATTERN_LENGTH:
        raise InvalidInputError(f"a pattern has 1 to {MAX_PATTERN_LENGTH} characters", value=text)
    pattern = _compiled(text)
    if pattern.search("") is not None:
        raise InvalidInputError("this pattern matches every body, also an empty one", value=text)
    return text


@lru_cache(maxsize=MAX_RULES)
def _compiled(text: str) -> re.Pattern[str]:
    try:
        parsed = re._parser.parse(text)  # type: ignore[attr-defined] # there is no public one
        steps = _ways(parsed) * max(1, parsed.getwidth()[1])
        if steps <= MAX_PATTERN_STEPS:
            return re.compile(text, re.IGNORECASE)
    except (re.error, RecursionError, OverflowError) as error:
        raise InvalidInputError(f"this is not a regular expression: {error}", value=text) from error
    raise InvalidInputError(
        "this pattern could take too long on some bodies: use shorter repetitions, or fewer",
        value=text,
    )


def _ways(parsed: Any) -> int:
    """Return in how many ways at most a part of a pattern can match at one place."""
    ways = 1
    for operation, argument in parsed:
        ways = min(ways * _ways_of(str(operation), argument), MAX_PATTERN_STEPS + 1)
    return ways


def _ways_of(operation: str, argument: Any) -> int:
    if operation in _UNBOUNDED:
        raise InvalidInputError(
            "a pattern cannot look ahead or behind, nor refer to one of its groups"
        )
    if operation == "BRANCH":
        return sum(map(_ways, argument[1]))
    if operation == "SUBPATTERN":
        return _ways(argument[-1])
    if operation not in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
        return 1
    fewest, most, repeated = argument
    if most > MAX_PATTERN_STEPS:
        raise InvalidInputError(
            "a repetition needs a bound, so that no body takes too long: .{0,100} in place of .*"
        )
    of_one, ways = _ways(repeated), 0
    for times in range(fewest, most + 1):
        ways += of_one**times
        if ways > MAX_PATTERN_STEPS:
            break
    return ways


def _check_statuses(statuses: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(set(statuses)))


Statuses = Annotated[
    tuple[Annotated[int, Field(ge=100, le=599)], ...], AfterValidator(_check_statuses)
]


class TargetRules(Refusing):
    """What answers of a target mean, in place of the default rules.

    Parameters
    ----------
    target:
        The host (a URL is reduced to it), or ``*.`` and a host for all hosts below that.
    ok_statuses, blocked_statuses, target_failed_statuses:
        HTTP statuses, from 100 to 599, that are OK, BLOCKED or TARGET_FAILED there.
    blocked_if_body:
        A regular expression. An answer with a match in the first 64 KiB of its body is BLOCKED,
        whatever its status. Upper and lower case are the same. A repetition needs a bound, such
        as ``.{0,100}``.

    Raises
    ------
    InvalidInputError
        If a value is invalid, a status is of two kinds, or there is no rule at all.

    Examples
    --------
    >>> from pharox import TargetRules
    >>> TargetRules(target="shop.example", blocked_if_body="captcha|unusual traffic").target
    'shop.example'
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: Annotated[str, AfterValidator(rule_target_of)]
    ok_statuses: Statuses = ()
    blocked_statuses: Statuses = ()
    target_failed_statuses: Statuses = ()
    blocked_if_body: Annotated[str, AfterValidator(check_pattern)] | None = None

    @model_validator(mode="after")
    def _is_one_rule_each(self) -> Self:
        statuses = [*self.ok_statuses, *self.blocked_statuses, *self.target_failed_statuses]
        if twice := {str(status) for status in statuses if statuses.count(status) > 1}:
            raise InvalidInputError(f"{', '.join(sorted(twice))}: a status is of one kind only")
        if not statuses and self.blocked_if_body is None:
            raise InvalidInputError("rules need a status or a pattern")
        return self

    @property
    def facts(self) -> dict[str, Any]:
        """The rules as their event has them, without the target and what is not set."""
        return self.model_dump(mode="json", exclude={"target"}, exclude_defaults=True)

    def kind_of_status(self, status: int) -> OutcomeKind | None:
        """Return which kind a status is there, None if no rule is about it."""
        if status in self.ok_statuses:
            return OutcomeKind.OK
        if status in self.blocked_statuses:
            return OutcomeKind.BLOCKED
        return OutcomeKind.TARGET_FAILED if status in self.target_failed_statuses else None

    def matches(self, body: bytes) -> bool:
        """Return whether the beginning of a body has the pattern, read as UTF-8."""
        if self.blocked_if_body is None:
            return False
        text = body[:MOST_BODY_BYTES].decode(errors="replace")
        return _compiled(self.blocked_if_body).search(text) is not None


class KnownTargetRules(Model):
    """Rules of a target as they are listed, and since when they hold."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rules: TargetRules
    set_at: UtcDatetime


def rules_for(known: Mapping[str, TargetRules], target: str | None) -> TargetRules | None:
    """Return the rules for a target: those of the host, else of the nearest one above it."""
    if target is None or not known:
        return None
    if target in known:
        return known[target]
    _, dot, above = target.partition(".")
    while dot:
        if (rules := known.get(_BELOW + above)) is not None:
            return rules
        _, dot, above = above.partition(".")
    return None


def outcome_by_rules(
    rules: TargetRules | None, response: Any, *, target: str | None = None, body: bytes | None
) -> Outcome:
    """Return what a response says by the rules of its target, else by the default rules.

    That the proxy itself answered, with 407, is no matter of a target.

    Parameters
    ----------
    rules:
        Those of the target, or None.
    response:
        As for :meth:`pharox.Outcome.from_response`.
    target:
        The host that was asked; the one of the response's URL if None.
    body:
        The beginning of its body, without content coding; None if nobody has it.
    """
    outcome = Outcome.from_response(response, target=target)
    if rules is None or outcome.kind is OutcomeKind.PROXY_FAILED:
        return outcome
    if body is not None and rules.matches(body):
        how = Outcome.from_response(response, target=target, kind=OutcomeKind.BLOCKED)
        return how.model_copy(update={"note": "its body is that of a refusal, by the rules"})
    kind = rules.kind_of_status(status_of(response))
    if kind is None or kind is outcome.kind:
        return outcome
    return Outcome.from_response(response, target=target, kind=kind)

"""What an action consists of: whom it is about, what it asks for, and what carries it out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import InvalidInputError
from ..access import Action
from ..jobs import Outcome, Progress

Values = Mapping[str, str]
"""What a form has sent, by the name of the field. A box that is not ticked is not there."""


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a form. ``kind`` is "text", "number", "box", "choice" or "hidden"."""

    name: str
    label: str
    kind: str = "text"
    value: str = ""
    hint: str = ""
    choices: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, slots=True)
class Subject:
    """Whom an action is about: its name, what holds now, and the page to go back to.

    ``page`` and ``parameters`` are of a route; None leads to the overview.
    """

    name: str
    facts: Sequence[str] = ()
    fields: Sequence[Field] = ()
    page: str | None = None
    parameters: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Deed:
    """An action that the console offers.

    Attributes
    ----------
    action:
        Which access it needs.
    title, consequence:
        What it is, and what follows from it, for the page that asks to confirm it.
    find:
        Returns the subject with a name of the path; raises a PharoxError if there is none.
    carry_out:
        Does it for a reason, and returns a sentence that says what was done.
    job:
        What follows in a thread, as it takes minutes: it says how far it is, and returns what came
        of it. None if there is no more to do.
    """

    action: Action
    title: str
    consequence: str
    find: Callable[[Any, str], Subject]
    carry_out: Callable[[Any, str, Values, str], str]
    job: Callable[[Any, str, Progress], Outcome] | None = None


def number_in(values: Values, name: str, label: str) -> float | None:
    """Return the number in a field, None if it is empty.

    Raises
    ------
    InvalidInputError
        If it is no number.
    """
    text = values.get(name, "").strip()
    if not text:
        return None
    try:
        return float(text)
    except ValueError:
        raise InvalidInputError(f"{label}: {text!r} is no number", value=text) from None


def whole_in(values: Values, name: str, label: str) -> int | None:
    """Return the whole number in a field, None if it is empty; raises InvalidInputError."""
    found = number_in(values, name, label)
    if found is None:
        return None
    if found != found // 1 or abs(found) > 10**9:  # also what is infinite, or not a number
        raise InvalidInputError(f"{label}: {values[name]!r} is no whole number", value=found)
    return int(found)

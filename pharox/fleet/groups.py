"""Sort what is given by ledgers, and put their answers back in order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from ..errors import raise_together
from .ledgers import AnyLedger

P = TypeVar("P")


class Group(NamedTuple, Generic[P]):
    """What is in one ledger, and the place that each had among what was given."""

    ledger: AnyLedger
    things: list[P]
    places: list[int]


def grouped(things: Sequence[P], ledgers: Sequence[AnyLedger]) -> list[Group[P]]:
    """Return things by the ledger of each."""
    groups: dict[str, Group[P]] = {}
    for place, (thing, ledger) in enumerate(zip(things, ledgers, strict=True)):
        group = groups.setdefault(ledger.name, Group(ledger, [], []))
        group.things.append(thing)
        group.places.append(place)
    return [*groups.values()]


def raise_first(answers: Iterable[Any]) -> None:
    """Raise the first error among answers, if there is one."""
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer


def raise_all(answers: Iterable[Any]) -> None:
    """Raise the errors among answers together, those of a group one by one."""
    errors: list[BaseException] = []
    for answer in answers:
        if isinstance(answer, BaseExceptionGroup):
            errors += answer.exceptions
        elif isinstance(answer, Exception):
            errors.append(answer)
    raise_together(errors, "several ledgers failed")

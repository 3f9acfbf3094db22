"""A model that refuses wrong arguments with an error of pharox, which names the field.

pydantic's own error has several lines, with links to its documentation and the values that were
given. What is validated inside of another model is reported by that, as ever.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from ..errors import InvalidInputError
from .model import Model


class Refusing(Model):
    """A model whose constructor raises :class:`InvalidInputError`, which is a ``ValueError``."""

    if not TYPE_CHECKING:  # A type checker knows the arguments by the fields.

        def __init__(self, **given: Any) -> None:
            try:
                super().__init__(**given)
            except ValidationError as error:
                name = type(self).__name__
                raise InvalidInputError(f"{name}: {faults_of(error, name)}") from error


def faults_of(error: ValidationError, name: str) -> str:
    """Return what is wrong with each field of a model with this name, in one line."""
    faults = []
    for fault in error.errors(include_url=False, include_input=False):
        place = ".".join(map(str, fault["loc"]))
        words = fault["msg"].removeprefix("Value error, ").removeprefix(f"{name}: ")
        if fault["type"] == "extra_forbidden":
            words = "there is no such field"
        elif fault["type"] == "missing":
            words = "it is needed"
        faults.append(f"{place}: {words}" if place else words)
    return "; ".join(faults)

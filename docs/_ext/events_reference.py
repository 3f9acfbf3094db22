"""``{events}``: every type of event with its fields, out of the models that record it."""

from __future__ import annotations

import inspect
from typing import get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from sphinx.application import Sphinx

from field_types import default_of, type_name
from generated import Generated, as_markdown, code, table
from pharox.events import CheckGroup, Event, EventBase


class Events(Generated):
    """Describes each event: when it is recorded, and what it says."""

    def markdown(self) -> str:
        """Return a section for each type, after one for what all of them have."""
        types = get_args(get_args(Event)[0])
        parts = [_section("Every event", EventBase, EventBase.model_fields)]
        parts += [_section(event.__name__, event, _own_fields(event)) for event in types]
        parts.append(_section("CheckGroup", CheckGroup, CheckGroup.model_fields))
        return "\n\n".join(parts)


def _own_fields(event: type[EventBase]) -> dict[str, FieldInfo]:
    """Return the fields that an event has, or must have, beside those of every event."""
    shared = EventBase.model_fields
    return {
        name: field
        for name, field in event.model_fields.items()
        if name != "type" and (name not in shared or field.annotation != shared[name].annotation)
    }


def _section(title: str, model: type[BaseModel], fields: dict[str, FieldInfo]) -> str:
    rows = [
        (code(name), code(type_name(field)), code(default_of(field)))
        for name, field in fields.items()
    ]
    text = as_markdown(inspect.getdoc(model))
    return f"## {title}\n\n{text}\n\n{table(('field', 'type', 'default'), rows)}"


def setup(app: Sphinx) -> dict[str, bool]:
    """Give Sphinx the directive."""
    app.add_directive("events", Events)
    return {"parallel_read_safe": True}

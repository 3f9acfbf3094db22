"""Compile SQLAlchemy Core statements once, to run them often on a psycopg connection.

SQLAlchemy's ``Connection.execute`` would take about a third of the time of a
lease. So Core builds and compiles a statement once, with PostgreSQL's numbered
parameters, and psycopg executes the text unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    DateTime,
    Function,
    Text,
    Uuid,
    bindparam,
    cast,
    literal_column,
    quoted_name,
)
from sqlalchemy.dialects.postgresql import JSONB, psycopg
from sqlalchemy.engine.interfaces import Compiled
from sqlalchemy.schema import DDLElement, SchemaConst
from sqlalchemy.sql.dml import UpdateBase
from sqlalchemy.sql.visitors import iterate

_DIALECT = psycopg.dialect(paramstyle="numeric_dollar")  # type: ignore[no-untyped-call]
SCHEMA = "__[SCHEMA_pharox]"
"""The placeholder that the compiler writes for the schema "pharox"."""

TEMPORARY = "pg_temp"
"""PostgreSQL's alias for the schema of a session's temporary tables."""

APPEND = f"{SCHEMA}.append_v1"
"""The schema's function that appends all events."""

now: ColumnElement[Any] = literal_column(f"{SCHEMA}.clock()", DateTime(timezone=True))
"""The time of the statement, by the database's clock."""


def schema_function(name: str, *arguments: Any, type_: Any) -> ColumnElement[Any]:
    """Return a call of one of the schema's own functions."""
    return Function(quoted_name(f"{SCHEMA}.{name}", quote=False), *arguments, type_=type_)


class Statement(NamedTuple):
    """SQL with numbered parameters.

    ``names`` are the parameters in order, ``constants`` the values of parameters
    that never change, and ``columns`` the names of the result's columns. ``writes``
    says whether it changes data. ``is_bare`` says that its rows are returned as tuples.
    """

    text: bytes
    names: tuple[str, ...]
    constants: Mapping[str, Any]
    columns: tuple[str, ...]
    writes: bool = False
    is_bare: bool = False

    def rows(self, answer: Iterable[Sequence[Any]]) -> list[Any]:
        """Return the rows of a result as dicts, or unchanged if ``is_bare``."""
        if self.is_bare:
            return list(answer)
        return [dict(zip(self.columns, row, strict=True)) for row in answer]

    def arguments(self, values: Mapping[str, Any], slot: int) -> list[Any]:
        """Return the parameters in order; ``slot`` is that of the connection."""
        known = {**self.constants, "own_slot": slot, **values}
        return [known[name] for name in self.names]


class Query(NamedTuple):
    """A statement and the values to run it with."""

    statement: Statement
    values: Mapping[str, Any]


ONE: ColumnElement[int] = literal_column("1")
"""The constant that an EXISTS query selects."""


def quoted(schema: str) -> str:
    """Return a schema's name as a quoted SQL identifier."""
    return str(_DIALECT.identifier_preparer.quote(schema))


def compiled(element: Any, schema: str) -> Statement:
    """Compile ``element`` to SQL for one schema."""
    result = element.compile(
        dialect=_DIALECT, schema_translate_map={"pharox": schema, None: SchemaConst.BLANK_SCHEMA}
    )
    return Statement(
        _text(result, schema),
        tuple(result.positiontup or ()),
        {name: value for name, value in result.params.items() if value is not None},
        tuple(column.key for column in element.exported_columns),
        _writes(element),
    )


def template(element: Any) -> str:
    """Return ``element`` as SQL text for a function body, with ``{schema}`` for the schema.

    A parameter is written as its name, which must be a parameter of the function.
    """
    result = element.compile(
        dialect=_DIALECT, schema_translate_map={"pharox": "pharox", None: SchemaConst.BLANK_SCHEMA}
    )
    values = [result.params[name] for name in result.positiontup or ()]
    spelled = [
        name if value is None else f"'{value}'" if isinstance(value, str) else str(value)
        for name, value in zip(result.positiontup or (), values, strict=True)
    ]
    text = str(result).replace(SCHEMA, "{schema}")
    if not spelled:
        return text
    return re.sub(r"\$(\d+)(::\w+)?", lambda place: spelled[int(place[1]) - 1], text)


def numbered(parameters: Mapping[str, str]) -> dict[str, str]:
    """Return parameters as SQL by name, such as ``$1::text[]``, given the type of each."""
    items = enumerate(parameters.items(), 1)
    return {name: f"${number}::{type_}" for number, (name, type_) in items}


def call_of(schema: str, name: str, parameters: Mapping[str, str]) -> Statement:
    """Return the statement that calls one of the schema's functions.

    Parameters
    ----------
    parameters:
        The type of each parameter, by the name of its value.
    """
    given = ", ".join(numbered(parameters).values())
    text = f"SELECT * FROM {quoted(schema)}.{name}({given})"  # noqa: S608 - quoted
    return Statement(text.encode(), tuple(parameters), {}, ())


def by_schema(element: Callable[[], Any]) -> Callable[[str], Statement]:
    """Turn a function that returns a Core element into one that takes a schema and compiles it."""

    @lru_cache(maxsize=8)
    def for_schema(schema: str) -> Statement:
        return compiled(element(), schema)

    for_schema.__doc__ = element.__doc__
    return for_schema


def definition(element: DDLElement, schema: str) -> Statement:
    """Compile DDL, such as CREATE TABLE, to SQL for one schema."""
    result = element.compile(dialect=_DIALECT, schema_translate_map={"pharox": schema})
    return Statement(_text(result, schema), (), {}, ())


def _text(result: Compiled, schema: str) -> bytes:
    temporary = f"__[SCHEMA_{TEMPORARY}]"
    return str(result).replace(SCHEMA, quoted(schema)).replace(temporary, TEMPORARY).encode()


def _writes(element: Any) -> bool:
    return any(
        isinstance(part, UpdateBase) or (isinstance(part, Function) and part.name == APPEND)
        for part in iterate(element)
    )


def text_literal(text: str) -> ColumnElement[str]:
    """Return a constant of this code as an SQL literal, so that it needs no parameter."""
    return literal_column(f"'{text}'", Text)


def parameter(name: str, type_: Any = Text) -> ColumnElement[Any]:
    """Return a parameter of a statement, cast to its type in SQL."""
    return cast(bindparam(name, type_=Text if type_ is JSONB else type_), type_)


POOL_ID = parameter("pool_id", Uuid)
PROXY_ID = parameter("proxy_id", Uuid)

"""Compile a Core statement once; run it many times on a bare psycopg connection.

Going through SQLAlchemy's ``Connection.execute`` for each call costs about a
third of a lease. So Core builds and compiles a statement once, with numbered
parameters as PostgreSQL itself takes them, and psycopg runs the text as it is.
"""

from __future__ import annotations

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
_SCHEMA = "__[SCHEMA_pharox]"
"""What the compiler writes for the schema "pharox" when it is to be translated."""

TEMPORARY = "pg_temp"
"""PostgreSQL's name for the schema of a session's own tables."""

now: ColumnElement[Any] = literal_column(f"{_SCHEMA}.clock()", DateTime(timezone=True))
"""The moment of the statement, by the database's clock alone."""


def schema_function(name: str, *arguments: Any, type_: Any) -> ColumnElement[Any]:
    """Return a call of one of the schema's own functions."""
    return Function(quoted_name(f"{_SCHEMA}.{name}", quote=False), *arguments, type_=type_)


class Statement(NamedTuple):
    """SQL with numbered parameters.

    ``names`` are the parameters in order, ``constants`` the values of those
    that never change, ``columns`` the names of the answer's columns. ``writes``
    says whether something is different once it is committed.
    """

    text: bytes
    names: tuple[str, ...]
    constants: Mapping[str, Any]
    columns: tuple[str, ...]
    writes: bool = False

    def rows(self, answer: Iterable[Sequence[Any]]) -> list[dict[str, Any]]:
        """Return the rows of the answer by the names of their columns."""
        return [dict(zip(self.columns, row, strict=True)) for row in answer]

    def arguments(self, values: Mapping[str, Any], slot: int) -> list[Any]:
        """Return the parameters in order; ``slot`` is the connection's own."""
        known = {**self.constants, "slot": slot, **values}
        return [known[name] for name in self.names]


class Query(NamedTuple):
    """A statement and the values to run it with."""

    statement: Statement
    values: Mapping[str, Any]


ONE: ColumnElement[int] = literal_column("1")
"""What a query selects that only asks whether there is a row."""


def quoted(schema: str) -> str:
    """Return a schema's name as SQL spells it."""
    return str(_DIALECT.identifier_preparer.quote(schema))


def compiled(element: Any, schema: str) -> Statement:
    """Return ``element`` as SQL for one schema."""
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


def by_schema(element: Callable[[], Any]) -> Callable[[str], Statement]:
    """Make of a function that returns a Core element one from a schema to the statement."""

    @lru_cache(maxsize=8)
    def for_schema(schema: str) -> Statement:
        return compiled(element(), schema)

    for_schema.__doc__ = element.__doc__
    return for_schema


def definition(element: DDLElement, schema: str) -> Statement:
    """Return a definition, such as that of a table, as SQL for one schema."""
    result = element.compile(dialect=_DIALECT, schema_translate_map={"pharox": schema})
    return Statement(_text(result, schema), (), {}, ())


def _text(result: Compiled, schema: str) -> bytes:
    temporary = f"__[SCHEMA_{TEMPORARY}]"
    return str(result).replace(_SCHEMA, quoted(schema)).replace(temporary, TEMPORARY).encode()


def _writes(element: Any) -> bool:
    return any(isinstance(part, UpdateBase) for part in iterate(element))


def text_literal(text: str) -> ColumnElement[str]:
    """Return one of our own constants as SQL text, so that it needs no parameter."""
    return literal_column(f"'{text}'", Text)


def parameter(name: str, type_: Any = Text) -> ColumnElement[Any]:
    """Return a parameter of the statement, with the type that the database shall read it as."""
    return cast(bindparam(name, type_=Text if type_ is JSONB else type_), type_)


POOL_ID = parameter("pool_id", Uuid)
PROXY_ID = parameter("proxy_id", Uuid)

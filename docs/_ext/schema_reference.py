"""``{tables}`` and ``{functions}``: the schema, out of its metadata and its migrations."""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from importlib.resources import files
from typing import Any

from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer
from sqlalchemy import Column, Table
from sqlalchemy.dialects import postgresql

import projections
from generated import Generated, as_markdown, code, table
from pharox.storage.postgres import migrations

POSTGRESQL = postgresql.dialect()  # type: ignore[no-untyped-call]
FUNCTION = re.compile(
    r"((?:^--[^\n]*\n)*)"
    r"^CREATE (?:OR REPLACE )?FUNCTION \{schema\}\.(\w+)\((.*?)\)\s+"
    r"(?:RETURNS (.*?)|LANGUAGE \w+)\n",
    re.MULTILINE | re.DOTALL,
)
"""A comment, a function's name, its arguments, and what it returns, if that is no argument."""


class Tables(Generated):
    """Describes the tables of a module, or of the projections."""

    required_arguments = 1

    def markdown(self) -> str:
        """Return a section for each table."""
        (name,) = self.arguments
        if name != "projections":
            return _tables_of(name)
        return "\n\n".join(
            _tables_of(type(projection).__module__) for projection in projections.ALL
        )


class Functions(Generated):
    """Describes the functions by the comments before them."""

    def markdown(self) -> str:
        """Return a list of functions for each file of SQL that has some."""
        folder = files(migrations) / "sql"
        found = {
            f"{revision.name}/{part.name}": FUNCTION.findall(part.read_text())
            for revision in sorted(folder.iterdir(), key=lambda entry: entry.name)
            for part in sorted(revision.iterdir(), key=lambda entry: entry.name)
        }
        return "\n\n".join(f"### {name}\n\n{_functions(f)}" for name, f in found.items() if f)


def _tables_of(name: str) -> str:
    """Return sections for a module's tables; its docstring is about one, or stands before all."""
    module = import_module(name)
    comments = ModuleAnalyzer.for_module(name).find_attr_docs()
    subject, colon, about = as_markdown(inspect.getdoc(module)).partition(": ")
    tables = {name: value for name, value in vars(module).items() if isinstance(value, Table)}
    is_about_one = subject in [described.name for described in tables.values()]
    parts = [] if is_about_one else [subject + colon + about]
    for variable, described in tables.items():
        comment = as_markdown("\n".join(comments.get(("", variable), [])))
        text = about[:1].upper() + about[1:] if is_about_one else comment
        parts += [f"### {described.name}", text, _columns(described)]
    return "\n\n".join(parts)


def _columns(described: Table) -> str:
    rows = [
        (code(column.name), code(column.type.compile(POSTGRESQL)), _remarks(column))
        for column in described.columns
    ]
    indexes = sorted(str(index.name) for index in described.indexes)
    text = f"\n\nIndexes: {', '.join(map(code, indexes))}." if indexes else ""
    return table(("column", "type", ""), rows) + text


def _remarks(column: Column[Any]) -> str:
    if column.primary_key:
        return "key"
    return "may be null" if column.nullable else ""


def _functions(found: list[tuple[str, str, str, str]]) -> str:
    """Return a list of definitions: what a function is called with, and what it is for."""
    return "\n\n".join(
        f"{code(_one_line(f'{name}({arguments})'))}{_returned(returns)}\n"
        f": {re.sub('(?m)^-- ?', '  ', comment).strip() or 'See the file.'}"
        for comment, name, arguments, returns in found
    )


def _returned(type_: str) -> str:
    return f" returns {code(_one_line(type_))}" if type_ else ""


def _one_line(text: str) -> str:
    return " ".join(text.replace("{schema}.", "").split()).replace("( ", "(").replace(" )", ")")


def setup(app: Sphinx) -> dict[str, bool]:
    """Give Sphinx the directives."""
    app.add_directive("tables", Tables)
    app.add_directive("functions", Functions)
    return {"parallel_read_safe": True}

"""Write the folding functions, formatted, into the SQL of the newest migration with folds.

    python -m scripts.fold_functions

They are generated from ``projections/``; see :mod:`pharox.storage.postgres.functions`.
"""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import sqlglot
from sqlglot import exp

from pharox.storage.postgres.functions import folding_functions

FILE = Path(__file__).parents[1] / "pharox/storage/postgres/migrations/sql/0006/folding.sql"
_STATEMENT = re.compile(r"^( +)((?:INSERT|UPDATE|DELETE|SELECT) .*);$", re.MULTILINE)
_UNNAMED = re.compile(r"(anon|coalesce|max|recorded_at)_[0-9]+")
"""Names that SQLAlchemy gives to columns that have none, and that nobody refers to."""

_LAYOUT: dict[str, Any] = {
    "dialect": "postgres",
    "pretty": True,
    "indent": 4,
    "pad": 4,
    "max_text_width": 64,
    "normalize_functions": "lower",
}


def laid_out(functions: str) -> str:
    """Return functions with formatted statements."""
    return _STATEMENT.sub(_laid_out, functions)


def _laid_out(found: re.Match[str]) -> str:
    statement = found[2].replace("{schema}", "schema_")
    tree = sqlglot.parse_one(statement, dialect="postgres").transform(_plain)
    text = tree.sql(**_LAYOUT)
    for changed in tree.find_all(exp.Update, exp.OnConflict):
        values = [value.sql(**_LAYOUT) for value in changed.expressions]
        text = text.replace(
            f" SET {', '.join(values)}", "\nSET\n" + textwrap.indent(",\n".join(values), "    ")
        )
    text = re.sub(r" USING +", "\nUSING ", text).replace(" ON CONFLICT", "\nON CONFLICT")
    return textwrap.indent(text.replace("schema_", "{schema}"), found[1]) + ";"


def _plain(node: exp.Expression) -> exp.Expression:
    """Return a part of a statement without redundant parentheses and names."""
    has_operator = isinstance(node.parent, exp.Binary | exp.Unary | exp.Bracket)
    is_needless = isinstance(node, exp.Paren) and not has_operator
    is_unnamed = isinstance(node, exp.Alias) and _UNNAMED.fullmatch(node.alias)
    inner: exp.Expression = node.this if is_needless or is_unnamed else node
    return inner


if __name__ == "__main__":
    FILE.write_text(laid_out(folding_functions()))

"""The functions of the schema that fold, written from what the projections say in SQL.

A fold is stated once, over a relation of events. A rebuild runs it over a range of the
log; here it is written into the functions that append, over the array of events that a
command has decided. What they come to stands as a file beside the migrations, so that
it can be read and run in psql; a test compares the two.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence

from sqlalchemy import literal_column
from sqlalchemy.sql.selectable import FromClause

import projections
from projections import AVAILABLE_PROXIES, SELECTOR_CURSORS, Events, Fold, Projection
from projections.pool_stats import COUNTS, counts_after

from .appending import log_rows
from .sql import template

DECISIVE: tuple[Projection, ...] = (AVAILABLE_PROXIES, SELECTOR_CURSORS)
"""What leases are decided by: folded step by step within a command, and not once at its end."""

LEASE_EVENTS = frozenset({"LeaseAcquired", "LeaseReleased", "LeaseExpired"})

_HEAD = """\
-- {about}
CREATE OR REPLACE FUNCTION {{schema}}.{signature}
LANGUAGE plpgsql
AS $$
#variable_conflict use_column
{declare}BEGIN
{body}
END
$$;
"""
_TYPES = "DECLARE\n    types text[] := ARRAY(SELECT event.type FROM unnest(appended) AS event);\n"


def folding_functions() -> str:
    """Return the SQL of all functions that fold, with ``{schema}`` for the schema's name."""
    head = "-- Written by `python -m pharox.storage.postgres.functions` from projections/*.py."
    return "\n".join((head, "", _decisive(), _counts_after(), _read_models(), others_function(())))


def others_function(others: Iterable[Projection]) -> str:
    """Return the function that folds into the read models of other packages."""
    return _function(
        "What appended events come to in the read models of other packages, which a rebuild adds.",
        "fold_others_v1(appended {schema}.events[], own_slot smallint)\nRETURNS void",
        [_step(fold, fold.types) for p in others for fold in p.folds()] or ["NULL;"],
    )


def _decisive() -> str:
    return _function(
        "What one step of a command comes to in what the next step decides by.",
        "fold_decisive_v1(appended {schema}.events[])\nRETURNS void",
        [
            _step(fold, fold.types & LEASE_EVENTS)
            for projection in DECISIVE
            for fold in projection.folds()
            if fold.types & LEASE_EVENTS
        ],
    )


def _read_models() -> str:
    steps = []
    for projection in projections.ALL:
        for fold in projection.folds():
            types = fold.types - LEASE_EVENTS if projection in DECISIVE else fold.types
            if types:
                steps.append(_step(fold, types))
            if types != fold.types:
                is_new = _step(fold, fold.types & LEASE_EVENTS)
                steps.append(is_new.replace("IF ", "IF NOT decided AND ", 1))
    return _function(
        "What appended events come to in the read models. Where a command folds step by step, "
        "what it is ``decided`` by has those of leases already.",
        "fold_v1(appended {schema}.events[], own_slot smallint, decided boolean)\nRETURNS void",
        steps,
    )


def _counts_after() -> str:
    query = template(counts_after(Events(_appended())))
    counts = ",\n".join(f"    {name} integer" for name in COUNTS)
    return _HEAD.format(
        about=_comment("Each pool in numbers after each of some events, which are folded by now."),
        signature=f"counts_after_v1(appended {{schema}}.events[])\n"
        f'RETURNS TABLE (\n    "position" bigint,\n{counts}\n)\nSTABLE',
        declare="",
        body=textwrap.indent(f"RETURN QUERY\n{_laid_out(query)};", "    "),
    )


def _appended() -> FromClause:
    """Return the array ``appended`` as a relation that a fold can run over."""
    return log_rows(literal_column("appended"))


def _step(fold: Fold, types: Iterable[str]) -> str:
    names = ", ".join(f"'{name}'" for name in sorted(types))
    statement = _laid_out(template(fold.statement(Events(_appended()))))
    return f"IF types && ARRAY[{names}] THEN\n{textwrap.indent(statement, '    ')};\nEND IF;"


def _function(about: str, signature: str, steps: Sequence[str]) -> str:
    return _HEAD.format(
        about=_comment(about),
        signature=signature,
        declare="" if steps == ["NULL;"] else _TYPES,
        body=textwrap.indent("\n".join(steps), "    "),
    )


_CLAUSES = ("FROM", "WHERE", "SET", "USING", "GROUP", "ORDER", "SELECT", "JOIN", "ON", "LEFT")


def _laid_out(statement: str) -> str:
    """Return a statement with each clause, and each thing that one lists, on a line of its own.

    What stands in parentheses is indented by them; a short list stays in its line.
    """
    lines, indents = [""], [0]
    for part in re.findall(r"[(]|[)]|,|AND\b|'[^']*'|[^\s(),']+", " ".join(statement.split())):
        if part == "(":
            lines[-1] += part
            indents.append(indents[-1] + 4)
        elif part == ")":
            indents.pop()
            lines[-1] += part
        else:
            new_line = part in _CLAUSES or part == "AND"
            if new_line and lines[-1].strip():
                lines.append(" " * (indents[-1] + (2 if part == "AND" else 0)) + part)
            elif part == ",":
                lines[-1] += part
            else:
                glued = not lines[-1].strip() or lines[-1].endswith("(")
                lines[-1] += part if glued else f" {part}"
    return "\n".join(_wrapped(line) for line in lines)


def _wrapped(line: str) -> str:
    indent = " " * (len(line) - len(line.lstrip()))
    return textwrap.fill(
        line, 92, subsequent_indent=f"{indent}    ", break_long_words=False, break_on_hyphens=False
    )


def _comment(text: str) -> str:
    return "\n-- ".join(textwrap.wrap(text, 96))


if __name__ == "__main__":
    print(folding_functions(), end="")

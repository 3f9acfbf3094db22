"""Generate the schema's folding functions from the SQL of the projections.

A fold is stated once, over a relation of events. A rebuild runs it over a range of the
log. This module writes it into functions that run over the array of events that a
command appends. The generated SQL is a file beside the migrations, which can be read
and run in psql. ``python -m scripts.fold_functions`` formats and writes it, and a
test compares the two.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, cast

from sqlalchemy import ColumnClause, literal_column
from sqlalchemy.sql.selectable import FromClause

import projections
from pharox.events import ENDED_STATUS
from pharox.log import events as log
from projections import (
    AVAILABLE_PROXIES,
    LEASE_IDS,
    LEASE_STARTS,
    SELECTOR_CURSORS,
    SPENDING,
    Events,
    Fold,
    Projection,
)
from projections.pool_stats import counts_after

from .appending import log_rows
from .sql import template

DECISIVE: tuple[Projection, ...] = (AVAILABLE_PROXIES, SELECTOR_CURSORS, LEASE_IDS)
"""The read models on which leases are decided. A command may fold its events into them itself."""

LEASE_EVENTS = frozenset({"LeaseAcquired", *ENDED_STATUS})

_HEAD = """\
-- {about}
CREATE OR REPLACE FUNCTION {{schema}}.{signature}
LANGUAGE plpgsql
AS $$
#variable_conflict use_column
BEGIN
{body}
END
$$;
"""


class _Fields(dict[str, ColumnClause[Any]]):
    __getattr__ = dict.__getitem__


class _Variable(NamedTuple):
    """The record variable ``event`` of a function, used in place of a relation."""

    c: _Fields


_EVENT = Events(
    cast(
        "FromClause",
        _Variable(
            _Fields({own.name: literal_column(f"event.{own.name}", own.type) for own in log.c})
        ),
    ),
    is_single=True,
)


def folding_functions() -> str:
    """Return the SQL of all folding functions, with ``{schema}`` for the schema's name."""
    head = "-- Written by `python -m scripts.fold_functions` from projections/*.py."
    return "\n".join(
        (
            head,
            "",
            *map(_decisive, DECISIVE),
            _counts_after(),
            _single(),
            _read_models(),
        )
    )


def others_function(others: Iterable[Projection]) -> str:
    """Return the function that folds into the read models of other packages."""
    return _function(
        "What appended events come to in the read models of other packages, which a rebuild adds.",
        "fold_others_v1(\n    appended {schema}.event_v1[],\n    types text[],\n"
        "    own_slot smallint\n)\nRETURNS void",
        [_step(fold, fold.types) for p in others for fold in p.folds()] or ["NULL;"],
    )


def _decisive(projection: Projection) -> str:
    (fold,) = (fold for fold in projection.folds() if fold.types & LEASE_EVENTS)
    return _HEAD.format(
        about=_comment(f"What leases and their ends come to in {projection.name}."),
        signature=f"fold_{projection.name}_v1(appended {{schema}}.event_v1[])\nRETURNS void",
        body=textwrap.indent(_statement(fold.statement(Events(_appended()))), "    "),
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
        "What appended events come to in the read models. What commands "
        "decide by has those of leases already if they are ``decided``.",
        "fold_v1(\n    appended {schema}.event_v1[],\n    types text[],\n    own_slot smallint,\n"
        "    decided boolean\n)\nRETURNS void",
        steps,
    )


def _single() -> str:
    steps = [
        _step(fold, types, _EVENT, "event.type IN ({})")
        for projection in projections.ALL
        if projection not in (SELECTOR_CURSORS, LEASE_IDS, LEASE_STARTS, SPENDING)
        for fold in projection.folds()
        if (types := fold.types & LEASE_EVENTS)
    ]
    return _function(
        "What one event of a lease comes to in the read models, where nothing has to be grouped: "
        "a lease of no turn, under no id of its caller's, in a pool without limits, and without a "
        "cost.",
        "fold_one_v1(event {schema}.event_v1, own_slot smallint)\nRETURNS void",
        steps,
    )


def _counts_after() -> str:
    query = counts_after(Events(_appended()))
    return _HEAD.format(
        about=_comment("Each pool in numbers after each of some events, which are folded by now."),
        signature="counts_after_v1(appended {schema}.event_v1[])\n"
        "RETURNS SETOF {schema}.pool_counts\nSTABLE",
        body=textwrap.indent(f"RETURN QUERY\n{_statement(query)}", "    "),
    )


def _appended() -> FromClause:
    """Return the array ``appended`` as a relation for a fold."""
    return log_rows(literal_column("appended"))


def _step(
    fold: Fold,
    types: Iterable[str],
    events: Events | None = None,
    condition: str = "types && ARRAY[{}]",
) -> str:
    names = ", ".join(f"'{name}'" for name in sorted(types))
    statement = _statement(fold.statement(events or Events(_appended())))
    return f"IF {condition.format(names)} THEN\n{textwrap.indent(statement, '    ')}\nEND IF;"


def _statement(element: Any) -> str:
    """Return a statement as one line of SQL."""
    return " ".join(template(element).split()) + ";"


def _function(about: str, signature: str, steps: Sequence[str]) -> str:
    return _HEAD.format(
        about=_comment(about),
        signature=signature,
        body=textwrap.indent("\n".join(steps), "    "),
    )


def _comment(text: str) -> str:
    return "\n-- ".join(textwrap.wrap(text, 96))

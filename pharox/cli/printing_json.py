"""``--output`` of commands that do or tell something: their objects as JSON or CSV, as they come.

Such a command has ``--json``, and prints one object a line with :func:`.showing.print_json`. This
adds ``--output`` to it: as text, which is what it prints for people, or in the forms of commands
that list something. Lines of CSV are printed as objects come, so the first object decides which
columns there are; what a later one has besides, as the events of a story do, is JSON in the last.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Annotated, Any

import typer

from . import showing
from .output import Format, print_csv_lines

AS_JSON = "as_json"
"""The parameter of ``--json``."""

MORE = "more"
"""The last column of CSV: the fields of an object that the first one did not have."""

AS = "output_form"
"""The parameter of ``--output``, which the command's function does not see."""


@cache
def option() -> Any:
    """Return the option, for a command that has ``--json``."""
    app = typer.Typer(add_completion=False)  # It makes options from functions only.
    app.command()(_with_option)
    return next(each for each in typer.main.get_command(app).params if each.name == AS)


def _with_option(
    output_form: Annotated[
        Format | None,
        typer.Option(
            "--output",
            "-o",
            help="As text, a JSON array, a JSON object per line (--json for short), or CSV.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Have the option that :func:`option` takes."""


def may_have(command: Any) -> bool:
    """Return whether a command prints JSON, and has no ``--output`` that means something else."""
    names = {name for parameter in command.params for name in parameter.opts}
    has_json = any(parameter.name == AS_JSON for parameter in command.params)
    return has_json and names.isdisjoint({"--output", "-o"})


@contextmanager
def in_form(context: Any) -> Iterator[None]:
    """Print the objects of a command in the form that was asked for."""
    form: Format | None = context.params.pop(AS, None)
    if form is None:
        yield
        return
    if context.params[AS_JSON] and form is not Format.JSONL:
        raise typer.BadParameter("give either --json or --output", context)
    context.params[AS_JSON] = form is not Format.TABLE
    if form not in (Format.JSON, Format.CSV):
        yield
        return
    writer = _Array() if form is Format.JSON else _Csv()
    token = showing.WRITE.set(writer.write)
    try:
        yield
        writer.close()
    finally:
        showing.WRITE.reset(token)


class _Array:
    """A JSON array, one element a line."""

    def __init__(self) -> None:
        self._before = "[\n"

    def write(self, attributes: dict[str, Any]) -> None:
        print(self._before, json.dumps(attributes), sep="", end="")
        self._before = ",\n"

    def close(self) -> None:
        print("[]" if self._before == "[\n" else "\n]", flush=True)


class _Csv:
    """Lines of CSV, below a header of the first object's fields and :data:`MORE`."""

    def __init__(self) -> None:
        self._fields: list[str] | None = None

    def write(self, attributes: dict[str, Any]) -> None:
        is_first, fields = self._fields is None, self._fields or [*attributes]
        more = {name: value for name, value in attributes.items() if name not in fields}
        line = {**attributes, MORE: more or None}
        print_csv_lines([*fields, MORE], [line], with_header=is_first)
        self._fields = fields

    def close(self) -> None:
        sys.stdout.flush()

"""The SQL of the migrations as text, in the order in which it is run."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from importlib.resources import files

from ..sql import quoted


def spelled(text: str, schema: str) -> str:
    """Return SQL of a migration for one schema.

    ``{schema}`` stands for the schema's name, ``{literal}`` for the name within quotes, and
    ``{format}`` for the name in what SQL's ``format()`` is given.
    """
    name = quoted(schema)
    names = {
        "{schema}": name,
        "{literal}": name.replace("'", "''"),
        "{format}": name.replace("%", "%%"),
    }
    # Replaced in one pass, as one name may contain the placeholder of another.
    return re.sub(r"\{(schema|literal|format)\}", lambda place: names[place[0]], text)


def part_text(revision: str, part: str) -> str:
    """Return the file ``sql/<revision>/<part>.sql``."""
    return (files(__package__) / "sql" / revision / f"{part}.sql").read_text()


def texts() -> Iterator[str]:
    """Yield the files of all revisions in the order in which they are run.

    Which they are is read from the revisions' ``PARTS``, as importing one needs Alembic.

    Raises
    ------
    ValueError
        If a revision has no ``PARTS``, or several.
    """
    versions = (file for file in (files(__package__) / "versions").iterdir() if file.name[0] == "0")
    for file in sorted(versions, key=lambda file: file.name):
        found = list(_assigned(file.read_text(), "PARTS"))
        if len(found) != 1:
            raise ValueError(f"{file.name} assigns PARTS {len(found)} times, not once")
        for part in ast.literal_eval(found[0]):
            yield part_text(file.name[:4], part)


def _assigned(text: str, name: str) -> Iterator[ast.expr]:
    for statement in ast.parse(text).body:
        match statement:
            case ast.Assign(targets=[ast.Name(found)], value=value) if found == name:
                yield value

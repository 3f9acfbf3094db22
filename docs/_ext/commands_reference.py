"""``{commands}``: every command with its arguments and options, as ``--help`` has them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import typer
from sphinx.application import Sphinx

from generated import Generated, code, table
from pharox.cli.app import app as pharox_app


class Commands(Generated):
    """Describes ``pharox`` and all of its commands."""

    def markdown(self) -> str:
        """Return a section for each command."""
        root = typer.main.get_command(pharox_app)
        return "\n\n".join(_sections(root, root.make_context("pharox", [], resilient_parsing=True)))


def _sections(command: Any, context: Any) -> Iterator[str]:
    yield f"## {context.command_path}" if context.parent else "## pharox"
    yield inspect.cleandoc(command.help or "")
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"```text\n{context.command_path} {usage}\n```"
    records = [parameter.get_help_record(context) for parameter in command.get_params(context)]
    rows = [(code(name), text) for name, text in filter(None, records) if name != "--help"]
    if rows:
        yield table(("argument or option", "meaning"), rows)
    for name in getattr(command, "commands", ()):
        part = command.get_command(context, name)
        yield from _sections(part, command.context_class(part, info_name=name, parent=context))


def setup(app: Sphinx) -> dict[str, bool]:
    """Give Sphinx the directive."""
    app.add_directive("commands", Commands)
    return {"parallel_read_safe": True}

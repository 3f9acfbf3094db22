"""A group whose commands are imported when they are called.

The group knows the name and the first sentence of each, which is all that its help and a shell's
completion show; the rest stands in the module of the command, and is imported with it. So a
command costs the imports of no other: ``docs/decisions/0059-lazy-commands.md`` has the figures.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from importlib import import_module
from typing import Any, ClassVar

import typer
from typer.core import TyperCommand

from .once import Commands, OnceGroup


class Unloaded(TyperCommand):
    """A command by its name, the place of its code, and its first sentence.

    Parameters
    ----------
    name:
        What is typed.
    place:
        A module of this package, a colon, and the name of the function or app in it.
    summary:
        The first sentence of its help, without its full stop.
    """

    def __init__(self, name: str, place: str, summary: str) -> None:
        super().__init__(name, help=summary)
        self._place = place

    @cached_property
    def loaded(self) -> Any:
        """The command itself, whose module is imported for it."""
        module, _, attribute = self._place.partition(":")
        app = getattr(import_module(f".{module}", __package__), attribute)
        if not isinstance(app, Commands):
            function, app = app, Commands()
            app.command(self.name)(function)
        command = typer.main.get_command(app)
        command.name = self.name
        return command


class LazyGroup(OnceGroup):
    """A group of commands that are not loaded; a subclass says which."""

    unloaded: ClassVar[Iterable[Unloaded]] = ()

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands.update((str(command.name), command) for command in self.unloaded)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command, and import it; None if there is none of this name."""
        command = super().get_command(ctx, cmd_name)
        return command.loaded if isinstance(command, Unloaded) else command

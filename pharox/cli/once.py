"""An option that takes one value is given once.

Of two values the parser would take the last and say nothing of the first, such as
half of the countries that somebody asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

F = TypeVar("F", bound=Callable[..., Any])


class OnceCommand(TyperCommand):
    """A command that refuses two values for one option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse what was given, after a look for what was given twice."""
        _check_once(self, ctx, args)
        return super().parse_args(ctx, args)


class OnceGroup(TyperGroup):
    """A group that does the same for the options before its command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse what was given, after a look for what was given twice."""
        _check_once(self, ctx, args)
        return super().parse_args(ctx, args)


class Commands(typer.Typer):
    """An app all of whose commands and groups are such ones."""

    def __init__(self, cls: type[OnceGroup] = OnceGroup, **options: Any) -> None:
        super().__init__(cls=cls, **options)

    def command(self, name: str | None = None, **options: Any) -> Callable[[F], F]:
        """Return what registers a function as such a command."""
        return super().command(name, cls=OnceCommand, **options)


def _check_once(command: Any, ctx: Any, args: list[str]) -> None:
    if not args or ctx.resilient_parsing:
        return
    # A parser of its own, as the one that counts takes its arguments away.
    _, _, order = command.make_parser(ctx).parse_args(list(args))
    for option, times in Counter(order).items():
        is_single = isinstance(option, TyperOption) and not (option.multiple or option.is_flag)
        if is_single and times > 1:
            raise typer.BadParameter("give it once, as it takes one value", ctx, option)

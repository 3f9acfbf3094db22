"""Refuse an option that takes one value and is given twice.

The parser would take the last value and silently drop the first, such as half of the
requested countries.
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
        """Check for repeated options, then parse."""
        _check_once(self, ctx, args)
        return super().parse_args(ctx, args)


class OnceGroup(TyperGroup):
    """A group that refuses two values for one of its own options."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Check for repeated options, then parse."""
        _check_once(self, ctx, args)
        return super().parse_args(ctx, args)


class Commands(typer.Typer):
    """An app whose commands and groups all refuse repeated options."""

    def __init__(self, cls: type[OnceGroup] = OnceGroup, **options: Any) -> None:
        super().__init__(cls=cls, **options)

    def command(self, name: str | None = None, **options: Any) -> Callable[[F], F]:
        """Return a decorator that registers a function as such a command."""
        return super().command(name, cls=OnceCommand, **options)


def _check_once(command: Any, ctx: Any, args: list[str]) -> None:
    if not args or ctx.resilient_parsing:
        return
    # A separate parser, as parsing consumes the arguments.
    _, _, order = command.make_parser(ctx).parse_args(list(args))
    for option, times in Counter(order).items():
        is_single = isinstance(option, TyperOption) and not (option.multiple or option.is_flag)
        if is_single and times > 1:
            raise typer.BadParameter("it takes one value, so give it once", ctx, option)

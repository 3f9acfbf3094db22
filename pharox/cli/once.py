"""The commands' class: one value for one option, and what all that list something share.

An option that takes one value and is given twice is refused: the parser would take the last
value and silently drop the first, such as half of the requested countries. A command with
``--output`` also takes ``--json``, and ``--watch``; one with ``--json`` also takes ``--output``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import typer
from typer._click.core import Command
from typer._click.shell_completion import CompletionItem
from typer.core import TyperCommand, TyperGroup, TyperOption

from . import printing_json, watching
from .completing import POOL, pool_names
from .output import OUTPUT, Format

F = TypeVar("F", bound=Callable[..., Any])

_ANY_LENGTH = 10_000
"""How long a first sentence may be: no help is cut."""


class _Once(Command):
    """What commands and groups have in common, before the rest of typer's classes."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        for parameter in self.params:
            if parameter.metavar == POOL:
                parameter._custom_shell_complete = pool_names
        _add_watch(self)
        _add_form(self)

    def invoke(self, ctx: Any) -> Any:
        """Run the command, or watch it."""
        return _invoke(ctx, super().invoke)

    def make_parser(self, ctx: Any) -> Any:
        """Return the parser, which takes ``--json`` for a value of ``--output``."""
        return _taking_json(self, super().make_parser(ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Check for repeated options, then parse."""
        args = _with_interval(self, args)
        _check_once(self, ctx, args)
        return super().parse_args(ctx, args)


class OnceCommand(_Once, TyperCommand):
    """A command that refuses two values for one option, and completes the names of pools."""


class OnceGroup(_Once, TyperGroup):
    """A group that does the same for its own options.

    Its help and its completion are made of what it knows of its commands, which need not be
    loaded for it; and the help shows each command's first sentence whole.
    """

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """List the commands, each with its first sentence."""
        rows = [
            (name, command.get_short_help_str(_ANY_LENGTH)) for name, command in self._visible()
        ]
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Return the commands and options that begin with what was typed."""
        found = [
            CompletionItem(name, help=summary_of(command))
            for name, command in self._visible()
            if name.startswith(incomplete)
        ]
        return [*found, *super(TyperGroup, self).shell_complete(ctx, incomplete)]

    def _visible(self) -> Iterator[tuple[str, Any]]:
        return ((name, each) for name, each in self.commands.items() if not each.hidden)


class Commands(typer.Typer):
    """An app whose commands and groups all refuse repeated options."""

    def __init__(self, cls: type[OnceGroup] = OnceGroup, **options: Any) -> None:
        plain: dict[str, Any] = {
            "add_completion": False,
            "pretty_exceptions_enable": False,
            "rich_markup_mode": None,
        }
        super().__init__(cls=cls, **plain | options)

    def command(self, name: str | None = None, **options: Any) -> Callable[[F], F]:
        """Return a decorator that registers a function as such a command."""
        return super().command(name, cls=OnceCommand, **options)


def summary_of(command: Any) -> str:
    """Return the first sentence of a command's help, whole and without its full stop."""
    summary: str = command.get_short_help_str(_ANY_LENGTH)
    return summary.rstrip(".")


def _taking_json(command: Any, parser: Any) -> Any:
    """Add ``--json`` to the parser of a command with ``--output``: the same option, by a constant.

    So scripts that say ``--json`` get what they always got, and both at once are refused.
    """
    for option in command.params:
        if option.name == OUTPUT:
            parser.add_option(
                obj=option, opts=["--json"], dest=OUTPUT, action="store_const", const=Format.JSONL
            )
    return parser


def _add_watch(command: Any) -> None:
    names = {parameter.name for parameter in command.params}
    if OUTPUT in names and watching.WATCH not in names:
        command.params.append(watching.option())
        command.is_watchable = True


def _add_form(command: Any) -> None:
    if printing_json.may_have(command):
        command.params.append(printing_json.option())
        for parameter in command.params:
            if parameter.name == printing_json.AS_JSON:
                parameter.hidden = True  # The help of --output says it.


def _with_interval(command: Any, args: list[str]) -> list[str]:
    return watching.with_interval(args) if hasattr(command, "is_watchable") else args


def _invoke(ctx: Any, invoke: Callable[[Any], Any]) -> Any:
    """Run a command; without ``--watch`` once."""
    if printing_json.AS in ctx.params:
        with printing_json.in_form(ctx):
            return invoke(ctx)
    if not hasattr(ctx.command, "is_watchable"):
        return invoke(ctx)
    interval = ctx.params.pop(watching.WATCH, None)
    if interval is None:
        return invoke(ctx)
    if ctx._protected_args:
        raise typer.BadParameter("--watch belongs behind the command that lists", ctx)
    return watching.watched(ctx, interval, lambda: invoke(ctx))


def _check_once(command: Any, ctx: Any, args: list[str]) -> None:
    if not args or ctx.resilient_parsing:
        return
    # A separate parser, as parsing consumes the arguments.
    _, _, order = command.make_parser(ctx).parse_args(list(args))
    for option, times in Counter(order).items():
        is_single = isinstance(option, TyperOption) and not (option.multiple or option.is_flag)
        if is_single and times > 1:
            raise typer.BadParameter("it takes one value, so give it once", ctx, option)

"""``{public-names}``: names of the API, one a line, each with its docstring and types.

Every name of ``pharox.__all__`` has to be in one of these lists.
"""

from __future__ import annotations

from enum import Enum
from importlib import import_module
from typing import Any, get_args

from pydantic import BaseModel
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.pycode import ModuleAnalyzer
from sphinx.util import logging

import pharox
from field_types import signature
from generated import Generated

logger = logging.getLogger(__name__)


class PublicNames(Generated):
    """Describes each of its lines, which is a module's name and an attribute's."""

    has_content = True

    def markdown(self) -> str:
        """Return the directives of autodoc that fit."""
        directives = "\n".join(map(_directive, self.content))
        return f"```{{eval-rst}}\n{directives}\n```"


def _directive(path: str) -> str:
    module, _, name = path.rpartition(".")
    described = getattr(import_module(module), name)
    if get_args(described):
        return f".. py:type:: {path}\n\n   {_docstring(module, name)}"
    if not isinstance(described, type):
        kind = "function" if callable(described) else "data"
        return f".. auto{kind}:: {path}"
    options = ["   :undoc-members:"] if issubclass(described, Enum) else []
    if issubclass(described, Exception):
        return f".. autoexception:: {path}\n   :show-inheritance:"
    return "\n".join([f".. autoclass:: {path}", *options, ""])


def _docstring(module: str, alias: str) -> str:
    """Return what stands below a type alias, in the module that defines it."""
    source = ModuleAnalyzer.for_module(module).find_attr_docs()
    return " ".join(source.get(("", alias), []))


def _without_validators(
    _app: Sphinx, what: str, _name: str, described: Any, *_: object
) -> tuple[str, None] | None:
    """Give a model the signature that its fields make."""
    if what == "class" and isinstance(described, type) and issubclass(described, BaseModel):
        return signature(described), None
    return None


def _check_completeness(_app: Sphinx, environment: BuildEnvironment) -> None:
    known = environment.domains.python_domain.objects
    for name in pharox.__all__:
        if f"pharox.{name}" not in known:
            logger.warning("the public name pharox.%s is on no page", name, type="public_names")


def setup(app: Sphinx) -> dict[str, bool]:
    """Give Sphinx the directive, and have it look for names that were left out."""
    app.add_directive("public-names", PublicNames)
    app.connect("autodoc-process-signature", _without_validators)
    app.connect("env-check-consistency", _check_completeness)
    return {"parallel_read_safe": True}

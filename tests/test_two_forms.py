"""What exists in two forms is listed, with its reason."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIST = ROOT / "docs" / "decisions" / "0019-two-forms.md"


def test_every_module_with_coroutines_is_listed() -> None:
    """The decision names each module of the package that has a coroutine in it."""
    listed = LIST.read_text()
    unlisted = []
    for path in sorted((ROOT / "pharox").rglob("*.py")):
        tree = ast.parse(path.read_text())
        has_coroutines = any(isinstance(node, ast.AsyncFunctionDef) for node in ast.walk(tree))
        name = path.name if path.parent.name == "health" else path.relative_to(ROOT).as_posix()
        if has_coroutines and f"`{name}`" not in listed:
            unlisted.append(name)
    assert unlisted == []

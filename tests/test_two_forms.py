"""What exists in two forms is listed, with its reason, and nothing else is."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIST = ROOT / "docs" / "decisions" / "0019-two-forms.md"
ONLY_ASYNC = {
    f"pharox/cli/{name}.py" for name in ("api", "console", "repeating", "sources", "sweep_run")
}
ONLY_ASYNC_ROOMS = {"api", "console", "health"}


def has_coroutines(path: Path) -> bool:
    nodes = ast.walk(ast.parse(path.read_text()))
    return any(isinstance(node, ast.AsyncFunctionDef) for node in nodes)


def test_the_list_is_that_of_the_modules_with_coroutines() -> None:
    """The decision's table has a row, with a reason, for each module that has a coroutine in it."""
    rows = re.findall(r"^\| `(pharox/\S+)` \| (.+?) \| (.+) \|$", LIST.read_text(), re.M)
    assert all(reason.strip() for _, _, reason in rows)
    found = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "pharox").rglob("*.py")
        if path.relative_to(ROOT / "pharox").parts[0] not in ONLY_ASYNC_ROOMS
        and has_coroutines(path)
    }
    assert {module for module, _, _ in rows} == found - ONLY_ASYNC

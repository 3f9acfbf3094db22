"""A host that is missing or too old is refused in one sentence when its integration is imported."""

from __future__ import annotations

import importlib
import sys

import pytest

from pharox.errors import MissingHostError
from pharox.integrations import _core

HOSTS = ("celery", "crawlee", "fastapi", "httpx2", "playwright", "starlette")


@pytest.mark.parametrize("name", HOSTS)
def test_an_old_host_is_named_with_its_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, f"pharox.integrations.{name}", raising=False)
    monkeypatch.setattr(_core, "version", lambda _: "0.0.1")
    sentence = rf"needs {name} \S+ or newer, which is 0\.0\.1 here: pip install 'pharox\[{name}\]'"
    with pytest.raises(MissingHostError, match=sentence):
        importlib.import_module(f"pharox.integrations.{name}")


@pytest.mark.parametrize("name", HOSTS)
def test_a_missing_host_is_named_with_its_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, f"pharox.integrations.{name}", raising=False)
    monkeypatch.setattr(_core, "find_spec", lambda _: None)
    sentence = rf"needs {name} \S+ or newer, which is not installed: pip install 'pharox\[{name}\]'"
    with pytest.raises(MissingHostError, match=sentence):
        importlib.import_module(f"pharox.integrations.{name}")

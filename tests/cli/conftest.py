"""Run a command in this process, against the test's own database."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from pharox.cli import main
from tests.conftest import SECRET_KEY


class Outcome(NamedTuple):
    """What a command wrote, and its exit status."""

    status: int
    out: str
    err: str

    @property
    def objects(self) -> list[dict[str, Any]]:
        """The JSON objects in its output, one a line."""
        return [json.loads(line) for line in self.out.splitlines()]


Pharox = Callable[..., Outcome]


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> Outcome:
    capsys.readouterr()
    status = main([str(argument) for argument in arguments])
    return Outcome(status, *capsys.readouterr())


@pytest.fixture
def pharox(
    database_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Pharox:
    """Call with the words after ``pharox``; ``stdin`` is what it can read."""
    monkeypatch.setenv("PHAROX_DATABASE_URL", database_url)
    monkeypatch.setenv("PHAROX_SECRET_KEY", SECRET_KEY)

    def call(*arguments: object, stdin: str = "") -> Outcome:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        return run(capsys, *arguments)

    return call

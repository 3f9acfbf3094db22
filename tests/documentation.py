"""A pytest plugin that runs the code blocks of README.md and docs/, each file top to bottom.

Python blocks share a namespace; bash blocks run as they stand, with the
``pharox`` of this environment. Each file has an empty database of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from cryptography.fernet import Fernet
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser

from tests import servers

ROOT = Path(__file__).parents[1]
ELSEWHERE = ("scripts/demo", "scripts/gunicorn_demo", "scripts/test")
"""Commands that other tests run: a documented call of them is checked to exist only."""


def run_bash(example: Example) -> None:
    """Run a block's commands and fail if one of them does."""
    commands = str(example.parsed)
    for command in ELSEWHERE:
        if command in commands:
            assert os.access(ROOT / command, os.X_OK)
            return
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{commands}\n{done.stdout}{done.stderr}"


@pytest.fixture(scope="session")
def documentation_server() -> Iterator[str]:
    """A server for the documents' databases."""
    with servers.running(servers.names()[0]) as url:
        yield url


@pytest.fixture(scope="module")
def document(documentation_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """An empty database, a key and a folder with nothing but the scripts for one document."""
    from tests.conftest import new_database

    with (
        new_database(documentation_server, f"pharox_{uuid4().hex[:12]}") as url,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("PHAROX_DATABASE_URL", url)
        patch.setenv("PHAROX_SECRET_KEY", Fernet.generate_key().decode())
        folder = tmp_path_factory.mktemp("document")
        (folder / "scripts").symlink_to(ROOT / "scripts")
        patch.chdir(folder)
        yield


pytest_collect_file = Sybil(
    parsers=[
        PythonCodeBlockParser(),
        CodeBlockParser(language="bash", evaluator=run_bash),
        SkipParser(),
    ],
    path=str(ROOT),
    patterns=["README.md", "docs/*.md"],
    fixtures=["document"],
).pytest()

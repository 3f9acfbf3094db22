"""The gunicorns to test with, each in an environment of its own."""

from __future__ import annotations

import subprocess

import pytest

from tests.gunicorn.web import NEWEST, OLDEST, ROOT


@pytest.fixture(params=[OLDEST, NEWEST], scope="session")
def version(request: pytest.FixtureRequest) -> str:
    """Name a version of gunicorn whose environment is there."""
    name = str(request.param)
    subprocess.run([ROOT / "scripts" / "lib" / "gunicorn_environment", name], check=True)
    return name


@pytest.fixture(scope="session")
def newest() -> str:
    """Name the newest version, for what no version can differ in."""
    subprocess.run([ROOT / "scripts" / "lib" / "gunicorn_environment", NEWEST], check=True)
    return NEWEST

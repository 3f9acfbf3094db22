"""The gunicorns to test with, each in an environment of its own."""

from __future__ import annotations

import fcntl
import subprocess

import pytest

from tests.gunicorn.web import NEWEST, OLDEST, ROOT


def environment_of(version: str) -> str:
    """Have the environment of a version made if it is not there; one process at a time does."""
    with (ROOT / f".venv-gunicorn-{version}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        subprocess.run([ROOT / "scripts" / "lib" / "gunicorn_environment", version], check=True)
    return version


@pytest.fixture(params=[OLDEST, NEWEST], scope="session")
def version(request: pytest.FixtureRequest) -> str:
    """Name a version of gunicorn whose environment is there."""
    return environment_of(str(request.param))


@pytest.fixture(scope="session")
def newest() -> str:
    """Name the newest version, for what no version can differ in."""
    return environment_of(NEWEST)

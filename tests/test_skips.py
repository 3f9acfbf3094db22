"""The plugin that lets no test be skipped: what it fails, and what it leaves alone."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.skips import ALLOWED

ROOT = Path(__file__).parents[1]
SKIPS = """
import pytest

@pytest.mark.skipif(True, reason="there is no such program")
def test_marked(): ...

def test_calling(): pytest.skip("there is no such program")

@pytest.fixture
def program(): pytest.skip("there is no such program")

def test_needing(program): ...

@pytest.mark.xfail
def test_expected_to_fail(): assert False

def test_good(): ...
"""


def run_pytest(
    folder: Path, tests: dict[str, str], *arguments: str, strict: bool
) -> tuple[int, str]:
    """Run tests in a folder of their own; return the exit status and the closing line."""
    for name, text in tests.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "pytest.ini").write_text("[pytest]\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PHAROX_FAIL_ON_SKIP": "1"}
    if not strict:
        del environment["PHAROX_FAIL_ON_SKIP"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "tests.skips", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout.splitlines()[-1]


@pytest.mark.parametrize("arguments", [(), ("--numprocesses", "2")], ids=["alone", "in processes"])
def test_every_kind_of_skip_fails_where_none_may_be(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    """A mark, a call and a fixture alike; the closing line counts them, before a test as errors."""
    status, closing = run_pytest(tmp_path, {"test_it.py": SKIPS}, *arguments, strict=True)
    assert status == 1
    assert closing.startswith("1 failed, 1 passed, 1 xfailed, 2 errors in")


def test_a_module_that_skips_itself_fails_as_well(tmp_path: Path) -> None:
    """As one does whose import is missing."""
    module = {"test_it.py": "import pytest\npytest.importorskip('no_such_module_anywhere')\n"}
    status, closing = run_pytest(tmp_path, module, strict=True)
    assert status != 0
    assert "1 error" in closing
    assert run_pytest(tmp_path, module, strict=False)[1].startswith("1 skipped")


def test_elsewhere_a_skip_is_a_skip(tmp_path: Path) -> None:
    """Without the variable nothing is changed."""
    status, closing = run_pytest(tmp_path, {"test_it.py": SKIPS}, strict=False)
    assert status == 0
    assert closing.startswith("1 passed, 3 skipped, 1 xfailed in")


def test_what_is_listed_may_be_skipped(tmp_path: Path) -> None:
    """In the file that the list names, for the reason that it gives, and for no other."""
    listed = tomllib.loads(ALLOWED.read_text())["allowed"][0]
    skip = "import pytest\ndef test_it(): pytest.skip({!r})\n"
    allowed = {listed["file"]: skip.format(listed["skip"])}
    status, closing = run_pytest(tmp_path, allowed, strict=True)
    assert (status, closing[:9]) == (0, "1 skipped")
    status, closing = run_pytest(tmp_path, {listed["file"]: skip.format("no time")}, strict=True)
    assert (status, closing[:8]) == (1, "1 failed")


def test_where_nothing_can_be_installed_that_is_said(tmp_path: Path) -> None:
    """The script that installs what tests need names what is missing, and ends with 3."""
    done = subprocess.run(
        ["/bin/bash", ROOT / "scripts" / "setup-system"],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    assert "chromium" in done.stderr
    assert "will be skipped" in done.stderr


def test_each_listed_skip_exists() -> None:
    """It is the text of a skip in that file, and the list says why it may be."""
    for listed in tomllib.loads(ALLOWED.read_text())["allowed"]:
        assert listed["skip"] in (ROOT / listed["file"]).read_text()
        assert listed["why"]

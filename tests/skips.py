"""A pytest plugin that lets no test be skipped where PHAROX_FAIL_ON_SKIP is set, as in CI.

A skip is reported as a failure there, but for those that ``allowed_skips.toml``
lists with their reason: a test that never runs proves nothing, and nobody
notices.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Generator
from pathlib import Path
from typing import TypeVar

import pytest

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)

ALLOWED = Path(__file__).with_name("allowed_skips.toml")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail a test that skips itself; one that is expected to fail is none of those."""
    report = yield
    return report if hasattr(report, "wasxfail") else _judged(report)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Fail a module that skips itself as a whole."""
    return _judged((yield))


def _judged(report: Report) -> Report:
    if report.skipped and os.environ.get("PHAROX_FAIL_ON_SKIP"):
        reason = _reason(report)
        if not _is_allowed(report.nodeid, reason):
            report.outcome = "failed"
            report.longrepr = f"{reason} (no skip is allowed here but those of {ALLOWED.name})"
    return report


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    told = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
    return str(told)


def _is_allowed(nodeid: str, reason: str) -> bool:
    listed = tomllib.loads(ALLOWED.read_text(encoding="utf-8"))["allowed"]
    file = nodeid.partition("::")[0]
    return any(file == each["file"] and each["skip"] in reason for each in listed)

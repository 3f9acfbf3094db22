"""The page of faults says what the reports say, also where it is bad."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from scripts.benchmarks import reliability

ROOT = Path(__file__).parents[1]


def report(test: str, **facts: Any) -> dict[str, Any]:
    return {
        "test": test,
        "fact": "Nothing is lost.",
        "area": "Something is killed.",
        "tried": {"killed": 3},
        "acknowledged": 1000,
        "in_doubt": 2,
        "lost": 0,
        "doubled": 0,
        "held_twice": 0,
        "findings": 0,
        "seconds": 1.5,
        "outcome": "passed",
        **facts,
    }


def test_a_soak_counts_in_its_own_way() -> None:
    """It is told apart from the faults, and a level that rose is seen."""
    level = {"level": "memory", "unit": "MiB", "second third": 1, "last third": 9, "at most": 2}
    facts = {"levels": [{**level, "held": False}], "failures": ["memory rose"], "events": 5000}
    text = reliability.page([report("one"), report("soak", **facts, area="A soak")], "Here.")
    assert "| killed | 3 | 1,000 |" in text
    _, soak = text.split("## A soak\n")
    assert "told of 1,000 leases and releases" in soak
    assert "| memory, MiB | 1 | 9 | 2 | **rose** |" in soak
    assert "**memory rose**" in soak


def test_reports_of_one_fact_are_added_up() -> None:
    """A test that ran with several parameters is one row."""
    reports = [report("one[0]", free_s=2.5), report("one[1]", tried={"killed": 4}, free_s=None)]
    text = reliability.page(reports, "Here.")
    assert "## Something is killed\n" in text
    assert "no proxy was free for longer than 2.5 s" in text
    assert "| killed | 7 | 2,000 | 4 | 0 | 0 | 0 | 0 |" in text


def test_what_is_bad_is_on_the_page() -> None:
    """A loss, a failure and a fault that could not be made are said."""
    text = reliability.page(
        [
            report("one", lost=1, outcome="failed"),
            report("two", fact="Else.", outcome="Skipped: no mounting here"),
        ],
        "Here.",
    )
    assert "| killed | 3 | 1,000 | 2 | 1 | 0 | 0 | 0 |" in text
    assert "**`one` failed.**" in text
    assert "Not done here: no mounting here." in text


def test_a_page_is_made_of_reports_in_a_folder(tmp_path: Path) -> None:
    """Without breaking anything anew; of no reports none is made."""
    command = [sys.executable, "-m", "scripts.benchmarks.reliability"]
    command += ["--reports", str(tmp_path), "--page", str(tmp_path / "page.md")]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 1
    (tmp_path / "one.json").write_text(json.dumps(report("one")))
    subprocess.run(command, cwd=ROOT, check=True)
    assert "1,000" in (tmp_path / "page.md").read_text()


def test_the_page_in_the_documentation_is_a_generated_one() -> None:
    """It begins as the generator begins it, and nothing on it failed."""
    text = reliability.PAGE.read_text()
    assert text.startswith(reliability.INTRODUCTION)
    assert "failed.**" not in text

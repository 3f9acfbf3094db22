"""The page of the benchmarks is what its figures say, and a figure is what its rounds say."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from pharox.storage.postgres import PostgresStorage
from scripts.benchmarks import console_leasing, core_callers, starting
from scripts.benchmarks.chart import draw
from scripts.benchmarks.console_leasing import SteadyLeasing
from scripts.benchmarks.core_bytes import written
from scripts.benchmarks.goals import GOALS, Goal
from scripts.benchmarks.machine import noise
from scripts.benchmarks.page import collected, page
from scripts.benchmarks.parts import Line, Part, Series, measure, tabulate
from scripts.benchmarks.server import connected
from tests.conftest import fill, run_sql

DOCS = Path(__file__).parents[1] / "docs"
TOLD: dict[str, Any] = json.loads((DOCS / "benchmarks.json").read_text())
QUIET = {"before": 0.0, "during": 2.0, "most": 3.0, "stolen": 0.0}


def with_value(name: str, value: float) -> str:
    """Return the page as it were if the figure of a goal were another one."""
    told = json.loads(json.dumps(TOLD))
    for found in told.values():
        for table in found["tables"]:
            for line in table["lines"]:
                if line["goal"] == name:
                    line["value"] = value
    return page(told)


def test_page_and_picture_are_what_the_figures_give() -> None:
    """Nobody edited docs/benchmarks.md or its picture: both are made of docs/benchmarks.json."""
    assert (DOCS / "benchmarks.md").read_text() == page(TOLD)
    assert (DOCS / "benchmarks.svg").read_text() == draw(TOLD)


def test_figures_tell_nothing_of_where_they_come_from() -> None:
    """No path and no host's name is in what is published."""
    text = json.dumps(TOLD)
    assert re.findall(r"/(?:tmp|home|root|work|var|usr)/", text) == []


def test_every_goal_is_measured_and_explains_itself() -> None:
    """Each goal that is missed has its reason on the page, and no benchmark names another goal."""
    lines = [
        line for found in TOLD.values() for table in found["tables"] for line in table["lines"]
    ]
    aimed = [line for line in lines if line["goal"] is not None]
    assert {line["goal"] for line in aimed} == set(GOALS)
    for line in aimed:
        goal = GOALS[line["goal"]]
        if not goal.is_met(line["value"]):
            assert goal.limit
            assert goal.limit in page(TOLD)


def test_a_goal_that_is_met_is_not_excused() -> None:
    """The page says "met" or "not met" by the figure, and tells the reason only of the latter."""
    goal = GOALS["lease-floor-1"]
    assert goal.limit in with_value(goal.name, 0.59)
    assert goal.limit not in with_value(goal.name, 0.6)


def test_the_picture_is_valid_and_has_all_curves() -> None:
    """The SVG is well-formed XML, with a line for each curve of each series."""
    curves = [
        curve for found in TOLD.values() for one in found["series"] for curve in one["curves"]
    ]
    root = ElementTree.fromstring(draw(TOLD))
    assert len(root.findall(".//{*}polyline")) == len(curves) > 0


def test_what_was_left_out_is_named() -> None:
    """A size that was not measured, and a benchmark that was not run, are on the page."""
    told = json.loads(json.dumps(TOLD))
    told["ledger"]["left_out"] = ["a history of 7 events: there was no time"]
    del told["observe"]
    text = page(told)
    assert "- a history of 7 events: there was no time" in text
    assert "- the benchmark `observe`" in text


def test_a_run_writes_what_the_page_is_made_of(tmp_path: Path) -> None:
    """A benchmark prints its table, and its file is one from which a page can be made."""
    words = ["observe", "--seconds", "0.2", "--rounds", "2", "--out", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "scripts.benchmarks", *words],
        cwd=DOCS.parent,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "cycles with neither" in done.stdout
    told = collected(tmp_path)
    assert [len(rounds) for rounds in told["observe"]["rounds"].values()] == [2, 2]
    text = page(told)
    assert "## Logs and metrics" in text
    assert "- the benchmark `lease`" in text


class TestCallers:
    """What a run counts is in the log, and in the floor's table."""

    CALLERS = 4

    @pytest.mark.parametrize("kind", ["threads", "tasks", "sets"])
    def test_a_cycle_is_a_lease_and_a_release(
        self, storage: PostgresStorage, database_url: str, kind: str
    ) -> None:
        """Every cycle of a run, and of warming up, has its two events, and nothing went amiss."""
        fill(storage, 10)
        run = getattr(core_callers, kind)(database_url, "pool", self.CALLERS, 0.3)
        ((acquired, released),) = run_sql(
            storage.engine,
            "SELECT count(*) FILTER (WHERE type = 'LeaseAcquired'), "
            "count(*) FILTER (WHERE type = 'LeaseReleased') FROM pharox.events",
        )
        warm = {"sets": core_callers.WARM_SETS}.get(kind, core_callers.WARM) * self.CALLERS
        assert run.cycles > 0
        assert run.amiss == 0
        assert acquired == released == run.cycles + warm

    def test_nothing_free_is_amiss(self, storage: PostgresStorage, database_url: str) -> None:
        """Misses are no cycles."""
        fill(storage, 1)
        run = core_callers.threads(database_url, "pool", self.CALLERS, 0.3)
        (misses,) = run_sql(
            storage.engine, "SELECT count(*) FROM pharox.events WHERE type = 'AcquireMissed'"
        )
        assert 0 < run.amiss <= int(str(misses[0]))

    def test_processes_are_counted_together(self, database_url: str) -> None:
        """A floor's cycle is two rows, whichever of the processes committed them."""
        core_callers.make_floor(database_url)
        run = core_callers.in_processes(2, core_callers.inserts, database_url, 0.3)
        with connected(database_url) as connection:
            row = connection.execute("SELECT count(*) FROM floor").fetchone()
        assert row == (2 * (run.cycles + 2 * core_callers.WARM),)

    def test_bytes_are_those_of_the_work(self, storage: PostgresStorage) -> None:
        """Rows of a thousand bytes are as much in the write-ahead log, and nothing in our log."""
        run_sql(storage.engine, "CREATE TABLE things (v text)")
        rows = "SELECT repeat('-', 1000) FROM generate_series(1, 1000)"
        found = written(storage, lambda: run_sql(storage.engine, f"INSERT INTO things {rows}"))
        assert found.log == 0
        assert 1_000_000 < found.wal < 1_300_000


class TestConsole:
    """The console that is measured is asked for what is there, while leasing goes on."""

    def test_steady_leasing_counts_what_it_does(
        self, storage: PostgresStorage, database_url: str
    ) -> None:
        """Each lease that it tells of is in the log, and released when it ends."""
        fill(storage, 2 * console_leasing.TASKS * console_leasing.HELD_EACH)
        with SteadyLeasing(database_url, "pool", 200) as leasing:
            while (told := leasing.look()).leases < 100:
                time.sleep(0.05)
        assert told.amiss == 0
        assert told.cpu_s > 0
        ((acquired, ended),) = run_sql(
            storage.engine,
            "SELECT count(*) FILTER (WHERE type = 'LeaseAcquired'), "
            "count(*) FILTER (WHERE type = 'LeaseReleased') FROM pharox.events",
        )
        assert acquired == ended
        assert int(str(acquired)) >= told.leases


def test_a_command_takes_more_than_an_empty_program(database_url: str, tmp_path: Path) -> None:
    """What a command takes is the processor time of its process alone."""
    bare, version = (
        starting.processor_s(starting.COMMANDS[name], database_url, str(tmp_path))
        for name in ("python -c pass", "pharox --version")
    )
    assert 0 < bare < version


class TestFigures:
    """Rounds become medians."""

    def rounds(self, *rounds: dict[str, float], line: Line) -> dict[str, Any]:
        given = iter(rounds)
        part = Part("part", {"1. Table": (line,)}, lambda: next(given))
        return tabulate([part], measure([part], len(rounds)))

    def test_a_ratio_is_the_median_of_its_rounds(self) -> None:
        """Two figures of one round are compared, not two medians of different rounds."""
        told = self.rounds(
            {"ours": 10, "floor": 10},
            {"ours": 4, "floor": 8},
            {"ours": 9, "floor": 3},
            line=Line("ours", "ours", per="floor"),
        )
        (line,) = told["tables"][0]["lines"]
        assert (line["value"], line["least"], line["most"]) == (1, 0.5, 3)

    def test_parts_take_turns(self) -> None:
        """Each part is measured once a round, and what is to be measured once is not repeated."""
        asked: list[str] = []

        def part(name: str, *, once: bool = False) -> Part:
            def note() -> dict[str, float]:
                asked.append(name)
                return {}

            return Part(name, {}, note, once)

        measure([part("a"), part("b", once=True), part("c")], 2)
        assert asked == ["a", "b", "c", "a", "c"]

    def test_a_series_may_have_holes(self) -> None:
        """Where a curve was not measured there is nothing, not a zero."""
        series = Series("Growth", "x", (1, 2), {"ours": ("at 1", None)})
        part = Part("part", {}, lambda: {"at 1": 5}, series=(series,))
        told = tabulate([part], measure([part], 1))
        assert told["series"][0]["curves"] == {"ours": [5, None]}

    @pytest.mark.parametrize(
        ("load", "said"),
        [
            ({}, None),
            ({"before": 0.9}, "something else was running"),
            ({"stolen": 0.1}, "the hypervisor gave 10%"),
        ],
    )
    def test_a_noisy_machine_is_told_of(self, load: dict[str, float], said: str | None) -> None:
        """What makes figures doubtful is said, and nothing on a quiet machine."""
        told = self.rounds({"ours": 10}, {"ours": 10.1}, line=Line("ours", "ours"))
        found = noise({**QUIET, **load}, told)
        assert len(found) == (said is not None)
        assert all(sentence.startswith(str(said)) for sentence in found)

    def test_unsteady_figures_are_told_of(self) -> None:
        """Rounds that differ by more than a quarter are counted."""
        told = self.rounds({"ours": 8}, {"ours": 12}, line=Line("ours", "ours"))
        assert noise(QUIET, told) == ["1 of 1 figures differ by more than 25% between rounds"]


@pytest.mark.parametrize(
    ("goal", "value", "is_met"),
    [
        (Goal("a", "", at_least=2), 2, True),
        (Goal("a", "", at_least=2), 1.9, False),
        (Goal("a", "", at_most=2), 2, True),
        (Goal("a", "", at_most=2), 2.1, False),
    ],
)
def test_a_bound_belongs_to_what_it_allows(goal: Goal, value: float, is_met: bool) -> None:
    """A figure exactly at its goal meets it."""
    assert goal.is_met(value) is is_met

"""The dashboard and the alerts name metrics that exist."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from pharox import AsyncInMemoryStorage, ProxyManager, register_prometheus_metrics
from pharox.observability.counting import FleetCounter
from pharox.observability.fleet import FleetCollector, FleetServer
from pharox.storage.postgres import PostgresStorage
from tests.cli.conftest import run
from tests.conftest import fill
from tests.observability.test_fleet import level

FOLDER = files("pharox.observability") / "files"
DASHBOARD, RULES = "grafana-dashboard.json", "prometheus-rules.yml"
NAME = re.compile(r"\bpharox_[a-z_]+")


def text_of(name: str) -> str:
    return (FOLDER / name).read_text()


def expressions() -> list[str]:
    """Return every query of the dashboard."""
    panels: list[dict[str, Any]] = json.loads(text_of(DASHBOARD))["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


def existing(postgres: PostgresStorage) -> set[str]:
    """Return the names of all samples that a process and a server of the fleet can show."""
    registry = CollectorRegistry()
    memory = AsyncInMemoryStorage().memory
    fill(memory)
    register_prometheus_metrics(ProxyManager(memory), registry=registry)
    registry.register(FleetCollector(postgres, FleetCounter(postgres)))
    families = re.findall(r"^# TYPE (\S+) (\S+)$", generate_latest(registry).decode(), re.M)
    suffixes = {"histogram": ("_bucket", "_sum", "_count"), "summary": ("_sum", "_count")}
    return {f"{name}{suffix}" for name, kind in families for suffix in suffixes.get(kind, ("",))}


@pytest.mark.parametrize("name", [DASHBOARD, RULES])
def test_every_metric_they_name_exists(postgres: PostgresStorage, name: str) -> None:
    """Each name in a query is that of a sample."""
    text = (
        "\n".join(expressions())
        if name == DASHBOARD
        else "\n".join(
            line
            for line in text_of(name).splitlines()
            if not line.lstrip().startswith("#") and "description" not in line
        )
    )
    named = set(NAME.findall(text))
    assert len(named) > 8
    assert named - existing(postgres) == set()


def test_the_dashboard_is_one() -> None:
    """Panels have places of their own, ids of their own, and the data source that was chosen."""
    dashboard = json.loads(text_of(DASHBOARD))
    places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in dashboard["panels"]]
    assert len(set(places)) == len(places) == len({p["id"] for p in dashboard["panels"]})
    assert {p["datasource"]["uid"] for p in dashboard["panels"]} == {"${datasource}"}


def test_the_rules_are_valid(tmp_path: Path) -> None:
    """As Prometheus itself says."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("there is no promtool here")
    rules = tmp_path / RULES
    rules.write_text(text_of(RULES))
    done = subprocess.run(
        [promtool, "check", "rules", str(rules)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "19 rules found" in done.stdout


def test_the_command_writes_them(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Both files, as they ship; a folder that is not there is told."""
    assert run(capsys, "metrics", "files", tmp_path).status == 0
    for name in (DASHBOARD, RULES):
        assert (tmp_path / name).read_text() == text_of(name)
    missing = run(capsys, "metrics", "files", tmp_path / "none")
    assert missing.status != 0
    assert "there is no folder" in missing.err


def test_a_scrape_has_what_the_files_ask_for(postgres: PostgresStorage) -> None:
    """Also over HTTP, with a pool in it."""
    fill(postgres)
    with FleetServer(postgres, port=0) as server:
        assert ("pool_total_proxies", ("pool",)) in level(server, 2)

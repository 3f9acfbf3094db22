"""The systemd units and the Compose file of the examples are valid, and their commands run."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from pharox.storage.postgres import PostgresStorage
from tests.conftest import SECRET_KEY, TESTS, fill
from tests.health.zoo import Zoo

FOLDER = TESTS.parent / "docs" / "examples" / "running"
UNITS = sorted(FOLDER.glob("*.service"))
RUN = "import sys; from pharox.cli import main; sys.exit(main())"
PROGRAM = "/opt/pharox/bin/pharox"

needs_systemd = pytest.mark.skipif(
    not shutil.which("systemd-analyze"), reason="there is no systemd-analyze here"
)


def setting(unit: str, name: str) -> str:
    """Return the value of a setting that a unit has once."""
    (value,) = re.findall(f"^{name}=(.*)$", (FOLDER / f"pharox-{unit}.service").read_text(), re.M)
    return str(value)


def command_of(unit: str) -> list[str]:
    """Return what a unit runs, without the program."""
    program, *words = shlex.split(setting(unit, "ExecStart"))
    assert program == PROGRAM
    return words


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())
    return loaded


@needs_systemd
def test_the_units_are_valid_and_confined(tmp_path: Path) -> None:
    """systemd knows every setting, and has little to say of what they may do."""
    known = [tmp_path / unit.name for unit in UNITS]
    assert len(known) == 2
    for unit, copy in zip(UNITS, known, strict=True):
        copy.write_text(unit.read_text().replace(PROGRAM, "/bin/true"))
    checked = run("verify", *known)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")
    for copy in known:
        rated = run("security", "--offline=true", "--threshold=20", copy)
        assert rated.returncode == 0, rated.stdout


def run(*words: object) -> subprocess.CompletedProcess[str]:
    command = ["systemd-analyze", "--no-pager", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_compose_runs_what_the_units_run() -> None:
    """The same commands, and each service, secret and volume that is named is there."""
    file = compose()
    services = file["services"]
    assert services["sweep"]["command"] == command_of("sweep")
    assert services["metrics"]["command"] == [
        "0.0.0.0" if word == "127.0.0.1" else word for word in command_of("metrics")
    ]
    assert services["upgrade"]["command"] == ["db", "upgrade"]
    for service in services.values():
        assert set(service.get("depends_on", ())) <= services.keys()
        assert set(service.get("secrets", ())) <= file["secrets"].keys()
        for volume in service.get("volumes", ()):
            assert volume.partition(":")[0] in file["volumes"]
        build = service.get("build")
        if build is not None:
            context = (FOLDER / build["context"]).resolve()
            assert context == TESTS.parent
            copied = re.findall("^COPY (.*) .*$", build["dockerfile_inline"], re.M)
            assert copied
            assert all((context / path).exists() for line in copied for path in line.split())
    for name in ("upgrade", "sweep", "metrics"):
        # Substituted as it is, a password with a @ or a # would break a URL.
        environment = services[name]["environment"]
        assert environment["PHAROX_DATABASE_URL"] == "postgresql://pharox@db/pharox"
        password = services["db"]["environment"]["POSTGRES_PASSWORD"]
        assert environment["PGPASSWORD"] == password
    secret = services["sweep"]["environment"]["PHAROX_SECRET_KEY_FILE"]
    assert secret == f"/run/secrets/{services['sweep']['secrets'][0]}"
    # Nobody from outside reaches a port of these.
    published = [port for service in services.values() for port in service.get("ports", ())]
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_what_they_name_is_set_by_the_file_of_variables() -> None:
    """The environment file has what a sweep needs; the key comes as a credential."""
    variables = re.findall("^([A-Z_]+)=", (FOLDER / "pharox.env").read_text(), re.M)
    assert variables == ["PHAROX_DATABASE_URL", "PHAROX_CHECK_URL"]
    name, _, _ = setting("sweep", "LoadCredential").partition(":")
    assert setting("sweep", "Environment") == f"PHAROX_SECRET_KEY_FILE=%d/{name}"


@contextmanager
def started(words: list[str], url: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Run ``pharox`` as a service does: nothing else is in its environment."""
    with subprocess.Popen(
        [sys.executable, "-c", RUN, *words],
        cwd="/",
        env={"PATH": os.defpath, "PYTHONPATH": str(TESTS.parent), "PHAROX_DATABASE_URL": url}
        | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_sweep_runs_and_ends_with_its_unit(
    storage: PostgresStorage, database_url: str, zoo: Zoo, tmp_path: Path
) -> None:
    """With the key in a file and no home; SIGTERM, which systemd and Docker send, ends it well."""
    fill(storage, name="pool")
    (tmp_path / "secret-key").write_text(SECRET_KEY)
    variables = {
        "PHAROX_CHECK_URL": zoo.target("/status/204"),
        "PHAROX_SECRET_KEY_FILE": str(tmp_path / "secret-key"),
    }
    with started([*command_of("sweep"), "--json"], database_url, **variables) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("{")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_the_metrics_are_served(storage: PostgresStorage, database_url: str) -> None:
    """Without a key: nothing of what is counted is secret."""
    fill(storage, name="pool")
    command = [*command_of("metrics"), "--port", "0"]
    with started(command, database_url) as process:
        assert process.stderr is not None
        url = process.stderr.readline().split()[-1]
        with urllib.request.urlopen(url) as answer:
            assert b"pharox_fleet_up 1.0" in answer.read()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0

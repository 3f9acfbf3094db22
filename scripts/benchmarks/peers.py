"""Find the peers' environments, and run scripts in them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
_ROOT = HERE.parents[1]

OURS = [sys.executable]
# Isolated, so that each finds its own packages and not ours.
PHAROX_0_11 = [str(_ROOT / ".venv-peer" / "bin" / "python"), "-I"]
EVENTSOURCING = [str(_ROOT / ".venv-eventsourcing" / "bin" / "python"), "-I"]


def told_by(
    python: list[str], script: str, *arguments: object, given: str | None = None
) -> dict[str, Any]:
    """Run a script of this folder with another Python; return the JSON object that it prints."""
    done = subprocess.run(
        [*python, str(HERE / script), *map(str, arguments)],
        input=given,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def seed_0_11(url: str, pool: str, proxies: int, *consumers: str) -> None:
    """Fill an empty database for pharox 0.11.0."""
    told_by(PHAROX_0_11, "seed_peer.py", url, pool, proxies, *consumers)

"""The processes of a soak, seen from outside."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


class Worker:
    """A process that can be killed and started again; both go by one name and journal."""

    def __init__(self, kind: str, name: str, url: str, folder: Path) -> None:
        self.name = name
        self._words = [sys.executable, "-m", "scripts.soaking.worker", kind, url, name]
        self._words.append(str(folder / name))
        self.start()

    def start(self) -> None:
        """Begin, with nothing of an earlier process."""
        self._process = subprocess.Popen(self._words, cwd=ROOT)

    def kill(self) -> None:
        """Kill -9, and wait until it is gone."""
        self._process.kill()
        self._process.wait()

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    @property
    def runs(self) -> bool:
        """Whether it has not ended by itself."""
        return self._process.poll() is None

"""Describe the machine that figures come from, without its name, and how busy it was."""

from __future__ import annotations

import os
import platform
import re
import threading
from pathlib import Path
from statistics import median
from typing import Any

from scripts.benchmarks.server import connected

BUSY_LOAD = 0.5
"""A load average before the start beyond which something else runs on the machine."""

NOISY_SPREAD = 0.25
"""A difference between rounds of one figure, of its median, beyond which it is not steady."""

STOLEN = 0.02
"""A share of the CPUs' time that a hypervisor gave to others beyond which rates are in doubt."""

_SAMPLE_S = 5


def describe(url: str) -> dict[str, Any]:
    """Return the processor, memory, system and versions."""
    with connected(url) as connection:
        row = connection.execute("SHOW server_version").fetchone()
    assert row is not None
    system = platform.freedesktop_os_release() if Path("/etc/os-release").exists() else {}
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "os": system.get("PRETTY_NAME", platform.system()),
        "kernel": platform.release().split("-", maxsplit=1)[0],
        "python": platform.python_version(),
        "postgres": row[0].split()[0],
    }


def _cpu() -> str:
    try:
        told = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", told, re.MULTILINE)
    return found[1] if found else platform.machine()


class Watch:
    """Watches the machine's load for a block; afterwards ``load`` has the result."""

    load: dict[str, float]

    def __enter__(self) -> Watch:
        self._before = os.getloadavg()[0]
        self._began = _cpu_ticks()
        self._during: list[float] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.load = {
            "before": round(self._before, 2),
            "during": round(median(self._during), 2),
            "most": round(max(self._during), 2),
            "stolen": round(_stolen(self._began, _cpu_ticks()), 3),
        }

    def _look(self) -> None:
        while True:
            self._during.append(os.getloadavg()[0])
            if self._stop.wait(_SAMPLE_S):
                return


def _cpu_ticks() -> list[int]:
    """Return the CPUs' times by kind since the start, as the kernel counts them; [] without."""
    try:
        return [int(ticks) for ticks in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    except OSError:
        return []


def _stolen(before: list[int], after: list[int]) -> float:
    spent = [late - early for early, late in zip(before, after, strict=True)]
    return spent[7] / sum(spent) if sum(spent) else 0.0


def noise(load: dict[str, float], told: dict[str, Any]) -> list[str]:
    """Return reasons to doubt the figures, one sentence each."""
    found = []
    if load["before"] > BUSY_LOAD:
        found.append(f"something else was running before the start (load {load['before']:.1f})")
    if load["stolen"] > STOLEN:
        found.append(f"the hypervisor gave {load['stolen']:.0%} of the time to others")
    lines = [line for table in told["tables"] for line in table["lines"]]
    unsteady = [line for line in lines if _spread(line) > NOISY_SPREAD]
    if unsteady:
        found.append(
            f"{len(unsteady)} of {len(lines)} figures differ by more than {NOISY_SPREAD:.0%} "
            "between rounds"
        )
    return found


def _spread(line: dict[str, Any]) -> float:
    span: float = line["most"] - line["least"]
    return span / line["value"] if line["value"] else 0.0

"""How long the command line takes to start: processor time, beside that of an empty program.

Each command is a process of its own, run several times in turns; its figure is the least of them.
All find their bytecode, as an installed wheel does: it is kept in a folder, whatever the
environment says of it, and a first run that is not counted fills that. The ledger of
``pharox pools list`` is on the same machine, and its server's time is not counted.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pharox
from scripts.benchmarks import goals
from scripts.benchmarks.parts import Bench, Figures, Line, Part

RUNS = 5
"""How often each command is run in a round."""

_PROGRAM = str(Path(sys.executable).with_name("pharox"))
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "pharox --help": [_PROGRAM, "--help"],
    "pharox --version": [_PROGRAM, "--version"],
    "pharox pools list": [_PROGRAM, "pools", "list"],
}
_BARE, *_OURS = COMMANDS

LINES = (
    Line(_BARE, _BARE, "s"),
    *(
        line
        for name in _OURS
        for line in (
            Line(name, name, "s", goal=goals.START),
            Line("  of python -c pass", name, per=_BARE),
        )
    ),
)


def prepare(bench: Bench) -> list[Part]:
    """Return the part that starts each command."""
    storage = pharox.connect(bench.url)
    storage.upgrade_schema()
    storage.save_pool(pharox.ProxyPool(name="pool"))
    storage.close()

    def measure() -> Figures:
        times: dict[str, list[float]] = {name: [] for name in COMMANDS}
        with TemporaryDirectory() as bytecode:
            for command in COMMANDS.values():
                processor_s(command, bench.url, bytecode)
            for _ in range(RUNS):
                for name, command in COMMANDS.items():
                    times[name].append(processor_s(command, bench.url, bytecode))
        return {name: min(each) for name, each in times.items()}

    return [Part("start", {"1. Processor time of a whole command": LINES}, measure)]


def processor_s(command: list[str], url: str, bytecode: str) -> float:
    """Run a command on a ledger; return the processor time that it took.

    Parameters
    ----------
    bytecode:
        The folder in which Python keeps the bytecode of all modules.
    """
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        command,
        env={**kept, "PYTHONPYCACHEPREFIX": bytecode, "PHAROX_DATABASE_URL": url},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

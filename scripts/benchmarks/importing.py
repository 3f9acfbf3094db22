"""Import a list with passwords with the command, import it again, and list the pool.

Each measurement is a whole process, from start to end, as a person waits for it. Every proxy has
credentials, which are encrypted and later recognised.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import NamedTuple
from uuid import uuid4

from cryptography.fernet import Fernet
from sqlalchemy import create_engine

from pharox.storage.postgres import PostgresStorage
from scripts.benchmarks import goals
from scripts.benchmarks.parts import Bench, Figures, Line, Part
from scripts.benchmarks.server import new_database, settled

PROXIES = 200_000
FEW = 2_000

_COMMAND = """
import resource, sys
from pharox.cli import main
status = main(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
sys.exit(status)
"""

LINES = (
    Line("new", "new", goal=goals.IMPORT_NEW),
    Line("known already", "known", goal=goals.IMPORT_KNOWN),
    Line("listed by pharox proxies", "listed"),
    Line("most memory of importing new ones", "memory", "MB"),
    Line("  of importing a hundredth of them", "memory of few", "MB"),
    Line("  of that", "memory", per="memory of few", goal=goals.IMPORT_MEMORY),
)


class _Ran(NamedTuple):
    """The resources that a command took."""

    seconds: float
    memory_mb: float


def prepare(bench: Bench) -> list[Part]:
    """Return the part, which uses a new pool in each round."""
    url = new_database(bench.url, "import")
    storage = PostgresStorage(create_engine(url), secret_keys=[])
    storage.upgrade_schema()
    storage.close()
    folder = Path(mkdtemp(prefix="pharox-bench-"))
    many, few = (_list(folder / f"{number}.txt", number) for number in (PROXIES, FEW))
    run = partial(
        _run, {"PHAROX_DATABASE_URL": url, "PHAROX_SECRET_KEY": Fernet.generate_key().decode()}
    )
    title = f"1. {PROXIES:,} proxies with passwords"
    return [Part("import", {title: LINES}, partial(_measure, run, url, many, few))]


def _measure(run: Callable[..., _Ran], url: str, many: Path, few: Path) -> Figures:
    pool, small = str(uuid4()), str(uuid4())
    of_few = run("import", str(few), "--pool", small)
    settled(url)
    new = run("import", str(many), "--pool", pool)
    settled(url)
    known = run("import", str(many), "--pool", pool)
    listed = run("proxies", "list", pool)
    return {
        "new": PROXIES / new.seconds,
        "known": PROXIES / known.seconds,
        "listed": PROXIES / listed.seconds,
        "memory": max(new.memory_mb, known.memory_mb),
        "memory of few": of_few.memory_mb,
    }


def _run(environment: dict[str, str], *arguments: str) -> _Ran:
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _COMMAND, *arguments],
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    took_s = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(f"pharox {json.dumps(arguments)} failed: {done.stderr}")
    return _Ran(took_s, int(done.stderr.split()[-1]) / 1024)


def _list(file: Path, number: int) -> Path:
    """Write a list of proxies with different addresses."""
    with file.open("w") as lines:
        for n in range(number):
            host = f"10.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}"
            lines.write(f"http://user-{n}:password-{n * 7919 % 1_000_003}@{host}:8080\n")
    return file

"""What goes wrong in a soak: processes are killed, connections cut, and now and then the server."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from random import Random

import psycopg

from pharox import DatabaseUnavailableError
from pharox.connecting import embedded
from scripts.benchmarks.server import connected
from scripts.soaking.workers import Worker

_PATIENCE_S = 60

_CUT = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
ORDER BY md5(pid::text || %s) LIMIT 1
"""


class Faults:
    """Does harm, and counts it."""

    def __init__(self, data_dir: Path, url: str, mortal: list[Worker], chance: Random) -> None:
        self.done: Counter[str] = Counter()
        self._data_dir, self._url, self._mortal, self._chance = data_dir, url, mortal, chance

    def kill_worker(self) -> None:
        """Kill -9 one of the processes that are there for that; another takes its place."""
        worker = self._chance.choice(self._mortal)
        worker.kill()
        worker.start()
        self.done["kill -9 of a worker"] += 1

    def cut_connection(self) -> None:
        """End some session, whatever it is about."""
        with suppress(psycopg.OperationalError), connected(self._url) as connection:
            connection.execute(_CUT, [str(self._chance.random())])
        self.done["pg_terminate_backend"] += 1

    def kill_server(self) -> None:
        """Kill -9 the postmaster, and start the server again: it recovers as from a power cut."""
        pid_file = self._data_dir / "postgres" / "postmaster.pid"
        os.kill(int(pid_file.read_text().split()[0]), signal.SIGKILL)
        self.done["kill -9 of the postmaster"] += 1
        until = time.monotonic() + _PATIENCE_S
        while True:
            try:
                embedded.start(self._data_dir)
            except DatabaseUnavailableError:
                # The killed one's children hold its memory until they have noticed.
                if time.monotonic() > until:
                    raise
                time.sleep(0.2)
            else:
                return

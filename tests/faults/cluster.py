"""A PostgreSQL of a test's own, to be killed: out of the wheel, and as durable as one runs it."""

from __future__ import annotations

import os
import shlex
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from pharox.connecting.embedded import _Cluster as Binaries
from pharox.storage.postgres import PostgresStorage
from tests import servers
from tests.conftest import SECRET_KEY, open_engine

START_S = 20
_PORT = 5432  # of the socket's name only
_SETTINGS = {"listen_addresses": "", "port": str(_PORT), "max_connections": "60"}


class Cluster:
    """A server in a folder; made by :func:`running`."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.data = folder / "postgres"
        self.settings = {**_SETTINGS, "unix_socket_directories": f'"{self.data}"', **settings}
        self._binaries = Binaries(self.data)
        self.url = f"postgresql+psycopg://postgres@/postgres?host={self.data}&port={_PORT}"

    def initialise(self, *options: str) -> None:
        """Make an empty cluster."""
        self._binaries._share_binaries()
        self._own_data()
        self.run(
            "initdb",
            *("-D", str(self.data), "--username=postgres", "--auth=trust"),
            *("--encoding=UTF8", "--no-locale", "--no-instructions", *options),
        )

    def clone(self, primary: Cluster) -> None:
        """Become a standby of a running server."""
        self._own_data()
        source = f"host={primary.data} port={_PORT} user=postgres application_name=standby"
        self.run("pg_basebackup", "-D", str(self.data), "-R", "-c", "fast", "-d", source)
        # The primary's socket is in its data, and so was copied the lock of that.
        (self.data / f".s.PGSQL.{_PORT}.lock").unlink(missing_ok=True)

    def _own_data(self) -> None:
        self.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._binaries._give(self.data)

    def start(self) -> None:
        """Start the server, once those who use the memory of a killed one are gone."""
        options = shlex.join(f"-c{name}={value}" for name, value in self.settings.items())
        log = str(self.data / "log")
        deadline = time.monotonic() + START_S
        while True:
            try:
                self.run(
                    "pg_ctl",
                    *("-D", str(self.data), "-l", log, "-w", "-t", str(START_S), "-o", options),
                    "start",
                )
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
            else:
                return

    def kill(self, *, with_all: bool = False) -> None:
        """End the postmaster with SIGKILL, and with it all processes of its own."""
        postmaster = psutil.Process(self.pid)
        children = postmaster.children(recursive=True) if with_all else []
        os.kill(postmaster.pid, signal.SIGKILL)
        for child in children:
            with suppress(psutil.Error):
                child.kill()

    def stall(self) -> None:
        """Have a standby receive nothing any more, although it seems to be there."""
        (receiver,) = (
            child
            for child in psutil.Process(self.pid).children()
            if "walreceiver" in " ".join(child.cmdline())
        )
        receiver.suspend()

    def stop(self) -> None:
        """Stop the server, if it runs."""
        with suppress(RuntimeError):
            self.run("pg_ctl", "-D", str(self.data), "-w", "-m", "immediate", "stop")

    def promote(self) -> None:
        """Make a standby a server of its own."""
        self.run("pg_ctl", "-D", str(self.data), "-w", "promote")

    @property
    def pid(self) -> int:
        """The postmaster's."""
        return int((self.data / "postmaster.pid").read_text().splitlines()[0])

    def run(self, command: str, *arguments: str) -> None:
        """Run one of the binaries, as the user whose the data is."""
        self._binaries._run(command, *arguments)


@contextmanager
def running(folder: Path | None = None, *initdb: str, **settings: str) -> Iterator[Cluster]:
    """Run a server with an upgraded schema for a block, in a folder of its own if none is given."""
    with servers.new_folder() as own:
        cluster = Cluster(folder or Path(own), **settings)
        cluster.initialise(*initdb)
        try:
            cluster.start()
            storage = PostgresStorage(open_engine(cluster.url), secret_keys=[SECRET_KEY])
            storage.upgrade_schema()
            storage.close()
            yield cluster
        finally:
            cluster.stop()

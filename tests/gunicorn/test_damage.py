"""A full disk and damaged files: the application goes on, and no count is lost."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.gunicorn.web import Web, running, until


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """Mount a file system of 1 MiB for a block, where that is allowed."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system is not allowed here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder: Path) -> Path:
    """Take all the room that is left."""
    path = folder / "filling"
    with path.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    return path


@pytest.mark.parametrize("kind", ["sync", "gthread"])
def test_a_full_disk_costs_no_request_and_no_count(version: str, kind: str, tmp_path: Path) -> None:
    """What a worker counts meanwhile is shown as soon as there is room."""
    with small_disk(tmp_path / "disk") as disk:
        where = {"PROMETHEUS_MULTIPROC_DIR": str(disk)}
        with running(version, tmp_path / "web", "--worker-class", kind, **where) as web:
            filling = fill(disk)
            for number in range(600):
                # Long paths: files of numbers have to grow.
                assert web.get(f"/{'long' * 100}/{number % 500}") is not None
            assert web.log.count("Booting worker") == 2
            assert web.hits().total() < web.seen().total()
            filling.unlink()
            with ThreadPoolExecutor(4) as pool:
                # A worker writes what it kept when it counts the next time, after a second.
                until(
                    lambda: all(pool.map(web.get, ["/again"] * 8)) and web.hits() == web.seen(),
                    "all counts",
                )


def test_a_worker_that_ends_without_room(newest: str, tmp_path: Path) -> None:
    """It says how much was lost; the one in its place counts as soon as there is room."""
    with small_disk(tmp_path / "disk") as disk:
        where = {"PROMETHEUS_MULTIPROC_DIR": str(disk)}
        with running(newest, tmp_path / "web", workers=1, **where) as web:
            filling = fill(disk)
            for number in range(300):
                web.get(f"/{'long' * 100}/{number}")
            web.end(web.workers()[0], signal.SIGTERM)
            for _ in range(20):
                assert web.get("/lease") is not None
            assert "pharox: no room to write" in web.log
            filling.unlink()
            until(
                lambda: (
                    web.get("/again") is not None
                    and all(web.hits()[path] == web.seen()[path] for path in ("/lease", "/again"))
                ),
                "the new worker's counts",
            )


def test_a_start_on_a_full_disk(newest: str, tmp_path: Path) -> None:
    """Requests are answered, and metrics served when there is room."""
    with small_disk(tmp_path / "disk") as disk:
        filling = fill(disk)
        web = Web(newest, tmp_path, PROMETHEUS_MULTIPROC_DIR=str(disk))
        try:
            until(web.is_up)
            for _ in range(20):
                assert web.get("/lease") is not None
            filling.unlink()
            until(
                lambda: (
                    web.get("/again") is not None and web.is_scraped() and web.hits() == web.seen()
                ),
                "all counts",
            )
        finally:
            web.clear()


class TestDamagedFiles:
    """Somebody has written into them."""

    @pytest.mark.parametrize(
        "damage",
        [
            b"\xff" * 65536,
            b"\x00\x00\x01\x00" + b"\xf0\xff\xff\xff" * 1000,
            b"\x40\x00\x00\x00\x00\x00\x00\x00\x04\x00\x00\x00oops" + b"\x00" * 600,
        ],
        ids=["noise", "backwards", "no-key"],
    )
    def test_one_costs_a_warning_and_a_metric(
        self, newest: str, damage: bytes, tmp_path: Path
    ) -> None:
        """What was read of it before is shown on, also when its worker has gone."""
        with running(newest, tmp_path, workers=1) as web:
            for _ in range(10):
                web.get("/lease")
            assert web.hits() == web.seen()
            (path,) = web.multiproc.rglob("counter_*.db")
            with path.open("r+b") as file:
                file.write(damage)
            for _ in range(3):
                shown = web.scrape()
                assert shown["gunicorn_corrupt_files_total"] == 1
                assert web.hits(shown) == web.seen()
            web.end(web.workers()[0], signal.SIGKILL)
            web.get("/lease")
            shown = web.scrape()
            assert web.hits(shown) == web.seen()
            assert shown["gunicorn_corrupt_files_total"] == 1
            until(lambda: web.log.count("is damaged") == 1)

    def test_a_file_of_no_length_is_none(self, newest: str, tmp_path: Path) -> None:
        """A process makes it before it writes."""
        with running(newest, tmp_path) as web:
            (folder,) = web.multiproc.iterdir()
            (folder / f"counter_{os.getpid()}.db").touch()
            assert web.scrape()["gunicorn_corrupt_files_total"] == 0

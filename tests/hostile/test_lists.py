"""A list of proxies from somebody hostile is an error of ours, and costs no memory."""

from __future__ import annotations

import gzip
import os
import re
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler
from itertools import accumulate, cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from pharox.errors import SourceError
from pharox.sources import BadEntry, open_source, opening, read_proxies
from pharox.storage.postgres import PostgresStorage
from tests.conftest import SECRET_KEY, serving, types_of

MIB = 1 << 20
ROOM_MIB = 40
"""How much more memory a large list may take than a small one."""

LINE = b"192.0.2.1:80\n"
zipped = partial(gzip.compress, mtime=0)
Send = Callable[[Any], object]


@contextmanager
def answering(send: Send, *headers: tuple[str, str]) -> Iterator[str]:
    """Serve an answer whose body is what ``send`` writes, until the client hangs up."""

    class Site(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            for name, value in headers:
                self.send_header(name, value)
            self.end_headers()
            try:
                send(self.wfile.write)
            except OSError:
                self.close_connection = True  # it has heard enough

        def log_message(self, *_: object) -> None:
            pass

    with serving(Site) as port:
        yield f"http://127.0.0.1:{port}/list"


def endless(piece: bytes) -> Send:
    def send(write: Any) -> None:
        while True:
            write(piece)

    return send


def bomb(mib: int) -> bytes:
    """Return what is small and becomes so many MiB."""
    return gzip.compress(b" " * (mib * MIB - 1) + b"\n")


class Run(NamedTuple):
    """What a process of its own wrote, its exit status, and how much memory it had at most."""

    status: int
    out: str
    err: str
    mib: float


def pharox(*arguments: str, url: str, stdin: bytes = b"") -> Run:
    """Run the command in a process of its own."""
    code = "import sys; from pharox.cli import main; sys.exit(main())"
    environment = {**os.environ, "PHAROX_DATABASE_URL": url, "PHAROX_SECRET_KEY": SECRET_KEY}
    # The peak is the kernel's word for this very process; a parent's pages do not count.
    measured = (
        f"{code.removesuffix('sys.exit(main())')}status = main(); "
        "import re; peak = re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]; "
        "print('peak', peak, file=sys.stderr); sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", measured, *arguments],
        input=stdin,
        env=environment,
        capture_output=True,
        check=False,
        timeout=240,
    )
    err = done.stderr.decode()
    peak = re.search(r"^peak (\d+)\n", err, re.M)
    assert peak is not None, err
    return Run(done.returncode, done.stdout.decode(), err.replace(peak[0], ""), int(peak[1]) / 1024)


@pytest.fixture
def import_list(database_url: str) -> Callable[..., Run]:
    """Import a source into a pool, in a process of its own."""

    def run(source: str, stdin: bytes = b"") -> Run:
        options = ("--pool", "p", "--protocol", "http")
        return pharox("import", source, *options, url=database_url, stdin=stdin)

    return run


needs_proc = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="a process's peak is read from /proc"
)


@needs_proc
class TestMemory:
    def test_a_million_bad_lines_take_no_memory(
        self, import_list: Callable[..., Run], storage: PostgresStorage
    ) -> None:
        """They are counted and the first ones listed; one good line among them is kept."""
        small = import_list("-", b"bad\n")
        lines = b"".join(b"not a proxy %d\n" % n for n in range(1_000_000))
        large = import_list("-", lines + LINE)
        assert large.status == 1
        assert large.out == (
            "1000001 read: 1 new, 0 known already, 1000000 bad; "
            "each new one takes 1 lease at a time; the pool is new, its selector "
            "least_recently_used\n"
        )
        assert large.err.count("\n") < 100
        assert large.mib - small.mib < ROOM_MIB
        assert types_of(storage) == ["PoolRegistered", "ProxyRegistered"]

    def test_a_bomb_does_not_go_off(
        self, import_list: Callable[..., Run], storage: PostgresStorage
    ) -> None:
        """200 MiB that come as 200 KiB are read piece by piece, with the line behind them."""
        small = import_list("-", b"bad\n")
        content = gzip.compress(b" " * (200 * MIB) + b"\n" + LINE)
        assert len(content) < MIB
        with answering(lambda write: write(content), ("Content-Encoding", "gzip")) as url:
            large = import_list(url)
        assert large.out == (
            "2 read: 1 new, 0 known already, 1 bad; each new one takes 1 lease at a time; the pool "
            "is new, its selector least_recently_used\n"
        )
        assert large.mib - small.mib < ROOM_MIB
        assert types_of(storage) == ["PoolRegistered", "ProxyRegistered"]


@pytest.mark.parametrize("piece", [LINE * 1000, b"x" * MIB, b"\n" * MIB])
def test_a_list_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch, piece: bytes) -> None:
    """Beyond the limit it is an error; what came before was read."""
    monkeypatch.setattr(opening, "MAX_FETCHED_BYTES", 4 * MIB)
    with answering(endless(piece)) as url, open_source(url) as source:
        entries = read_proxies(source.chunks)
        with pytest.raises(SourceError, match="sends more than 4 MiB, and may never end"):
            for _ in entries:
                pass


def test_a_list_that_comes_too_slowly_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little at a time, for ever, is no list either; how long we take to read it does not count."""
    monkeypatch.setattr(opening, "MAX_WAITED_S", 3)
    ours, theirs = 1000, 1
    clock = accumulate(cycle([ours, theirs]))
    monkeypatch.setattr(opening, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with answering(endless(LINE)) as url, open_source(url) as source:
        for _ in range(3):
            assert next(source.chunks)
        with pytest.raises(SourceError, match="may never end"):
            next(source.chunks)


def test_a_bomb_within_the_limit_of_the_wire_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the content that counts, not how little was sent."""
    monkeypatch.setattr(opening, "MAX_FETCHED_BYTES", 4 * MIB)
    content = bomb(50)
    with (
        answering(lambda write: write(content), ("Content-Encoding", "gzip")) as url,
        open_source(url) as source,
        pytest.raises(SourceError, match="may never end"),
    ):
        list(source.chunks)


@pytest.mark.parametrize(
    ("encoding", "content", "why"),
    [
        ("gzip", b"192.0.2.1:80\n", "cannot be decompressed"),
        ("gzip", zipped(LINE * 1000)[:-20], "is cut off"),
        ("deflate", zlib.compress(LINE), "was not requested"),
        ("zstd", b"(\xb5/\xfd", "was not requested"),
        ("br", b"x", "was not requested"),
        ("gzip, gzip", zipped(zipped(LINE)), "was not requested"),
    ],
)
def test_what_cannot_be_decompressed_is_one_error(encoding: str, content: bytes, why: str) -> None:
    """An answer that is not what its header says, is cut off, or is packed in another way."""
    with (
        answering(lambda write: write(content), ("Content-Encoding", encoding)) as url,
        open_source(url) as source,
        pytest.raises(SourceError, match=why),
    ):
        list(source.chunks)


@pytest.mark.parametrize(
    ("encoding", "content", "expected"),
    [
        ("gzip", b"", b""),
        ("gzip, identity", zipped(LINE), LINE),
        ("X-GZIP", zipped(LINE) + zipped(LINE), 2 * LINE),
        ("identity", LINE, LINE),
        ("", LINE, LINE),
    ],
)
def test_what_servers_do_send_is_read(encoding: str, content: bytes, expected: bytes) -> None:
    """An empty body, several compressed one after the other, and headers that say nothing."""
    with (
        answering(lambda write: write(content), ("Content-Encoding", encoding)) as url,
        open_source(url) as source,
    ):
        assert b"".join(source.chunks) == expected


@pytest.mark.parametrize(
    "content",
    [
        os.urandom(4096) + b"\x00",
        zipped(LINE * 1000),
        bomb(20),
        "192.0.2.1:80\n".encode("utf-16-le"),
        b"\x7fELF\x02\x01\x01\x00" + b"\x00" * 1000,
    ],
    ids=["noise", "gzip", "a bomb", "UTF-16 without a mark", "a program"],
)
def test_a_binary_file_writes_nothing(
    import_list: Callable[..., Run], storage: PostgresStorage, tmp_path: Path, content: bytes
) -> None:
    """It is one sentence, not a list of bad lines, and no pool is made for it."""
    path = tmp_path / "list"
    path.write_bytes(content)
    ended = import_list(str(path))
    assert (ended.status, ended.out) == (1, "")
    assert ended.err.startswith("pharox: the source is binary")
    assert ended.err.count("\n") == 1
    assert types_of(storage) == []


def test_json_may_not_be_nested_without_end() -> None:
    """A value nested beyond what can be read is a bad entry, in an array and in lines."""
    deep = b"[" * 30_000 + b"]" * 30_000
    for content in (b'[{"host":' + deep + b"}]", b'{"host":' + deep + b"}\n"):
        (bad,) = read_proxies([content])
        assert isinstance(bad, BadEntry)

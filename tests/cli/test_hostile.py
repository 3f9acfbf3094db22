"""No argument or stored name breaks a command or controls the terminal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any
from uuid import uuid4

import pytest

import pharox as px
from pharox import HealthCheckResult, ProxyManager
from pharox.storage.postgres import PostgresStorage
from tests.conftest import SECRET_KEY, fill, types_of
from tests.hostile.values import AWKWARD

from .conftest import Pharox


@pytest.fixture(autouse=True)
def page(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page to check proxies with, so that a sweep is refused for what is tried here."""
    monkeypatch.setenv("PHAROX_CHECK_URL", "http://target.example/")


@pytest.fixture
def text(storage: PostgresStorage) -> str:
    """A text that is the name of everything in the ledger, and the reason of all that happened."""
    text = " ".join(AWKWARD.values())
    facts: dict[str, Any] = dict.fromkeys(("source", "country", "city", "isp"), text)
    _, (proxy,) = fill(storage, name=text, **facts)
    with px.attributed(actor=text, correlation_id=text):
        lease = ProxyManager(storage).acquire_proxy(text, text, filters=px.ProxyFilters(**facts))
        assert lease is not None
        ProxyManager(storage).acquire_proxy(text, text)
        storage.return_lease(lease, reason=text)
    storage.apply_health_check_result(
        HealthCheckResult(
            proxy_id=proxy.id, status="slow", latency_ms=1, protocol="http", error_message=text
        )
    )
    storage.set_status(proxy.id, px.ProxyStatus.BANNED, reason=text)
    return text


def is_inert(text: str) -> bool:
    """Return whether a terminal shows a text unchanged, line by line."""
    return all(c.isprintable() or c == "\n" for c in text)


def test_a_name_is_only_text_wherever_it_comes_out(
    pharox: Pharox, storage: PostgresStorage, text: str
) -> None:
    """Each command that tells of a ledger prints it inert, and as JSON whole."""
    proxy = storage.list_proxies(str(storage.list_pools()[0].id))[0]
    commands = [
        ("pools",),
        ("stats",),
        ("proxies", text),
        ("log",),
        ("log", "--pool", text),
        ("audit", "consumer", text),
        ("audit", "pool", text),
        ("audit", "proxy", str(proxy.id)),
        ("replay", "--pool", text, "--at", "4"),
        ("replay", "--pool", text, "--from", "1", "--to", "6"),
        ("replay", "--pool", text, "--diff", "3", "6"),
        ("unban", str(proxy.id)),
        ("ban", str(proxy.id), "--reason", text),
        ("acquire", text, "--consumer", text),
        ("verify",),
        ("subscriptions",),
    ]
    for command in commands:
        for options in ((), ("--json",)):
            ended = pharox(*command, *options)
            assert is_inert(ended.out), command
            assert is_inert(ended.err), command
            # Nothing is free, and what was lifted once is not lifted again.
            expected = {"acquire": (0, 75), "unban": (0, 1)}.get(command[0], (0,))
            assert ended.status in expected, ended
            if options:
                assert all(json.loads(line) for line in ended.out.splitlines())
    assert storage.verify() == []


@pytest.mark.parametrize("value", AWKWARD.values(), ids=AWKWARD)
def test_what_is_unknown_is_told_inertly(
    pharox: Pharox, storage: PostgresStorage, value: str
) -> None:
    """A name that nothing has is quoted in one sentence that moves nothing."""
    before = types_of(storage)
    for command in (
        ("proxies", value),
        ("log", "--pool", value),
        ("log", "--type", value),
        ("audit", "consumer", value),
        ("audit", "pool", value),
        ("audit", "proxy", value),
        ("audit", "lease", value),
        ("replay", "--pool", value, "--at", "now"),
        ("release", value),
        ("ban", value),
        ("sweep", value),
        ("rebuild", value),
        ("import", value, "--pool", "p"),
        ("subscriptions", "retry", value),
        ("db", "grant", "--app", value),
        ("prune", "--ended-before", value),
        (value,),
        ("stats", f"--{value}"),
    ):
        ended = pharox(*command)
        assert ended.status in (1, 2), command
        assert ended.err.count("\n") == 1, ended
        assert is_inert(ended.out + ended.err), ended
    assert types_of(storage) == before


NUMBERS = ["0", "-1", "nan", "inf", "-inf", "1e400", "9" * 400, "1_0", "٣", "", " ", "0x10"]


@pytest.mark.parametrize("value", NUMBERS)
def test_a_number_that_makes_no_sense_is_refused(
    pharox: Pharox, storage: PostgresStorage, value: str
) -> None:
    """No option takes it for a duration, a count or a span, and nothing has happened then."""
    fill(storage, name="p", status=px.ProxyStatus.BANNED)  # nobody asks it for anything
    before = types_of(storage)
    takes = {"1_0", "٣"}  # of whole numbers, which Python reads so
    options: list[tuple[tuple[str, ...], set[str]]] = [
        (("acquire", "p", "--duration"), set()),
        (("acquire", "p", "--asn"), takes | {"0"}),
        (("sweep", "p", "--every"), set()),
        (("sweep", "p", "--stale-after"), {"0"}),
        (("sweep", "p", "--timeout"), set()),
        (("sweep", "p", "--concurrency"), takes),
        (("sweep", "p", "--failures"), takes),
        (("sweep", "p", "--slow"), takes | {"0"}),
        (("stats", "--watch", "--every"), set()),
        (("prune", "--ended-before"), set()),
        (("log", "--limit"), takes | {"9" * 400}),  # which is everything
        (("verify", "--limit"), takes | {"9" * 400}),
        (("metrics", "serve", "--port"), takes | {"0"}),
        (("replay", "--pool", "p", "--from", "1", "--speed"), takes),
        (("import", "-", "--pool", "p", "--max-concurrency"), takes),
    ]
    for command, taken in options:
        if value in taken:
            continue
        ended = pharox(*command, value)
        assert ended.status == 2, (command, ended)
        assert ended.err.count("\n") == 1
        assert is_inert(ended.err)
    assert types_of(storage) == before


def test_bytes_that_are_no_text_are_refused(database_url: str, storage: PostgresStorage) -> None:
    """An argument that is not UTF-8 is an error of ours in every place that takes a text."""
    fill(storage, name="p")
    before = types_of(storage)
    bad = b"caf\xe9"
    environment = {
        **os.environ,
        "PHAROX_DATABASE_URL": database_url,
        "PHAROX_SECRET_KEY": SECRET_KEY,
    }
    code = (
        "import sys; from pharox.cli import main\n"
        "for command in ('acquire @', 'acquire p --consumer @', 'acquire p --city @', 'stats @', "
        "'pools add @', 'pools add q --description @', 'proxies @', 'audit consumer @', "
        "'audit pool @', 'ban @', f'ban {sys.argv[2]} --reason @', 'import @ --pool p', "
        "'import - --pool @', 'import - --pool p --source @', 'log --pool @', 'sweep @', "
        "'db grant --reader @', 'replay --pool @ --at now', 'subscriptions retry @'):\n"
        "    words = [sys.argv[1] if word == '@' else word for word in command.split()]\n"
        "    print(main(words), command)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, bad, str(uuid4())],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    told = [line for line in done.stdout.decode().splitlines() if line]
    assert {line[:2] for line in told} <= {"1 ", "2 "}, told
    assert len(done.stderr.splitlines()) == len(told) == 19
    assert types_of(storage) == before

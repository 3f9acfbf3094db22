"""``pharox sources``: pools in step with a provider that is asked over HTTP."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pharox import ProxyManager
from pharox.incident.report import write_report
from pharox.models import utc_now
from pharox.observability.counting import FleetCounter
from pharox.observability.fleet import FleetCollector
from pharox.storage.postgres import PostgresStorage
from tests.conftest import fill
from tests.provider import Answer, Provider, running_provider

from .conftest import Pharox

TOKEN = "t0ken-of-the-url"
PATH = f"/{TOKEN}/list"
LINES = [f"192.0.2.{n}:8080" for n in range(1, 5)]


@pytest.fixture(scope="module")
def running() -> Iterator[Provider]:
    with running_provider() as provider:
        yield provider


@pytest.fixture
def provider(running: Provider, pharox: Pharox, storage: PostgresStorage) -> Provider:
    """A provider that is the source ``shop`` of a pool, and asked for nothing yet."""
    running.reset()
    running.lists(LINES, PATH)
    fill(storage, 0)
    options = ("--pool", "pool", "--protocol", "http", "--header", "Authorization: Token s3cret")
    added = pharox("sources", "add", "shop", running.url(PATH), *options)
    assert added.status == 0, added.err
    return running


def test_a_source_is_added_shown_and_removed(pharox: Pharox, provider: Provider) -> None:
    """Nothing shows its secrets; the same again is no change."""
    url = provider.url(PATH)
    base = ("sources", "add", "shop", "-", "--pool", "pool", "--protocol", "http")
    same = pharox(*base, "--header", "Authorization: Token s3cret", stdin=f"{url}\n")
    assert "is as it was" in same.err
    changed = pharox(*base, "--every", "90s", "--max-removed", "10", stdin=f"{url}\n")
    assert "was changed; pool 'pool', every 1 min 30 s" in changed.err
    shown = [pharox("sources", "show", "shop"), pharox("sources", "list")]
    shown += [pharox("sources", "list", "--json"), pharox("log"), pharox("audit", "source", "shop")]
    assert all(each.status == 0 for each in shown), shown
    assert f"127.0.0.1:{provider.port}" in shown[0].out
    assert "max removed  10" in shown[0].out
    assert not [each for each in shown if TOKEN in each.out or "s3cret" in each.out]
    assert pharox("sources", "remove", "shop").status == 0
    assert "no source 'shop'" in pharox("sources", "remove", "shop").err
    assert "there is no source" in pharox("sources", "list").err


def test_a_source_that_is_added_again_stays_paused(
    pharox: Pharox, provider: Provider, storage: PostgresStorage
) -> None:
    """Its settings are replaced, and only `resume` has it fetched again."""
    pharox("sources", "pause", "shop")
    again = ("sources", "add", "shop", provider.url(PATH), "--pool", "pool", "--every", "90s")
    assert "was changed; pool 'pool', and stays paused" in pharox(*again).err
    (status,) = storage.list_sources()
    assert (status.enabled, status.every_seconds) == (False, 90)


def test_a_file_of_headers_is_text(pharox: Pharox, provider: Provider, tmp_path: Path) -> None:
    """What is no UTF-8 is refused in one sentence, which repeats nothing of it."""
    file = tmp_path / "headers"
    file.write_bytes(b"X-Key: s3cret \xff\xfe\n")
    url = ("sources", "add", "other", provider.url(PATH), "--pool", "pool")
    done = pharox(*url, "--header-file", str(file))
    assert (done.status != 0, "not UTF-8" in done.err) == (True, True)
    assert "Traceback" not in done.err
    assert "s3cret" not in done.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("add", "x", "provider.example", "--pool", "pool"), "http(s) URL"),
        (("add", "x", "http://a.example/", "--pool", "none"), "none"),
        (("add", "x", "http://a.example/", "--pool", "pool", "--header", "Token"), "a name and"),
        (("add", "x", "http://a.example/", "--pool", "pool", "--line", "host"), "port"),
        (("add", "x", "http://a.example/", "--pool", "pool", "--max-removed", "half"), "50%"),
        (("refresh", "x"), "no source 'x'"),
        (("refresh", "--every", "0.5s"), "at least 1s"),
        (("refresh", "--every", "5s", "--dry-run"), "either"),
        (("show", "x"), "no source 'x'"),
        (("pause", "x"), "no source 'x'"),
    ],
)
def test_wrong_arguments_are_told(
    pharox: Pharox, provider: Provider, arguments: tuple[str, ...], message: str
) -> None:
    """In one sentence, and the status is not 0."""
    done = pharox("sources", *arguments)
    assert done.status != 0
    assert message in done.err
    assert "Traceback" not in done.err


def test_refreshes_say_what_came_and_went(
    pharox: Pharox, storage: PostgresStorage, provider: Provider, tmp_path: Path
) -> None:
    """And so do the story of the source, the metrics, and the report of an incident."""
    tried = pharox("sources", "refresh", "--dry-run")
    assert tried.out == "shop: would be: 4 listed, 4 new\n"
    assert pharox("proxies", "--pool", "pool", "--json").objects == []
    assert pharox("sources", "refresh").out == "shop: 4 listed, 4 new\n"
    assert "no source is due" in pharox("sources", "refresh").err
    provider.answers[PATH] = Answer(b"<p>Sign in", 200)
    failed = pharox("sources", "refresh", "shop")
    assert failed.status == 1
    assert "its pool stays as it is" in failed.err
    provider.lists([*LINES[:2], "gw.example:x"], PATH)
    kept = pharox("sources", "refresh", "shop")
    assert kept.out == "shop: 2 listed, 2 unchanged, 2 kept, though not listed, 1 skipped\n"
    assert "ok, 1 unreadable" in pharox("sources", "list").out
    assert "nothing, as long as entries cannot be read" in pharox("sources", "show", "shop").out
    assert "line 3" in kept.err
    provider.lists(LINES[:2], PATH)
    lease = ProxyManager(storage).acquire_proxy("pool")
    assert lease is not None
    done = pharox("sources", "refresh", "shop", "--json")
    assert done.status == 0
    (counts,) = done.objects
    assert (counts["outcome"], counts["removed"] + counts["draining"]) == ("changed", 2)
    story = pharox("audit", "source", "shop").out
    assert "source shop of pool pool, at 127.0.0.1" in story
    assert "4 proxies came, 2 went; 1 failure" in story
    assert story.count("joined pool pool") == 4
    assert "SourceRefreshed" in pharox("log", "--type", "SourceRefreshed").out
    start = next(iter(storage.events())).recorded_at
    replayed = pharox("replay", "--pool", "pool", "--at", "now").out
    assert "source shop: changed" in replayed
    page = write_report(storage, start, utc_now(), tmp_path / "report").page
    assert "Source shop no longer listed 2 of 4 proxies" in page.read_text()
    assert "Source shop failed from" in page.read_text()
    metrics = FleetCollector(storage, FleetCounter(storage)).collect()
    found = {s.name: s.value for m in metrics for s in m.samples if "source" in s.labels}
    assert found["pharox_fleet_source_proxies"] == 2
    assert found["pharox_fleet_source_failures"] == 0
    assert 0 <= found["pharox_fleet_source_age_seconds"] < 600
    assert storage.verify() == []


def test_it_refreshes_until_a_signal(pharox: Pharox, provider: Provider) -> None:
    """What is due, again and again; Ctrl-C ends it, and it was no failure."""
    pharox("sources", "pause", "shop")
    assert "no source is due" in pharox("sources", "refresh").err
    pharox("sources", "resume", "shop")
    seen = threading.Event()

    def interrupt() -> None:
        if provider.arrived.wait(60):
            seen.set()
            os.kill(os.getpid(), signal.SIGINT)

    provider.arrived.clear()
    watcher = threading.Thread(target=interrupt)
    watcher.start()
    done = pharox("sources", "refresh", "--every", "1s")
    watcher.join()
    assert seen.is_set()
    assert (done.status, done.err) == (0, "")

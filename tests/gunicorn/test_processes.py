"""Processes that start, count and end at every moment of a sweep; and names they agree on."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import trustme
from prometheus_client import CollectorRegistry, Counter, values

from pharox.gunicorn.aggregate import Aggregate
from pharox.gunicorn.family import Family
from pharox.gunicorn.values import ReservedDict, Store, value_class
from pharox.scraping.bounded_label import OTHER, BoundedLabel
from pharox.scraping.server import Certificates, MetricsServer

PROCESSES = """
import json, os, sys, time
from prometheus_client import Counter, values
from pharox.gunicorn.aggregate import Aggregate
from pharox.gunicorn.family import Family
from pharox.gunicorn.values import Store, value_class

family = Family.enter(sys.argv[1])
store = Store(family)
values.ValueClass = value_class(store)
os.register_at_fork(after_in_child=lambda: (family.forked(), store.forked()))
hits = Counter("hits", "Hits.")
end = time.monotonic() + 4

def shown(aggregate):
    return {s.name: s.value for m in aggregate.collect() for s in m.samples if not s.labels}

sweeper = os.fork()
if sweeper == 0:
    aggregate, last, back = Aggregate(Family(family.folder)), {}, 0
    while time.monotonic() < end + 1:
        now = shown(aggregate)
        back += any(now.get(name, 0) < was for name, was in last.items() if "total" in name)
        last = now
    print(json.dumps({"back": back}))
    sys.stdout.flush()
    os._exit(0)
running, started = [], 0
while time.monotonic() < end:
    worker = os.fork()
    if worker == 0:
        family.mark("worker")
        for _ in range(10):
            hits.inc()
            time.sleep(0.001)
        family.mark("ended")
        os._exit(0)
    started += 1
    running.append(worker)
    if len(running) >= 6:
        os.waitpid(running.pop(0), 0)
for worker in (*running, sweeper):
    os.waitpid(worker, 0)
now = shown(Aggregate(family))
told = {name: now[name] for name in ("hits_total", "gunicorn_worker_starts_total")}
print(json.dumps({"started": started, **told}))
"""


def test_nobody_is_buried_alive(tmp_path: Path) -> None:
    """While hundreds of short workers come and go, one sweeps all the time."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROCESSES, str(tmp_path)],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    swept, told = map(json.loads, done.stdout.splitlines())
    assert swept == {"back": 0}
    assert told["started"] > 100
    assert told["hits_total"] == 10 * told["started"]
    assert told["gunicorn_worker_starts_total"] == told["started"]


LEAVING = """
import os, signal, sys, time
from pharox.gunicorn.family import Family

family = Family.enter(sys.argv[1])
family.mark("master")
ready, told = os.pipe()
worker = os.fork()
if worker == 0:
    family.forked()
    family.mark(sys.argv[2])
    os.write(told, b".")
    time.sleep(0.3)
    os._exit(0)
os.read(ready, 1)
family.leave()
sys.exit(family.folder.exists())
"""


@pytest.mark.parametrize(("role", "stays"), [("worker", 0), ("master", 1)])
def test_a_master_that_leaves_waits_for_workers_that_are_dying(
    role: str, stays: int, tmp_path: Path
) -> None:
    """Gunicorn kills them and waits for none; for a master that took over nobody waits."""
    done = subprocess.run([sys.executable, "-c", LEAVING, str(tmp_path), role], check=False)
    assert done.returncode == stays


class TestNames:
    """Processes agree on the first names, whatever these are."""

    NAMES = ("a\rb", "a\nb", "\ud800", "", "/", "..", "x" * 500, "naïve")

    def test_each_name_has_one_place(self, tmp_path: Path) -> None:
        """Another process for each name, and one for all of them."""
        folder = tmp_path / "names"
        for name in self.NAMES:
            BoundedLabel(8, shared=folder)(name)
        label = BoundedLabel(8, shared=folder)
        assert OTHER not in [label(name) for name in self.NAMES]
        assert sorted(path.name for path in folder.iterdir()) == list("01234567")
        assert label("one too many") == OTHER

    def test_without_room_a_name_is_among_the_others(self, tmp_path: Path) -> None:
        """Until there is room."""
        (tmp_path / "names").touch()
        label = BoundedLabel(8, shared=tmp_path / "names")
        assert label("early") == OTHER
        (tmp_path / "names").unlink()
        assert label("early") == "early"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Where this process counts."""
    return Store(Family.enter(str(tmp_path)))


def test_what_has_its_place_is_written_without_room(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what is new waits."""
    registry = CollectorRegistry()
    monkeypatch.setattr(values, "ValueClass", value_class(store))
    hits = Counter("hits", "Hits.", ["path"], registry=registry)
    hits.labels("/old").inc()
    growing = ReservedDict._init_value

    def no_room(file: ReservedDict, key: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ReservedDict, "_init_value", no_room)
    hits.labels("/new").inc()
    hits.labels("/old").inc(4)
    assert store.flush() == 1
    assert counted(store) == {"/old": 5}
    monkeypatch.setattr(ReservedDict, "_init_value", growing)
    assert store.flush() == 0
    assert counted(store) == {"/old": 5, "/new": 1}
    store.close()


def test_two_metrics_of_one_name_count_together(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As two registries may have them, or one that was cleared."""
    monkeypatch.setattr(values, "ValueClass", value_class(store))
    for number in (5, 3):
        Counter("hits", "Hits.", ["path"], registry=CollectorRegistry()).labels("/").inc(number)
    assert counted(store) == {"/": 8}
    store.close()


def counted(store: Store) -> dict[str, float]:
    """Return the hits that another process would show."""
    return {
        sample.labels["path"]: sample.value
        for metric in Aggregate(store.family).collect()
        for sample in metric.samples
        if sample.name == "hits_total"
    }


class TestDamage:
    """Of what the process that serves finds when it starts."""

    @pytest.mark.parametrize("text", ["", "[]", '{"generation": "x"}', '{"later": 1}'])
    def test_a_manifest_that_makes_no_sense(self, store: Store, text: str) -> None:
        """It serves all the same."""
        (store.family.folder / "archive.json").write_text(text)
        assert Aggregate(store.family).collect()

    @pytest.mark.parametrize("le", ['"0x005"', "1", "[]"])
    def test_a_key_that_makes_no_sense(self, store: Store, le: str) -> None:
        """It is a damaged file, not the end of each scrape."""
        own = store.family.hold()
        file = ReservedDict(store.family.folder / f"histogram_{own}.db")
        file.write_value(f'["s", "s_bucket", {{"le": {le}}}, "S."]', 1.0, 0.0)
        file.close()
        found = {m.name: m.samples[0].value for m in Aggregate(store.family).collect()}
        assert found["gunicorn_corrupt_files"] == 1
        assert "s" not in found


def test_a_client_that_says_nothing_keeps_nobody_waiting(tmp_path: Path) -> None:
    """With HTTPS, before its handshake."""
    authority = trustme.CA()
    own = authority.issue_cert("127.0.0.1")
    own.private_key_and_cert_chain_pem.write_to_path(tmp_path / "pem")
    server = MetricsServer(
        CollectorRegistry(),
        0,
        "127.0.0.1",
        Certificates(str(tmp_path / "pem"), str(tmp_path / "pem")),
    )
    try:
        context = ssl.create_default_context()
        authority.configure_trust(context)
        with socket.create_connection(("127.0.0.1", server.port)):
            address = f"https://127.0.0.1:{server.port}/metrics"
            with urllib.request.urlopen(address, timeout=10, context=context) as answer:
                assert answer.status == 200
    finally:
        server.close()

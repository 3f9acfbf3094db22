"""Metrics of the whole fleet, from the log: exact, whoever restarts or dies."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from pharox import (
    CheckFailure,
    InvalidInputError,
    Outcome,
    ProxyManager,
    ProxyPool,
    ProxyStatus,
    RotationAnswer,
    RotationFailure,
    Sticky,
)
from pharox.ledger.subscriptions import reset
from pharox.observability.fleet import FleetServer
from pharox.storage.postgres import PostgresStorage
from pharox.storage.reports import CoolDownRequest, ReportRequest
from pharox.testing import checked
from tests.conftest import DatabaseClock, clock_of, fill, ledger, run_sql
from tests.hostile.values import AWKWARD
from tests.ledger.following import until

SERVE = [str(Path(sys.executable).parent / "pharox"), *["metrics", "serve", "--port", "0"]]
Samples = dict[tuple[str, tuple[str, ...]], float]


def scraped(port: int) -> Samples:
    """Return what a server shows, by name and label values in the order of the labels' names."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
        text = answer.read().decode()
    types = [line for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(types) == len(set(types))
    return {
        (
            s.name.removeprefix("pharox_fleet_"),
            tuple(v for _, v in sorted(s.labels.items())),
        ): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


def test_names_are_inert_in_a_scrape_of_the_fleet(storage: PostgresStorage) -> None:
    """Whatever a pool or a consumer is called, it is a label's value and adds no sample."""
    fill(storage, name="plain")
    with FleetServer(storage, port=0) as server:
        plain = level(server, 2)
    names = list(AWKWARD.values())
    for name in names:
        fill(storage, name=name)
        ProxyManager(storage).acquire_proxy(name, name)
    with FleetServer(storage, port=0) as server:
        shown = level(server, 2 + 4 * len(names))
    assert {name for name, _ in shown} >= {name for name, _ in plain}
    assert not any("forged" in name for name, _ in shown)
    labels = {value for _, values in shown for value in values}
    assert labels >= set(names)


def counted(samples: Samples) -> Samples:
    """Return the counters alone."""
    kinds = ("_total", "_bucket", "_sum", "_count")
    return {key: value for key, value in samples.items() if key[0].endswith(kinds)}


def level(server: FleetServer, events: int) -> Samples:
    """Wait until so many events are counted, and return what the server shows then."""

    def are_counted() -> bool:
        shown = scraped(server.port)
        return sum(v for k, v in shown.items() if k[0] == "events_total") >= events

    until(are_counted)
    return scraped(server.port)


def test_bytes_and_money_are_counted_by_pool(storage: PostgresStorage) -> None:
    """Of leases and of outcomes; a pool without prices has bytes alone."""
    for name, price in (("priced", "2.5"), ("free", None)):
        pool, _ = fill(storage, 1, name=name)
        prices = {"cost_per_gb": price, "cost_per_lease": price}
        storage.save_pool(ProxyPool(**{**pool.model_dump(), **prices}))
        lease = ProxyManager(storage).acquire_proxy(name)
        assert lease is not None
        outcomes = [Outcome.ok(bytes=10**9), Outcome.blocked(bytes=10**9), Outcome.unclear()]
        storage.report_outcomes([ReportRequest(lease, outcome) for outcome in outcomes])
    storage.seal()
    with FleetServer(storage, port=0) as server:
        found = level(server, len(list(storage.events())))
    assert found["bytes_total", ("priced",)] == found["bytes_total", ("free",)] == 2 * 10**9
    assert found["money_total", ("priced",)] == 7.5
    assert ("money_total", ("free",)) not in found


def test_everything_that_happened_is_counted(storage: PostgresStorage) -> None:
    """By whatever process, before the server was there or since."""
    clock = DatabaseClock(storage)
    _, proxies = fill(storage, 2)
    manager = ProxyManager(storage)
    with manager.with_lease("pool", "crawler"):
        clock.advance(4)
    with FleetServer(storage, port=0) as server:
        manager.acquire_proxy("pool", "slow", duration_seconds=5)
        clock.advance(6)
        manager.cleanup_expired_leases()
        held = manager.acquire_proxy("pool", "crawler", duration_seconds=60)
        assert held is not None
        manager.acquire_proxy("nowhere", "crawler")
        revoked = manager.acquire_proxy("pool", "revoked", duration_seconds=60)
        assert revoked is not None
        manager.revoke_lease(revoked.id, "why")
        refused = Outcome.blocked("shop.example", status=429, retry_after=600)
        shared = [Outcome.ok("shop.example", count=7), Outcome.unclear(), refused]
        storage.report_outcomes([ReportRequest(held, outcome) for outcome in shared])
        clock.advance(90)
        storage.record_health_checks(
            [checked(proxies[1], status=ProxyStatus.INACTIVE, checked_at=clock.now)]
        )
        storage.seal()
        found = level(server, len(list(storage.events())))
    first = "first_available"
    assert found["leases_acquired_total", ("crawler", "pool", first)] == 2
    assert found["leases_acquired_total", ("slow", "pool", first)] == 1
    missed = ("crawler", "other", "unknown_pool", first)
    assert found["acquire_misses_total", missed] == 1
    assert found["lease_duration_seconds_sum", ("released", "pool")] == 4
    assert found["lease_duration_seconds_bucket", ("released", "1.0", "pool")] == 0
    assert found["lease_duration_seconds_bucket", ("released", "5.0", "pool")] == 1
    assert found["lease_duration_seconds_count", ("expired", "pool")] == 1
    assert found["lease_duration_seconds_count", ("revoked", "pool")] == 1
    assert found["health_checks_total", ("", "pool", "http", "", "inactive")] == 1
    assert found["pool_total_proxies", ("pool",)] == 2
    assert found["pool_active_proxies", ("pool",)] == 1
    assert found["pool_leases", ("pool",)] == 1
    assert found["outcomes_total", ("ok", "pool")] == 7
    assert found["outcomes_total", ("unclear", "pool")] == 1
    assert found["outcomes_total", ("blocked", "pool")] == 1
    assert found["cooling_pairs", ("pool",)] == 1
    assert found["oldest_lease_age_seconds", ("pool",)] == 90
    assert found["overdue_leases", ("pool",)] == 1
    assert found["subscription_lag_events", ("pharox-metrics",)] == 0
    assert found["up", ()] == 1


def test_fallbacks_are_counted_by_both_pools(storage: PostgresStorage) -> None:
    """The one that granted and the one that had none, and the reason; bounded as pools are."""
    fill(storage, 0, name="residential")
    fill(storage, 1, name="datacenter")
    manager = ProxyManager(storage)
    manager.acquire_proxy("residential", fallback=["datacenter"])
    manager.acquire_proxy("residential", fallback=["datacenter"])
    storage.seal()
    with FleetServer(storage, port=0) as server:
        found = level(server, len(list(storage.events())))
    labels = ("residential", "datacenter", "empty_pool")
    assert found["fallbacks_total", labels] == 1
    assert (
        found["acquire_misses_total", ("default", "residential", "empty_pool", "first_available")]
        == 1
    )


def test_checks_are_counted_by_provider_and_failure(storage: PostgresStorage) -> None:
    """As the log has them, also after the proxy is gone; a server that goes on knows the first."""
    known = [fill(storage, name=name, source=name)[1][0] for name in ("one", "two")]
    failed = {"status": ProxyStatus.INACTIVE, "failure": CheckFailure.TIMEOUT, "latency_ms": 4000}
    for proxy in known:  # one after the other: the first source is told apart
        storage.record_health_checks([checked(proxy, latency_ms=20)])
        storage.record_health_checks([checked(proxy, **failed)])
    for proxy in known:
        storage.delete_proxy(str(proxy.id))
    with FleetServer(storage, port=0, max_sources=1) as server:
        level(server, len(list(storage.events())))
    _, (third,) = fill(storage, name="three", source="three")
    storage.record_health_checks([checked(third, latency_ms=12_000)])
    with FleetServer(storage, port=0, max_sources=1) as server:
        found = level(server, len(list(storage.events())))
    for name, source in (("one", "one"), ("two", "other")):
        assert found["health_checks_total", ("", name, "http", source, "active")] == 1
        assert found["health_checks_total", ("timeout", name, "http", source, "inactive")] == 1
        took = "health_check_duration_seconds"
        assert found[f"{took}_sum", (name, "http", source)] == 4.02
        buckets = {"0.01": 0, "0.025": 1, "2.5": 1, "5.0": 2, "+Inf": 2}
        for bound, count in buckets.items():
            assert found[f"{took}_bucket", (bound, name, "http", source)] == count
    assert found["health_check_duration_seconds_bucket", ("10.0", "three", "http", "other")] == 0
    assert found["health_check_duration_seconds_count", ("three", "http", "other")] == 1


def test_counts_go_on_after_a_restart(storage: PostgresStorage, database_url: str) -> None:
    """Neither a second server, nor a restart, nor a checkpoint set back counts anything twice."""
    fill(storage, 1)
    manager = ProxyManager(storage)

    def cycles(count: int) -> int:
        for number in range(count):
            with manager.with_lease("pool", f"worker-{number}"):
                pass
        storage.seal()
        return len(list(storage.events()))

    with (
        FleetServer(storage, port=0, max_consumers=3) as one,
        ledger(database_url) as elsewhere,
        FleetServer(elsewhere, port=0, max_consumers=3) as other,
    ):
        before = level(one, cycles(10))
        assert counted(scraped(other.port)) == counted(before)
    reset(storage, "pharox-metrics", "beginning")
    with FleetServer(storage, port=0, max_consumers=3) as again:
        assert counted(scraped(again.port)) == counted(before)
        after = level(again, cycles(5))
    assert all(after[key] >= value for key, value in counted(before).items())
    granted = {
        key[1][0]: value for key, value in after.items() if key[0] == "leases_acquired_total"
    }
    assert granted == {"worker-0": 2, "worker-1": 2, "worker-2": 2, "other": 9}
    assert sum(granted.values()) == 15


def test_without_a_database_a_scrape_says_so(
    storage: PostgresStorage, caplog: pytest.LogCaptureFixture
) -> None:
    """The scrape does not fail; it has one metric, and the others when the database is back."""
    fill(storage)
    with FleetServer(storage, port=0) as server:
        level(server, 2)
        run_sql(storage.engine, "ALTER TABLE pharox.fleet_counts RENAME TO away")
        found = scraped(server.port)
        assert found["up", ()] == 0
        assert set(found) == {("up", ()), ("counting", ())}
        run_sql(storage.engine, "ALTER TABLE pharox.away RENAME TO fleet_counts")
        assert level(server, 2)["up", ()] == 1
    assert "metrics.failed" in caplog.text


def test_a_taken_port_is_told(storage: PostgresStorage) -> None:
    """And nothing is left behind: neither a reader nor a subscription."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InvalidInputError, match="cannot serve"):
            FleetServer(storage, port=taken.getsockname()[1])
    with pytest.raises(InvalidInputError, match="its key"):
        FleetServer(storage, port=0, certfile="cert.pem")
    with pytest.raises(InvalidInputError, match="cannot be used"):
        FleetServer(storage, port=0, certfile="none.pem", keyfile="none.pem")
    assert run_sql(storage.engine, "SELECT name FROM pharox.subscriptions") == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_serves_until_it_is_told_to_end(
    storage: PostgresStorage, database_url: str, number: signal.Signals
) -> None:
    """It says where, counts, and gives the port and the subscription back."""
    fill(storage)
    with subprocess.Popen(
        SERVE,
        env={**os.environ, "PHAROX_DATABASE_URL": database_url},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        said = process.stderr.readline()
        port = int(said.rsplit(":", 1)[1].split("/")[0])
        until(lambda: ("events_total", ("PoolRegistered",)) in scraped(port))
        process.send_signal(number)
        rest = process.communicate(timeout=20)[1]
    assert process.returncode in (0, 130)
    assert "Traceback" not in rest
    owners = run_sql(storage.engine, "SELECT owner FROM pharox.subscriptions")
    assert owners == [(None,)]


def counted_seq(storage: PostgresStorage) -> float:
    """Return up to which event the log has been counted."""
    query = "SELECT coalesce(max(value), 0) FROM pharox.fleet_counts WHERE name = 'counted_seq'"
    ((seq,),) = run_sql(storage.engine, query)
    assert isinstance(seq, float)
    return seq


def test_kill_9_costs_no_count(storage: PostgresStorage, database_url: str) -> None:
    """Servers that are killed in the middle of counting leave exact counts behind."""
    fill(storage, 4)
    manager = ProxyManager(storage)
    for _ in range(3):
        before = counted_seq(storage)
        with subprocess.Popen(
            SERVE,
            env={**os.environ, "PHAROX_DATABASE_URL": database_url},
            stderr=subprocess.DEVNULL,
        ) as process:
            end = time.monotonic() + 60
            while counted_seq(storage) < before + 50 and time.monotonic() < end:
                for _ in range(20):
                    with manager.with_lease("pool"):
                        pass
            process.kill()
        assert counted_seq(storage) > before
    storage.seal()
    events = list(storage.events())
    with FleetServer(storage, port=0) as server:
        found = level(server, len(events))
    granted = sum(event.type == "LeaseAcquired" for event in events)
    assert found["leases_acquired_total", ("default", "pool", "first_available")] == granted
    by_type = {key[1][0]: value for key, value in found.items() if key[0] == "events_total"}
    assert sum(by_type.values()) == len(events)


def test_it_serves_https(storage: PostgresStorage, tmp_path: Path) -> None:
    """With a certificate and its key."""
    import ssl

    import trustme

    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    pem, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    pem.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    key.write_bytes(certificate.private_key_pem.bytes())
    context = ssl.create_default_context(cadata=authority.cert_pem.bytes().decode())
    with FleetServer(storage, port=0, certfile=str(pem), keyfile=str(key)) as server:
        url = f"https://127.0.0.1:{server.port}/metrics"
        with urllib.request.urlopen(url, context=context, timeout=20) as answer:
            assert b"pharox_fleet_up 1.0" in answer.read()


def test_a_server_that_takes_over_knows_what_the_other_one_knew(
    storage: PostgresStorage, database_url: str
) -> None:
    """Pools that came meanwhile, and which consumers are told apart."""
    fill(storage, 1, name="old")
    manager = ProxyManager(storage)

    def cycle(pool: str, consumer: str) -> None:
        with manager.with_lease(pool, consumer):
            pass

    with ledger(database_url) as elsewhere:
        first = FleetServer(elsewhere, port=0, max_consumers=2)
        cycle("old", "c1")
        level(first, 4)
        with FleetServer(storage, port=0, max_consumers=2) as second:
            _, (proxy,) = fill(storage, 1, name="new")
            cycle("new", "c2")
            level(first, 8)
            first.__exit__(None, None, None)
            cycle("new", "c3")
            storage.record_health_checks([checked(proxy)])
            storage.seal()
            found = level(second, len(list(storage.events())))
            assert second.is_counting
            assert found["counting", ()] == 1
    granted = {key[1][0]: v for key, v in found.items() if key[0] == "leases_acquired_total"}
    assert granted == {"c1": 1, "c2": 1, "other": 1}
    assert found["health_checks_total", ("", "new", "http", "", "active")] == 1


def test_the_longest_names_are_counted(storage: PostgresStorage) -> None:
    """They are shown up to a hundred characters, and a hash tells one from the other."""
    name = "代理" * 250
    fill(storage, 1, name=name)
    manager = ProxyManager(storage)
    with FleetServer(storage, port=0) as server:
        for consumer in (name, name[:-1]):
            with manager.with_lease(name, consumer):
                pass
        storage.seal()
        found = level(server, len(list(storage.events())))
    consumers = [key[1][0] for key in found if key[0] == "leases_acquired_total"]
    assert len(set(consumers)) == 2
    assert all(len(consumer) == 109 for consumer in consumers)


def test_a_killed_reader_without_a_name_is_not_shown(storage: PostgresStorage) -> None:
    """Nobody will ever go on with it, so its lag says nothing."""
    fill(storage)
    query = "INSERT INTO pharox.subscriptions (name, checkpoint, epoch) VALUES ('{}', 0, 1)"
    run_sql(storage.engine, query.format("callbacks-0000"))
    run_sql(storage.engine, query.format("audit"))
    with FleetServer(storage, port=0) as server:
        found = level(server, 2)
    shown = {key[1][0] for key in found if key[0] == "subscription_lag_events"}
    assert shown == {"audit", "pharox-metrics"}


def test_sticky_sessions_are_counted(storage: PostgresStorage) -> None:
    """Those that live, and how often a key was bound, moved to another proxy, and inherited."""
    clock = clock_of(storage)
    clock.advance(0)
    fill(storage, 3)
    fill(storage, 0, name="empty")
    manager = ProxyManager(storage)
    for key, seconds in (("account-1", 600), ("account-2", 600), ("short", 5)):
        lease = manager.acquire_proxy("pool", sticky=Sticky(key, seconds=seconds))
        assert lease is not None
        if key == "account-1":
            first = lease.proxy_id
        manager.release_proxy(lease)
    clock.advance(60)
    storage.set_status(first, ProxyStatus.BANNED)
    moved = manager.acquire_proxy("pool", sticky=Sticky("account-1", seconds=600))
    assert moved is not None
    assert moved.proxy_id != first
    manager.inherit_session("pool", "account-2", "account-2b")
    storage.seal()
    with FleetServer(storage, port=0) as server:
        found = level(server, len(list(storage.events())))
    assert found["sessions", ("pool",)] == 2
    assert found["sessions", ("empty",)] == 0
    assert found["sessions_bound_total", ("bound", "pool")] == 3
    assert found["sessions_bound_total", ("moved", "pool")] == 1
    assert found["sessions_bound_total", ("inherited", "pool")] == 1


def test_rests_and_rotations_are_counted(storage: PostgresStorage) -> None:
    """A rest when it begins, not what prolongs it; a rotation by what came of calling the link."""
    clock = clock_of(storage)
    other, (resting,) = fill(storage, 1, name="other")
    manager = ProxyManager(storage)
    lease = manager.acquire_proxy(other.name, target="shop.example")
    assert lease is not None
    for outcome in (Outcome.blocked(status=429), Outcome.blocked(status=429), Outcome.unclear()):
        manager.report(lease, outcome)
    for seconds in (60, None):
        storage.set_cool_down(CoolDownRequest(resting.id, "api.example", seconds, "a test"))
    _, (proxy,) = fill(storage, 1, rotate_url=SecretStr("https://provider.example/x"))
    for answer in (RotationAnswer(RotationFailure.TIMEOUT), RotationAnswer(), RotationAnswer()):
        storage.begin_rotation(proxy.id)
        clock.advance(10)
        for due in storage.claim_rotations().due:
            storage.answer_rotation(due, answer)
    storage.seal()
    with FleetServer(storage, port=0) as server:
        found = level(server, len(list(storage.events())))
    assert found["cool_downs_total", ("blocked", "other")] == 1
    assert found["cool_downs_total", ("asked", "other")] == 1
    assert found["rotations_total", ("rotated", "pool")] == 2
    assert found["rotations_total", ("timeout", "pool")] == 1

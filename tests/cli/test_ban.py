"""``pharox ban`` and ``pharox unban``: a person's word on proxies, all of them or none."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

import pytest

from pharox import Proxy, ProxyManager, ProxyPool, ProxyProtocol, ProxyStatus
from pharox.cli.banning import LISTED
from pharox.cli.showing import in_utc
from pharox.events import ProxyChanged
from pharox.storage.postgres import PostgresStorage
from tests.conftest import clock_of, fill, types_of

from .conftest import Pharox


def statuses(storage: PostgresStorage, proxies: list[Proxy]) -> list[ProxyStatus]:
    return [storage.get_proxy(str(proxy.id)).status for proxy in proxies]


class TestBan:
    @pytest.mark.parametrize(
        "name", ["{id}", "10.0.0.0:8000", "http://10.0.0.0:8000", "HTTP://10.0.0.0:8000/"]
    )
    def test_a_banned_proxy_is_leased_no_more(
        self, pharox: Pharox, storage: PostgresStorage, name: str
    ) -> None:
        """It is named by its id or address, and the log has the reason."""
        _, (proxy,) = fill(storage)
        outcome = pharox("ban", name.format(id=proxy.id), "--reason", "it lies")
        told = f"http://10.0.0.0:8000 ({proxy.id}) is banned\n"
        assert outcome == (0, told, "")
        assert pharox("acquire", "pool").status == 75
        *_, event = (event for event in storage.events() if isinstance(event, ProxyChanged))
        assert (event.after.status, event.reason) == (ProxyStatus.BANNED, "it lies")

    @pytest.mark.parametrize(
        ("host", "typed"),
        [
            ("gw.example", "GW.Example.:80"),
            ("gw.example.", "http://gw.example:80"),
            ("bücher.example", "bücher.example:80"),
            ("2001:db8::1", "[2001:DB8:0:0::1]:80"),
        ],
    )
    def test_it_is_found_however_its_host_is_spelled(
        self, pharox: Pharox, storage: PostgresStorage, host: str, typed: str
    ) -> None:
        """Dots, capitals, other alphabets and long forms of an address make no difference."""
        pool = ProxyPool(name="pool")
        storage.save_pool(pool)
        proxy = Proxy(host=host, port=80, protocol=ProxyProtocol.HTTP, pool_id=pool.id)
        storage.save_proxy(proxy)
        assert pharox("ban", typed).status == 0
        assert statuses(storage, [proxy]) == ["banned"]
        assert str(proxy.id) in pharox("audit", "proxy", typed).out

    def test_a_lease_goes_on(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """The output says that the proxy is leased, and the lease continues."""
        _, (proxy,) = fill(storage, max_concurrency=2)
        manager = ProxyManager(storage)
        leases = [manager.acquire_proxy("pool") for _ in "12"]
        outcome = pharox("ban", proxy.id)
        assert outcome.out.endswith("is banned; it is leased right now, and 2 leases go on\n")
        assert all(lease is not None for lease in leases)
        assert storage.get_proxy(str(proxy.id)).current_leases == 2

    def test_several_are_banned_at_once(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """Each is printed once, however often it is named."""
        _, proxies = fill(storage, 3)
        outcome = pharox("ban", proxies[0].id, "10.0.0.1:8000", "10.0.0.0:8000")
        assert (outcome.status, outcome.out.count("\n")) == (0, 2)
        assert statuses(storage, proxies) == ["banned", "banned", "active"]

    def test_one_that_is_banned_stays_so(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """Nothing is recorded a second time."""
        _, (proxy,) = fill(storage)
        pharox("ban", proxy.id)
        before = types_of(storage)
        outcome = pharox("ban", proxy.id)
        assert (outcome.status, outcome.out.endswith("was already banned\n")) == (0, True)
        assert types_of(storage) == before

    def test_json_has_the_proxies(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """As ``pharox proxies --json`` prints them, which has more: who holds them, for one."""
        _, proxies = fill(storage, 2)
        banned = pharox("ban", *(proxy.id for proxy in proxies), "--json").objects
        listed = pharox("proxies", "pool", "--json").objects
        own = [{name: each[name] for name in banned[0]} for each in listed]
        assert sorted(banned, key=lambda p: str(p["id"])) == own

    @pytest.mark.parametrize("name", ["nope", "10.9.9.9:80", str(UUID(int=7)), "", "\udcff"])
    def test_an_unknown_one_keeps_all_as_they_are(
        self, pharox: Pharox, storage: PostgresStorage, name: str
    ) -> None:
        """All are found before the first is banned."""
        _, proxies = fill(storage, 2)
        outcome = pharox("ban", proxies[0].id, name)
        assert (outcome.status, outcome.out) == (1, "")
        assert outcome.err == f"pharox: there is no proxy {name!r}: give its id, host:port or URL\n"
        assert statuses(storage, proxies) == ["active", "active"]

    def test_an_address_of_several_is_refused(
        self, pharox: Pharox, storage: PostgresStorage
    ) -> None:
        """If several match, the error asks for an id."""
        _, (mine,) = fill(storage)
        _, (other,) = fill(storage, name="other")
        outcome = pharox("ban", "10.0.0.0:8000")
        assert (outcome.status, outcome.out) == (1, "")
        assert outcome.err.startswith("pharox: 2 proxies are at '10.0.0.0:8000'; give protocol and")
        assert f"{mine.id} of pool 'pool'" in outcome.err
        assert statuses(storage, [mine, other]) == ["active", "active"]

    def test_a_user_tells_the_proxies_of_one_address_apart(
        self, pharox: Pharox, storage: PostgresStorage
    ) -> None:
        """As a URL has it; nobody else's proxy is banned for one that is unknown."""
        pool, _ = fill(storage, 0)
        gateway = {"host": "gate.test", "port": 7000, "protocol": "http", "pool_id": pool.id}
        proxies = [
            Proxy.model_validate({**gateway, "credentials": {"user": user, "password": "pw"}})
            for user in ("alice", "b@b")
        ]
        storage.add_proxies_bulk(proxies)
        assert pharox("ban", "http://nobody@gate.test:7000").status == 1
        assert pharox("ban", "http://b%40b@gate.test:7000").status == 0
        assert statuses(storage, proxies) == ["inactive", "banned"]

    def test_the_many_of_a_gateway_are_not_all_listed(
        self, pharox: Pharox, storage: PostgresStorage
    ) -> None:
        """One address with hundreds of users makes no page of ids."""
        pool, _ = fill(storage, 0)
        gateway = {"host": "gate.test", "port": 7000, "protocol": "http", "pool_id": pool.id}
        storage.add_proxies_bulk([Proxy.model_validate(gateway) for _ in range(LISTED + 7)])
        outcome = pharox("ban", "gate.test:7000")
        assert outcome.err.count(" of pool 'pool'") == LISTED
        assert outcome.err.endswith(" and 7 more\n")

    def test_an_address_means_who_is_there_now(
        self, pharox: Pharox, storage: PostgresStorage
    ) -> None:
        """Neither one that has moved away, nor one that was removed."""
        _, (moved, removed, there) = fill(storage, 3)
        for proxy in (removed, there):
            proxy.host = moved.host
            storage.save_proxy(proxy)
        storage.delete_proxy(str(removed.id))
        moved.port = 9000
        storage.save_proxy(moved)
        assert str(there.id) in pharox("ban", "10.0.0.0:8000").out
        assert statuses(storage, [moved, there]) == ["active", "banned"]

    def test_a_reason_is_told_in_the_story(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """At the end of its sentence, and a terminal does not obey it."""
        _, (proxy,) = fill(storage)
        pharox("ban", proxy.id, "--reason", "it \x1b[2Jlies")
        out = pharox("audit", "proxy", proxy.id).out
        assert "was changed: status active -> banned: it \\x1b[2Jlies\n" in out


class TestUnban:
    def test_it_waits_for_a_check(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """A proxy that was banned is not leased at once."""
        _, (proxy,) = fill(storage, status=ProxyStatus.BANNED)
        outcome = pharox("unban", proxy.id, "--reason", "appealed")
        assert outcome.status == 0
        assert "is inactive until a check succeeds: `pharox sweep` checks it" in outcome.out
        *_, event = storage.events()
        assert isinstance(event, ProxyChanged)
        assert (event.after.status, event.reason) == (ProxyStatus.INACTIVE, "appealed")

    def test_active_leases_it_at_once(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """If a person says so."""
        _, (proxy,) = fill(storage, status=ProxyStatus.BANNED)
        assert pharox("unban", proxy.id, "--active").out.endswith("may be leased again\n")
        assert pharox("acquire", "pool").status == 0

    def test_json_has_the_proxy(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """With the status that it has now."""
        _, (proxy,) = fill(storage, status=ProxyStatus.BANNED)
        (found,) = pharox("unban", proxy.id, "--json").objects
        assert (found["id"], found["status"]) == (str(proxy.id), "inactive")

    def test_one_that_is_not_banned_keeps_all_as_they_are(
        self, pharox: Pharox, storage: PostgresStorage
    ) -> None:
        """A status that a check has found is not a ban to be lifted."""
        _, (banned,) = fill(storage, status=ProxyStatus.BANNED)
        _, (slow,) = fill(storage, name="other", status=ProxyStatus.SLOW)
        outcome = pharox("unban", banned.id, slow.id)
        assert (outcome.status, outcome.out) == (1, "")
        assert "is slow; nothing was changed\n" in outcome.err
        assert statuses(storage, [banned, slow]) == ["banned", "slow"]


class TestBanForATime:
    def test_it_ends_by_itself(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """The output and the log say when; the list shows it, and then what it was before."""
        clock = clock_of(storage)
        _, (proxy, _) = fill(storage, 2)
        until = in_utc(clock.now + timedelta(minutes=30))
        outcome = pharox("ban", proxy.id, "--for", "30m", "--reason", "429s")
        assert outcome == (0, f"http://10.0.0.0:8000 ({proxy.id}) is banned until {until}\n", "")
        assert f"until={until} returns_to=active" in pharox("log").out
        assert f"status active -> banned, until {until}: 429s" in (
            pharox("audit", "proxy", proxy.id).out
        )
        header, *rows = pharox("proxies", "pool").out.splitlines()
        assert "banned until" in header
        assert "exit" not in header
        assert [until in row for row in rows] == [str(proxy.id) in row for row in rows]
        assert f"banned until {until}" in pharox("replay", "--pool", "pool", "--at", "now").out
        resting = pharox("proxies", "pool", "--resting", "--json").objects
        assert [(row["id"], row["banned_until"] is None) for row in resting] == [
            (str(proxy.id), False)
        ]
        clock.advance(1801)
        storage.cleanup_expired_leases()
        assert "banned until" not in pharox("proxies", "pool").out
        assert 'reason="ban over"' in pharox("log").out
        assert pharox("proxies", "pool", "--resting", "--json").objects == []

    def test_unban_comes_first(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """A lift takes the end away; a ban without an end does too."""
        _, (proxy, other) = fill(storage, 2)
        for each in (proxy, other):
            pharox("ban", each.id, "--for", "5m")
        assert pharox("unban", proxy.id).status == 0
        assert pharox("ban", other.id).out.endswith("is banned\n")
        assert [storage.get_proxy(str(each.id)).banned_until for each in (proxy, other)] == [
            None
        ] * 2

    @pytest.mark.parametrize("time", ["0", "-1m", "soon", "1000000d"])
    def test_a_time_must_make_sense(
        self, pharox: Pharox, storage: PostgresStorage, time: str
    ) -> None:
        """Nothing is banned otherwise."""
        _, (proxy,) = fill(storage, 1)
        assert pharox("ban", proxy.id, "--for", time).status != 0
        assert statuses(storage, [proxy]) == ["active"]


def test_a_ban_that_becomes_permanent_is_told(pharox: Pharox, storage: PostgresStorage) -> None:
    """The status stays BANNED, so its end is what changed."""
    _, (proxy,) = fill(storage, 1)
    address = f"{proxy.host}:{proxy.port}"
    assert pharox("ban", address, "--reason", "429", "--for", "30m").status == 0
    assert pharox("ban", address, "--reason", "hostile").status == 0
    assert "stays banned, for good: hostile" in pharox("audit", "proxy", address).out
    last = pharox("log", "--last", "1").out
    assert " status=banned until=never " in last
    assert " reason=hostile" in last

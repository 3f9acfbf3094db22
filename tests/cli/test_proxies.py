"""``pharox proxies`` and ``pharox pools`` change and remove what there is."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from pharox import Proxy, ProxyManager, ProxyStatus
from pharox.cli.showing import in_utc
from pharox.models import ProxyCredentials
from pharox.storage.postgres import PostgresStorage
from pharox.testing import checked
from tests.conftest import clock_of, fill, types_of

from .conftest import Pharox

LOGIN = ProxyCredentials(user="ann", password="s3cret")


@pytest.fixture
def proxy(storage: PostgresStorage) -> Proxy:
    """A proxy with a password in the pool "p"."""
    _, (one,) = fill(storage, 1, name="p", credentials=LOGIN)
    return one


class TestSet:
    def test_it_changes_what_it_is_told(
        self, pharox: Pharox, storage: PostgresStorage, proxy: Proxy
    ) -> None:
        """Status, limit and description change; the credentials stay."""
        outcome = pharox(
            *("proxies", "set", proxy.id, "--status", "banned", "--reason", "abuse"),
            *("--max-concurrency", "unlimited", "--country", "DE", "--source", ""),
        )
        assert outcome.status == 0
        changed = storage.get_proxy(str(proxy.id))
        assert (changed.status, changed.max_concurrency, changed.country, changed.source) == (
            ProxyStatus.BANNED,
            None,
            "DE",
            None,
        )
        assert changed.credentials == LOGIN
        assert storage.verify() == []

    def test_a_password_comes_from_a_file(
        self, pharox: Pharox, storage: PostgresStorage, proxy: Proxy, tmp_path: Path
    ) -> None:
        """Or from standard input; it is in no argument, output or event."""
        path = tmp_path / "password"
        path.write_text("n3w\nsecond line")
        of_file = ("--user", "bob", "--password-file", path)
        outcome = pharox("proxies", "set", proxy.id, *of_file)
        assert storage.get_proxy(str(proxy.id)).credentials == ProxyCredentials(
            user="bob", password="n3w"
        )
        assert "n3w" not in outcome.out + outcome.err
        pharox("proxies", "set", proxy.id, "--user", "bob", "--password-file", "-", stdin="other\n")
        assert storage.get_proxy(str(proxy.id)).credentials == ProxyCredentials(
            user="bob", password="other"
        )
        pharox("proxies", "set", proxy.id, "--user", "")
        assert storage.get_proxy(str(proxy.id)).credentials is None

    def test_a_new_user_keeps_the_password(
        self, pharox: Pharox, storage: PostgresStorage, proxy: Proxy
    ) -> None:
        """Without a file of a password the one that is there stays."""
        assert pharox("proxies", "set", proxy.id, "--user", "bob").status == 0
        assert storage.get_proxy(str(proxy.id)).credentials == ProxyCredentials(
            user="bob", password="s3cret"
        )

    def test_damaged_credentials_can_be_given_again(
        self,
        pharox: Pharox,
        storage: PostgresStorage,
        proxy: Proxy,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """New credentials need no reading of the old ones."""
        from cryptography.fernet import Fernet

        monkeypatch.setenv("PHAROX_SECRET_KEY", Fernet.generate_key().decode())
        of_stdin = ("--user", "ann", "--password-file", "-")
        assert pharox("proxies", "set", proxy.id, *of_stdin, stdin="again\n").status == 0
        assert pharox("verify").status == 0

    @pytest.mark.parametrize(
        ("options", "told"),
        [
            ((), "say what to change"),
            (("--reason", "why"), "--reason needs --status"),
            (("--password-file", "-"), "--password-file needs --user"),
            (("--user", "x", "--password-file", "/nowhere"), "cannot be read from /nowhere"),
            (("--max-concurrency", "0"), "a number from 1"),
        ],
    )
    def test_what_makes_no_sense_is_refused(
        self,
        pharox: Pharox,
        storage: PostgresStorage,
        proxy: Proxy,
        options: tuple[str, ...],
        told: str,
    ) -> None:
        """Nothing is changed then."""
        outcome = pharox("proxies", "set", proxy.id, *options)
        assert (outcome.status, outcome.out) == (2, "")
        assert told in outcome.err
        assert "ProxyChanged" not in types_of(storage)

    def test_an_unknown_one_keeps_all_as_they_are(
        self, pharox: Pharox, storage: PostgresStorage, proxy: Proxy
    ) -> None:
        """All are found before any is changed, and a URL is shown without its password."""
        nobody = "http://ann:t0psecret@192.0.2.77:80"
        outcome = pharox("proxies", "set", proxy.id, nobody, "--country", "DE")
        assert outcome.status == 1
        assert "t0psecret" not in outcome.err
        assert "192.0.2.77:80" in outcome.err
        assert "ProxyChanged" not in types_of(storage)


class TestRemove:
    def test_an_idle_one_goes(self, pharox: Pharox, storage: PostgresStorage, proxy: Proxy) -> None:
        """It is in no pool any more, and its history stays."""
        outcome = pharox("proxies", "remove", proxy.id)
        assert outcome.status == 0
        assert outcome.out.endswith("is removed\n")
        assert storage.get_proxy_by_id(proxy.id) is None
        assert "proxy_id" not in str(storage.verify())

    def test_a_leased_one_needs_force(
        self, pharox: Pharox, storage: PostgresStorage, proxy: Proxy
    ) -> None:
        """With ``--force`` its lease ends before it is removed."""
        lease = ProxyManager(storage).acquire_proxy("p")
        assert lease is not None
        outcome = pharox("proxies", "remove", proxy.id)
        assert outcome.status == 1
        assert "1 proxy is leased" in outcome.err
        assert "ProxyRemoved" not in types_of(storage)
        assert pharox("proxies", "remove", proxy.id, "--force").status == 0
        assert types_of(storage)[-2:] == ["LeaseReleased", "ProxyRemoved"]


class TestList:
    def test_a_pool_may_have_the_name_of_a_command(
        self, pharox: Pharox, storage: PostgresStorage
    ) -> None:
        """``proxies set`` changes; the pool "set" is listed by ``proxies list set``."""
        _, (proxy,) = fill(storage, 1, name="set")
        assert str(proxy.id) in pharox("proxies", "list", "set").out
        fill(storage, 1, name="p")
        assert (
            pharox("proxies", "p", "--json").objects
            == pharox("proxies", "list", "--json", "p").objects
        )


class TestPools:
    def test_one_can_be_changed(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """Its name, description, and whether SLOW proxies are leased."""
        pool, _ = fill(storage, 0, name="p")
        outcome = pharox("pools", "set", "p", "--name", "q", "--description", "d", "--lease-slow")
        assert outcome == (0, f"{pool.id}\n", "")
        changed = storage.get_pool(str(pool.id))
        assert (changed.name, changed.description, changed.lease_slow) == ("q", "d", True)
        pharox("pools", "set", "q", "--description", "", "--no-lease-slow")
        changed = storage.get_pool(str(pool.id))
        assert (changed.description, changed.lease_slow) == (None, False)

    def test_an_empty_one_can_be_removed(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """A pool with proxies needs ``--force``."""
        pool, _ = fill(storage, 0, name="p")
        assert pharox("pools", "remove", "p") == (0, f"{pool.id}\n", "")
        fill(storage, 2, name="q")
        ProxyManager(storage).acquire_proxy("q")
        outcome = pharox("pools", "remove", "q")
        assert outcome.status == 1
        assert "pool 'q' has 2 proxies and 1 active lease: nothing was removed" in outcome.err
        assert pharox("pools", "remove", "q", "--force").status == 0
        assert storage.list_pools() == []
        assert storage.verify() == []

    @pytest.mark.parametrize("command", ["set", "remove"])
    def test_an_unknown_one_is_refused(self, pharox: Pharox, command: str) -> None:
        """With a sentence that names it."""
        more = ["--description", "d"] if command == "set" else []
        outcome = pharox("pools", command, "nope", *more)
        assert outcome == (1, "", "pharox: no pool is named 'nope'\n")


class TestDrain:
    def test_it_leaves_with_its_last_lease(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """An idle one is removed at once; what becomes of the other is told, and is in the log."""
        _, (idle, leased) = fill(storage, 2, name="p")
        lease = storage.create_lease(leased, "w", 600)
        outcome = pharox("proxies", "drain", str(idle.id), str(leased.id), "--reason", "old")
        gone, stays = outcome.out.splitlines()
        assert gone.endswith("is removed")
        assert stays.endswith("is removed when 1 lease ends")
        assert "drains: it leaves with its last lease: old" in pharox("audit", "pool", "p").out
        assert "drains=yes" in pharox("log", "--type", "ProxyChanged").out
        pharox("release", str(lease.id))
        assert storage.get_bare_proxy(leased.id) is None

    def test_unban_undoes_it(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """The proxy stays, and may be leased again."""
        _, (proxy,) = fill(storage, 1, name="p")
        lease = storage.create_lease(proxy, "w", 600)
        pharox("proxies", "drain", str(proxy.id))
        assert " draining " in pharox("proxies", "p").out
        assert pharox("proxies", "p", "--json").objects[0]["draining"] is True
        unbanned = pharox("unban", str(proxy.id)).out
        assert "drains no more, and is inactive until a check succeeds" in unbanned
        assert " inactive " in pharox("proxies", "p").out
        pharox("proxies", "set", str(proxy.id), "--status", "active")
        pharox("release", str(lease.id))
        assert pharox("acquire", "p").status == 0


class TestListColumns:
    def test_a_rest_is_shown_until_it_is_over(
        self, pharox: Pharox, storage: PostgresStorage
    ) -> None:
        """As a column if there is one, and in JSON always."""
        clock = clock_of(storage)
        pool, (proxy, _) = fill(storage, 2)
        storage.save_pool(pool.model_copy(update={"rest_after_release_seconds": 60.0}))
        assert {row["rests_until"] for row in pharox("proxies", "pool", "--json").objects} == {None}
        storage.release_lease(storage.create_lease(proxy, "w", 60))
        until = in_utc(clock.now + timedelta(seconds=60))
        assert "rests until" in pharox("proxies", "pool").out
        (row,) = pharox("proxies", "pool", "--resting").out.splitlines()[1:]
        assert str(proxy.id) in row
        assert until in row
        clock.advance(61)
        assert "rests until" not in pharox("proxies", "pool").out

    def test_who_shares_an_exit_is_told(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """By groups; who has an exit of its own, or none that is known, is in none."""
        _, proxies = fill(storage, 6)
        exits = ["192.0.2.9", "2001:db8::1", "192.0.2.9", "192.0.2.8", None, "2001:db8::1"]
        storage.record_health_checks(
            [
                checked(proxy).model_copy(update={"exit_ip": exit_ip})
                for proxy, exit_ip in zip(proxies, exits, strict=True)
            ]
        )
        assert "exit" in pharox("proxies", "pool").out.splitlines()[0].split()
        found = pharox("proxies", "pool", "--duplicates", "exit_ip", "--json").objects
        groups = {row["exit_ip"]: {each["id"] for each in row["proxies"]} for row in found}
        ids = [str(proxy.id) for proxy in proxies]
        assert groups == {
            "192.0.2.9": {ids[0], ids[2]},
            "2001:db8::1": {ids[1], ids[5]},
        }
        rows = pharox("proxies", "pool", "--duplicates", "exit_ip").out.splitlines()
        assert [row.split()[0] for row in rows] == [
            "exit",
            *["192.0.2.9"] * 2,
            *["2001:db8::1"] * 2,
        ]
        assert pharox("proxies", "pool", "--duplicates", "isp").status != 0


def test_weights_are_read_set_and_shown(pharox: Pharox, storage: PostgresStorage) -> None:
    """A column of a list says the weight of an entry, an option that of those without one."""
    text = "host,port,protocol,weight\n192.0.2.1,80,http,7\n192.0.2.2,80,http,\n"
    assert pharox("import", "-", "--pool", "w", "--weight", "3", stdin=text).status == 0
    pool = storage.get_pool_by_name("w")
    assert pool is not None
    known = {str(proxy.host): proxy for proxy in storage.list_proxies(str(pool.id))}
    assert {host: proxy.weight for host, proxy in known.items()} == {"192.0.2.1": 7, "192.0.2.2": 3}
    assert pharox("proxies", "set", "192.0.2.1:80", "--weight", "20").status == 0
    shown = pharox("proxies", "w").out
    assert "weight" in shown
    assert "20" in shown
    assert "weight=20" in pharox("log").out
    for wrong in ("0", "1001", "heavy"):
        refused = pharox("proxies", "set", "192.0.2.1:80", "--weight", wrong)
        assert (refused.status, refused.out) == (2, "")
    bad = pharox("import", "-", "--pool", "w", stdin=text.replace("7", "0"))
    assert "weight" in bad.err

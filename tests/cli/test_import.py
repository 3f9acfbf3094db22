"""``pharox import``: every good proxy once, every bad entry told."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pharox import (
    PoolNotFoundError,
    Proxy,
    ProxyManager,
    ProxyPool,
    ProxyProtocol,
    ProxyStatus,
    SelectorStrategy,
)
from pharox.cli import importing
from pharox.models import ProxyCredentials
from pharox.sources import read_proxies
from pharox.storage.postgres import PostgresStorage
from tests.conftest import run_sql, threads

from .conftest import Outcome, Pharox

SECRET = "s3cret"
MADE = "; the pool is new, its selector least_recently_used"
PUBLISHED = Path(__file__).parents[1] / "data" / "public_list" / "proxies.json"
COUNTRIES = ("ID", "RU", "CN", "US", None)


def entry(number: int, **facts: object) -> dict[str, Any]:
    """Return an entry of the shape in which lists of public proxies come."""
    country = COUNTRIES[number % len(COUNTRIES)]
    geolocation: dict[str, Any] = {
        "continent": {"code": "EU", "geoname_id": 6255148, "names": {"en": "Europe"}},
        "location": {"accuracy_radius": 10, "latitude": 59.33, "longitude": number % 180},
        "registered_country": {"iso_code": "XX"},
    }
    if country is not None:
        geolocation["country"] = {"geoname_id": 1, "iso_code": country, "names": {"en": "Country"}}
    if number % 2:
        geolocation["city"] = {"geoname_id": 2, "names": {"en": f"City {number % 7}"}}
    return {
        "protocol": ("http", "socks4", "socks5")[number % 3],
        "username": None,
        "password": None,
        "host": f"192.0.{2 + number // 250}.{number % 250}",
        "port": 7080 + number % 5,
        "timeout": 0.18,
        "exit_ip": "192.0.2.1",
        "asn": {
            "autonomous_system_number": 64496 + number % 9,
            "autonomous_system_organization": f"Net {number % 9}",
        },
        "geolocation": geolocation,
        **facts,
    }


@pytest.fixture(params=["made here", "published"])
def public_list(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A list of 492 proxies: one of our own, and one that somebody publishes."""
    if request.param == "made here":
        path = tmp_path / "proxies.json"
        path.write_text(json.dumps([entry(number) for number in range(492)]))
        return path
    return PUBLISHED


def listed(storage: PostgresStorage, pool: str) -> list[Proxy]:
    found = storage.get_pool_by_name(pool)
    assert found is not None
    return list(storage.list_proxies(str(found.id)))


class TestAPublicList:
    def test_all_are_taken_once(self, pharox: Pharox, public_list: Path) -> None:
        """A list of 492 proxies is imported whole, and a second time not at all."""
        first = pharox("import", public_list, "--pool", "public")
        told = (
            "492 read: 492 new, 0 known already, 0 bad; each new one takes 1 lease at a time"
            f"{MADE}\n"
        )
        assert first == (0, told, "")
        second = pharox("import", public_list, "--pool", "public")
        assert second == (0, "492 read: 0 new, 492 known already, 0 bad\n", "")

    def test_the_counts_are_those_of_the_file(
        self, pharox: Pharox, public_list: Path, storage: PostgresStorage
    ) -> None:
        """Protocols, countries, cities, networks and coordinates are as the file has them."""
        pharox("import", public_list, "--pool", "public")
        proxies = listed(storage, "public")
        entries = json.loads(public_list.read_text())
        places = [entry["geolocation"] for entry in entries]
        assert Counter(p.protocol.value for p in proxies) == Counter(
            entry["protocol"] for entry in entries
        )
        assert Counter(p.country for p in proxies) == Counter(
            place.get("country", {}).get("iso_code") for place in places
        )
        assert Counter(p.city for p in proxies) == Counter(
            place.get("city", {}).get("names", {}).get("en") for place in places
        )
        assert Counter((p.asn, p.isp) for p in proxies) == Counter(
            tuple(entry["asn"].values()) for entry in entries
        )
        assert Counter((p.latitude, p.longitude) for p in proxies) == Counter(
            (place["location"]["latitude"], place["location"]["longitude"]) for place in places
        )

    def test_they_can_be_leased_at_once(self, pharox: Pharox, public_list: Path) -> None:
        """What is imported is ACTIVE and available unless the command says otherwise."""
        pharox("import", public_list, "--pool", "public")
        (stats,) = pharox("stats", "--json").objects
        assert (stats["total_proxies"], stats["available_proxies"]) == (492, 492)


class TestIdentity:
    def test_it_is_protocol_address_and_credentials(self, pharox: Pharox) -> None:
        """Two proxies of one address are two if their protocols, users or passwords differ."""
        lines = [
            "http://192.0.2.1:80",
            "socks5://192.0.2.1:80",
            "http://192.0.2.1:81",
            "http://ann:pw@192.0.2.1:80",
            "http://bob:pw@192.0.2.1:80",
            "http://bob:wp@192.0.2.1:80",
        ]
        for expected in ("6 read: 6 new", "6 read: 0 new, 6 known already"):
            outcome = pharox("import", "-", "--pool", "p", stdin="\n".join(lines))
            assert outcome.out.startswith(expected)

    def test_its_description_is_no_part_of_it(
        self, pharox: Pharox, storage: PostgresStorage
    ) -> None:
        """A known proxy stays as it is, whatever else the list says of it now."""
        pharox("import", "-", "--pool", "p", stdin="http://ann:one@192.0.2.1:80")
        outcome = pharox(
            "import", "-", "--pool", "p", "--source", "x", stdin="http://ann:one@192.0.2.1:80"
        )
        assert "0 new, 1 known already" in outcome.out
        (proxy,) = listed(storage, "p")
        assert (proxy.url, proxy.source) == ("http://ann:one@192.0.2.1:80", None)

    def test_a_list_that_repeats_itself_is_imported_once(self, pharox: Pharox) -> None:
        """Of the same identity in one list only the first is taken, capitals or not."""
        outcome = pharox(
            "import",
            "-",
            "--pool",
            "p",
            stdin="http://a.example:80\nhttp://A.Example:80\nhttp://a.example:80/\n",
        )
        assert outcome.out.startswith("3 read: 1 new, 2 known already, 0 bad;")

    def test_a_proxy_saved_in_another_way_is_known(
        self, pharox: Pharox, storage: PostgresStorage
    ) -> None:
        """A proxy that was registered under an id of its own is found by what it is."""
        pool = ProxyPool(name="p")
        storage.save_pool(pool)
        for credentials in (None, ProxyCredentials(user="ann", password="pw")):
            storage.save_proxy(
                Proxy(
                    host="192.0.2.1",
                    port=80,
                    protocol=ProxyProtocol.HTTP,
                    pool_id=pool.id,
                    credentials=credentials,
                )
            )
        lines = "http://192.0.2.1:80\nhttp://ann:pw@192.0.2.1:80\nhttp://bob:pw@192.0.2.1:80"
        assert "1 new, 2 known already" in pharox("import", "-", "--pool", "p", stdin=lines).out

    def test_each_pool_has_its_own(self, pharox: Pharox) -> None:
        """The same list goes into two pools in full."""
        for pool in ("one", "two"):
            assert "1 new" in pharox("import", "-", "--pool", pool, stdin="http://192.0.2.1:80").out

    def test_imports_at_the_same_time_register_it_once(self, storage: PostgresStorage) -> None:
        """Of eight imports of one list at once, together as many are new as the list has."""
        pool = ProxyPool(name="p")
        storage.save_pool(pool)
        batch = [
            Proxy(host=f"192.0.2.{n}", port=80, protocol=ProxyProtocol.HTTP, pool_id=pool.id)
            for n in range(50)
        ]
        new: list[int] = []
        threads(8, lambda _: new.append(storage.import_proxies(pool.id, batch)))
        assert sum(new) == len(storage.list_proxies(str(pool.id))) == 50
        assert storage.verify() == []


class TestChanged:
    OLD, NEW = "http://ann:oldpw@192.0.2.1:80", "http://ann:newpw@192.0.2.1:80"

    def test_another_password_is_told_and_changes_nothing(
        self, pharox: Pharox, storage: PostgresStorage
    ) -> None:
        """The exit status is 1, and neither password is shown."""
        pharox("import", "-", "--pool", "p", stdin=self.OLD)
        outcome = pharox("import", "-", "--pool", "p", stdin=self.NEW)
        (proxy,) = listed(storage, "p")
        assert outcome == (
            1,
            "1 read: 0 new, 0 known already, 1 changed, 0 bad\n",
            f"http://192.0.2.1:80 has another password in the pool (proxy {proxy.id}); "
            "--update replaces it\n",
        )
        assert proxy.url == self.OLD

    def test_update_replaces_it(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """With ``--update`` the list's password is the one that is leased from then on."""
        pharox("import", "-", "--pool", "p", stdin=self.OLD)
        outcome = pharox("import", "-", "--pool", "p", "--update", stdin=self.NEW)
        assert outcome == (0, "1 read: 0 new, 0 known already, 1 updated, 0 bad\n", "")
        assert [proxy.url for proxy in listed(storage, "p")] == [self.NEW]

    def test_sessions_in_the_password_are_all_imported(
        self, pharox: Pharox, storage: PostgresStorage
    ) -> None:
        """A gateway's list whose sessions differ only in the password has a proxy for each."""
        lines = "\n".join(
            f"geo.example:12321:ann:pw_country-us_session-{n}_lifetime-10m" for n in range(3)
        )
        first = pharox("import", "-", "--pool", "p", "--protocol", "http", stdin=lines)
        assert first.out.startswith("3 read: 3 new, 0 known already, 0 bad")
        again = pharox("import", "-", "--pool", "p", "--protocol", "http", stdin=lines)
        assert again == (0, "3 read: 0 new, 3 known already, 0 bad\n", "")
        assert len(listed(storage, "p")) == 3


class TestSync:
    LIST = "\n".join(f"http://192.0.2.{n}:80" for n in range(1, 5))

    def call(self, pharox: Pharox, lines: str, *more: str) -> Outcome:
        return pharox("import", "-", "--pool", "p", "--source", "a", *more, stdin=lines)

    def test_what_is_gone_is_removed(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """A source's proxies that its list has no more go; those of another source stay."""
        self.call(pharox, self.LIST)
        pharox("import", "-", "--pool", "p", "--source", "b", stdin="http://192.0.2.9:80")
        outcome = self.call(pharox, self.LIST.partition("\n")[2], "--sync")
        assert outcome.status == 0
        assert outcome.out.splitlines()[1] == "1 gone: 1 removed, 0 leased"
        assert {str(proxy.host) for proxy in listed(storage, "p")} == {
            *(f"192.0.2.{n}" for n in (2, 3, 4, 9))
        }

    def test_what_is_leased_is_told(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """A leased proxy stays this time."""
        self.call(pharox, self.LIST)
        lease = ProxyManager(storage).acquire_proxy("p")
        assert lease is not None
        leased = storage.get_proxy(str(lease.proxy_id))
        others = "\n".join(line for line in self.LIST.split() if line != leased.url)
        outcome = self.call(pharox, others, "--sync")
        assert outcome.out.splitlines()[1] == "1 gone: 0 removed, 1 leased"
        assert f"proxy {leased.id} is leased; the next --sync removes it" in outcome.err

    def test_too_many_are_told_and_kept(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """A list that has lost more than half removes nothing unless it is told to."""
        self.call(pharox, self.LIST)
        short = "http://192.0.2.1:80"
        outcome = self.call(pharox, short, "--sync")
        assert outcome.status == 1
        assert (
            "the source no longer lists 3 of its 4 proxies, and --max-removed is 50%" in outcome.err
        )
        assert len(listed(storage, "p")) == 4
        assert self.call(pharox, short, "--sync", "--max-removed", "3").status == 0
        assert len(listed(storage, "p")) == 1

    def test_a_list_with_bad_lines_removes_nothing(
        self, pharox: Pharox, storage: PostgresStorage
    ) -> None:
        """Nothing is removed if part of the source could not be read."""
        self.call(pharox, self.LIST)
        outcome = self.call(pharox, self.LIST.replace("192.0.2.4:80", "192.0.2.4:eighty"), "--sync")
        assert outcome.status == 1
        assert "nothing was removed, because not all of the source could be read" in outcome.err
        assert len(listed(storage, "p")) == 4

    @pytest.mark.parametrize(
        ("options", "told"),
        [
            (("--max-removed", "3"), "--max-removed needs --sync"),
            (("--sync", "--max-removed", "half"), "a number or a share such as 50%"),
            (("--sync", "--max-removed", "200%"), "from 0 to 100 %"),
        ],
    )
    def test_a_bound_that_is_none_is_refused(
        self, pharox: Pharox, options: tuple[str, ...], told: str
    ) -> None:
        """Nothing is read then."""
        outcome = self.call(pharox, self.LIST, *options)
        assert (outcome.status, outcome.out) == (2, "")
        assert told in outcome.err


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("-", "gw.example,ann,s3cret"),
        ("http://ann:s3cret/x@127.0.0.1:9", ""),
        ("http://127.0.0.1:9:ann:s3cret", ""),
        ("socks5://ann:s3cret@gw.example:1080", ""),
        ("gw.example:1080:ann:s3cret", ""),
    ],
)
def test_no_message_repeats_a_password(pharox: Pharox, source: str, text: str) -> None:
    """Whatever is taken for a source, or for a header, is not quoted with its password."""
    outcome = pharox("import", source, "--pool", "p", "--protocol", "http", stdin=text)
    assert outcome.status == 1
    assert "s3cret" not in outcome.out + outcome.err
    assert outcome.err


class TestLimit:
    def test_a_pool_that_is_there_stays_and_says_the_limit(
        self, pharox: Pharox, storage: PostgresStorage
    ) -> None:
        """An import gives a selector to a pool that it makes; the limit is the pool's."""
        pharox("import", "-", "--pool", "p", stdin="http://192.0.2.1:80")
        made = storage.get_pool_by_name("p")
        assert made is not None
        assert made.selector is SelectorStrategy.LEAST_RECENTLY_USED
        pharox("pools", "set", "p", "--selector", "", "--max-concurrency", "4")
        outcome = pharox("import", "-", "--pool", "p", stdin="http://192.0.2.2:80")
        assert outcome.out.strip().endswith("each new one takes 4 leases at a time")
        pharox("import", "-", "--pool", "p", "--max-concurrency", "2", stdin="http://192.0.2.3:80")
        limits = sorted(p.max_concurrency or 0 for p in storage.list_proxies(str(made.id)))
        assert limits == [1, 2, 4]
        kept = storage.get_pool_by_name("p")
        assert kept is not None
        assert kept.selector is None

    @pytest.mark.parametrize(
        ("options", "limit", "told"),
        [
            ((), 1, "each new one takes 1 lease at a time"),
            (("--max-concurrency", "3"), 3, "each new one takes 3 leases at a time"),
            (
                ("--max-concurrency", "unlimited"),
                None,
                "each new one takes any number of leases at a time",
            ),
        ],
    )
    def test_one_lease_unless_told_otherwise(
        self,
        pharox: Pharox,
        storage: PostgresStorage,
        options: tuple[str, ...],
        limit: int | None,
        told: str,
    ) -> None:
        """The summary says how many leases an imported proxy takes."""
        outcome = pharox("import", "-", "--pool", "p", *options, stdin="http://192.0.2.1:80")
        assert outcome.out.strip().endswith(told + MADE)
        assert [proxy.max_concurrency for proxy in listed(storage, "p")] == [limit]

    @pytest.mark.parametrize("limit", ["0", "-1", "many", "1.5", "99999999999"])
    def test_what_is_no_number_is_refused(self, pharox: Pharox, limit: str) -> None:
        """Nothing is imported then."""
        outcome = pharox(
            "import", "-", "--pool", "p", f"--max-concurrency={limit}", stdin="http://192.0.2.1:80"
        )
        assert (outcome.status, outcome.out) == (2, "")
        assert "a number from 1 to 2147483647, or unlimited" in outcome.err


class TestBadEntries:
    def test_they_are_listed_and_the_good_ones_kept(self, pharox: Pharox) -> None:
        """A bad entry is listed with line and reason, and the exit status is 1."""
        outcome = pharox(
            "import", "-", "--pool", "p", stdin="http://192.0.2.1:80\nnonsense\nhttp://192.0.2.2:80"
        )
        assert outcome == (
            1,
            f"3 read: 2 new, 0 known already, 1 bad; each new one takes 1 lease at a time{MADE}\n",
            "line 2 is neither scheme://user:password@host:port nor host:port\n",
        )

    def test_the_listing_is_bounded(self, pharox: Pharox) -> None:
        """After fifty bad entries only their number is shown."""
        outcome = pharox("import", "-", "--pool", "p", stdin="nonsense\n" * 60)
        lines = outcome.err.splitlines()
        assert (len(lines), lines[-1]) == (51, "... and 10 more")
        assert "60 bad" in outcome.out

    def test_nothing_good_makes_no_pool(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """The pool is made when there is something to put into it."""
        assert pharox("import", "-", "--pool", "p", stdin="nonsense").status == 1
        assert storage.list_pools() == []

    def test_a_source_that_breaks_off_keeps_what_came(
        self, pharox: Pharox, tmp_path: Path, storage: PostgresStorage
    ) -> None:
        """Of a JSON file that was cut, the whole entries are imported."""
        path = tmp_path / "cut.json"
        path.write_text(json.dumps([entry(1), entry(2), entry(3)])[:-40])
        outcome = pharox("import", path, "--pool", "p")
        assert (outcome.status, outcome.out) == (
            1,
            f"3 read: 2 new, 0 known already, 1 bad; each new one takes 1 lease at a time{MADE}\n",
        )
        assert "entry 3 is cut off" in outcome.err
        assert len(listed(storage, "p")) == 2

    def test_passwords_are_not_shown(self, pharox: Pharox) -> None:
        """No entry, good or bad, brings its password to the terminal or into the log."""
        lines = f"http://ann:{SECRET}@192.0.2.1:80\nhttp://ann:{SECRET}@192.0.2.1\n{SECRET}"
        for command in (
            ("import", "-", "--pool", "p"),
            ("proxies", "p"),
            ("proxies", "p", "--json"),
            ("log",),
            ("log", "--json"),
        ):
            outcome = pharox(*command, stdin=lines)
            assert SECRET not in outcome.out + outcome.err

    @pytest.mark.parametrize("source", ["/no/such/file", "/"])
    def test_a_source_that_cannot_be_read_is_one_sentence(
        self, pharox: Pharox, source: str, storage: PostgresStorage
    ) -> None:
        """An unreadable source is an error of one line, and nothing is written."""
        outcome = pharox("import", source, "--pool", "p")
        assert (outcome.status, outcome.out) == (1, "")
        assert outcome.err.startswith(f"pharox: '{source}' cannot be read: ")
        assert outcome.err.count("\n") == 1
        assert list(storage.events()) == []


class TestWriting:
    def test_it_takes_one_transaction_a_batch(
        self, pharox: Pharox, storage: PostgresStorage
    ) -> None:
        """2,500 proxies are written in three transactions."""
        lines = "\n".join(f"http://192.0.{n // 250}.{n % 250}:80" for n in range(2500))
        assert "2500 new" in pharox("import", "-", "--pool", "p", stdin=lines).out
        ((count,),) = run_sql(
            storage.engine,
            f"SELECT count(DISTINCT tx) FROM {storage.schema}.events "
            "WHERE type = 'ProxyRegistered'",
        )
        assert count == 3

    def test_the_options_hold_where_the_source_is_silent(
        self, pharox: Pharox, storage: PostgresStorage
    ) -> None:
        """Protocol, status, capacity and label come from the options."""
        options = ("--protocol", "socks5", "--status", "inactive", "--max-concurrency", "3")
        pharox("import", "-", "--pool", "p", *options, "--source", "mine", stdin="192.0.2.1:80")
        (proxy,) = listed(storage, "p")
        assert (proxy.protocol, proxy.status) == (ProxyProtocol.SOCKS5, ProxyStatus.INACTIVE)
        assert (proxy.max_concurrency, proxy.source) == (3, "mine")

    def test_the_format_can_be_named(self, pharox: Pharox) -> None:
        """With --format the content is read in that format."""
        outcome = pharox("import", "-", "--pool", "p", "--format", "csv", stdin="192.0.2.1:80")
        reason = "the first line of the CSV does not name the columns host and port"
        assert outcome == (1, "", f"pharox: {reason}\n")

    def test_the_order_of_a_line_can_be_named(
        self, pharox: Pharox, storage: PostgresStorage
    ) -> None:
        """Ambiguous lines are refused without showing them, and read with --line."""
        line = "ann:12345:squid:3128"
        refused = pharox("import", "-", "--pool", "p", "--protocol", "http", stdin=line)
        assert refused.status == 1
        assert "--line" in refused.err
        assert list(storage.events()) == []
        named = ("--line", "user:pass:host:port")
        taken = pharox("import", "-", "--pool", "p", "--protocol", "http", *named, stdin=line)
        assert taken.status == 0
        assert [proxy.url for proxy in listed(storage, "p")] == ["http://ann:12345@squid:3128"]
        assert "12345" not in pharox("log", "--json").out

    def test_an_order_that_says_nothing_is_misuse(self, pharox: Pharox) -> None:
        """A layout without host or port is an error of one sentence."""
        outcome = pharox("import", "-", "--pool", "p", "--line", "user:pass", stdin="x")
        assert (outcome.status, outcome.out) == (2, "")
        assert "names no host" in outcome.err

    def test_an_unknown_shape_is_one_sentence(
        self, pharox: Pharox, storage: PostgresStorage
    ) -> None:
        """A file of thousands of unknown lines is not listed line by line."""
        content = json.dumps([{"Adresse": "192.0.2.1", "Puerto": 80}] * 1000, indent=2)
        outcome = pharox("import", "-", "--pool", "p", stdin=content)
        reason = "the entries have neither a host nor an address, but Adresse, Puerto"
        assert outcome == (1, "", f"pharox: {reason}\n")
        assert list(storage.events()) == []

    def test_a_missing_key_is_told_before_anything_is_written(
        self, pharox: Pharox, storage: PostgresStorage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Without PHAROX_SECRET_KEY a password cannot be kept, so not even the pool is made."""
        monkeypatch.delenv("PHAROX_SECRET_KEY")
        lines = f"http://192.0.2.1:80\nhttp://ann:{SECRET}@192.0.2.1:80"
        outcome = pharox("import", "-", "--pool", "p", stdin=lines)
        assert (outcome.status, outcome.out) == (1, "")
        assert "PHAROX_SECRET_KEY" in outcome.err
        assert list(storage.events()) == []

    def test_a_list_without_passwords_needs_no_key(
        self, pharox: Pharox, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Beside proxies with passwords, those without are imported without the key."""
        pharox("import", "-", "--pool", "p", stdin=f"http://ann:{SECRET}@192.0.2.1:80")
        monkeypatch.delenv("PHAROX_SECRET_KEY")
        assert "1 new" in pharox("import", "-", "--pool", "p", stdin="http://192.0.2.1:80").out

    def test_a_pool_that_vanishes_meanwhile_is_made_again(
        self, pharox: Pharox, storage: PostgresStorage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Between two batches the pool may be removed; the second one registers it anew."""
        monkeypatch.setattr(importing, "BATCH", 1)
        whole = read_proxies

        def read(*arguments: Any, **options: Any) -> Iterator[Any]:
            for number, entry in enumerate(whole(*arguments, **options), start=1):
                if number == 3:
                    pool = storage.get_pool_by_name("p")
                    assert pool is not None
                    storage.delete_pool(str(pool.id))
                yield entry

        monkeypatch.setattr(importing, "read_proxies", read)
        lines = "http://192.0.2.1:80\nhttp://192.0.2.2:80\nhttp://192.0.2.3:80"
        assert "3 new" in pharox("import", "-", "--pool", "p", stdin=lines).out
        assert [proxy.url for proxy in listed(storage, "p")] == ["http://192.0.2.3:80"]

    def test_an_unknown_pool_is_refused_by_the_storage(self, storage: PostgresStorage) -> None:
        """Only the command makes pools; the storage imports into those that there are."""
        pool = ProxyPool(name="p")
        proxy = Proxy(host="192.0.2.1", port=80, protocol=ProxyProtocol.HTTP, pool_id=pool.id)
        with pytest.raises(PoolNotFoundError):
            storage.import_proxies(pool.id, [proxy])


class TestProgress:
    def test_a_terminal_sees_a_bar_and_the_result_stays_clean(
        self, database_url: str, tmp_path: Path
    ) -> None:
        """A progress bar is drawn on standard error if that is a terminal, and only there."""
        path = tmp_path / "list"
        path.write_text("http://192.0.2.1:80\n")
        terminal, other_end = pty.openpty()
        code = "import sys; from pharox.cli import main; sys.exit(main())"
        with subprocess.Popen(
            [sys.executable, "-c", code, "import", str(path), "--pool", "p"],
            stdout=subprocess.PIPE,
            stderr=other_end,
            env={**os.environ, "PHAROX_DATABASE_URL": database_url, "TERM": "xterm"},
        ) as process:
            os.close(other_end)
            assert b"20/20 bytes" in everything_from(terminal)
            out, _ = process.communicate()
        assert (process.returncode, out) == (
            0,
            b"1 read: 1 new, 0 known already, 0 bad; each new one takes 1 lease at a time"
            + f"{MADE}\n".encode(),
        )


def everything_from(terminal: int) -> bytes:
    """Return what a terminal was sent until the last writer closed it, and close it too."""
    seen = b""
    try:
        while piece := os.read(terminal, 4096):
            seen += piece
    except OSError:  # On Linux this is how a terminal ends.
        pass
    os.close(terminal)
    return seen

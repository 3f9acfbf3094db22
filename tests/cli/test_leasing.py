"""``pharox acquire``, ``release`` and ``leases``, as a shell script uses them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from uuid import UUID, uuid4

import pytest

from pharox import LeaseStatus, Proxy, new_lease_id
from pharox.cli import leases as listing
from pharox.cli import leasing
from pharox.models import ProxyCredentials, ProxyStatus
from pharox.storage.postgres import PostgresStorage
from tests.conftest import SECRET_KEY, fill, types_of

from .conftest import Pharox

SECRET = "s3 cret"


class TestRenew:
    def test_a_lease_is_extended(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """By its own duration, or by the given one; --json has all of it."""
        fill(storage, name="p")
        lease_id = pharox("acquire", "p", "--duration", "60").out.split()[0]
        outcome = pharox("renew", lease_id)
        assert outcome.status == 0
        assert outcome.out.startswith(f"{lease_id} renewed until ")
        (found,) = pharox("renew", lease_id, "--duration", "10m", "--json").objects
        lease = storage.get_lease(lease_id)
        assert lease is not None
        assert lease.renewed_at is not None
        assert (lease.expires_at - lease.renewed_at).total_seconds() == 600
        assert found["id"] == lease_id
        assert "LeaseRenewed" in pharox("log").out
        assert (
            "renewed http://10.0.0.0:8000 for 10 min 0 s" in pharox("audit", "lease", lease_id).out
        )

    def test_what_has_ended_is_told(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """It fails, and says how and when it ended; an unknown id is told as such."""
        fill(storage, name="p")
        lease_id = pharox("acquire", "p").out.split()[0]
        pharox("release", lease_id)
        outcome = pharox("renew", lease_id)
        assert outcome.status == 1
        assert "was released at" in outcome.err
        assert "There is no lease" in pharox("renew", str(uuid4())).err
        assert pharox("renew", lease_id, "--duration", "-1").status != 0


class TestRevoke:
    def test_it_ends_the_lease_of_somebody_else(
        self, pharox: Pharox, storage: PostgresStorage
    ) -> None:
        """The reason is in the log, in the lease's story and in what its holder is told."""
        fill(storage, name="p")
        lease_id = pharox("acquire", "p", "--consumer", "crawler").out.split()[0]
        outcome = pharox("revoke", lease_id, "--reason", "subnet banned")
        assert outcome.status == 0
        assert outcome.out.startswith(f"{lease_id} revoked after ")
        assert 'reason="subnet banned"' in pharox("log", "--type", "LeaseRevoked").out
        story = pharox("audit", "lease", lease_id).out
        assert "the lease of crawler on http://10.0.0.0:8000 was revoked after " in story
        assert ": subnet banned" in story
        assert "1 revoked" in pharox("audit", "pool", "p").out
        for command in ("renew", "release"):
            told = pharox(command, lease_id).err
            assert "revoked" in told
            assert ": subnet banned" in told

    def test_what_has_ended_is_told(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """Revoking twice fails and says when it was; a reason is needed; --json has the lease."""
        fill(storage, name="p")
        lease_id = pharox("acquire", "p").out.split()[0]
        assert pharox("revoke", lease_id).status == 2
        (found,) = pharox("revoke", lease_id, "--reason", "why", "--json").objects
        assert (found["status"], found["revoke_reason"]) == ("revoked", "why")
        again = pharox("revoke", lease_id, "--reason", "again")
        assert again.status == 1
        assert "was revoked at" in again.err
        assert "There is no lease" in pharox("revoke", str(uuid4()), "--reason", "why").err


class TestLeases:
    def test_who_holds_what_is_listed(
        self, pharox: Pharox, storage: PostgresStorage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """By pool and proxy, over any number of pages, with the ids that `revoke` takes."""
        monkeypatch.setattr(listing, "PAGE", 2)
        assert pharox("leases") == (0, "", "pharox: nothing is leased\n")
        held = {}
        for name in ("q", "p"):
            _, proxies = fill(storage, 3, name=name)
            held[name] = [
                storage.create_lease(proxy, f"c{n}", 600) for n, proxy in enumerate(proxies)
            ]
        renewed, released = held["p"][0], held["q"].pop()
        storage.return_lease(released)
        pharox("renew", renewed.id)
        expected = [
            lease
            for name in ("p", "q")
            for lease in sorted(held[name], key=lambda lease: lease.proxy_id)
        ]
        _, *rows = pharox("leases").out.splitlines()
        assert [row.split()[0] for row in rows] == [str(lease.id) for lease in expected]
        row = next(row for row in rows if str(renewed.id) in row)
        assert re.search(
            r"  p +http://10\.0\.0\.0:8000  c0 .*Z  \d+ s +(10 min 0 s|9 min \d+ s)  2.*Z$", row
        )
        found = pharox("leases", "--pool", "p", "--consumer", "c1", "--json").objects
        assert [each["id"] for each in found] == [str(held["p"][1].id)]
        assert pharox("revoke", found[0]["id"], "--reason", "why").status == 0
        assert pharox("leases", "--pool", "p", "--consumer", "c1", "--json").objects == []
        unknown = pharox("leases", "--consumer", "nobody")
        assert (unknown.status, "there never was a consumer" in unknown.err) == (1, True)
        nowhere = pharox("leases", "--pool", "nowhere")
        assert nowhere == (1, "", "pharox: no pool is named 'nowhere'\n")

    def test_what_ran_out_is_told(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """A lease that nobody has taken back yet is listed, with how long it is over."""
        fill(storage, name="p")
        pharox("acquire", "p", "--duration", "0.001")
        assert re.search(r"  ran out \d+ s ago$", pharox("leases").out.splitlines()[1])


class TestAcquire:
    def test_it_prints_the_lease_and_the_url(
        self, pharox: Pharox, storage: PostgresStorage
    ) -> None:
        """One line has the lease's id and the proxy's URL with the credentials, quoted."""
        credentials = ProxyCredentials(user="ann", password=SECRET)
        fill(storage, name="p", credentials=credentials)
        outcome = pharox("acquire", "p")
        lease_id, url = outcome.out.split()
        assert (outcome.status, url) == (0, "http://ann:s3%20cret@10.0.0.0:8000")
        lease = storage.get_lease(lease_id)
        assert lease is not None
        assert lease.status is LeaseStatus.ACTIVE

    def test_json_has_all_of_the_lease(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """With --json the lease and the URL are one object."""
        fill(storage, name="p")
        (found,) = pharox(
            "acquire", "p", "--consumer", "crawler", "--duration", "60.5", "--json"
        ).objects
        lease = storage.get_lease(found["id"])
        assert lease is not None
        assert (found["url"], found["consumer_name"]) == ("http://10.0.0.0:8000", "crawler")
        assert (lease.expires_at - lease.acquired_at).total_seconds() == 60.5
        assert found["fencing_token"] == lease.fencing_token

    def test_an_id_of_the_callers_is_leased_once(
        self, pharox: Pharox, storage: PostgresStorage
    ) -> None:
        """So a script can try again without leasing two."""
        fill(storage, 2, name="p")
        mine = str(new_lease_id())
        first = pharox("acquire", "p", "--lease-id", mine)
        assert first.out.startswith(mine)
        assert pharox("acquire", "p", "--lease-id", mine) == first
        assert types_of(storage).count("LeaseAcquired") == 1
        assert pharox("release", mine).status == 0
        assert "released" in pharox("acquire", "p", "--lease-id", mine).err
        assert pharox("acquire", "p", "--lease-id", "mine").status == 2

    @pytest.mark.parametrize(
        ("options", "reason", "status"),
        [
            (["nowhere"], "no pool is named 'nowhere'", 1),
            (["empty"], "pool 'empty' has no proxies", 1),
            (["p", "--country", "AR"], "no proxy of pool 'p' matches the filters", 1),
            (["sick"], "no matching proxy of pool 'sick' is healthy", 75),
            (["taken"], "every healthy matching proxy of pool 'taken' is leased to its limit", 75),
        ],
    )
    def test_a_miss_is_a_sentence_that_says_why(
        self, pharox: Pharox, storage: PostgresStorage, options: list[str], reason: str, status: int
    ) -> None:
        """Each reason of a miss has its sentence, and 75 says that it may pass."""
        fill(storage, 0, name="empty")
        fill(storage, name="p", country="SE")
        fill(storage, name="sick", status=ProxyStatus.INACTIVE)
        fill(storage, name="taken")
        assert pharox("acquire", "taken").status == 0
        assert pharox("acquire", *options) == (status, "", f"pharox: {reason}\n")

    def test_an_empty_filter_is_refused(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """As of a variable that is not set: it would match every proxy."""
        fill(storage, 1, name="p")
        for option in ("--country", "--host", "--isp"):
            outcome = pharox("acquire", "p", option, "")
            assert outcome == (2, "", f"pharox: {option} needs a value\n")

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("country", "AR"),
            ("city", "X"),
            ("source", "a"),
            ("isp", "Net"),
            ("asn", 64500),
            ("host", "wanted.example"),
            ("protocol", "socks5"),
            ("proxy", UUID(int=7)),
        ],
    )
    def test_each_filter_is_an_option(
        self, pharox: Pharox, storage: PostgresStorage, name: str, value: object
    ) -> None:
        """Only a proxy that matches the options is leased."""
        pool, _ = fill(storage, name="p")
        wanted = {"host": "wanted.example", "protocol": "http", name: value}
        proxy = Proxy(
            id=wanted.pop("proxy", UUID(int=1)),
            port=80,
            pool_id=pool.id,
            status=ProxyStatus.ACTIVE,
            max_concurrency=1,
            **wanted,
        )
        storage.save_proxy(proxy)
        option = (f"--{name}", value)
        assert "wanted.example" in pharox("acquire", "p", *option).out
        assert pharox("acquire", "p", *option).status == 75

    def test_the_selector_is_an_option(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """With round_robin every proxy has its turn."""
        fill(storage, 3, name="p", max_concurrency=None)
        urls = {pharox("acquire", "p", "--selector", "round_robin").out.split()[1] for _ in "123"}
        assert len(urls) == 3

    @pytest.mark.parametrize(
        "options",
        [
            ["--duration", "0"],
            ["--duration", "-1"],
            ["--duration", "nan"],
            ["--duration", "x"],
            ["--asn", "-1"],
            ["--selector", "best"],
            ["--consumer", " "],
            ["--country", "\udcff"],
        ],
    )
    def test_what_makes_no_sense_is_refused(
        self, pharox: Pharox, storage: PostgresStorage, options: list[str]
    ) -> None:
        """An invalid option is an error of one line with exit status 2, and nothing is recorded."""
        fill(storage, name="p")
        before = types_of(storage)
        outcome = pharox("acquire", "p", *options)
        assert (outcome.status, outcome.out, outcome.err.count("\n")) == (2, "", 1)
        assert types_of(storage) == before

    def test_a_lease_that_cannot_be_told_is_given_back(
        self, pharox: Pharox, storage: PostgresStorage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Without the key the URL cannot be shown, so the lease is released at once."""
        credentials = ProxyCredentials(user="ann", password=SECRET)
        fill(storage, name="p", credentials=credentials)
        monkeypatch.delenv("PHAROX_SECRET_KEY")
        outcome = pharox("acquire", "p")
        assert (outcome.status, outcome.out) == (1, "")
        assert "PHAROX_SECRET_KEY" in outcome.err
        assert types_of(storage)[-2:] == ["LeaseAcquired", "LeaseReleased"]

    def test_an_interrupted_hand_over_gives_it_back_too(
        self, pharox: Pharox, storage: PostgresStorage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Ctrl-C between the lease and its printing leaves nothing held."""

        def interrupted(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(leasing, "hand_over", interrupted)
        fill(storage, name="p")
        assert pharox("acquire", "p") == (130, "", "")
        assert types_of(storage)[-1] == "LeaseReleased"

    def test_a_lease_that_nobody_reads_is_given_back(
        self, storage: PostgresStorage, database_url: str
    ) -> None:
        """If the reader of its output is gone, the command ends quietly and holds nothing."""
        fill(storage, name="p")
        reading, writing = os.pipe()
        os.close(reading)
        environment = {
            **os.environ,
            "PHAROX_DATABASE_URL": database_url,
            "PHAROX_SECRET_KEY": SECRET_KEY,
        }
        code = "import sys; from pharox.cli import main; sys.exit(main())"
        done = subprocess.run(
            [sys.executable, "-c", code, "acquire", "p"],
            stdout=writing,
            stderr=subprocess.PIPE,
            env=environment,
            check=False,
        )
        os.close(writing)
        assert (done.returncode, done.stderr) == (141, b"")
        assert types_of(storage)[-1] == "LeaseReleased"


class TestRelease:
    def test_it_gives_the_lease_back(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """The lease ends, and the log has the reason."""
        fill(storage, name="p")
        lease_id = pharox("acquire", "p").out.split()[0]
        outcome = pharox("release", lease_id, "--reason", "page fetched")
        assert outcome.status == 0
        assert outcome.out.startswith(f"{lease_id} released after ")
        *_, event = storage.events()
        assert (event.type, getattr(event, "reason", None)) == ("LeaseReleased", "page fetched")

    def test_json_has_the_lease_as_it_ended(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """With --json the ended lease is one object."""
        fill(storage, name="p")
        lease_id = pharox("acquire", "p").out.split()[0]
        (lease,) = pharox("release", lease_id, "--json").objects
        assert (lease["id"], lease["status"]) == (lease_id, "released")
        assert lease["released_at"] is not None

    def test_a_second_release_fails(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """A released lease cannot be released again, and nothing is appended."""
        fill(storage, name="p")
        lease_id = pharox("acquire", "p").out.split()[0]
        pharox("release", lease_id)
        before = types_of(storage)
        outcome = pharox("release", lease_id)
        assert (outcome.status, outcome.out) == (1, "")
        assert outcome.err.startswith(f"pharox: lease {lease_id} had already been released, at 2")
        assert outcome.err.count("\n") == 1
        assert types_of(storage) == before

    def test_a_late_release_fails(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """The error says that the lease has run out."""
        fill(storage, name="p")
        lease_id = pharox("acquire", "p", "--duration", "0.001").out.split()[0]
        outcome = pharox("release", lease_id)
        assert outcome.status == 1
        assert f"lease {lease_id} had already run out, at 2" in outcome.err

    def test_an_unknown_lease_fails(self, pharox: Pharox) -> None:
        """An unknown id is an error; a text that is not an id is a usage error."""
        lease_id = uuid4()
        outcome = pharox("release", lease_id)
        why = "it may have ended and been pruned"
        assert outcome == (1, "", f"pharox: There is no lease {lease_id}; {why}.\n")
        assert pharox("release", "x").status == 2


class TestAddresses:
    def test_a_proxy_is_named_by_its_address(
        self, pharox: Pharox, storage: PostgresStorage
    ) -> None:
        """As `pharox ban` does; an id is as good, and several are alternatives."""
        _, proxies = fill(storage, 3)
        names = ["10.0.0.1:8000", "http://10.0.0.2:8000", str(proxies[0].id)]
        for name, proxy in zip(names, [proxies[1], proxies[2], proxies[0]], strict=True):
            leased = pharox("acquire", "pool", "--proxy", name, "--json").objects[0]
            assert leased["proxy_id"] == str(proxy.id)
        both = pharox("acquire", "pool", *("--proxy", names[0]), *("--proxy", names[1]))
        assert (both.status, "leased to its limit" in both.err) == (75, True)

    def test_only_those_of_the_pool_count(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """An address that is in another pool alone is an error, with nothing asked for."""
        _, (here,) = fill(storage, 1)
        _, (elsewhere,) = fill(storage, 1, name="other", network="10.9")
        assert str(here.id) in pharox("acquire", "pool", "--proxy", "10.0.0.0:8000", "--json").out
        before = types_of(storage)
        outcome = pharox("acquire", "pool", "--proxy", f"{elsewhere.host}:{elsewhere.port}")
        assert (outcome.status, "in pool 'pool'" in outcome.err) == (1, True)
        assert pharox("acquire", "pool", "--proxy", "").status == 2
        assert types_of(storage) == before


class TestFallback:
    def test_another_pool_is_tried(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """The lease is of the pool that had one, and the audit says what the first one lacked."""
        fill(storage, 3, name="residential")
        fill(storage, 1, name="datacenter")
        asked = ("acquire", "residential", "--consumer", "w", "--fallback", "datacenter", "--json")
        leases = [pharox(*asked).objects[0] for _ in range(4)]
        assert [lease["pool_name"] for lease in leases] == [*["residential"] * 3, "datacenter"]
        missed = pharox(*asked)
        assert missed.status == 75
        assert "'residential' is leased" in missed.err
        assert "'datacenter' is leased" in missed.err
        story = pharox("audit", "lease", leases[3]["id"]).out
        assert (
            "pool residential had none: every healthy matching proxy was leased to its limit"
            in story
        )
        assert "pool residential had 3 proxies: 3 active, 0 available, 3 leased" in story
        story = pharox("audit", "pool", "residential").out
        assert "pool datacenter had none either: every healthy matching proxy" in story
        assert "pool datacenter had 1 proxy: 1 active, 0 available, 1 leased" in story
        assert "fallback_from=residential:at_capacity" in pharox("log").out
        assert "fallback=datacenter:at_capacity" in pharox("log").out

    def test_a_command_runs_with_it(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """As `acquire` has it."""
        fill(storage, 0, name="residential")
        fill(storage, 1, name="datacenter")
        run = pharox("run", "residential", "--fallback", "datacenter", "--", "true")
        assert run.status == 0
        again = pharox("run", "residential", "--fallback", "residential", "--", "true")
        assert again.status == 2
        assert "twice" in again.err

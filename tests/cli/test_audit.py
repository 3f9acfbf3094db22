"""``pharox audit``."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

import pytest
from pydantic import SecretStr

import pharox as px
from pharox import ProxyCredentials
from pharox.history import audit
from pharox.history.describing import in_words, lasting
from pharox.storage.postgres import PostgresStorage
from tests.conftest import clock_of, fill

from .conftest import Pharox


class Incident:
    """One proxy, which two workers want; it turns slow and is banned while it is held."""

    def __init__(self, storage: PostgresStorage) -> None:
        self.storage = storage
        self.clock = clock_of(storage)
        self.pool, (self.proxy,) = fill(storage, 1, name="a pool", country="AR")
        manager = px.ProxyManager(storage)
        with px.attributed(actor="nightly", correlation_id="run-8812"):
            lease = manager.acquire_proxy(
                "a pool",
                consumer_name="crawler 7",
                duration_seconds=60,
                filters=px.ProxyFilters(country="AR"),
                selector=px.SelectorStrategy.LEAST_USED,
            )
        assert lease is not None
        self.lease = lease
        self.clock.advance(1.5)
        manager.acquire_proxy("a pool", consumer_name="late")
        storage.apply_health_check_result(
            px.HealthCheckResult(
                proxy_id=self.proxy.id,
                status=px.ProxyStatus.SLOW,
                latency_ms=2500,
                protocol=px.ProxyProtocol.HTTP,
                checked_at=self.clock.now,
            )
        )
        self.clock.advance(86_400)
        storage.cleanup_expired_leases()


@pytest.fixture
def incident(storage: PostgresStorage) -> Incident:
    """The same in this test's ledger."""
    return Incident(storage)


class TestStory:
    def test_a_lease_is_told_from_beginning_to_end(
        self, pharox: Pharox, incident: Incident
    ) -> None:
        """Who, what, when, for how long, with which filters and selector; day by day."""
        lease, actor = incident.lease, next(incident.storage.events()).actor
        outcome = pharox("audit", "lease", lease.id)
        assert (outcome.status, outcome.err) == (0, "")
        assert outcome.out.splitlines() == [
            f"lease {lease.id}",
            "",
            "Thursday 2026-01-01 UTC",
            "  00:00:00.000        4  'crawler 7' got http://10.0.0.0:8000 of pool 'a pool' "
            "for 1 min 0 s",
            "                         asked for selector least_used, country AR",
            f"                         lease {lease.id}, until 2026-01-01T00:01:00.000Z, "
            f"proxy {lease.proxy_id}",
            "                         by nightly, job run-8812",
            "  00:00:01.500        7  http://10.0.0.0:8000 was checked: slow, 2500 ms, "
            "so status active -> slow",
            f"                         by {actor}",
            "",
            "Friday 2026-01-02 UTC",
            "  00:00:01.500        8  the lease of 'crawler 7' on http://10.0.0.0:8000 ran out: "
            "taken back after 1 d 0 h, 23 h 59 min late",
            f"                         lease {lease.id}",
            "",
            "held for 1 d 0 h",
        ]

    def test_a_miss_is_told_in_words(self, pharox: Pharox, incident: Incident) -> None:
        """Why a consumer got nothing, and what the pool had then."""
        out = pharox("audit", "consumer", "late").out
        assert "late got nothing from pool 'a pool': every healthy matching proxy was leased" in out
        assert "the pool had 1 proxy: 1 active, 0 available, 1 leased (1 lease)" in out
        assert out.endswith("0 leases acquired; 0 given back; 0 ran out; 1 miss (1 at_capacity)\n")

    def test_a_proxy_has_its_holders(self, pharox: Pharox, incident: Incident) -> None:
        """What it was, and who had it."""
        out = pharox("audit", "proxy", incident.proxy.id).out
        assert out.startswith(f"proxy http://10.0.0.0:8000 ({incident.proxy.id})\n")
        assert "joined pool 'a pool': active, up to 1 lease at once" in out
        assert "country AR\n" in out
        assert out.endswith(
            "1 lease acquired; 0 given back; 1 ran out; held for 1 d 0 h altogether\n"
        )

    @pytest.mark.parametrize(
        "address", ["10.0.0.0:8000", "http://10.0.0.0:8000", "HTTP://user:pw@10.0.0.0:8000/"]
    )
    def test_a_proxy_is_found_by_its_address(
        self, pharox: Pharox, incident: Incident, address: str
    ) -> None:
        """host:port or a URL will do, also of a proxy that was removed."""
        by_id = pharox("audit", "proxy", incident.proxy.id)
        assert pharox("audit", "proxy", address) == by_id
        incident.storage.delete_proxy(str(incident.proxy.id))
        assert pharox("audit", "proxy", address).status == 0

    def test_proxies_of_one_address_are_listed(self, pharox: Pharox, incident: Incident) -> None:
        """If several match, the error asks for an id."""
        _, (other,) = fill(incident.storage, 1, name="other")
        outcome = pharox("audit", "proxy", "10.0.0.0:8000")
        assert (outcome.status, outcome.out) == (1, "")
        assert outcome.err == (
            "pharox: 2 proxies had this address; ask for one by its id: "
            f"{incident.proxy.id} of pool 'a pool', {other.id} of pool 'other'\n"
        )
        assert pharox("audit", "proxy", "10.0.0.9:8000").err.startswith("pharox: there never was")

    def test_every_event_of_a_pool_is_told(self, pharox: Pharox, incident: Incident) -> None:
        """Each event has one line that begins with its time and its seq."""
        storage = incident.storage
        storage.save_pool(px.ProxyPool(id=incident.pool.id, name="a pool", lease_slow=True))
        px.ProxyManager(storage).acquire_proxy("a pool", consumer_name="late")
        storage.find_available_proxy("a pool", selector=px.SelectorStrategy.ROUND_ROBIN)
        storage.prune_leases(incident.clock.now)
        incident.clock.advance(3600)
        storage.prune_leases(incident.clock.now)
        storage.save_proxy(incident.proxy.model_copy(update={"city": "Salta"}))
        storage.delete_pool(str(incident.pool.id))
        out = pharox("audit", "pool", "a pool").out
        expected = [e.seq for e in storage.events() if e.pool_id == incident.pool.id]
        told = [line.split() for line in out.splitlines() if line.startswith("  0")]
        assert [int(words[1]) for words in told] == expected
        for part in (
            "the pool is now named 'a pool': leases SLOW proxies too",
            "city Salta",
            "were pruned",
            "was removed",
        ):
            assert part in out

    def test_a_terminal_obeys_no_name(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """Names and reasons from elsewhere are escaped."""
        fill(storage, 1, name="p\x1b[2J")
        manager = px.ProxyManager(storage)
        lease = manager.acquire_proxy("p\x1b[2J", consumer_name="c\x07")
        assert lease is not None
        storage.return_lease(lease, reason="\x1b]0;title\u202e")
        for words in (("pool", "p\x1b[2J"), ("consumer", "c\x07"), ("lease", lease.id)):
            outcome = pharox("audit", *words)
            assert outcome.status == 0
            assert outcome.out.replace("\n", "").isprintable()

    def test_what_is_as_before_is_not_said_again(
        self, pharox: Pharox, storage: PostgresStorage
    ) -> None:
        """The request and the actor are printed only where they change."""
        fill(storage, 1, name="p")
        manager = px.ProxyManager(storage)
        least_used, round_robin = px.SelectorStrategy.LEAST_USED, px.SelectorStrategy.ROUND_ROBIN
        for actor, selector in (
            ("one", least_used),
            ("one", least_used),
            ("two", least_used),
            ("two", round_robin),
        ):
            with px.attributed(actor=actor):
                lease = manager.acquire_proxy("p", consumer_name="c", selector=selector)
                assert lease is not None
                manager.release_proxy(lease)
        details = [line.strip() for line in pharox("audit", "consumer", "c").out.splitlines()]
        assert [line for line in details if line.startswith("by ")] == ["by one", "by two"]
        asked = [line for line in details if line.startswith("asked for")]
        assert asked == ["asked for selector least_used", "asked for selector round_robin"]

    @pytest.mark.parametrize(
        "window",
        [
            ("--from", "2026-01-01T00:00:01Z", "--to", "2026-01-02T00:00:01.499Z"),
            ("--from", "2026-01-01T00:00:01.500Z", "--to", "2026-01-01T00:00:01.500Z"),
            ("--from", "2026-01-01T00:00:01Z", "--to", "2026-01-01T00:00:01Z"),
            ("--from", "6", "--to", "7"),
            ("--from", "6", "--to", "2026-01-01T00:01Z"),
        ],
    )
    def test_a_window_has_its_beginning_and_its_end(
        self, pharox: Pharox, incident: Incident, window: tuple[str, ...]
    ) -> None:
        """--from and --to take times and seqs; events outside are not shown."""
        objects = pharox("audit", "pool", "a pool", *window, "--json").objects
        assert [found["type"] for found in objects] == ["AcquireMissed", "HealthChecked"]

    @pytest.mark.parametrize("end", ["9999-12-31T23:59:59Z", "9999-12-31T23:59:59.999999Z"])
    def test_a_window_may_end_with_the_calendar(
        self, pharox: Pharox, incident: Incident, end: str
    ) -> None:
        """There is no moment after that one."""
        objects = pharox("audit", "pool", "a pool", "--from", "7", "--to", end, "--json").objects
        assert [found["type"] for found in objects] == ["HealthChecked", "LeaseExpired"]

    def test_a_window_may_be_empty(self, pharox: Pharox, incident: Incident) -> None:
        """Then it says so."""
        outcome = pharox("audit", "consumer", "late", "--to", "1999-01-01T00:00Z")
        assert (outcome.status, outcome.out.splitlines()[-1]) == (
            0,
            "nothing happened in this time",
        )


class TestJson:
    def test_it_has_the_event_and_what_the_story_derives(
        self, pharox: Pharox, incident: Incident
    ) -> None:
        """One object an event, with names, addresses, seconds and statistics."""
        objects = pharox("audit", "pool", incident.pool.id, "--json").objects
        entries = list(audit.of_pool(incident.storage, incident.pool.id).entries)
        for found, entry in zip(objects, entries, strict=True):
            event = entry.event.model_dump(mode="json")
            assert {name: found[name] for name in event} == event
            assert (found["pool"], found["address"]) == ("a pool", entry.address)
            assert found["held_s"] == entry.held_s
        (miss,) = (found for found in objects if found["type"] == "AcquireMissed")
        assert miss["pool_had"] == {
            "total_proxies": 1,
            "active_proxies": 1,
            "available_proxies": 0,
            "leased_proxies": 1,
            "total_leases": 1,
        }


class TestErrors:
    @pytest.mark.parametrize("kind", ["lease", "proxy", "consumer", "pool"])
    @pytest.mark.parametrize("name", ["nobody", str(UUID(int=1))])
    def test_what_never_was_is_told(
        self, pharox: Pharox, incident: Incident, kind: str, name: str
    ) -> None:
        """An unknown name or id is one sentence and exit status 1."""
        expected = f"pharox: there never was a {kind} {name!r}\n"
        assert pharox("audit", kind, name) == (1, "", expected)

    def test_a_pool_that_was_only_asked_for(self, pharox: Pharox, incident: Incident) -> None:
        """The error for a misspelt name lists the consumers that asked for it, each once."""
        manager = px.ProxyManager(incident.storage)
        for name in ("lost", "lost", "late"):
            manager.acquire_proxy("typo", consumer_name=name)
        expected = "pharox: there never was a pool 'typo'; 2 consumers asked for it: lost, late\n"
        assert pharox("audit", "pool", "typo") == (1, "", expected)
        assert "asked" not in pharox("audit", "pool", "typ").err

    @pytest.mark.parametrize("begin", ["2999-01-01T00:00Z", "9"])
    def test_a_beginning_that_is_not_yet(
        self, pharox: Pharox, incident: Incident, begin: str
    ) -> None:
        """Nothing is not taken for an answer about the future."""
        outcome = pharox("audit", "pool", "a pool", "--from", begin)
        assert (outcome.status, outcome.out) == (2, "")
        assert ("is in the future" in outcome.err) or ("it ends at 8" in outcome.err)

    def test_of_namesakes_the_last_is_told_and_the_others_are_named(
        self, pharox: Pharox, incident: Incident
    ) -> None:
        """A note on standard error has the earlier pool's id, with which to ask for it."""
        incident.storage.delete_pool(str(incident.pool.id))
        fill(incident.storage, 1, name="a pool")
        outcome = pharox("audit", "pool", "a pool", "--json")
        assert len(outcome.objects) == 2
        assert f"an earlier one is {incident.pool.id}, removed at 2026-01-02T00" in outcome.err
        assert pharox("audit", "pool", incident.pool.id).err == ""

    @pytest.mark.parametrize(
        "window",
        [
            ("--from", "tomorrow"),
            ("--from", "1s", "--to", "2s"),
            ("--from", "5", "--to", "3"),
            ("--to", "99"),
        ],
    )
    def test_a_window_that_makes_no_sense_is_refused(
        self, pharox: Pharox, incident: Incident, window: tuple[str, ...]
    ) -> None:
        """It is a wrong use of the command."""
        assert pharox("audit", "pool", "a pool", *window).status == 2


class TestWords:
    @pytest.mark.parametrize(
        ("seconds", "words"),
        [
            (0, "0 s"),
            (0.0015, "0.002 s"),
            (12.5, "12.5 s"),
            (59.9996, "1 min 0 s"),
            (60, "1 min 0 s"),
            (3599, "59 min 59 s"),
            (3599.9, "1 h 0 min"),
            (86_399, "23 h 59 min"),
            (timedelta(days=9, hours=5).total_seconds(), "9 d 5 h"),
        ],
    )
    def test_a_span_is_told_in_its_largest_units(self, seconds: float, words: str) -> None:
        """A length of days is shown without seconds."""
        assert lasting(seconds) == words

    @pytest.mark.parametrize(
        ("filters", "words"),
        [
            (px.ProxyFilters(country="AR", asn=7), "country AR, asn 7"),
            (px.ProxyFilters(city="La Paz"), "city 'La Paz'"),
            (px.ProxyFilters(latitude=1, longitude=2, radius_km=3), "within 3 km of 1.0, 2.0"),
            (px.ProxyFilters(latitude=1, longitude=2), "at 1.0, 2.0"),
            (
                px.ProxyFilters(
                    any_of=[px.ProxyFilters(country="AR"), px.ProxyFilters(country="CL")],
                    none_of=[px.ProxyFilters(predicate=lambda _: True)],
                ),
                "any of (country AR; country CL), none of (a predicate)",
            ),
        ],
    )
    def test_filters_are_told_as_one_would_say_them(
        self, filters: px.ProxyFilters, words: str
    ) -> None:
        """Nested ones too, and a predicate only as that."""
        assert in_words(filters.recorded()) == words


def test_a_change_says_what_was_changed(pharox: Pharox, storage: PostgresStorage) -> None:
    """Of a secret that there is another one, and of anything else what it was and is."""
    _, (proxy,) = fill(storage, 1)
    link = SecretStr("https://provider.example/x?token=hunter2")
    login = ProxyCredentials(user="u", password=SecretStr("hunter2"))
    for change in ({"credentials": login}, {"weight": 5, "country": "DE"}, {"rotate_url": link}):
        storage.save_proxy(storage.get_proxy(str(proxy.id)).model_copy(update=change))
    told = pharox("audit", "proxy", proxy.id).out
    assert "was changed: its credentials" in told
    assert "was changed: country none -> DE, weight none -> 5" in told
    assert "was changed: its link for another exit" in told
    assert "hunter2" not in told

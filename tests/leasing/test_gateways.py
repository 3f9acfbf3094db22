"""A template of a gateway is filled for each lease, and a lease can take another exit."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any
from urllib.parse import unquote
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pharox import (
    AsyncProxyManager,
    CoolDown,
    GatewayExit,
    HealthCheckResult,
    InvalidInputError,
    Lease,
    LeaseEndedError,
    MissReason,
    Outcome,
    OutcomeKind,
    Proxy,
    ProxyCredentials,
    ProxyFilters,
    ProxyManager,
    ProxyNotFoundError,
    ProxyPool,
    ProxyStatus,
    SelectorStrategy,
    Sticky,
    new_lease_id,
)
from pharox.events import ExitRotated, LeaseAcquired, SessionBound
from pharox.models.gateway import placeholders_in, session_id_after, wished_country
from pharox.storage.postgres import PostgresStorage
from pharox.storage.reports import CoolDownRequest, Reported, ReportRequest
from pharox.storage.requests import AcquireRequest, AcquireSetRequest
from tests.conftest import AnyStorage, clock_of, fill, for_tasks, run_sql, types_of

SECRET = "hunter2{"
USER = "customer-{session}-cc-{country}-{COUNTRY}-for-{lifetime}"
SHOP = "shop.example"


def gateway(storage: AnyStorage, user: str = USER, **facts: Any) -> Proxy:
    """Register a pool with one template."""
    pool = ProxyPool(name="pool")
    storage.save_pool(pool)
    return template(storage, pool, user, **facts)


def template(storage: AnyStorage, pool: ProxyPool, user: str = USER, **facts: Any) -> Proxy:
    """Register a template."""
    login = ProxyCredentials(user=user, password=SECRET)
    known = {"host": "192.0.2.1", "country": "US", "status": "active", **facts}
    proxy = Proxy(port=8000, protocol="http", pool_id=pool.id, credentials=login, **known)
    storage.save_proxy(proxy)
    return proxy


def acquired(storage: AnyStorage, **options: Any) -> Lease:
    """Lease a proxy for a minute."""
    lease = storage.acquire_lease(AcquireRequest("pool", "w", 60, **options)).lease
    assert lease is not None
    return lease


def user_of(lease: Lease) -> str:
    """Return the user in the URL of a lease's proxy."""
    return unquote(lease.proxy.url.partition("://")[2].partition(":")[0])


def exit_of(lease: Lease) -> GatewayExit:
    """Return the exit of a lease."""
    assert lease.exit is not None
    return lease.exit


class TestFilling:
    """Each lease has a session id, and the country that was asked for."""

    def test_leases_at_once_have_exits_of_their_own(self, any_storage: AnyStorage) -> None:
        proxy = gateway(any_storage)
        leases = [acquired(any_storage) for _ in range(5)]
        sessions = [exit_of(lease).session for lease in leases]
        assert len({*sessions}) == 5
        for lease, session in zip(leases, sessions, strict=True):
            assert lease.exit == GatewayExit(session=session, country="US", minutes=1)
            assert user_of(lease) == f"customer-{session}-cc-us-US-for-1"
            assert lease.proxy.credentials is not None
            assert lease.proxy.credentials.password.get_secret_value() == SECRET
            assert any_storage.get_lease(str(lease.id)) == lease
            assert proxy.with_exit(lease.exit).url == lease.proxy.url
        assert any_storage.verify() == []

    def test_the_session_id_follows_from_the_lease_id(self, any_storage: AnyStorage) -> None:
        """So a repeat under the same id has the same one."""
        gateway(any_storage)
        lease_id = new_lease_id()
        first = acquired(any_storage, lease_id=lease_id)
        again = acquired(any_storage, lease_id=lease_id)
        assert exit_of(first).session == session_id_after(lease_id)
        assert again.proxy.url == first.proxy.url

    def test_all_ways_of_leasing_fill_it(self, any_storage: AnyStorage) -> None:
        """One alone, in turn, for a target, by a predicate, as a set, and exactly this proxy."""
        proxy = gateway(any_storage)
        leases = [
            acquired(any_storage),
            acquired(any_storage, target=SHOP),
            acquired(any_storage, selector=SelectorStrategy.ROUND_ROBIN),
            acquired(any_storage, filters=ProxyFilters(predicate=lambda each: True)),
            acquired(any_storage, filters=ProxyFilters(host="192.0.2.1")),
            acquired(any_storage, sticky=Sticky("a")),
        ]
        request = AcquireSetRequest("pool", "w", 3, 60, distinct=False)
        leases += [
            each.lease for each in any_storage.acquire_set(request).acquisitions if each.lease
        ]
        exact = any_storage.create_lease(proxy, "w", 60)
        leases.append(exact)
        assert len({exit_of(lease).session for lease in leases}) == 10
        events = [e for e in any_storage.events() if isinstance(e, LeaseAcquired)]
        assert [e.exit for e in events] == [lease.exit for lease in leases]

    def test_a_filter_says_the_country(self, any_storage: AnyStorage) -> None:
        """A template with {country} matches any; others match their own only."""
        pool, _ = fill(any_storage, 1, country="FR")
        template(any_storage, pool)
        for country in ("DE", "br"):
            lease = acquired(any_storage, filters=ProxyFilters(country=country))
            assert exit_of(lease).country == country
            assert f"cc-{country.lower()}-{country.upper()}-" in user_of(lease)
        assert (
            exit_of(acquired(any_storage, filters=ProxyFilters(host="192.0.2.1"))).country == "US"
        )
        nowhere = ProxyFilters(country="DE", city="Berlin")
        missed = any_storage.acquire_lease(AcquireRequest("pool", "w", 60, nowhere))
        assert missed.miss_reason is MissReason.NO_MATCH

    @pytest.mark.parametrize(
        ("filters", "country"),
        [
            (ProxyFilters(any_of=[ProxyFilters(country="DE"), ProxyFilters(country="FR")]), "DE"),
            (ProxyFilters(all_of=[ProxyFilters(source=None), ProxyFilters(country="FR")]), "FR"),
            (ProxyFilters(none_of=[ProxyFilters(country="DE")]), "US"),
            (
                ProxyFilters(
                    any_of=[ProxyFilters(country="GB")], none_of=[ProxyFilters(country="US")]
                ),
                "GB",
            ),
            (ProxyFilters(none_of=[ProxyFilters(country="US")]), None),
            (ProxyFilters(country="DE", none_of=[ProxyFilters(country="DE")]), None),
        ],
    )
    def test_the_country_is_the_first_that_filters_name(
        self, any_storage: AnyStorage, filters: ProxyFilters, country: str | None
    ) -> None:
        """What none_of names is not wished for; without a wish it is the proxy's own."""
        gateway(any_storage)
        for given_filters in (
            filters,
            ProxyFilters(all_of=[filters], predicate=lambda each: each.port == 8000),
        ):
            request = AcquireRequest("pool", "w", 60, given_filters)
            lease = any_storage.acquire_lease(request).lease
            assert (None if lease is None else exit_of(lease).country) == country

    def test_the_lifetime_is_that_of_lease_or_session(self, any_storage: AnyStorage) -> None:
        """In whole minutes, rounded up."""
        gateway(any_storage)
        for seconds, minutes in ((1, 1), (60, 1), (61, 2), (3600, 60)):
            request = AcquireRequest("pool", "w", seconds)
            lease = any_storage.acquire_lease(request).lease
            assert lease is not None
            assert exit_of(lease).minutes == minutes
        lease = acquired(any_storage, sticky=Sticky("a", seconds=1800))
        assert exit_of(lease).minutes == 30

    def test_other_braces_are_themselves(self, any_storage: AnyStorage) -> None:
        """Only the exact names are placeholders."""
        gateway(any_storage, user="{sesion}-{Session}-{ session }-{session}{}")
        lease = acquired(any_storage)
        session = exit_of(lease).session
        assert lease.exit == GatewayExit(session=session)
        assert user_of(lease) == f"{{sesion}}-{{Session}}-{{ session }}-{session}{{}}"

    def test_a_lease_can_be_pickled_with_its_exit(self, any_storage: AnyStorage) -> None:
        gateway(any_storage)
        lease = acquired(any_storage)
        assert pickle.loads(pickle.dumps(lease.proxy)).url == lease.proxy.url

    def test_what_is_literal_stays_so(self, any_storage: AnyStorage) -> None:
        """``template=False`` takes braces as they are, also when it is saved again."""
        proxy = gateway(any_storage, template=False)
        for _ in range(2):
            lease = acquired(any_storage)
            assert lease.exit is None
            assert user_of(lease) == USER
            known = any_storage.get_proxy(str(proxy.id))
            assert known.template is False
            assert known.max_concurrency is None
            any_storage.save_proxy(known.model_copy(update={"city": "Berlin"}))

    @pytest.mark.parametrize(
        "facts",
        [
            {"credentials": {"user": "u", "password": "p"}, "template": True},
            {"credentials": {"user": "{country}", "password": "p"}},
            {"credentials": {"user": "u", "password": "{COUNTRY}"}, "template": True},
        ],
    )
    def test_what_cannot_be_filled_is_refused(self, facts: dict[str, Any]) -> None:
        """A template without a placeholder, or one for a country that nobody may say."""
        pool = ProxyPool(name="pool")
        with pytest.raises(ValidationError, match="template"):
            Proxy(host="192.0.2.1", port=1, protocol="http", pool_id=pool.id, **facts)

    def test_a_template_needs_credentials(self, any_storage: AnyStorage) -> None:
        """Nothing is registered without."""
        pool = ProxyPool(name="pool")
        any_storage.save_pool(pool)
        proxy = Proxy(host="192.0.2.1", port=1, protocol="http", pool_id=pool.id, template=True)
        with pytest.raises(InvalidInputError, match="a template needs credentials"):
            any_storage.save_proxy(proxy)
        assert any_storage.list_proxies(str(pool.id)) == []


class TestSettings:
    """How many leases a template takes, and what a refusal of one exit means."""

    @pytest.mark.parametrize(
        ("facts", "of_pool", "limit"),
        [
            ({}, None, 100),
            ({}, 7, 7),
            ({"max_concurrency": 3}, 7, 3),
            ({"max_concurrency": None}, 7, None),
        ],
    )
    def test_a_template_takes_a_hundred_leases_unless_said(
        self, any_storage: AnyStorage, facts: dict[str, Any], of_pool: int | None, limit: int | None
    ) -> None:
        pool = ProxyPool(name="pool", max_concurrency=of_pool)
        any_storage.save_pool(pool)
        proxy = template(any_storage, pool, **facts)
        assert any_storage.get_proxy(str(proxy.id)).max_concurrency == limit

    def test_a_change_is_an_event(self, any_storage: AnyStorage) -> None:
        """What is a template, and of what, is in the log; what did not change is none."""
        proxy = gateway(any_storage)
        known = any_storage.get_proxy(str(proxy.id))
        assert known.template is True
        any_storage.save_proxy(known)
        any_storage.save_proxy(known.model_copy(update={"template": None}))
        assert types_of(any_storage).count("ProxyChanged") == 0
        login = ProxyCredentials(user="plain", password="p")
        any_storage.save_proxy(known.model_copy(update={"credentials": login, "template": None}))
        assert acquired(any_storage).exit is None
        assert [
            getattr(event, "placeholders", None)
            for event in any_storage.events()
            if event.type.startswith("Proxy")
        ] == ["country lifetime session", None]
        assert any_storage.verify() == []

    def test_a_ban_that_ends_leaves_the_template(self, any_storage: AnyStorage) -> None:
        clock = clock_of(any_storage)
        proxy = gateway(any_storage)
        any_storage.set_status(proxy.id, ProxyStatus.BANNED, for_seconds=10)
        clock.advance(11)
        assert exit_of(acquired(any_storage)).session
        assert any_storage.get_proxy(str(proxy.id)).template is True
        assert any_storage.verify() == []

    def test_a_refused_exit_does_not_rest_the_gateway(self, any_storage: AnyStorage) -> None:
        """It has others; a template without session ids rests as any proxy."""
        pool = ProxyPool(name="pool", cool_down=CoolDown(after=1, jitter=0))
        any_storage.save_pool(pool)
        template(any_storage, pool)
        lease = acquired(any_storage, target=SHOP)
        refused = Outcome.blocked(SHOP, status=429, retry_after=100)
        assert any_storage.report_outcomes([ReportRequest(lease, refused)]) == [
            Reported(SHOP, None, -1)
        ]
        fixed = template(any_storage, pool, "user-{country}", host="192.0.2.2")
        lease = acquired(any_storage, filters=ProxyFilters(proxy_id=fixed.id))
        assert any_storage.report_outcomes([ReportRequest(lease, refused)])
        (pair,) = any_storage.list_target_outcomes("pool", cooling=True)
        assert pair.proxy_id == fixed.id

    @pytest.mark.parametrize(
        ("user", "kind", "is_counted"),
        [
            (USER, "unclear", False),
            (USER, "proxy_failed", True),
            ("user-{country}", "unclear", True),
        ],
    )
    def test_unclear_failures_of_exits_are_not_those_of_the_gateway(
        self, any_storage: AnyStorage, user: str, kind: str, is_counted: bool
    ) -> None:
        """At two targets: a gateway without session ids is as any proxy."""
        proxy = gateway(any_storage, user)
        checked = HealthCheckResult(
            proxy_id=proxy.id,
            status=ProxyStatus.ACTIVE,
            latency_ms=1,
            protocol=proxy.protocol,
        )
        any_storage.record_health_checks([checked])
        manager = ProxyManager(any_storage)
        before = types_of(any_storage).count("HealthChecked")
        for target in (SHOP, "news.example"):
            outcome = Outcome(kind=OutcomeKind(kind), target=target)
            manager.report(acquired(any_storage), outcome)
        assert (types_of(any_storage).count("HealthChecked") > before) is is_counted

    def test_nobody_rests_a_gateway_by_hand(self, any_storage: AnyStorage) -> None:
        """It would rest all its exits; what rests already can be ended."""
        proxy = gateway(any_storage)
        before = types_of(any_storage)
        with pytest.raises(InvalidInputError, match="all its exits"):
            any_storage.set_cool_down(CoolDownRequest(proxy.id, SHOP, 60))
        assert any_storage.set_cool_down(CoolDownRequest(proxy.id, SHOP, None)) is None
        assert types_of(any_storage) == before
        with pytest.raises(ProxyNotFoundError):
            any_storage.set_cool_down(CoolDownRequest(new_lease_id(), SHOP, 60))


class TestSticky:
    """A key keeps its exit of a gateway."""

    def test_a_template_that_another_pool_lends_lasts_as_its_lease(
        self, any_storage: AnyStorage
    ) -> None:
        """The key stays bound where it is, so the exit is one for this lease alone."""
        clock_of(any_storage)
        fill(any_storage, 1, name="home")
        gateway(any_storage)
        asked: dict[str, Any] = {"sticky": Sticky("a", seconds=3600), "fallback": ["pool"]}
        manager = ProxyManager(any_storage)
        assert manager.acquire_proxy("home", "w", 300, **asked) is not None
        lent = manager.acquire_proxy("home", "w", 300, **asked)
        assert lent is not None
        assert (lent.pool_name, exit_of(lent).minutes) == ("pool", 5)

    def test_a_key_keeps_its_exit(self, any_storage: AnyStorage) -> None:
        """As many keys as the template has room for, each with an exit of its own."""
        clock = clock_of(any_storage)
        gateway(any_storage)
        firsts = {key: acquired(any_storage, sticky=Sticky(key, seconds=600)) for key in "abc"}
        assert len({exit_of(lease).session for lease in firsts.values()}) == 3
        clock.advance(300)
        for key, first in firsts.items():
            again = acquired(any_storage, sticky=Sticky(key, seconds=600))
            assert again.proxy.url == first.proxy.url
        listed = {each.key: each.exit for each in any_storage.list_sessions("pool")}
        assert listed == {key: first.exit for key, first in firsts.items()}
        bound = [e.exit for e in any_storage.events() if isinstance(e, SessionBound)]
        assert bound == [first.exit for first in firsts.values()]
        clock.advance(301)
        assert exit_of(acquired(any_storage, sticky=Sticky("a"))) != firsts["a"].exit
        assert any_storage.verify() == []

    def test_a_binding_that_slides_keeps_its_exit(self, any_storage: AnyStorage) -> None:
        clock = clock_of(any_storage)
        gateway(any_storage)
        sticky = Sticky("a", seconds=60, sliding=True)
        first = acquired(any_storage, sticky=sticky)
        for _ in range(3):
            clock.advance(50)
            assert acquired(any_storage, sticky=sticky).exit == first.exit
        assert types_of(any_storage).count("SessionBound") == 4

    def test_an_heir_has_the_exit(self, any_storage: AnyStorage) -> None:
        gateway(any_storage)
        first = acquired(any_storage, sticky=Sticky("a"))
        any_storage.inherit_session("pool", "a", "b")
        assert acquired(any_storage, sticky=Sticky("b")).exit == first.exit
        assert acquired(any_storage, sticky=Sticky("a")).exit != first.exit

    def test_another_country_is_another_exit(self, any_storage: AnyStorage) -> None:
        """With "prefer" it is lent and the binding stays; with "require" it is a miss."""
        gateway(any_storage)
        germany, brazil = ProxyFilters(country="DE"), ProxyFilters(country="BR")
        first = acquired(any_storage, sticky=Sticky("a"), filters=germany)
        other = acquired(any_storage, sticky=Sticky("a"), filters=brazil)
        assert exit_of(other).country == "BR"
        assert exit_of(other).session != exit_of(first).session
        assert acquired(any_storage, sticky=Sticky("a")).exit == first.exit
        request = AcquireRequest("pool", "w", 60, brazil, sticky=Sticky("a", policy="require"))
        assert any_storage.acquire_lease(request).miss_reason is MissReason.NO_MATCH
        assert types_of(any_storage).count("SessionBound") == 1

    def test_a_full_template_keeps_its_sessions(self, any_storage: AnyStorage) -> None:
        """Other keys get another proxy."""
        pool = ProxyPool(name="pool")
        any_storage.save_pool(pool)
        one = template(any_storage, pool, max_concurrency=1)
        first = acquired(any_storage, sticky=Sticky("a"))
        assert first.proxy_id == one.id
        template(any_storage, pool, host="192.0.2.2")
        second = acquired(any_storage, sticky=Sticky("b"))
        assert second.proxy_id != one.id
        any_storage.return_lease(first)
        assert acquired(any_storage, sticky=Sticky("a")).exit == first.exit


class TestRotating:
    """A lease takes another exit."""

    def test_a_lease_takes_another_exit(self, any_storage: AnyStorage) -> None:
        """Its URL is for that one then, and so is what the storage returns."""
        gateway(any_storage)
        manager = ProxyManager(any_storage)
        lease = acquired(any_storage)
        other = acquired(any_storage)
        before, url = exit_of(lease), lease.proxy.url
        seen = {before.session, exit_of(other).session}
        for number in range(3):
            assert manager.rotate(lease) is lease
            assert lease.exit == before.model_copy(update={"session": exit_of(lease).session})
            seen.add(exit_of(lease).session)
            assert len(seen) == number + 3
            assert lease.proxy.url != url
            assert str(exit_of(lease).session) in user_of(lease)
            assert any_storage.get_lease(str(lease.id)) == lease
        known = any_storage.get_lease(str(other.id))
        assert known is not None
        assert known.exit == other.exit
        first, *_, last = (e for e in any_storage.events() if isinstance(e, ExitRotated))
        assert (first.session_before, last.session_after) == (
            before.session,
            exit_of(lease).session,
        )
        assert (first.lease_id, first.consumer, first.session) == (lease.id, "w", None)
        assert any_storage.verify() == []

    def test_it_is_the_same_with_tasks(self, any_storage: AnyStorage) -> None:
        gateway(any_storage)
        lease = acquired(any_storage)
        before = lease.exit

        async def rotate() -> None:
            storage = for_tasks(any_storage)
            try:
                assert await AsyncProxyManager(storage).rotate(lease) is lease
            finally:
                await storage.close()

        asyncio.run(rotate())
        assert lease.exit != before
        assert any_storage.get_lease(str(lease.id)) == lease

    def test_a_repeat_under_its_id_has_the_new_exit(self, any_storage: AnyStorage) -> None:
        gateway(any_storage)
        lease_id = new_lease_id()
        lease = ProxyManager(any_storage).rotate(acquired(any_storage, lease_id=lease_id))
        assert acquired(any_storage, lease_id=lease_id).proxy.url == lease.proxy.url

    def test_a_session_keeps_the_new_exit(self, any_storage: AnyStorage) -> None:
        """If the lease has the exit of the session; else the session keeps its own."""
        gateway(any_storage)
        manager = ProxyManager(any_storage)
        lease = acquired(any_storage, sticky=Sticky("a"))
        other = acquired(any_storage, sticky=Sticky("b"))
        manager.rotate(lease)
        assert acquired(any_storage, sticky=Sticky("a")).exit == lease.exit
        assert acquired(any_storage, sticky=Sticky("b")).exit == other.exit
        abroad = acquired(any_storage, sticky=Sticky("a"), filters=ProxyFilters(country="BR"))
        manager.rotate(abroad)
        assert acquired(any_storage, sticky=Sticky("a")).exit == lease.exit
        rotated = [e for e in any_storage.events() if isinstance(e, ExitRotated)]
        assert [event.session for event in rotated] == ["a", None]
        assert any_storage.verify() == []

    def test_an_old_exit_rotates_for_itself(self, any_storage: AnyStorage) -> None:
        """A lease whose session has taken another exit does not take that one away."""
        gateway(any_storage)
        manager = ProxyManager(any_storage)
        one, two = (acquired(any_storage, sticky=Sticky("a")) for _ in range(2))
        assert one.exit == two.exit
        manager.rotate(one)
        manager.rotate(two)
        assert acquired(any_storage, sticky=Sticky("a")).exit == one.exit != two.exit

    def test_what_cannot_rotate_is_an_error(self, any_storage: AnyStorage) -> None:
        """A lease that has ended, one of no template, one without a session id, and none."""
        clock = clock_of(any_storage)
        pool, _ = fill(any_storage, 1)
        fixed = template(any_storage, pool, "user-{country}")
        manager = ProxyManager(any_storage)
        for proxy_filters in (
            ProxyFilters(host="10.0.0.0"),
            ProxyFilters(proxy_id=fixed.id),
        ):
            lease = acquired(any_storage, filters=proxy_filters)
            with pytest.raises(InvalidInputError, match="no session id to change"):
                manager.rotate(lease)
            manager.release_proxy(lease)
            with pytest.raises(LeaseEndedError, match="was released at"):
                manager.rotate(lease)
        lease = acquired(any_storage, filters=ProxyFilters(proxy_id=fixed.id))
        clock.advance(61)
        with pytest.raises(LeaseEndedError, match="ran out at"):
            manager.rotate(lease)
        with pytest.raises(LeaseEndedError, match="There is no lease"):
            any_storage.rotate_exit(new_lease_id())
        with pytest.raises(InvalidInputError, match="must be a UUID"):
            any_storage.rotate_exit("lease")  # type: ignore[arg-type]
        with pytest.raises(InvalidInputError, match="a lease is needed"):
            manager.rotate("lease")  # type: ignore[arg-type]
        assert "ExitRotated" not in types_of(any_storage)


def test_no_event_has_a_secret(any_storage: AnyStorage) -> None:
    """The log, the JSON of leases and sessions, and all reprs are without the credentials."""
    gateway(any_storage, user="customer-top-{session}")
    lease = acquired(any_storage, sticky=Sticky("a"))
    ProxyManager(any_storage).rotate(lease)
    any_storage.return_lease(lease)
    told = [
        *(event.model_dump_json() for event in any_storage.events()),
        *(each.model_dump_json() for each in any_storage.list_leases()),
        *(each.model_dump_json() for each in any_storage.list_sessions()),
        repr(lease),
        repr(lease.proxy),
        repr(any_storage.list_proxies(str(lease.pool_id))),
    ]
    assert len(told) > 8
    for text in told:
        assert "hunter2" not in text
        assert "customer-top" not in text


@given(st.lists(st.uuids(), unique=True, min_size=2, max_size=100))
def test_session_ids_are_short_and_distinct(ids: list[UUID]) -> None:
    """Eight lower-case letters and digits: what every provider takes."""
    sessions = {session_id_after(each) for each in ids}
    assert len(sessions) == len(ids)
    for session in sessions:
        assert len(session) == 8
        assert session.isascii()
        assert session.isalnum()
        assert session == session.lower()


def test_the_schema_makes_the_same_session_ids(storage: PostgresStorage) -> None:
    """Python and SQL have one rule each for one fact."""
    texts = [str(new_lease_id()) for _ in range(200)]
    quoted = ",".join(f"'{text}'" for text in texts)
    query = (
        f"SELECT pharox.exit_session_v1(id) FROM unnest(ARRAY[{quoted}]) "
        "WITH ORDINALITY AS t (id, n) ORDER BY n"
    )
    assert [row for (row,) in run_sql(storage.engine, query)] == [*map(session_id_after, texts)]


def test_placeholders_are_exact_names() -> None:
    assert placeholders_in("{session}{session}", "{COUNTRY}") == ("country", "session")
    assert placeholders_in("{SESSION}", "{lifetime", "lifetime}", "{{}}") == ()


def test_an_empty_country_is_no_wish() -> None:
    filters = ProxyFilters(country="", all_of=[ProxyFilters(country="FR")])
    assert wished_country(filters) == "FR"

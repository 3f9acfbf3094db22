"""A filter has one meaning: Python's, SQL's and, for distances, geopy's."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from geopy.distance import great_circle
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pharox import (
    InMemoryStorage,
    InvalidInputError,
    Proxy,
    ProxyFilters,
    ProxyManager,
    ProxyPool,
    ProxyProtocol,
    ProxyStatus,
    SelectorStrategy,
)
from pharox.events import LeaseAcquired
from pharox.models.geo import EARTH_RADIUS_KM, haversine_distance_km
from pharox.storage.postgres import PostgresStorage, driver
from pharox.storage.requests import AcquireRequest
from tests.conftest import AnyStorage, fill

Place = tuple[float, float]


def great_circle_km(a: Place, b: Place) -> float:
    """Return the distance that geopy measures on a sphere of our radius."""
    measured: float = great_circle(a, b, radius=EARTH_RADIUS_KM).km
    return measured


LATITUDES = st.one_of(
    st.sampled_from([-90.0, 0.0, 89.9999999, 90.0]), st.floats(-90, 90, allow_nan=False)
)
LONGITUDES = st.one_of(
    st.sampled_from([-180.0, -179.9999, 0.0, 179.9999, 180.0]),
    st.floats(-180, 180, allow_nan=False),
)
RADII = st.one_of(st.sampled_from([0.001, 1.0, 500.0, 20_015.0, 20_016.0]), st.floats(0.1, 21_000))
WORDS = st.sampled_from(["AR", "CL", "%", "a'b", ""])
MAYBE = st.one_of(st.none(), WORDS)
PLACES = st.one_of(st.none(), st.tuples(LATITUDES, LONGITUDES))
PREDICATES = st.sampled_from(
    [
        lambda proxy: proxy.country is None,
        lambda proxy: proxy.port % 2 == 0,
        lambda proxy: True,
        lambda proxy: False,
    ]
)


HOSTS = st.sampled_from(["192.0.2.1", "2001:db8::1", "a.example"])
PROTOCOLS = st.sampled_from([ProxyProtocol.HTTP, ProxyProtocol.SOCKS5])


@st.composite
def proxies(draw: st.DrawFn) -> dict[str, Any]:
    place = draw(PLACES)
    return {
        "host": draw(HOSTS),
        "protocol": draw(PROTOCOLS),
        "source": draw(MAYBE),
        "country": draw(MAYBE),
        "city": draw(MAYBE),
        "isp": draw(MAYBE),
        "asn": draw(st.sampled_from([None, 1, 2**32 - 1])),
        "latitude": place and place[0],
        "longitude": place and place[1],
    }


@st.composite
def leaves(draw: st.DrawFn) -> ProxyFilters:
    facts: dict[str, Any] = {
        name: draw(WORDS)
        for name in draw(st.sets(st.sampled_from(["source", "country", "city", "isp"])))
    }
    if draw(st.integers(0, 3)) == 0:
        facts["host"] = draw(HOSTS)
    if draw(st.integers(0, 3)) == 0:
        facts["protocol"] = draw(PROTOCOLS)
    if draw(st.booleans()):
        facts["asn"] = draw(st.sampled_from([1, 2**32 - 1]))
    if (place := draw(PLACES)) is not None:
        facts["latitude"], facts["longitude"] = place
        if draw(st.booleans()):
            facts["radius_km"] = draw(RADII)
    if draw(st.integers(0, 4)) == 0:
        facts["predicate"] = draw(PREDICATES)
    return ProxyFilters(**facts)


FILTERS = st.recursive(
    leaves(),
    lambda children: st.builds(
        ProxyFilters,
        country=st.one_of(st.none(), st.just("AR")),
        all_of=st.one_of(st.none(), st.lists(children, max_size=3)),
        any_of=st.one_of(st.none(), st.lists(children, max_size=3)),
        none_of=st.one_of(st.none(), st.lists(children, max_size=3)),
    ),
    max_leaves=8,
)


def test_sql_answers_as_matches_does(postgres: PostgresStorage) -> None:
    """For any nesting, exactly the proxies that ``matches`` accepts are leased, one by one."""
    counter = iter(range(10**6))

    @settings(max_examples=80)
    @given(facts=st.lists(proxies(), min_size=1, max_size=6), filters=FILTERS)
    @example(facts=[{}], filters=ProxyFilters(none_of=[ProxyFilters(country="AR")]))
    @example(
        facts=[{"latitude": 5e-324, "longitude": 0.0}],
        filters=ProxyFilters(latitude=0.0, longitude=1e-300, radius_km=1.0),
    )
    @example(facts=[{}, {"country": "AR"}], filters=ProxyFilters(none_of=[ProxyFilters()]))
    @example(
        facts=[{"country": "CL"}],
        filters=ProxyFilters(
            any_of=[ProxyFilters(country="AR"), ProxyFilters(predicate=lambda proxy: True)]
        ),
    )
    def agree(facts: list[dict[str, Any]], filters: ProxyFilters) -> None:
        pool = ProxyPool(name=f"pool-{next(counter)}")
        postgres.save_pool(pool)
        members = [
            Proxy(
                **{
                    "id": UUID(int=pool.id.int - n - 1),
                    "host": "192.0.2.1",
                    "port": n + 1,
                    "protocol": ProxyProtocol.HTTP,
                    "pool_id": pool.id,
                    "status": ProxyStatus.ACTIVE,
                    "max_concurrency": 1,
                    **fact,
                }
            )
            for n, fact in enumerate(facts)
        ]
        postgres.add_proxies_bulk(members)
        expected = {proxy.id for proxy in members if filters.matches(proxy)}
        found = postgres.find_available_proxy(pool.name, filters, SelectorStrategy.LEAST_USED)
        assert (found is not None) == bool(expected)
        leased = set()
        for _ in range(len(members) + 1):
            acquired = postgres.acquire_lease(AcquireRequest(pool.name, "w", filters=filters))
            if acquired.lease is None:
                break
            leased.add(acquired.lease.proxy_id)
        assert leased == expected

    agree()


def test_one_proxy_may_be_asked_for(any_storage: AnyStorage) -> None:
    """By its id, its host in any spelling, and its protocol; alone or among others."""
    _, proxies = fill(any_storage, 4)
    places = [("2001:db8::1", "http"), ("a.example", "socks5"), ("192.0.2.7", "http")]
    for proxy, (host, protocol) in zip(proxies, places, strict=False):
        any_storage.save_proxy(
            Proxy.model_validate({**dict(proxy), "host": host, "protocol": protocol})
        )
    manager = ProxyManager(any_storage)

    def leased(**wanted: Any) -> UUID | None:
        with manager.with_lease("pool", filters=ProxyFilters(**wanted)) as lease:
            return lease.proxy_id if lease else None

    first, second, third, fourth = (proxy.id for proxy in proxies)
    assert [leased(proxy_id=each) for each in (fourth, second)] == [fourth, second]
    assert leased(host="[2001:0DB8:0::1]") == first
    assert leased(host="A.Example.") == second
    assert leased(protocol="socks5") == second
    assert leased(host="192.0.2.7", protocol="socks5") is None
    others = [ProxyFilters(proxy_id=each) for each in (first, second, fourth)]
    assert leased(none_of=others) == third
    (asked,) = {
        str(event.filters["proxy_id"])
        for event in any_storage.events()
        if isinstance(event, LeaseAcquired) and event.proxy_id == fourth and event.filters
    }
    assert asked == str(fourth)


def test_nonsense_is_refused() -> None:
    """Also if it is assigned later."""
    for wrong in ({"proxy_id": "x"}, {"protocol": "ftp"}, {"host": 7}, {"host": "\0"}):
        with pytest.raises(ValidationError):
            ProxyFilters.model_validate(wrong)
    storage, filters = InMemoryStorage(), ProxyFilters()
    fill(storage, 1)
    filters.proxy_id = "x"  # type: ignore[assignment]
    with pytest.raises(InvalidInputError, match="proxy_id"):
        ProxyManager(storage).acquire_proxy("pool", filters=filters)


@given(a=st.tuples(LATITUDES, LONGITUDES), b=st.tuples(LATITUDES, LONGITUDES))
@example(a=(90.0, 10.0), b=(90.0, -170.0))
@example(a=(0.0, 180.0), b=(0.0, -180.0))
@example(a=(0.0, 0.0), b=(0.0, 180.0))
@example(a=(45.0, 179.9), b=(45.0, -179.9))
def test_distances_are_geopys(a: tuple[float, float], b: tuple[float, float]) -> None:
    """The haversine agrees with geopy's great circle, at poles, antimeridian and antipodes."""
    # The haversine loses digits near antipodes: there its square root magnifies rounding.
    expected = great_circle_km(a, b)
    tolerance = 1e-6 if expected < 20_000 else 0.5
    assert haversine_distance_km(*a, *b) == pytest.approx(expected, abs=tolerance, rel=1e-9)


@given(a=st.tuples(LATITUDES, LONGITUDES), b=st.tuples(LATITUDES, LONGITUDES), radius=RADII)
def test_a_radius_means_what_geopy_measures(
    a: tuple[float, float], b: tuple[float, float], radius: float
) -> None:
    """A proxy matches a radius if and only if geopy finds it within."""
    distance = great_circle_km(a, b)
    assume(abs(distance - radius) > (1e-3 if distance < 20_000 else 1.0))
    proxy = Proxy(
        host="192.0.2.1",
        port=1,
        protocol=ProxyProtocol.HTTP,
        pool_id=UUID(int=1),
        latitude=a[0],
        longitude=a[1],
    )
    filters = ProxyFilters(latitude=b[0], longitude=b[1], radius_km=radius)
    assert filters.matches(proxy) == (distance <= radius)


@pytest.mark.parametrize(
    "facts",
    [
        {"latitude": 1.0},
        {"longitude": 1.0},
        {"radius_km": 5.0},
        {"latitude": 91.0, "longitude": 0.0},
        {"latitude": float("nan"), "longitude": 0.0},
        {"latitude": 0.0, "longitude": 0.0, "radius_km": 0.0},
        {"latitude": 0.0, "longitude": 0.0, "radius_km": float("inf")},
        {"asn": -1},
        {"country": "a\x00b"},
        {"contry": "AR"},
    ],
)
def test_a_filter_that_makes_no_sense_is_refused(facts: dict[str, Any]) -> None:
    """Half a place, a place off the globe, NaN, NUL and misspelt names are refused."""
    with pytest.raises(ValidationError):
        ProxyFilters(**facts)


@pytest.mark.parametrize("count", [300, 1700])
def test_a_predicate_is_not_asked_in_a_query_each(postgres: PostgresStorage, count: int) -> None:
    """A predicate that rejects hundreds of proxies costs a handful of statements."""
    fill(postgres, count)
    asked: list[object] = []
    original = driver._rows

    def counting(*arguments: Any) -> Any:
        asked.append(arguments)
        return original(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "_rows", counting)
        filters = ProxyFilters(predicate=lambda proxy: str(proxy.host) == "10.0.0.0")
        acquired = postgres.acquire_lease(AcquireRequest("pool", "default", filters=filters))
        assert acquired.lease is not None
        assert len(asked) <= 8
        missed = postgres.acquire_lease(AcquireRequest("pool", "default", filters=filters))
    assert missed.miss_reason == "at_capacity"
    assert len(asked) <= 20


def test_the_event_says_that_there_was_a_predicate(postgres: PostgresStorage) -> None:
    """A predicate is not stored; the event keeps the rest of the filter and that it was there."""
    fill(postgres, 1, country="AR")
    filters = ProxyFilters(any_of=[ProxyFilters(country="AR", predicate=lambda _: True)])
    postgres.acquire_lease(AcquireRequest("pool", "w", filters=filters))
    *_, event = postgres.events()
    data = event.model_dump()
    assert (data["filters"], data["predicate"]) == ({"any_of": [{"country": "AR"}]}, True)

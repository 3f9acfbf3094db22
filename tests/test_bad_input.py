"""Bad input is a clear error of ours, and nothing is written."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from pydantic import BaseModel, ValidationError

from pharox import (
    ConflictError,
    Consumer,
    HealthCheckResult,
    InvalidInputError,
    Proxy,
    ProxyCredentials,
    ProxyFilters,
    ProxyManager,
    ProxyPool,
    ProxyProtocol,
    RetryConfig,
)
from pharox.storage.requests import AcquireRequest
from tests.conftest import AnyStorage, fill, types_of

LONG = "x" * 16_000


@pytest.mark.parametrize(
    "change",
    [
        {"port": 99_999},
        {"port": "eighty"},
        {"status": "retired"},
        {"country": "a\x00b"},
        {"checked_at": datetime(2026, 1, 1)},
        {"max_concurrency": 0},
        {"asn": 2**40},
        {"host": "two words"},
        {"host": LONG},
    ],
)
def test_a_model_spoilt_after_it_was_made_is_refused(
    any_storage: AnyStorage, change: dict[str, Any]
) -> None:
    """What could not be read back is not stored, however it got into the model."""
    _, (proxy,) = fill(any_storage)
    before = types_of(any_storage)
    spoilt = proxy.model_copy(update=change)
    with pytest.raises(InvalidInputError):
        any_storage.save_proxy(spoilt)
    with pytest.raises(InvalidInputError):
        any_storage.add_proxies_bulk([spoilt.model_copy(update={"id": uuid4()})])
    assert types_of(any_storage) == before
    assert any_storage.get_proxy(str(proxy.id)) == proxy


def test_one_id_belongs_to_one_pool(any_storage: AnyStorage) -> None:
    """A proxy given for two pools, or known in another one, is refused in both storages."""
    (one, (known,)), (two, _) = fill(any_storage), fill(any_storage, 0, name="two")
    elsewhere = known.model_copy(update={"pool_id": two.id})
    new = known.model_copy(update={"id": uuid4()})
    for proxies in ([elsewhere], [new, new.model_copy(update={"pool_id": two.id})]):
        with pytest.raises(ConflictError):
            any_storage.add_proxies_bulk(proxies)
    assert len(any_storage.list_proxies(str(one.id))) == 1
    assert len(any_storage.list_proxies(str(two.id))) == 0


def test_two_pools_cannot_share_a_name(any_storage: AnyStorage) -> None:
    """A second pool of a name is refused; a removed pool's name is free and found anew."""
    first, _ = fill(any_storage)
    with pytest.raises(ConflictError, match="named 'pool'"):
        any_storage.save_pool(ProxyPool(name="pool"))
    assert any_storage.find_available_proxy("pool") is not None
    any_storage.delete_pool(str(first.id))
    second, (proxy,) = fill(any_storage)
    found = any_storage.find_available_proxy("pool")
    assert found is not None
    assert (found.id, found.pool_id) == (proxy.id, second.id)


@pytest.mark.parametrize("reason", ["a\x00b", "\udcff"])
def test_a_reason_must_be_storable(any_storage: AnyStorage, reason: str) -> None:
    """A release's reason that cannot be stored is refused, and the lease goes on."""
    fill(any_storage)
    lease = ProxyManager(any_storage).acquire_proxy("pool")
    assert lease is not None
    with pytest.raises(InvalidInputError):
        any_storage.return_lease(lease, reason=reason)
    assert any_storage.return_lease(lease, reason="done").ending is not None


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        (ProxyPool, {"name": "p", "rest_after_expiry": 3}),
        (Proxy, {"host": "h", "port": 1, "protocol": "http", "pool_id": uuid4(), "contry": "AR"}),
        (ProxyCredentials, {"user": "ann", "password": "s3cret", "pasword": "s3cret"}),
        (Consumer, {"name": "w", "nme": "w"}),
        (ProxyFilters, {"contry": "AR"}),
    ],
)
def test_a_misspelled_field_is_refused(model: type[BaseModel], fields: dict[str, Any]) -> None:
    """It is named, and its value is not lost without a word; nor is a password shown."""
    with pytest.raises(ValidationError, match=[*fields][-1]) as refused:
        model(**fields)
    assert "s3cret" not in str(refused.value)


def test_names_have_a_length(any_storage: AnyStorage) -> None:
    """A name longer than an index can hold is refused in our words."""
    with pytest.raises(InvalidInputError, match="500"):
        any_storage.ensure_consumer(LONG)
    with pytest.raises(InvalidInputError, match="500"):
        any_storage.acquire_lease(AcquireRequest(LONG, "w"))
    with pytest.raises(ValidationError, match="500"):
        ProxyPool(name=LONG)


def test_filters_nest_so_deep_and_no_deeper(any_storage: AnyStorage) -> None:
    """Fifty levels are answered, one more is refused."""
    fill(any_storage)
    filters = ProxyFilters(country="AR")
    for _ in range(49):
        filters = ProxyFilters(none_of=[filters])
    assert any_storage.find_available_proxy("pool", filters) is not None
    with pytest.raises(ValidationError, match="deep"):
        ProxyFilters(none_of=[filters])


@pytest.mark.parametrize("year", ["0001-01-01T00:00+14:00", "9999-12-31T23:59-12:00"])
def test_moments_lie_within_the_calendars(year: str) -> None:
    """A moment that some calendar cannot hold is refused."""
    with pytest.raises(ValidationError, match="1900"):
        HealthCheckResult(
            proxy_id=uuid4(),
            status="active",
            latency_ms=1,
            protocol=ProxyProtocol.HTTP,
            checked_at=datetime.fromisoformat(year),
        )


@pytest.mark.parametrize(
    "parameters",
    [{"max_attempts": 2.5}, {"max_attempts": True}, {"backoff_seconds": "1"}],
)
def test_retries_are_counted_in_whole_numbers(parameters: dict[str, Any]) -> None:
    """A retry configuration of the wrong kind is refused before anything is leased."""
    with pytest.raises(ValueError, match="must be a"):
        RetryConfig(**parameters)


def test_a_selector_may_be_given_by_its_value(any_storage: AnyStorage) -> None:
    """A selector's text does what the selector does; another text is refused."""
    fill(any_storage, 2)
    ask: Any = "round_robin"
    first = any_storage.acquire_lease(AcquireRequest("pool", "w", selector=ask)).lease
    second = any_storage.find_available_proxy("pool", None, ask)
    assert first is not None
    assert second is not None
    assert first.proxy_id != second.id
    with pytest.raises(ValueError, match="cheapest"):
        AcquireRequest("pool", "w", selector="cheapest")  # type: ignore[arg-type]


def test_limits_may_be_anything(any_storage: AnyStorage) -> None:
    """Odd limits and positions read nothing or everything, as they say."""
    _, (proxy,) = fill(any_storage)
    for limit in (-1, 0, 2**40):
        assert list(any_storage.list_health_records(proxy.id, limit)) == []
    assert list(any_storage.events(after=2**70)) == []
    assert len(list(any_storage.events(after=-5))) == 2


def test_an_import_keeps_the_first_of_two(any_storage: AnyStorage) -> None:
    """Of one identity given twice the first counts, whoever had it before knows it."""
    pool, (known,) = fill(any_storage)
    new = known.model_copy(update={"id": UUID(int=7), "port": 9000, "country": "AR"})
    again = new.model_copy(update={"country": "CL"})
    assert any_storage.import_proxies(pool.id, [known, new, again]) == 1
    found = any_storage.list_proxies(str(pool.id))
    assert sorted(proxy.country or "" for proxy in found) == ["", "AR"]
    assert any_storage.import_proxies(pool.id, []) == 0


def test_an_unknown_pool_still_registers_its_consumer(any_storage: AnyStorage) -> None:
    """A miss in an unknown pool registers the consumer that it names."""
    ProxyManager(any_storage).acquire_proxy("nowhere", "somebody")
    assert types_of(any_storage) == ["ConsumerRegistered", "AcquireMissed"]


def test_a_host_has_no_port_in_it() -> None:
    """A host with a colon that is no IPv6 address is refused, and names are lower case."""
    facts: dict[str, Any] = {"port": 1, "protocol": ProxyProtocol.HTTP, "pool_id": uuid4()}
    with pytest.raises(ValidationError):
        Proxy(host="a:b", **facts)
    assert Proxy(host="Proxy.Example", **facts).host == "proxy.example"
    assert Proxy(host="2001:DB8::1", **facts).url == "http://[2001:db8::1]:1"


@pytest.mark.parametrize(
    "wrong",
    [
        {"host": "http://u:s3cret@h"},
        {"port": "s3cret"},
        {"credentials": "u:s3cret"},
        {"credentials": {"user": "u", "password": "s3cret\x00"}},
        {"credentials": {"user": "u\x00", "password": "s3cret"}},
        {"credentials": {"password": "s3cret"}},
        {"credentials": {"user": "u", "password": ["s3cret"]}},
        {"protocol": "s3cret"},
        {"protocol": "socks5", "credentials": {"user": "u", "password": "s3cret" * 43}},
    ],
)
def test_no_error_of_a_proxy_repeats_what_it_was_given(wrong: dict[str, Any]) -> None:
    """Neither the text of the error, nor its details, nor the chain has the password."""
    fine = {"host": "h", "port": 1, "protocol": "http", "pool_id": uuid4()}
    with pytest.raises(ValidationError) as refused:
        Proxy(**{**fine, **wrong})
    error = refused.value
    shown = [str(error), repr(error.errors()), error.json()]
    shown += [repr(error.__cause__), "" if error.__suppress_context__ else repr(error.__context__)]
    assert "s3cret" not in "".join(shown)


@pytest.mark.parametrize("text", ["ü" * 127, "x" * 255])
def test_socks5_carries_255_bytes(text: str) -> None:
    """A longer user or password is refused when the proxy is made, as nobody could send it."""
    fine = {"host": "h", "port": 1, "protocol": "socks5", "pool_id": uuid4()}
    Proxy(**fine, credentials={"user": text, "password": text})
    for name in ("user", "password"):
        credentials = {"user": "u", "password": "p", name: f"{text}ü"}
        with pytest.raises(ValidationError, match=f"{name} of at most 255 bytes"):
            Proxy(**fine, credentials=credentials)

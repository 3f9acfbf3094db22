"""Bad input is a clear error of ours, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from pydantic import BaseModel, ValidationError

from pharox import (
    ConflictError,
    Consumer,
    CoolDown,
    HealthCheckResult,
    InvalidInputError,
    Outcome,
    Pace,
    PoolLimits,
    Proxy,
    ProxyCredentials,
    ProxyFilters,
    ProxyManager,
    ProxyNotFoundError,
    ProxyPool,
    ProxyProtocol,
    ProxyStatus,
    RetryConfig,
    Sticky,
    TargetRules,
)
from pharox.events import PoolRegistered
from pharox.models import utc_now
from pharox.sources import BadEntry, Defaults, Entry, read_proxies
from pharox.storage.postgres import PostgresStorage
from pharox.storage.reports import CoolDownRequest
from pharox.storage.requests import AcquireRequest, RevokeRequest
from tests.conftest import AnyStorage, fill, run_sql, types_of

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


def made(kind: Any, **arguments: Any) -> Any:
    """Return an object made of arguments of which a type checker knows nothing."""
    return kind(**arguments)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: made(ProxyPool, name="p", rest_after_expiry=3),
            "rest_after_expiry: there is no such",
        ),
        (ProxyPool, "ProxyPool: name: it is needed"),
        (lambda: Outcome(kind="refused"), "Outcome: kind: "),
        (lambda: Outcome.blocked(state=403), "state: there is no such field"),
        (lambda: Outcome.ok(status="many"), "status: "),
        (lambda: CoolDown(base_seconds=-1), "CoolDown: base_seconds: "),
        (lambda: PoolLimits(leases_per_target=0), "^PoolLimits: leases_per_target: "),
        (lambda: PoolLimits(leases_per_consumer=True), "leases_per_consumer: a number is needed"),
        (lambda: made(PoolLimits, money_per_day="much"), "^PoolLimits: money_per_day: "),
        (lambda: made(PoolLimits, bytes_a_day=5), "bytes_a_day: there is no such field"),
        (lambda: Pace(starts=0, seconds=1), "^Pace: starts: "),
        (lambda: made(ProxyPool, name="p", cost_per_gb=-1), "^ProxyPool: cost_per_gb: "),
        (
            lambda: made(ProxyPool, name="p", limits={"leases_per_target": 0}),
            "^ProxyPool: limits: PoolLimits: leases_per_target: ",
        ),
        (lambda: CoolDown(after=0, jitter=2), "jitter: .*; after: "),
        (lambda: TargetRules(target="a", blocked_statuses=(4,)), r"blocked_statuses\.0: "),
        (lambda: Sticky("a", seconds=-1), "seconds"),
        (lambda: made(Sticky, key="a", policy="maybe"), "policy"),
        (lambda: made(Sticky, key=7), "session"),
    ],
)
def test_a_wrong_argument_is_named(make: Callable[[], Any], message: str) -> None:
    """The error is one of ours, on one line, and without links to another library's pages."""
    with pytest.raises(InvalidInputError, match=message) as refused:
        make()
    assert "\n" not in str(refused.value)
    assert "pydantic" not in str(refused.value)


def test_a_price_spoilt_afterwards_is_named_once(any_storage: AnyStorage) -> None:
    pool = ProxyPool(name="p").model_copy(update={"cost_per_gb": -1})
    with pytest.raises(InvalidInputError, match=r"^ProxyPool is not valid: cost_per_gb: [^:]*$"):
        any_storage.save_pool(pool)


def test_names_have_a_length(any_storage: AnyStorage) -> None:
    """A name longer than an index can hold is refused in our words."""
    with pytest.raises(InvalidInputError, match="500"):
        any_storage.ensure_consumer(LONG)
    with pytest.raises(InvalidInputError, match="500"):
        any_storage.acquire_lease(AcquireRequest(LONG, "w"))
    with pytest.raises(InvalidInputError, match="500"):
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


FACTS: dict[str, Any] = {"port": 1, "protocol": "http", "pool_id": uuid4()}
JUNK_HOSTS = [
    "1.2.3.999",
    "1.2.3",
    "12345",
    "a..b",
    ".a",
    f"{'x' * 64}.example",
    ".".join(["x" * 60] * 5),
    "💩.example",
    "a,b.example",
    "*.example",
    "a(b).example",
]
HOSTS = {
    "Proxy_1": "proxy_1",
    "my_service.internal_net": "my_service.internal_net",
    "shop--1.example.": "shop--1.example",
    "_dmarc.example": "_dmarc.example",
    "münchen.example": "xn--mnchen-3ya.example",
    "xn--ls8h.la": "xn--ls8h.la",
    "1a.example": "1a.example",
    "3com": "3com",
    "web.1": "web.1",
    "x" * 63: "x" * 63,
    "2001:DB8::1": "2001:db8::1",
    "fe80::1%eth0": "fe80::1%eth0",
    "192.0.2.1": "192.0.2.1",
}


@pytest.mark.parametrize("host", JUNK_HOSTS)
def test_a_host_that_no_client_could_ask_is_refused(host: str) -> None:
    """Of a proxy and of a target: clients would raise errors of other libraries later."""
    with pytest.raises(ValidationError, match="host"):
        Proxy(host=host, **FACTS)
    with pytest.raises(InvalidInputError, match="target"):
        Outcome.blocked(host)
    with pytest.raises(InvalidInputError, match="target"):
        AcquireRequest("pool", "w", target=host)


@pytest.mark.parametrize("host", HOSTS)
def test_a_host_that_people_have_is_taken(host: str) -> None:
    """Underscores, names of containers, names in other letters and addresses."""
    assert str(Proxy(host=host, **FACTS).host) == HOSTS[host]
    if "%" not in host:
        assert Outcome.blocked(host).target == HOSTS[host]


def test_an_import_says_which_host_is_junk() -> None:
    """The line is skipped with its reason, and the others are imported."""
    lines = ["192.0.2.1:80", "1.2.3.999:80", "a..b:80", "good_one:80", f"{'x' * 64}.example:80"]
    read = [*read_proxies(["\n".join(lines).encode()], Defaults(protocol=ProxyProtocol.HTTP))]
    entries = [each for each in read if isinstance(each, Entry)]
    assert [str(entry.proxy.host) for entry in entries] == ["192.0.2.1", "good_one"]
    reasons = [each.reason for each in read if isinstance(each, BadEntry)]
    assert len(reasons) == 3
    assert all("host" in reason for reason in reasons)


def test_a_host_that_was_saved_before_can_be_read(postgres: PostgresStorage) -> None:
    """A ledger of an older version may have junk; it can be listed and removed."""
    pool, (proxy,) = fill(postgres, 1)
    run_sql(postgres.engine, "UPDATE pharox.proxies SET host = 'a..b'")
    (found,) = postgres.list_proxies(str(pool.id))
    assert found.host == "a..b"
    with pytest.raises(InvalidInputError, match="empty part"):
        postgres.save_proxy(found)
    postgres.set_status(proxy.id, ProxyStatus.BANNED)
    postgres.delete_proxy(str(proxy.id))


def test_what_is_recorded_forever_is_short(any_storage: AnyStorage) -> None:
    """Reasons and descriptions of more than 1000 characters are refused, whoever gives them."""
    pool, (proxy,) = fill(any_storage)
    lease = any_storage.acquire_lease(AcquireRequest("pool", "w")).lease
    assert lease is not None
    before = types_of(any_storage)
    long = "x" * 1001
    for give in (
        lambda: any_storage.return_lease(lease, reason=long),
        lambda: any_storage.set_status(proxy.id, ProxyStatus.BANNED, reason=long),
        lambda: any_storage.drain_proxy(proxy.id, reason=long),
        lambda: any_storage.revoke_leases(RevokeRequest((lease.id,), long)),
        lambda: any_storage.set_cool_down(CoolDownRequest(proxy.id, "a.example", 60, long)),
        lambda: any_storage.save_pool(pool.model_copy(update={"description": long})),
        lambda: any_storage.save_pool(ProxyPool(name="other", description=long)),
    ):
        with pytest.raises(InvalidInputError, match="at most 1000 characters"):
            give()
    assert types_of(any_storage) == before
    any_storage.save_pool(pool.model_copy(update={"description": long[1:]}))
    assert any_storage.return_lease(lease, reason=long[1:]).ending is not None


def test_a_rest_is_no_longer_than_the_longest(any_storage: AnyStorage) -> None:
    """A rule whose first rest is longer is refused where it is made, and where it is saved."""
    for wrong in ({"base_seconds": 901}, {"base_seconds": 2, "max_seconds": 1}):
        with pytest.raises(InvalidInputError, match=r"^CoolDown: base_seconds, .* is above \d+$"):
            CoolDown(**wrong)
        rule = CoolDown().model_copy(update=wrong)
        with pytest.raises(InvalidInputError, match="base_seconds"):
            any_storage.save_pool(ProxyPool(name="pool", cool_down=rule))
    assert list(any_storage.events()) == []
    any_storage.save_pool(ProxyPool(name="pool", cool_down=CoolDown(base_seconds=900)))
    any_storage.save_pool(ProxyPool(name="none", cool_down=CoolDown(base_seconds=0, max_seconds=0)))


def test_a_rule_that_was_saved_before_can_be_read(postgres: PostgresStorage) -> None:
    """Nothing but saving it again fails."""
    fill(postgres)
    run_sql(
        postgres.engine,
        """UPDATE pharox.pools SET cool_down = '{"base_seconds": 9000, "max_seconds": 5}',"""
        " description = repeat('x', 5000)",
    )
    (found,) = postgres.list_pools()
    assert found.cool_down is not None
    assert (found.cool_down.base_seconds, found.cool_down.max_seconds) == (9000, 5)
    told = PoolRegistered(
        seq=1, recorded_at=utc_now(), pool_id=found.id, name="pool",
        cool_down={"base_seconds": 9000, "max_seconds": 5},
    )  # fmt: skip
    assert told.cool_down == found.cool_down
    assert len(found.description or "") == 5000
    with pytest.raises(InvalidInputError, match="9000 is above 5"):
        postgres.save_pool(found)
    with pytest.raises(InvalidInputError, match="1000"):
        postgres.save_pool(found.model_copy(update={"cool_down": None}))
    assert ProxyManager(postgres).acquire_proxy("pool") is not None


def test_a_rest_of_no_time_is_refused(any_storage: AnyStorage) -> None:
    """And ending one that does not exist is no event."""
    _, (proxy,) = fill(any_storage)
    before = types_of(any_storage)
    with pytest.raises(InvalidInputError, match="greater than zero"):
        CoolDownRequest(proxy.id, "a.example", 0)
    assert any_storage.set_cool_down(CoolDownRequest(proxy.id, "a.example", None)) is None
    assert types_of(any_storage) == before
    with pytest.raises(ProxyNotFoundError):
        any_storage.set_cool_down(CoolDownRequest(uuid4(), "a.example", None))
    any_storage.set_cool_down(CoolDownRequest(proxy.id, "a.example", 60))
    any_storage.set_cool_down(CoolDownRequest(proxy.id, "a.example", None))
    any_storage.set_cool_down(CoolDownRequest(proxy.id, "a.example", None))
    assert types_of(any_storage)[len(before) :] == ["CoolDownSet", "CoolDownSet"]
    assert any_storage.verify() == []

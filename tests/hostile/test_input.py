"""Whatever is handed over, memory and Postgres refuse the same with the same words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pharox as px
from pharox import (
    Consumer,
    HealthCheckOptions,
    HealthCheckResult,
    HealthPolicy,
    InMemoryStorage,
    InvalidInputError,
    Proxy,
    ProxyCredentials,
    ProxyFilters,
    ProxyManager,
    ProxyPool,
    RetryConfig,
    Subscription,
)
from pharox.history import audit
from pharox.history.replay import pool_at
from pharox.log import Extract
from pharox.models import MAX_FILTERS, MAX_TEXT_LENGTH
from pharox.storage.postgres import AsyncPostgresStorage, PostgresStorage
from pharox.storage.requests import AcquireRequest
from pharox.testing import Awaited
from tests import servers
from tests.conftest import (
    SECRET_KEY,
    AnyStorage,
    Clusters,
    fill,
    ledger,
    new_database,
    open_async_engine,
    types_of,
)

from .values import AWKWARD, ENDLESS, NO_NUMBERS, UNSTORABLE, is_refused, outcome

IDS = [UUID(int=1), UUID(int=2)]
Call = Callable[[Any, Any], Any]
"""What is done with a storage and a value."""


@pytest.fixture(scope="module")
def both(clusters: Clusters) -> Iterator[list[Any]]:
    """The same pool in memory, in Postgres, and in Postgres as code that awaits sees it."""
    server_url, template = clusters.get(servers.names()[0])
    name = f"pharox_{uuid4().hex[:12]}"
    with new_database(server_url, name, template) as url, ledger(url) as postgres:
        memory = InMemoryStorage()
        for storage in (memory, postgres):
            storage.save_pool(ProxyPool(id=IDS[0], name="pool"))
            storage.save_proxy(made_proxy())
        engine = open_async_engine(url)
        with Awaited(AsyncPostgresStorage(engine, secret_keys=[SECRET_KEY])) as awaited:
            yield [memory, postgres, awaited]


def made_proxy(**facts: Any) -> Proxy:
    known = {"id": IDS[1], "pool_id": IDS[0], "host": "h", "port": 1, "protocol": "http"}
    return Proxy(**{**known, "status": "active", **facts})


def checked(**facts: Any) -> HealthCheckResult:
    known = {"proxy_id": IDS[1], "status": "active", "latency_ms": 1, "protocol": "http"}
    return HealthCheckResult(**{**known, **facts})


def spoilt(**facts: Any) -> ProxyFilters:
    filters = ProxyFilters()
    for name, value in facts.items():
        setattr(filters, name, value)
    return filters


def attributed(storage: Any, **facts: Any) -> None:
    with px.attributed(**facts):
        storage.ensure_consumer(str(uuid4()))


WRITES: dict[str, Call] = {
    "a pool's name": lambda s, x: s.save_pool(ProxyPool(name=x)),
    "a pool's description": lambda s, x: s.save_pool(ProxyPool(name="new", description=x)),
    "a description that was assigned": lambda s, x: s.save_pool(
        ProxyPool(id=IDS[0], name="pool").model_copy(update={"description": x})
    ),
    "a consumer": lambda s, x: s.ensure_consumer(x),
    "a consumer's name": lambda s, x: s.ensure_consumer(Consumer(name=x).name),
    "a lease's consumer": lambda s, x: s.acquire_lease(AcquireRequest("pool", x)),
    "a lease's pool": lambda s, x: s.acquire_lease(AcquireRequest(x, "w")),
    "who leases one proxy": lambda s, x: s.create_lease(made_proxy(), x, 5),
    "a host": lambda s, x: s.save_proxy(made_proxy(host=x)),
    "a host that was assigned": lambda s, x: s.save_proxy(
        made_proxy().model_copy(update={"host": x})
    ),
    "a user": lambda s, x: s.save_proxy(
        made_proxy(credentials=ProxyCredentials(user=x, password="p"))
    ),
    "a password": lambda s, x: s.save_proxy(
        made_proxy(credentials=ProxyCredentials(user="u", password=x))
    ),
    "a status's reason": lambda s, x: s.set_status(IDS[1], "banned", reason=x),
    "an actor": lambda s, x: attributed(s, actor=x),
    "a job": lambda s, x: attributed(s, correlation_id=x),
    "a check's error": lambda s, x: s.apply_health_check_result(checked(error_message=x)),
    **{
        f"a {name}": lambda s, x, name=name: s.save_proxy(made_proxy(**{name: x}))  # type: ignore[misc]
        for name in ("source", "country", "city", "isp")
    },
}
"""What would be stored."""

READS: dict[str, Call] = {
    "a pool to find": lambda s, x: s.get_pool_by_name(x),
    "a pool to count": lambda s, x: s.get_pool_stats(x),
    "a pool to look through": lambda s, x: s.find_available_proxy(x),
    **{
        f"a filter by {name}": lambda s, x, name=name: s.find_available_proxy(  # type: ignore[misc]
            "pool", ProxyFilters(**{name: x})
        )
        for name in ("source", "country", "city", "isp")
    },
    "a filter that was assigned": lambda s, x: s.find_available_proxy("pool", spoilt(city=x)),
    "a filter of a lease": lambda s, x: s.acquire_lease(
        AcquireRequest("pool", "w", filters=ProxyFilters(none_of=[ProxyFilters()]))
        if x is None
        else AcquireRequest("pool", "w", filters=spoilt(country=x))
    ),
}
"""What is asked by a text."""

PAST: dict[str, Call] = {
    "a consumer of the log": lambda s, x: list(s.history(Extract(consumer=x))),
    "a type of the log": lambda s, x: list(s.history(Extract(types=[x]))),
}


def logs(both: list[Any]) -> list[list[str]]:
    return [types_of(storage) for storage in both[:2]]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda it: it.save_pool("p"), "a ProxyPool is needed, not a str"),
        (lambda it: it.save_pool(made_proxy()), "a ProxyPool is needed, not a Proxy"),
        (lambda it: it.save_proxy("1.2.3.4:80"), "a Proxy is needed, not a str"),
        (lambda it: it.add_proxies_bulk([None]), "a Proxy is needed, not a NoneType"),
        (lambda it: it.import_proxies(IDS[0], ["1.2.3.4:80"]), "a Proxy is needed, not a str"),
        (lambda it: it.import_list(IDS[0], [["1.2.3.4:80"]]), "a Proxy is needed, not a str"),
        (lambda it: it.add_consumer("c"), "a Consumer is needed, not a str"),
        (lambda it: it.record_health_checks(["ok"]), "a HealthCheckResult is needed, not a str"),
    ],
)
def test_what_is_no_model_is_refused(
    both: list[Any], call: Callable[[Any], Any], words: str
) -> None:
    """With what is needed and the type of what was given; nothing is recorded."""
    for storage in both:
        before = len(list(storage.events()))
        with pytest.raises(InvalidInputError, match=f"^{words}$"):
            call(storage)
        assert len(list(storage.events())) == before


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (5, "not a int"),
        (None, "not None"),
        (ProxyPool(name="pool"), "not a ProxyPool; give its .name"),
        (" ", "cannot be empty"),
    ],
)
def test_what_is_no_name_is_refused(both: list[Any], name: Any, words: str) -> None:
    """Of a pool, of one that is fallen back to, and of a consumer."""
    for storage in (both[0], both[1]):
        manager: Any = ProxyManager(storage)
        for asked, options in ((name, {}), ("pool", {"fallback": [name]})):
            with pytest.raises(InvalidInputError, match=f"^a pool name .*{words}$"):
                manager.acquire_proxy(asked, "c", **options)
        with pytest.raises(InvalidInputError, match=f"^a consumer name .*{words}$"):
            storage.ensure_consumer(name)


@pytest.mark.parametrize("value", UNSTORABLE)
@pytest.mark.parametrize("what", [*WRITES, *READS])
def test_no_storage_takes_such_a_text(both: list[Any], what: str, value: str) -> None:
    """Each refuses it in the same short words, and no log has grown."""
    before = logs(both)
    call = {**WRITES, **READS}[what]
    ended = {outcome(lambda s=s: call(s, UNSTORABLE[value])) for s in both}  # type: ignore[misc]
    assert len(ended) == 1, ended
    assert is_refused(ended.pop())
    assert logs(both) == before


@pytest.mark.parametrize("value", UNSTORABLE)
@pytest.mark.parametrize("what", PAST)
def test_no_log_is_asked_for_such_a_text(both: list[Any], what: str, value: str) -> None:
    """The past refuses it too, whoever keeps it."""
    ended = {outcome(lambda s=s: PAST[what](s, UNSTORABLE[value])) for s in both[:2]}  # type: ignore[misc]
    assert len(ended) == 1
    assert is_refused(ended.pop())


NAMES_OF_NOTHING: dict[str, Call] = {
    "get_pool": lambda s, x: s.get_pool(x),
    "delete_pool": lambda s, x: s.delete_pool(x),
    "list_proxies": lambda s, x: s.list_proxies(x),
    "import_proxies": lambda s, x: s.import_proxies(x, [made_proxy()]),
    "get_proxy": lambda s, x: s.get_proxy(x),
    "delete_proxy": lambda s, x: s.delete_proxy(x),
    "get_proxy_by_id": lambda s, x: s.get_proxy_by_id(x),
    "get_last_health_result": lambda s, x: s.get_last_health_result(x),
    "list_health_records": lambda s, x: s.list_health_records(x),
    "get_lease": lambda s, x: s.get_lease(x),
    "list_leases": lambda s, x: s.list_leases(x),
    "set_status": lambda s, x: s.set_status(x, "banned"),
}


@pytest.mark.parametrize("value", [*UNSTORABLE.values(), *AWKWARD.values(), "", None])
@pytest.mark.parametrize("what", NAMES_OF_NOTHING)
def test_nothing_has_such_an_id(both: list[Any], what: str, value: Any) -> None:
    """What spells no id is the id of nothing: an answer, or an error of a readable length."""
    if what == "list_leases" and value is None:
        return  # it asks for all
    ended = [outcome(lambda s=s: NAMES_OF_NOTHING[what](s, value)) for s in both]  # type: ignore[misc]
    assert len({name for name, _ in ended}) == 1, ended
    assert ended[0][0] in ("", "PoolNotFoundError", "ProxyNotFoundError")
    assert max(len(message) for _, message in ended) < 3000


@pytest.mark.parametrize("value", AWKWARD)
def test_awkward_text_comes_back_as_it_went_in(any_storage: AnyStorage, value: str) -> None:
    """In every field that takes text, it is kept and found, and nothing happens beside that."""
    text = AWKWARD[value]
    pool = ProxyPool(name=text, description=text)
    any_storage.save_pool(pool)
    login = ProxyCredentials(user=text, password=text)
    facts = dict.fromkeys(("source", "country", "city", "isp"), text)
    proxy = made_proxy(pool_id=pool.id, credentials=login, max_concurrency=1, **facts)
    any_storage.save_proxy(proxy)
    manager = ProxyManager(any_storage)
    with px.attributed(actor=text, correlation_id=text):
        lease = manager.acquire_proxy(text, text, filters=ProxyFilters(**facts))
        assert lease is not None
        any_storage.return_lease(lease, reason=text)
    any_storage.apply_health_check_result(checked(error_message=text))
    assert any_storage.get_pool_by_name(text) == pool
    found = any_storage.get_proxy(str(proxy.id))
    assert (found.credentials, found.city) == (login, text)
    story = audit.of_consumer(any_storage, text)
    released = list(story.entries)[-1].event
    assert (released.consumer, released.actor, released.correlation_id) == (text, text, text)
    assert pool_at(any_storage, text, 3).pool.name == text
    assert any_storage.verify() == []


@settings(max_examples=150)
@given(text=st.text(st.characters(codec=None), max_size=20) | st.text(max_size=5))
def test_any_text_ends_alike_everywhere(both: list[Any], text: str) -> None:
    """A text is refused by both storages or by none, as a name and as a filter."""
    for call in (WRITES["a lease's consumer"], WRITES["a job"], READS["a filter by city"]):
        ended = {outcome(lambda s=s, call=call: call(s, text)) for s in both[:2]}  # type: ignore[misc]
        assert len(ended) == 1
        assert ended.pop()[0] in ("", "InvalidInputError", "ValidationError")


# Numbers and moments

ACQUIRING: dict[str, Call] = {
    "acquire": lambda s, x: s.acquire_lease(AcquireRequest("pool", "w", x)),
    "create": lambda s, x: s.create_lease(made_proxy(), "w", x),
}
COUNTS: dict[str, Call] = {
    "records": lambda s, x: s.list_health_records(IDS[1], x),
    "a place in the log": lambda s, x: list(s.events(after=x)),
}


@pytest.mark.parametrize(
    "value", [0, -1, True, None, *NO_NUMBERS.values(), *ENDLESS.values()], ids=repr
)
@pytest.mark.parametrize("what", ACQUIRING)
def test_no_lease_is_so_long(both: list[Any], what: str, value: Any) -> None:
    """No time at all, less than that, for ever, and what is no number."""
    before = logs(both)
    ended = {outcome(lambda s=s: ACQUIRING[what](s, value)) for s in both}  # type: ignore[misc]
    assert len(ended) == 1
    assert ended.pop()[0] == "InvalidLeaseError"
    assert logs(both) == before


@pytest.mark.parametrize("value", [True, None, *NO_NUMBERS.values(), 1e300], ids=repr)
@pytest.mark.parametrize("what", COUNTS)
def test_what_counts_is_a_whole_number(both: list[Any], what: str, value: Any) -> None:
    """Limits and seqs are whole numbers everywhere; how large they are does not matter."""
    ended = {outcome(lambda s=s: COUNTS[what](s, value)) for s in both}  # type: ignore[misc]
    assert len(ended) == 1
    assert is_refused(ended.pop())
    assert {outcome(lambda s=s: COUNTS[what](s, 10**400)) for s in both} == {("", "")}  # type: ignore[misc]


@pytest.mark.parametrize("value", [None, 0, "2026-01-01", datetime(2026, 1, 1)], ids=repr)
def test_a_moment_has_a_time_zone(both: list[Any], value: Any) -> None:
    """Anything else is no moment, in memory and in Postgres."""
    ended = {outcome(lambda s=s: s.seq_at(value)) for s in both[:2]}  # type: ignore[misc]
    if value is not None:
        ended |= {outcome(lambda s=s: list(s.history(Extract(since=value)))) for s in both[:2]}  # type: ignore[misc]
    assert len(ended) == 1
    assert is_refused(ended.pop())


OPTIONS: dict[str, Callable[[Any], Any]] = {
    **{
        f"RetryConfig.{name}": lambda x, name=name: RetryConfig(**{name: x})  # type: ignore[misc]
        for name in ("max_attempts", "backoff_seconds", "backoff_multiplier", "max_backoff_seconds")
    },
    **{
        f"HealthPolicy.{name}": lambda x, name=name: HealthPolicy(**{name: x})  # type: ignore[misc]
        for name in ("failures_before_inactive", "successes_before_active", "latency_window")
    },
    **{
        f"Subscription.{name}": lambda x, name=name: Subscription("s", print, **{name: x})  # type: ignore[misc]
        for name in ("batch_size", "attempts", "poll_s")
    },
    "HealthCheckOptions.timeout": lambda x: HealthCheckOptions(timeout=x),
    "HealthCheckOptions.attempts": lambda x: HealthCheckOptions(attempts=x),
    "Proxy.port": lambda x: made_proxy(port=x),
    "Proxy.latitude": lambda x: made_proxy(latitude=x, longitude=0),
    "ProxyFilters.radius_km": lambda x: ProxyFilters(latitude=0, longitude=0, radius_km=x),
    "HealthCheckResult.latency_ms": lambda x: checked(latency_ms=x),
}


@pytest.mark.parametrize("value", [-1000, "x", [1], float("nan"), float("inf"), 10**400], ids=repr)
@pytest.mark.parametrize("what", OPTIONS)
def test_an_option_is_refused_when_it_is_given(what: str, value: Any) -> None:
    """A number that makes no sense is an error before anything begins, and it is ours."""
    if value == 10**400 and what in ("RetryConfig.max_attempts", "Subscription.batch_size"):
        value = 0
    if value == 10**400 and what == "Subscription.attempts":
        value = 0  # however often is as often as one likes
    assert is_refused(outcome(lambda: OPTIONS[what](value)))


# Hosts

HOSTS = {
    "2001:DB8::1": "http://[2001:db8::1]:1",
    "::ffff:192.0.2.1": "http://[::ffff:c000:201]:1",
    "fe80::1%eth0": "http://[fe80::1%eth0]:1",
    "MÜNCHEN.example": "http://xn--mnchen-3ya.example:1",
    "xn--mnchen-3ya.example": "http://xn--mnchen-3ya.example:1",
    "trailing.dot.": "http://trailing.dot:1",
    "_service.example": "http://_service.example:1",
}
NO_HOSTS = ["", " ", "a b", "a\tb", "a\nb", "[::1]", "a@b", "a/b", "a\\b", "a%2fb", "a%00b", "<b>"]
NO_HOSTS += ["a^b", "a|b", "a?b", "a#b", "a:1", "\x1b[31m", "\u202eabc", "a\u200bb", "h" * 501]


@pytest.mark.parametrize("host", HOSTS)
def test_a_host_keeps_its_meaning(any_storage: AnyStorage, host: str) -> None:
    """Addresses and names of each kind come back in their normal form, in a usable URL."""
    pool, _ = fill(any_storage, 0)
    proxy = made_proxy(pool_id=pool.id, host=host)
    any_storage.save_proxy(proxy)
    kept = any_storage.get_proxy(str(proxy.id))
    assert (kept, kept.url) == (proxy, HOSTS[host])
    manager = ProxyManager(any_storage)
    with manager.client("pool") as client:
        assert client.lease.proxy_id == proxy.id


@pytest.mark.parametrize("host", [*NO_HOSTS, 5, 2130706433, b"host", None], ids=ascii)
def test_what_is_no_host_is_refused(host: Any) -> None:
    """What a client could read as another host, as a path or as a login; and numbers."""
    assert is_refused(outcome(lambda: made_proxy(host=host)))


@pytest.mark.parametrize("port", [0, -1, 65_536, 10**18, "http", "1.5", None, float("nan")])
def test_what_is_no_port_is_refused(port: Any) -> None:
    """A port is a number from 1 to 65535."""
    assert is_refused(outcome(lambda: made_proxy(port=port)))


# Filters


def nested(depth: int) -> dict[str, Any]:
    """Return filters as a document that is nested so deep."""
    filters: dict[str, Any] = {"country": "AR"}
    for _ in range(depth):
        filters = {"none_of": [filters]}
    return filters


@pytest.mark.parametrize("depth", [50, 1000, 50_000])
def test_a_deep_document_is_refused(depth: int) -> None:
    """Filters that come as a document or as JSON are read to a depth, not to a crash."""
    as_json = '{"none_of":[' * depth + "{}" + "]}" * depth
    assert is_refused(outcome(lambda: ProxyFilters.model_validate(nested(depth))))
    assert is_refused(outcome(lambda: ProxyFilters.model_validate_json(as_json)))


def _deepened(depth: int) -> ProxyFilters:
    """Return filters that were made shallow and were deepened afterwards."""
    top = bottom = ProxyFilters(none_of=[ProxyFilters()])
    for _ in range(depth):
        assert bottom.none_of is not None
        bottom.none_of[0] = ProxyFilters(none_of=[ProxyFilters()])
        bottom = bottom.none_of[0]
    return top


def _cyclic() -> ProxyFilters:
    filters = ProxyFilters(any_of=[ProxyFilters(), ProxyFilters()])
    assert filters.any_of is not None
    filters.any_of[:] = [filters, filters]
    return filters


def _wide(count: int) -> ProxyFilters:
    filters = ProxyFilters(any_of=[ProxyFilters()])
    assert filters.any_of is not None
    filters.any_of += [ProxyFilters(city=str(n)) for n in range(count)]
    return filters


SPOILT: dict[str, Callable[[], Any]] = {
    "a thousand deep": lambda: _deepened(1000),
    "within themselves": _cyclic,
    "too many": lambda: _wide(MAX_FILTERS),
    "no filters": lambda: {"country": "AR"},
    "a child that is none": lambda: spoilt(any_of=["AR"]),
    "children that are none": lambda: spoilt(none_of=5),
    "half a place": lambda: spoilt(latitude=1.0),
    "no latitude": lambda: spoilt(latitude=float("nan"), longitude=0.0),
    "no asn": lambda: spoilt(asn=2**70),
    "a text for an asn": lambda: spoilt(asn="5"),
}


@pytest.mark.parametrize("what", SPOILT)
def test_filters_spoilt_afterwards_are_refused(both: list[Any], what: str) -> None:
    """What was put into filters after they were made is looked at before anybody is asked."""
    before = logs(both)
    for ask in (
        lambda s: s.find_available_proxy("pool", SPOILT[what]()),
        lambda s: s.acquire_lease(AcquireRequest("pool", "w", filters=SPOILT[what]())),
    ):
        ended = {outcome(lambda s=s, ask=ask: ask(s)) for s in both}  # type: ignore[misc]
        assert len(ended) == 1
        assert ended.pop()[0] == "InvalidInputError"
    assert logs(both) == before


def test_shared_filters_count_where_they_stand() -> None:
    """Fifty levels of two would be looked at 2**50 times; with ten it is too much already."""
    filters = ProxyFilters()
    for _ in range(8):
        filters = ProxyFilters(all_of=[filters, filters])
    with pytest.raises(ValueError, match="1000 filters"):
        ProxyFilters(all_of=[filters, filters])


def test_as_many_filters_as_there_may_be_are_answered(any_storage: AnyStorage) -> None:
    """The largest tree is a statement that the database takes."""
    fill(any_storage, city="7")
    filters = ProxyFilters(any_of=[ProxyFilters(city=str(n)) for n in range(MAX_FILTERS - 1)])
    assert any_storage.find_available_proxy("pool", filters) is not None
    with pytest.raises(InvalidInputError):
        any_storage.find_available_proxy("pool", _wide(MAX_FILTERS - 1))


def test_the_longest_text_is_kept(postgres: PostgresStorage) -> None:
    """A text of the greatest length is stored and read, by every way that the log has."""
    text = "\U0001f9ff" * MAX_TEXT_LENGTH
    proxy = made_proxy()
    postgres.save_pool(ProxyPool(id=proxy.pool_id, name="pool"))
    postgres.save_proxy(proxy.model_copy(update={"isp": text}))
    assert postgres.get_proxy(str(proxy.id)).isp == text
    assert postgres.verify() == []

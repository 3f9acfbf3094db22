"""The address from which a target sees a proxy: read from its answer, recorded and listed."""

from __future__ import annotations

import json
from datetime import timedelta
from ipaddress import IPv4Address, IPv6Address
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pharox import CheckFailure, HealthCheckOptions, Proxy, ProxyProtocol, ProxyStatus
from pharox.events import HealthChecked, ProxiesChecked
from pharox.health.exits import MAX_BYTES, ExitSearch
from pharox.ledger.rebuild import rebuild
from pharox.models import HealthCheckResult
from pharox.storage.postgres import PostgresStorage
from pharox.testing import checked
from tests.conftest import AnyStorage, clock_of, fill
from tests.health.test_probing import check
from tests.health.zoo import Zoo

GOOD = ProxyStatus.ACTIVE


def found_in(body: str | bytes, where: str, *headers: tuple[bytes, bytes]) -> str | None:
    """Return the exit that is found in an answer which comes byte by byte."""
    search = ExitSearch(where, headers)
    for byte in body.encode() if isinstance(body, str) else body:
        search.feed(bytes([byte]))
    return search.found()


@pytest.mark.parametrize(
    ("body", "where", "exit_ip"),
    [
        ("192.0.2.7", "body", "192.0.2.7"),
        (" 192.0.2.7\r\n", "body", "192.0.2.7"),
        ("\ufeff2001:DB8:0::7\n", "body", "2001:db8::7"),
        ("::ffff:192.0.2.7", "body", "192.0.2.7"),
        ('{"origin": "192.0.2.7"}', "json:origin", "192.0.2.7"),
        ('{"client": {"ip": "2001:db8::7"}}', "json:client.ip", "2001:db8::7"),
        ('{"ip": "192.0.2.7", "country": "CL"}', "json:ip", "192.0.2.7"),
        ("192.0.2.7, 192.0.2.8", "body", None),
        ("192.0.2.07", "body", None),
        ("fe80::1%eth0", "body", None),
        ("the address is 192.0.2.7", "body", None),
        ("", "body", None),
        ("3221225991", "json:ip", None),
        ('{"ip": 3221225991}', "json:ip", None),
        ('{"ip": null}', "json:ip", None),
        ('["192.0.2.7"]', "json:ip", None),
        ('{"ip": {"v4": "192.0.2.7"}}', "json:ip", None),
        ("{", "json:ip", None),
        ("[" * 8000, "json:ip", None),
        (b'{"ip": "\xff"}', "json:ip", None),
        (" " * MAX_BYTES + "192.0.2.7", "body", None),
    ],
)
def test_an_address_is_found_or_none(body: str | bytes, where: str, exit_ip: str | None) -> None:
    """In its normal form; whatever else is there is no address, and no error."""
    assert found_in(body, where) == exit_ip


@given(st.binary(max_size=300), st.sampled_from(["body", "json:ip", "json:a.b"]))
def test_no_answer_breaks_the_search(body: bytes, where: str) -> None:
    """Nor one that says that it is compressed, and is not."""
    for headers in ((), ((b"Content-Encoding", b"gzip"),), ((b"Content-Encoding", b"br"),)):
        found_in(body, where, *headers)


@given(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)))
def test_every_address_is_found(address: IPv4Address | IPv6Address) -> None:
    """As text of the body or in JSON, always in one form."""
    spelled = str(getattr(address, "exploded", address))
    exits = {found_in(spelled, "body"), found_in(json.dumps({"ip": spelled}), "json:ip")}
    assert exits == {str(getattr(address, "ipv4_mapped", None) or address)}


@pytest.mark.parametrize(
    ("path", "where", "exit_ip"),
    [
        ("/says/" + quote("203.0.113.5\n"), "body", "203.0.113.5"),
        ("/says/" + quote('{"origin": "203.0.113.5"}'), "json:origin", "203.0.113.5"),
        ("/packs/" + quote("2001:db8::5"), "body", "2001:db8::5"),
        ("/marked", "body", None),
        ("/gzip-bomb", "body", None),
        ("/marked/br", "json:origin", None),
    ],
)
@pytest.mark.parametrize("kind", ["http", "socks5"])
def test_a_check_tells_the_exit(
    zoo: Zoo, path: str, where: str, exit_ip: str | None, kind: str
) -> None:
    """An answer without an address is as good as any: the proxy is reachable."""
    proxy = zoo.proxy(f"pproxy-{kind}", kind)
    result = check(zoo, proxy, zoo.target(path), exit_ip_from=where)
    assert (result.status, result.exit_ip) == (GOOD, exit_ip), result


def test_what_fails_has_no_exit(zoo: Zoo) -> None:
    """Its body is not that of a good answer; a text may be expected beside the exit."""
    proxy, url = zoo.proxy("pproxy-http", "http"), zoo.target("/says/203.0.113.5")
    good = check(zoo, proxy, url, exit_ip_from="body", expected_text="203.0")
    assert good.exit_ip == "203.0.113.5"
    bad = check(zoo, proxy, url, exit_ip_from="body", expected_text="198.51")
    assert (bad.failure, bad.exit_ip) == (CheckFailure.UNEXPECTED_CONTENT, None)
    assert check(zoo, proxy, url).exit_ip is None


@pytest.mark.parametrize(
    "options",
    [
        *({"exit_ip_from": each} for each in ("", "json", "json:", "json:a..b", "xml:a", "Body")),
        {"exit_ip_from": "json:" + "a" * 201},
        {"exit_ip_from": "body", "max_body_bytes": 0},
    ],
)
def test_what_cannot_be_found_is_refused(options: dict[str, Any]) -> None:
    """Before anything is checked."""
    with pytest.raises(ValidationError):
        HealthCheckOptions.model_validate(options)


def seen_as(proxy: Proxy, exit_ip: str | None, **facts: Any) -> HealthCheckResult:
    """Return a good result that found this exit."""
    return HealthCheckResult(**{**checked(proxy, **facts).model_dump(), "exit_ip": exit_ip})


def exits_of(storage: AnyStorage, proxies: list[Proxy]) -> list[str | None]:
    return [storage.get_proxy(str(proxy.id)).exit_ip for proxy in proxies]


def test_a_proxy_has_the_exit_that_was_seen_last(any_storage: AnyStorage) -> None:
    """What finds none, or comes late, leaves it as it is; so does every change by hand."""
    clock = clock_of(any_storage)
    _, (proxy,) = fill(any_storage, 1)
    for exit_ip, later_s, expected in [
        (None, 1, None),
        ("192.0.2.7", 1, "192.0.2.7"),
        (None, 1, "192.0.2.7"),
        ("2001:db8::7", 1, "2001:db8::7"),
        ("192.0.2.9", -1, "2001:db8::7"),
    ]:
        clock.advance(max(later_s, 0))
        at = clock.now + timedelta(seconds=min(later_s, 0))
        found = any_storage.apply_health_check_result(seen_as(proxy, exit_ip, checked_at=at))
        assert found is not None
        assert found.exit_ip == expected
    any_storage.save_proxy(proxy.model_copy(update={"country": "CL", "exit_ip": "192.0.2.1"}))
    any_storage.set_status(proxy.id, ProxyStatus.BANNED)
    assert exits_of(any_storage, [proxy]) == ["2001:db8::7"]
    assert any_storage.verify() == []
    any_storage.delete_proxy(str(proxy.id))
    any_storage.save_proxy(proxy.model_copy(update={"exit_ip": "192.0.2.1"}))
    assert exits_of(any_storage, [proxy]) == [None]
    assert any_storage.verify() == []


def test_checks_that_are_kept_together_have_their_exits(any_storage: AnyStorage) -> None:
    """One event, with what is new in an array: nothing in it if every exit is known."""
    clock = clock_of(any_storage)
    _, proxies = fill(any_storage, 4)
    seen: list[str | None] = ["192.0.2.1", "192.0.2.1", None, "2001:db8::4"]

    def sweep() -> ProxiesChecked:
        clock.advance(1)
        results = [
            seen_as(proxy, exit_ip, checked_at=clock.now)
            for proxy, exit_ip in zip(proxies, seen, strict=True)
        ]
        any_storage.record_health_checks(results)
        *_, event = any_storage.events()
        assert isinstance(event, ProxiesChecked)
        return event

    event = sweep()
    assert event.exit_ip is not None
    parts = [event.part_of(proxy.id) for proxy in proxies]
    assert [part and part.exit_ip for part in parts] == seen
    assert exits_of(any_storage, proxies) == seen
    assert sweep().exit_ip is None
    seen[1] = "192.0.2.2"
    changed = sweep()
    assert changed.exit_ip is not None
    assert sorted(filter(None, changed.exit_ip)) == ["192.0.2.2"]
    assert exits_of(any_storage, proxies) == seen
    assert any_storage.verify() == []


def test_a_check_alone_has_it_too(any_storage: AnyStorage) -> None:
    """If it is another one."""
    clock = clock_of(any_storage)
    _, (proxy,) = fill(any_storage, 1)
    for _ in "12":
        clock.advance(1)
        any_storage.record_health_checks([seen_as(proxy, "192.0.2.7", checked_at=clock.now)])
    checks = [event for event in any_storage.events() if isinstance(event, HealthChecked)]
    assert [event.exit_ip for event in checks] == ["192.0.2.7", None]


def test_a_rebuild_finds_the_exits(postgres: PostgresStorage) -> None:
    """Also those of checks that are kept together."""
    clock = clock_of(postgres)
    _, proxies = fill(postgres, 3)
    clock.advance(1)
    results = [
        seen_as(proxy, f"192.0.2.{n}", checked_at=clock.now) for n, proxy in enumerate(proxies)
    ]
    postgres.record_health_checks(results)
    assert rebuild(postgres).findings == ()
    assert exits_of(postgres, proxies) == ["192.0.2.0", "192.0.2.1", "192.0.2.2"]


def test_a_result_has_an_address_or_none() -> None:
    """Whoever makes results may not record anything else."""
    proxy = Proxy(host="h.example", port=1, protocol=ProxyProtocol.HTTP, pool_id=uuid4())
    assert seen_as(proxy, "2001:DB8::0:1").exit_ip == "2001:db8::1"
    with pytest.raises(ValidationError):
        seen_as(proxy, "somewhere")

"""Filters can be logged as they are: a predicate in them is dumped as its name."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from pydantic import ValidationError

from pharox import AcquireEventPayload, InMemoryStorage, Proxy, ProxyFilters, ProxyManager
from pharox.observability import register_structured_logging

HERE = "tests.leasing.test_dumped_filters"


def is_odd(proxy: Proxy) -> bool:
    return proxy.port % 2 == 1


def is_above(port: int, proxy: Proxy) -> bool:
    return proxy.port > port


class Above:
    def __init__(self, port: int) -> None:
        self.port = port

    def __call__(self, proxy: Proxy) -> bool:
        return proxy.port > self.port

    def holds(self, proxy: Proxy) -> bool:
        return self(proxy)

    @classmethod
    def always(cls, _: Proxy) -> bool:
        return True


class Sly:
    """An object that has any attribute."""

    def __getattr__(self, name: str) -> object:
        return self

    def __call__(self, _: Proxy) -> bool:
        return True


NAMED: list[tuple[Callable[..., Any], str]] = [
    (is_odd, f"{HERE}.is_odd"),
    (lambda _: True, f"{HERE}.<lambda>"),
    (partial(is_above, 1024), f"functools.partial({HERE}.is_above)"),
    (partial(partial(is_above), 1024), f"functools.partial({HERE}.is_above)"),
    (partial(Above(1)), f"functools.partial({HERE}.Above)"),
    (Above(1024), f"{HERE}.Above"),
    (Above(1024).holds, f"{HERE}.Above.holds"),
    (Above.always, f"{HERE}.Above.always"),
    (Sly(), f"{HERE}.Sly"),
    (bool, "builtins.bool"),
    (operator.attrgetter("country"), "operator.attrgetter"),
    ([].__contains__, "list.__contains__"),
]


@pytest.mark.parametrize(("predicate", "name"), NAMED, ids=[name for _, name in NAMED])
def test_a_predicate_is_dumped_as_its_name(predicate: Callable[..., Any], name: str) -> None:
    """Without its arguments, which may be secret, and without an address in memory."""
    filters = ProxyFilters(country="AR", predicate=predicate)
    assert filters.model_dump()["predicate"] == name
    assert json.loads(json.dumps(filters.model_dump())) == filters.model_dump()
    assert json.loads(filters.model_dump_json())["predicate"] == name
    assert filters.predicate is predicate


def test_so_are_predicates_inside() -> None:
    """At any depth; what has none is dumped as None."""
    inner = ProxyFilters(none_of=[ProxyFilters(predicate=is_odd)])
    filters = ProxyFilters(all_of=[inner, ProxyFilters(country="AR")], any_of=[inner])
    dumped = json.loads(json.dumps(filters.model_dump()))
    assert dumped["predicate"] is None
    for child in (dumped["all_of"][0], dumped["any_of"][0]):
        assert child["none_of"][0]["predicate"] == f"{HERE}.is_odd"
    assert dumped["all_of"][1]["predicate"] is None


def test_payloads_can_be_dumped(caplog: pytest.LogCaptureFixture) -> None:
    """A callback's payload can be logged as JSON, and our own lines name the predicate."""
    told: list[AcquireEventPayload] = []
    manager = ProxyManager(InMemoryStorage())
    manager.register_acquire_callback(told.append)
    register_structured_logging(manager)
    with caplog.at_level("INFO", logger="pharox"):
        manager.acquire_proxy("nope", filters=ProxyFilters(predicate=is_odd, country="AR"))
    expected = {"predicate": f"{HERE}.is_odd", "country": "AR"}
    dumped = json.loads(told[0].model_dump_json(exclude_none=True))
    assert dumped["filters"] == expected
    (line,) = caplog.records
    assert vars(line)["filters"] == expected


def test_a_name_is_no_predicate() -> None:
    """What is dumped without one can be read back; with one it is told why it cannot."""
    plain = ProxyFilters(country="AR", any_of=[ProxyFilters(asn=1)])
    assert ProxyFilters.model_validate(plain.model_dump()) == plain
    nested = ProxyFilters(any_of=[ProxyFilters(predicate=is_odd)])
    for dumped in (nested.model_dump(), json.loads(nested.model_dump_json())):
        with pytest.raises(ValidationError, match="give the function itself"):
            ProxyFilters.model_validate(dumped)
    with pytest.raises(ValidationError, match="give the function itself"):
        ProxyFilters.model_validate_json(nested.model_dump_json())

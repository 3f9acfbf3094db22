"""Every method of a manager is routed: nothing that a fleet inherits touches one storage."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest

from pharox.fleet.managers import AsyncFleetManager, FleetManager
from pharox.manager import AsyncProxyManager, ProxyManager

MANAGERS = [(FleetManager, ProxyManager), (AsyncFleetManager, AsyncProxyManager)]
ONE_STORAGE = {"_storage", "_keeper", "_tally", "_rotator"}
CALLED_BY_OTHERS = (
    *("_acquiring", "_acquiring_set", "_unavailable", "_held", "_giving_up"),
    *("_judged", "_judging", "_needs_body", "_reading_rules", "_storage_of"),
)
"""What handles, clients and integrations call of a manager."""

OF_A_FLEET = {
    "storage": "returns what a fleet has instead, which says where the storages are",
    "_unavailable": "asks the fleet's own seconds_to_next_change, which finds the ledger",
    "_client_options": "asks only whether one can wait: in each ledger",
}
"""What a fleet inherits that says ``_storage``, and why it may."""


@pytest.mark.parametrize(("routed", "single"), MANAGERS)
def test_no_method_that_is_inherited_reads_one_storage(routed: type, single: type) -> None:
    """From each public method, through all that it calls, as the source says it."""
    public = [name for name in dir(single) if not name.startswith("_")]
    assert len(public) > 30
    assert set(public) <= set(dir(routed))
    reached: set[str] = set()
    waiting = [*public, *CALLED_BY_OTHERS]
    while waiting:
        name = waiting.pop()
        if name in reached:
            continue
        reached.add(name)
        function = _function(routed, name)
        if function is None or function.__module__.startswith("pharox.fleet."):
            continue
        used = set(_of_self(function))
        assert name in OF_A_FLEET or not used & ONE_STORAGE, f"{name} uses {used & ONE_STORAGE}"
        waiting += used - ONE_STORAGE
    assert reached >= OF_A_FLEET.keys()


@pytest.mark.parametrize(("routed", "single"), MANAGERS)
def test_a_method_that_is_retyped_takes_what_the_manager_takes(routed: type, single: type) -> None:
    """Such as ``subscribe``: whoever calls a manager may be given that of a fleet."""
    for name in vars(routed).keys() & vars(single).keys():
        if name.startswith("_"):
            continue
        taken = inspect.signature(getattr(routed, name)).parameters
        takes_more = any(each.kind is each.VAR_KEYWORD for each in taken.values())
        asked = inspect.signature(getattr(single, name)).parameters
        assert takes_more or taken.keys() >= asked.keys()


def _function(kind: type, name: str) -> Any:
    found = inspect.getattr_static(kind, name, None)
    found = found.fget if isinstance(found, property) else found
    return inspect.unwrap(found) if inspect.isfunction(found) else None


def _of_self(function: Any) -> Iterator[str]:
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))):
        match node:
            case ast.Attribute(value=ast.Name(id="self"), attr=name):
                yield name

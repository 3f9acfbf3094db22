"""A fleet's manager does what a manager of one ledger does, by the tests of that manager.

Each test gets, in place of a manager of its storage, that of a fleet of two ledgers: an empty one
is home, and all pools are in the other one, the storage of the test.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from pharox import Fleet, InMemoryStorage, ProxyManager, ProxyPool
from tests.leasing import (
    test_callbacks,
    test_keeping,
    test_manager,
    test_once,
    test_outcomes,
    test_pool_defaults,
    test_pool_handle,
    test_renewal,
    test_revoking,
)

NOT_OF_A_FLEET = {
    "test_an_attempt_that_commits_meanwhile_counts": "it uses the manager's storage itself",
    "test_a_lease_for_a_target_takes_it_too": "a miss of a pool that nobody has is in home's log",
    "test_a_miss_says_why": "a miss of a pool that nobody has is in home's log",
}
"""Tests that do not hold of a fleet, and why."""


class OfFleet(ProxyManager):
    """Makes the manager of a fleet whose pools are all in one of its ledgers."""

    def __new__(cls, storage: Any, **options: Any) -> Any:
        ledgers = {"near": InMemoryStorage(), "far": storage}
        fleet = Fleet.connect({"home": "near", "ledgers": ledgers}, **options)
        save = storage.save_pool

        def save_pool(pool: ProxyPool) -> None:
            save(pool)
            fleet.place(pool.name, "far")

        for pool in storage.list_pools():
            fleet.place(pool.name, "far")
        storage.save_pool = save_pool
        return fleet.manager


def contract(module: ModuleType) -> type:
    """Return the tests of a module as those of a class."""
    tests = {
        name: staticmethod(each)
        for name, each in vars(module).items()
        if name.startswith("test_") and name not in NOT_OF_A_FLEET
    }

    @pytest.fixture(autouse=True)
    def of_fleet(self: object, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "ProxyManager", OfFleet)

    return type("Test", (), {**tests, "of_fleet": of_fleet})


TestCallbacks = contract(test_callbacks)
TestKeeping = contract(test_keeping)
TestManager = contract(test_manager)
TestOnce = contract(test_once)
TestOutcomes = contract(test_outcomes)
TestPoolDefaults = contract(test_pool_defaults)
TestPoolHandle = contract(test_pool_handle)
TestRenewal = contract(test_renewal)
TestRevoking = contract(test_revoking)

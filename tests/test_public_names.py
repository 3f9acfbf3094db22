"""What a user of 0.11.0 imports and calls is here, with the same parameters and defaults."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from typing import Any

import pytest
from pydantic import BaseModel

import pharox
from pharox import AsyncInMemoryStorage, IAsyncStorage, InMemoryStorage, IStorage, ProxyManager
from pharox.storage.postgres import AsyncPostgresStorage, PostgresStorage

ASK = "pool_name, consumer_name, duration_seconds=300, filters, selector"
RETRY = (
    "retry_config, sleep_fn, max_attempts=3, backoff_seconds=0.5, backoff_multiplier=2.0, "
    "max_backoff_seconds"
)
STORAGE = {
    "add_proxies_bulk": "proxies",
    "apply_health_check_result": "result",
    "cleanup_expired_leases": "",
    "create_lease": "proxy, consumer_name, duration_seconds",
    "delete_pool": "pool_id",
    "delete_proxy": "proxy_id",
    "ensure_consumer": "consumer_name",
    "find_available_proxy": "pool_name, filters, selector",
    "get_last_health_result": "proxy_id",
    "get_lease": "lease_id",
    "get_pool": "pool_id",
    "get_pool_stats": "pool_name",
    "get_proxy": "proxy_id",
    "list_health_records": "proxy_id, limit=100",
    "list_leases": "consumer_id",
    "list_pools": "",
    "list_proxies": "pool_id",
    "release_lease": "lease",
    "save_health_record": "record",
    "save_pool": "pool",
    "save_proxy": "proxy",
}
IN_MEMORY = {
    "add_consumer": "consumer",
    "add_pool": "pool",
    "add_proxy": "proxy",
    "get_proxy_by_id": "proxy_id",
}
MANAGER = {
    "acquire_proxy": f"{ASK}, lease_id, options",
    "acquire_proxy_with_retry": f"{ASK}, {RETRY}, lease_id, options",
    "cleanup_expired_leases": "",
    "register_acquire_callback": "callback",
    "register_release_callback": "callback",
    "release_proxy": "lease, outcome",
    "with_lease": f"{ASK}, lease_id, on_lost='cancel', options",
    "with_retrying_lease": f"{ASK}, {RETRY}, lease_id, on_lost='cancel', options",
}
FUNCTIONS = {
    "bootstrap_pool": "storage, name='default-pool', description, pool_id",
    "bootstrap_proxy": (
        "storage, pool, host, port, protocol='http', status='active', proxy_id, extra_fields"
    ),
    "bootstrap_consumer": "storage, name='default-consumer', consumer_id",
    "RetryConfig": "max_attempts=3, backoff_seconds=0.5, backoff_multiplier=2.0, "
    "max_backoff_seconds",
}
HELPERS = {
    "acquire_proxy_async": f"manager, {ASK}, lease_id, options",
    "acquire_proxy_with_retry_async": f"manager, {ASK}, {RETRY}, lease_id, options",
    "release_proxy_async": "manager, lease, outcome",
    "with_lease_async": f"manager, {ASK}, lease_id, on_lost='cancel', options",
    "with_retrying_lease_async": f"manager, {ASK}, {RETRY}, lease_id, on_lost='cancel', options",
}
PROXIES = "proxies, options, concurrency=100, per_host"
HEALTH = {
    "HealthChecker": {
        "__init__": "default_options, protocol_options, strategies, ssl_context",
        "check_proxy": "proxy, options",
        "register_strategy": "protocol, strategy",
        "set_protocol_options": "protocol, options",
        "stream_health_checks": PROXIES,
    },
    "HealthCheckOrchestrator": {
        "__init__": "storage, checker, manager, policy, pause_when",
        "apply_result": "result",
        "apply_result_async": "result",
        "check_proxy": "proxy, options",
        "stream_health_checks": PROXIES,
    },
    "HealthCheckStrategy": {"check": "proxy, options"},
}
"""What is behind the parameters of 0.11.0 is new, and can be left out."""
FIELDS = {
    "AcquireEventPayload": "lease pool_name consumer_name filters selector started_at "
    "completed_at duration_ms pool_stats",
    "Consumer": "id name",
    "HealthCheckOptions": "target_url timeout attempts expected_status_codes slow_threshold_ms "
    "allow_redirects headers",
    "HealthCheckResult": "proxy_id status latency_ms protocol attempts status_code checked_at "
    "error_message",
    "Lease": "id proxy_id consumer_id pool_id pool_name status acquired_at expires_at released_at",
    "PoolStatsSnapshot": "pool_name total_proxies active_proxies available_proxies "
    "leased_proxies total_leases collected_at",
    "Proxy": "id host port protocol pool_id status checked_at credentials source country city "
    "latitude longitude isp asn max_concurrency current_leases",
    "ProxyCredentials": "user password",
    "ProxyFilters": "source country city isp asn latitude longitude radius_km all_of any_of "
    "none_of predicate",
    "ProxyHealthRecord": "id proxy_id checked_at reachable latency_ms protocol status_before "
    "status_after error",
    "ProxyPool": "id name description",
    "ReleaseEventPayload": "lease pool_name released_at lease_duration_ms pool_stats",
}
ASYNC = (IAsyncStorage, AsyncInMemoryStorage, AsyncPostgresStorage)
OTHERS = (
    "AsyncInMemoryStorage",
    "ConsumerNotFoundError",
    "HealthCheckOrchestrator",
    "HealthCheckStrategy",
    "HealthChecker",
    "IAsyncStorage",
    "IStorage",
    "InMemoryStorage",
    "InvalidLeaseError",
    "LeaseStatus",
    "PharoxError",
    "PoolNotFoundError",
    "ProxyManager",
    "ProxyNotFoundError",
    "ProxyProtocol",
    "ProxyStatus",
    "ProxyUnavailableError",
    "SelectorStrategy",
)
MODULES = {
    "pharox.async_helpers": " ".join(HELPERS),
    "pharox.exceptions": "PharoxError PoolNotFoundError ProxyNotFoundError InvalidLeaseError",
    "pharox.health": "HealthChecker HealthCheckOrchestrator HealthCheckStrategy "
    "HTTPHealthCheckStrategy",
    "pharox.manager": "ProxyManager",
    "pharox.models": "Proxy Lease ProxyFilters RetryConfig",
    "pharox.storage": "IStorage InMemoryStorage IAsyncStorage AsyncInMemoryStorage",
    "pharox.storage.async_in_memory": "AsyncInMemoryStorage",
    "pharox.storage.async_interface": "IAsyncStorage",
    "pharox.storage.in_memory": "InMemoryStorage",
    "pharox.storage.interface": "IStorage",
    "pharox.storage.postgres": "PostgresStorage AsyncPostgresStorage",
    "pharox.utils": "bootstrap_pool bootstrap_proxy bootstrap_consumer haversine_distance_km",
}


def described(function: Any) -> str:
    """Return a callable's parameters and defaults in one line."""
    parts = []
    for parameter in inspect.signature(function).parameters.values():
        default = getattr(parameter.default, "value", parameter.default)
        if parameter.name == "self":
            continue
        plain = default is inspect.Parameter.empty or default is None
        parts.append(parameter.name if plain else f"{parameter.name}={default!r}")
    return ", ".join(parts)


@pytest.mark.parametrize("owner", [IStorage, InMemoryStorage, PostgresStorage, *ASYNC])
def test_a_storage_has_the_methods_of_0_11_0(owner: type) -> None:
    """Interface and both storages have each method with its parameters."""
    assert {name: described(getattr(owner, name)) for name in STORAGE} == STORAGE
    if owner in ASYNC:
        assert all(inspect.iscoroutinefunction(getattr(owner, name)) for name in STORAGE)
    if owner in (InMemoryStorage, PostgresStorage, AsyncInMemoryStorage):
        assert {name: described(getattr(owner, name)) for name in IN_MEMORY} == IN_MEMORY


@pytest.mark.parametrize("name", HEALTH)
def test_health_checks_have_the_methods_of_0_11_0(name: str) -> None:
    """Checker, orchestrator and strategy have each method with its parameters."""
    owner = getattr(pharox, name)
    assert {each: described(getattr(owner, each)) for each in HEALTH[name]} == HEALTH[name]


def test_the_manager_has_the_methods_of_0_11_0() -> None:
    """The manager has each method with its parameters and defaults."""
    assert {name: described(getattr(ProxyManager, name)) for name in MANAGER} == MANAGER
    assert ProxyManager.DEFAULT_CONSUMER_NAME == "default"


def test_functions_have_the_parameters_of_0_11_0() -> None:
    """Helpers take what they took."""
    known = FUNCTIONS | HELPERS
    assert {name: described(getattr(pharox, name)) for name in known} == known


@pytest.mark.parametrize("name", FIELDS)
def test_a_model_begins_with_the_fields_of_0_11_0(name: str) -> None:
    """Each model has the fields it had; new ones come after them."""
    model: type[BaseModel] = getattr(pharox, name)
    known = FIELDS[name].split()
    assert set(known) <= set(model.model_fields)


def test_the_other_names_are_here() -> None:
    """Every other public name can be imported, also from the module where it was."""
    assert all(hasattr(pharox, name) for name in OTHERS)
    for module, names in MODULES.items():
        assert all(hasattr(importlib.import_module(module), name) for name in names.split())
    assert set(OTHERS) | set(FIELDS) | set(FUNCTIONS) <= set(pharox.__all__)
    assert all(getattr(pharox, name) is not None for name in dir(pharox))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = pharox.no_such_name


@pytest.mark.parametrize("first", ["pharox", "projections"])
def test_either_package_can_be_imported_first(first: str) -> None:
    """``import projections`` and ``import pharox`` work in either order."""
    second = "projections" if first == "pharox" else "pharox"
    code = f"import {first}, {second}; pharox.InMemoryStorage(); projections.ALL"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_pharox_is_quick() -> None:
    """``import pharox`` alone loads none of the heavy libraries."""
    heavy = {"sqlalchemy", "psycopg", "pydantic", "httpx", "alembic", "cryptography"}
    code = f"import sys, pharox; print(*({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_leasing_in_memory_loads_no_driver() -> None:
    """With the plain installation, in-memory leasing needs neither psycopg nor alembic."""
    code = (
        "import sys, pharox; pharox.ProxyManager(pharox.InMemoryStorage()).acquire_proxy('x');"
        "print(*({'psycopg', 'alembic', 'cryptography', 'typer'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []

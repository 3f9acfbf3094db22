"""The manager's defaults, retries and context managers."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from pydantic import ValidationError

import pharox
from pharox import (
    AsyncInMemoryStorage,
    AsyncProxyManager,
    HealthCheckResult,
    InMemoryStorage,
    InvalidInputError,
    InvalidLeaseError,
    Lease,
    Proxy,
    ProxyCredentials,
    ProxyManager,
    ProxyProtocol,
    ProxyStatus,
    RetryConfig,
)
from pharox.storage.interface import IStorage
from tests.conftest import AnyStorage, clock_of, fill, types_of


def test_the_default_consumer_is_default(any_storage: AnyStorage) -> None:
    """Without a name the lease is the consumer "default"'s, registered on first use."""
    fill(any_storage)
    lease = ProxyManager(any_storage).acquire_proxy("pool")
    assert lease is not None
    assert lease.consumer_name == ProxyManager.DEFAULT_CONSUMER_NAME == "default"
    assert lease.consumer_id == any_storage.ensure_consumer("default")
    assert types_of(any_storage).count("ConsumerRegistered") == 1


def test_a_lease_runs_by_the_storages_clock(any_storage: AnyStorage) -> None:
    """A lease begins and ends by the storage's clock, whatever this machine's says."""
    fill(any_storage)
    clock = clock_of(any_storage)
    lease = ProxyManager(any_storage).acquire_proxy("pool", duration_seconds=90)
    assert lease is not None
    assert lease.acquired_at == clock.now
    assert lease.expires_at == clock.now + timedelta(seconds=90)


def test_an_invalid_lease_is_a_value_error() -> None:
    """A duration that makes no sense is an InvalidLeaseError, which is a ValueError."""
    manager = ProxyManager(InMemoryStorage())
    with pytest.raises(InvalidLeaseError) as refused:
        manager.acquire_proxy("pool", duration_seconds=0)
    assert isinstance(refused.value, ValueError)


@pytest.mark.parametrize(
    "parameters",
    [
        {"max_attempts": 0},
        {"backoff_seconds": -1},
        {"backoff_seconds": float("nan")},
        {"backoff_multiplier": 0.5},
        {"backoff_multiplier": float("inf")},
        {"max_backoff_seconds": 0},
    ],
)
def test_retry_parameters_must_make_sense(parameters: dict[str, float]) -> None:
    """Retry parameters that make no sense raise ValueError before anything is asked."""
    storage = InMemoryStorage()
    with pytest.raises(ValueError, match="must be"):
        ProxyManager(storage).acquire_proxy_with_retry("pool", **parameters)  # type: ignore[arg-type]
    assert list(storage.events()) == []


def test_retries_wait_longer_each_time() -> None:
    """The pauses grow by the multiplier up to the cap, and none follows the last attempt."""
    storage, pauses = InMemoryStorage(), list[float]()
    fill(storage, 0)
    config = RetryConfig(5, backoff_seconds=1, backoff_multiplier=3, max_backoff_seconds=5)
    manager = ProxyManager(storage)
    ask = {"retry_config": config, "sleep_fn": pauses.append}
    assert manager.acquire_proxy_with_retry("pool", **ask) is None  # type: ignore[arg-type]
    assert pauses == [1, 3, 5, 5]
    assert types_of(storage).count("AcquireMissed") == 5


def test_a_retry_ends_with_the_first_lease() -> None:
    """As soon as a proxy is free the retry returns it."""
    storage = InMemoryStorage()
    pool, _ = fill(storage, 0)
    manager = ProxyManager(storage)

    def free_one(_: float) -> None:
        pharox.bootstrap_proxy(storage, pool=pool, host="192.0.2.1", port=80)

    with manager.with_retrying_lease("pool", sleep_fn=free_one) as lease:
        assert lease is not None
    assert types_of(storage)[-3:] == ["ProxyRegistered", "LeaseAcquired", "LeaseReleased"]


@pytest.mark.parametrize("login", [None, ProxyCredentials(user="ann", password="s3cret")])
def test_a_script_that_fills_a_storage_can_run_again(
    any_storage: AnyStorage, login: ProxyCredentials | None
) -> None:
    """What is there is returned unchanged; another login, port or id is another proxy."""
    pool = pharox.bootstrap_pool(any_storage)

    def bootstrapped(**fields: Any) -> Proxy:
        described = {"pool": pool, "host": "192.0.2.1", "port": 80, "credentials": login, **fields}
        return pharox.bootstrap_proxy(any_storage, **described)

    proxy = bootstrapped(country="AR", max_concurrency=1)
    assert bootstrapped() == bootstrapped(country="CL") == proxy
    assert any_storage.list_proxies(str(pool.id)) == [proxy]
    other_login = ProxyCredentials(user="bob", password="s3cret")
    mine = uuid4()
    others = [bootstrapped(credentials=other_login), bootstrapped(port=81)]
    assert bootstrapped(proxy_id=mine).id == mine
    ids = {each.id for each in any_storage.list_proxies(str(pool.id))}
    assert ids == {proxy.id, mine, *(each.id for each in others)}


METHODS = (
    "acquire_proxy",
    "acquire_proxies",
    "acquire_proxy_with_retry",
    "with_lease",
    "with_leases",
    "with_retrying_lease",
    "client",
)


def called(method: str, manager: Any, **options: Any) -> None:
    """Call a method of a manager, and enter or await what it returns."""
    count = [1] if method in ("acquire_proxies", "with_leases") else []
    outcome = getattr(manager, method)("pool", *count, **options)
    if method.startswith("with_"):
        is_async = isinstance(manager, AsyncProxyManager)
        outcome = outcome.__aenter__() if is_async else outcome.__enter__()
    asyncio.run(outcome)


@pytest.mark.parametrize("method", METHODS)
def test_a_misspelled_option_is_named(method: str) -> None:
    """With the method that was called and the options that there are; nothing is asked."""
    awaited = AsyncInMemoryStorage()
    fill(awaited.memory)
    before = types_of(awaited.memory)
    takes = (
        "beside its named parameters it takes keep_alive, wait_seconds, target, sticky and fallback"
    )
    why = rf"^{method}\(\) got an .* argument 'keepalive'; {takes}$"
    for manager in (ProxyManager(awaited.memory), AsyncProxyManager(awaited)):
        with pytest.raises(TypeError, match=why):
            called(method, manager, keepalive=True)
    assert types_of(awaited.memory) == before


def test_a_lease_is_given_back_not_its_id(any_storage: AnyStorage) -> None:
    """An id, or the None of a miss, is refused in words, alone and among leases."""
    manager = ProxyManager(any_storage)
    for wrong in (uuid4(), "id", None):
        why = f"a lease is needed, as it was acquired or read, not a {type(wrong).__name__}"
        with pytest.raises(InvalidInputError, match=why):
            manager.release_proxy(wrong)  # type: ignore[arg-type]
        with pytest.raises(InvalidInputError, match=why):
            manager.release_proxies([wrong])  # type: ignore[list-item]


def test_a_block_gives_its_lease_back(any_storage: AnyStorage) -> None:
    """``with_lease`` releases at the end, also after an exception, and yields None for a miss."""
    fill(any_storage)
    manager = ProxyManager(any_storage)
    with pytest.raises(KeyError), manager.with_lease("pool"), manager.with_lease("pool") as second:
        raise KeyError(second)
    assert types_of(any_storage)[-3:] == ["LeaseAcquired", "AcquireMissed", "LeaseReleased"]
    with manager.with_lease("pool") as lease, manager.with_lease("pool") as second:
        assert (lease is not None, second is None) == (True, True)


@pytest.mark.parametrize("field", ["acquired_at", "expires_at", "released_at"])
def test_naive_datetimes_are_refused(field: str) -> None:
    """A moment without a time zone is refused where it is made."""
    facts = {"expires_at": pharox.models.utc_now(), field: datetime(2026, 1, 1)}
    with pytest.raises(ValidationError, match="timezone"):
        Lease(proxy_id=uuid4(), consumer_id=uuid4(), **facts)
    with pytest.raises(InvalidInputError, match="time zone"):
        InMemoryStorage().prune_leases(datetime(2026, 1, 1))
    with pytest.raises(ValidationError, match="timezone"):
        HealthCheckResult(
            proxy_id=uuid4(),
            status=ProxyStatus.ACTIVE,
            latency_ms=1,
            protocol=ProxyProtocol.HTTP,
            checked_at=datetime(2026, 1, 1),
        )


def test_moments_are_kept_in_utc() -> None:
    """A moment of another zone is kept as the same moment in UTC."""
    moment = datetime.fromisoformat("2026-01-01T12:00:00+05:30")
    lease = Lease(proxy_id=uuid4(), consumer_id=uuid4(), expires_at=moment)
    assert lease.expires_at == moment
    assert lease.expires_at.utcoffset() == timedelta(0)


def test_an_event_says_who_and_which_job(any_storage: AnyStorage) -> None:
    """What is done inside ``attributed`` carries the actor and the job's id."""
    fill(any_storage)
    with pharox.attributed(actor="ops", correlation_id="job-1"):
        ProxyManager(any_storage).acquire_proxy("pool")
    *_, registered, acquired = any_storage.events()
    assert (acquired.actor, acquired.correlation_id) == ("ops", "job-1")
    assert registered.actor == "ops"
    first = next(iter(any_storage.events()))
    assert first.actor is not None
    assert ":" in first.actor


def test_pruned_leases_stay_in_the_log(any_storage: AnyStorage) -> None:
    """Pruning forgets ended leases in the read model; held ones and the log stay."""
    fill(any_storage, 2)
    clock = clock_of(any_storage)
    manager = ProxyManager(any_storage)
    held, ended = manager.acquire_proxy("pool"), manager.acquire_proxy("pool")
    assert held is not None
    assert ended is not None
    manager.release_proxy(ended)
    clock.advance(120)
    assert any_storage.prune_leases(clock.now) == 1
    assert any_storage.get_lease(str(ended.id)) is None
    assert any_storage.get_lease(str(held.id)) is not None
    assert types_of(any_storage)[-1] == "LeasesPruned"
    assert any_storage.prune_leases(clock.now) == 0
    assert any_storage.verify() == []


class OlderAdapter(InMemoryStorage):
    """An adapter that knows only what 0.11.0's interface had."""

    acquire_lease = IStorage.acquire_lease
    return_lease = IStorage.return_lease
    expire_leases = IStorage.expire_leases

    def release_lease(self, lease: Lease) -> None:
        InMemoryStorage.return_lease(self, lease)

    def cleanup_expired_leases(self) -> int:
        return InMemoryStorage.expire_leases(self)[0]


def test_an_adapter_of_0_11_0_works_unchanged() -> None:
    """An adapter without the new methods leases, releases and expires through the manager."""
    storage = OlderAdapter()
    fill(storage)
    clock = clock_of(storage)
    manager, told = ProxyManager(storage), list[object]()
    manager.register_acquire_callback(told.append)
    manager.register_release_callback(told.append)
    with manager.with_lease("pool") as lease:
        assert lease is not None
        assert manager.acquire_proxy("pool") is None
    manager.release_proxy(lease)
    assert len(told) == 3
    manager.acquire_proxy("pool", duration_seconds=1)
    clock.advance(2)
    assert manager.cleanup_expired_leases() == 1


def test_a_late_release_among_very_many_that_are_due_is_late(any_storage: AnyStorage) -> None:
    """All due leases are taken back first, and callbacks get each once."""
    clock = clock_of(any_storage)
    fill(any_storage, 1, max_concurrency=5000)
    manager = ProxyManager(any_storage)
    told: list[UUID] = []
    manager.register_expire_callback(lambda expired: told.append(expired.lease.id))
    leases = [
        lease
        for _ in range(5)
        for lease in manager.acquire_proxies("pool", 1000, distinct=False, duration_seconds=1)
    ]
    clock.advance(2)
    manager.release_proxy(leases[-1])
    assert leases[-1].status is pharox.LeaseStatus.EXPIRED
    assert set(told) == {lease.id for lease in leases}
    assert len(told) == len(leases)

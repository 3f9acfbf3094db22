"""A transaction of the user's own requires a lease, which nobody takes back before it ends."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import make_url

from pharox import Lease, ProxyManager
from pharox.ledger.roles import Roles, grant
from pharox.storage.postgres import PostgresStorage
from tests.conftest import clock_of, fill, run_sql, types_of
from tests.ledger.following import until

REQUIRE = "SELECT pharox.require_lease(%s, %s)"


def held(storage: PostgresStorage, seconds: int = 300, capacity: int = 1) -> Lease:
    """Fill a pool with one proxy and lease it."""
    fill(storage, 1, max_concurrency=capacity)
    lease = ProxyManager(storage).acquire_proxy("pool", "w", seconds)
    assert lease is not None
    return lease


@contextmanager
def application(url: str) -> Iterator[psycopg.Connection[Any]]:
    """Connect as an application does, which knows nothing of pharox."""
    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain) as connection:
        yield connection


def test_it_passes_for_the_holder(postgres: PostgresStorage, database_url: str) -> None:
    """As often as it is called, and several transactions at once."""
    lease = held(postgres)
    with application(database_url) as one, application(database_url) as other:
        for connection in (one, other, one):
            connection.execute(REQUIRE, (lease.id, lease.fencing_token))


def test_it_fails_without_the_lease(postgres: PostgresStorage, database_url: str) -> None:
    """Released, run out, taken back, of another token, or never granted: each with its reason."""
    clock, manager = clock_of(postgres), ProxyManager(postgres)
    lease = held(postgres)
    token = lease.fencing_token
    assert token is not None

    def refused(lease_id: Any, token: int | None, reason: str) -> None:
        with (
            application(database_url) as connection,
            pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match=reason),
        ):
            connection.execute(REQUIRE, (lease_id, token))

    refused(lease.id, token + 1, "another fencing token")
    refused(lease.id, None, "another fencing token")
    refused(uuid4(), token, "there is no lease")
    manager.release_proxy(lease)
    refused(lease.id, token, "it was released at")
    revoked = manager.acquire_proxy("pool", "w")
    assert revoked is not None
    manager.revoke_lease(revoked.id, "its subnet is banned")
    refused(revoked.id, revoked.fencing_token, "it was revoked at .*: its subnet is banned")
    late = manager.acquire_proxy("pool", "w", 10)
    assert late is not None
    clock.advance(11)
    refused(late.id, late.fencing_token, "it ran out at")
    manager.cleanup_expired_leases()
    refused(late.id, late.fencing_token, "it ran out at")


def test_a_release_waits_for_the_transaction(postgres: PostgresStorage, database_url: str) -> None:
    """Renewals go on meanwhile, and so do other leases of other proxies."""
    lease = held(postgres)
    manager = ProxyManager(postgres)
    with application(database_url) as connection, ThreadPoolExecutor(1) as pool:
        connection.execute(REQUIRE, (lease.id, lease.fencing_token))
        manager.renew_lease(lease, 600)
        released = pool.submit(manager.release_proxy, lease)
        time.sleep(0.5)
        assert not released.done()
        assert types_of(postgres)[-1] == "LeaseRenewed"
        fill(postgres, 1, name="other")
        assert manager.acquire_proxy("other") is not None
        connection.commit()
        released.result(timeout=30)
    assert types_of(postgres)[-1] == "LeaseReleased"
    assert postgres.verify() == []


def test_an_expiry_waits_too(postgres: PostgresStorage, database_url: str) -> None:
    """What has run out is not taken back while it is required: the next holder waits."""
    clock, manager = clock_of(postgres), ProxyManager(postgres)
    lease = held(postgres, 10)
    with application(database_url) as connection, ThreadPoolExecutor(1) as pool:
        connection.execute(REQUIRE, (lease.id, lease.fencing_token))
        clock.advance(11)
        assert manager.cleanup_expired_leases() == 0
        waiting = pool.submit(manager.acquire_proxy, "pool", "next")
        time.sleep(0.5)
        assert not waiting.done()
        connection.commit()
        found = waiting.result(timeout=30)
    assert found is not None
    assert found.consumer_name == "next"
    assert types_of(postgres)[-2:] == ["LeaseExpired", "LeaseAcquired"]


def test_other_leases_of_the_proxy_are_free(postgres: PostgresStorage, database_url: str) -> None:
    """A proxy of many leases is not held up by the transaction of one."""
    lease = held(postgres, capacity=3)
    manager = ProxyManager(postgres)
    with application(database_url) as connection:
        connection.execute(REQUIRE, (lease.id, lease.fencing_token))
        neighbour = manager.acquire_proxy("pool", "neighbour")
        assert neighbour is not None
        manager.release_proxy(neighbour)


def test_it_is_judged_after_the_lock(postgres: PostgresStorage, database_url: str) -> None:
    """Whoever waited for a release is told of it."""
    lease = held(postgres)
    with (
        application(database_url) as ending,
        application(database_url) as connection,
        ThreadPoolExecutor(1) as pool,
    ):
        ending.execute("SELECT FROM pharox.leases WHERE id = %s FOR UPDATE", (lease.id,))
        waiting = pool.submit(connection.execute, REQUIRE, (lease.id, lease.fencing_token))
        time.sleep(0.3)
        assert not waiting.done()
        ending.execute(
            "UPDATE pharox.leases SET status = 'released', released_at = now() WHERE id = %s",
            (lease.id,),
        )
        ending.commit()
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="was released"):
            waiting.result(timeout=30)


def test_a_transaction_left_open_is_ended(postgres: PostgresStorage, database_url: str) -> None:
    """It outlasts the lease by 5 seconds at most; a shorter limit of its own stays."""
    lease = held(postgres, 3)
    limit = "SELECT current_setting('idle_in_transaction_session_timeout')::interval"
    with application(database_url) as own:
        own.execute("SET idle_in_transaction_session_timeout = '2s'")
        own.execute(REQUIRE, (lease.id, lease.fencing_token))
        row = own.execute(f"{limit} = interval '2s'").fetchone()
        assert row == (True,)

    def leave_open() -> None:
        with application(database_url) as connection:
            connection.execute(REQUIRE, (lease.id, lease.fencing_token))
            row = connection.execute(f"{limit} <= interval '8s'").fetchone()
            assert row == (True,)
            until(lambda: postgres.cleanup_expired_leases() == 1, 30)
            connection.execute("SELECT 1")

    with pytest.raises(psycopg.errors.IdleInTransactionSessionTimeout):
        leave_open()


def test_a_fence_may_do_nothing_else(postgres: PostgresStorage, database_url: str) -> None:
    """The role of an application needs no right on the ledger but this one."""
    lease = held(postgres)
    name = f"fence_{uuid4().hex[:8]}"
    run_sql(postgres.engine, f"CREATE ROLE {name}")
    try:
        grant(postgres, Roles(fence=[name]))
        with application(database_url) as connection:
            connection.execute(f"SET ROLE {name}")
            connection.execute(REQUIRE, (lease.id, lease.fencing_token))
            for query in ("SELECT * FROM pharox.leases", "SELECT * FROM pharox.events"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege), connection.transaction():
                    connection.execute(query)
    finally:
        run_sql(postgres.engine, f"DROP OWNED BY {name}")
        run_sql(postgres.engine, f"DROP ROLE {name}")


def test_nobody_may_call_it_unasked(postgres: PostgresStorage) -> None:
    """PUBLIC has no right to it."""
    query = (
        "SELECT has_function_privilege('public', 'pharox.require_lease(uuid, bigint)', 'EXECUTE')"
    )
    assert run_sql(postgres.engine, query) == [(False,)]

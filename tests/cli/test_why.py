"""``pharox why``."""

from __future__ import annotations

import re

import pharox as px
from pharox.console.pages.why import culprit_of
from pharox.history.why import why as explained
from pharox.storage.postgres import PostgresStorage
from tests.conftest import fill

from .conftest import Pharox


def test_the_holder_is_named(pharox: Pharox, storage: PostgresStorage) -> None:
    """The reason, how often in a row, what was asked for, and who held what until when."""
    fill(storage, 1)
    manager = px.ProxyManager(storage)
    assert manager.acquire_proxy("pool", "hoarder") is not None
    for _ in range(2):
        assert manager.acquire_proxy("pool", "late", target="shop.example") is None
    outcome = pharox("why", "late")
    assert outcome.status == 0
    told = outcome.out.splitlines()
    assert (
        told[0]
        == "late got nothing from pool pool: every healthy matching proxy was leased to its limit; "
        "hoarder held 1 of 1 lease"
    )
    assert "its last of 2 misses in a row, since " in told[1]
    assert re.fullmatch(r"  missed 2 at \d\d:\d\d|  missed 1 at .*, 1 at .*", told[2])
    assert "target shop.example" in told[3]
    holder = told.index("  hoarder, 1 lease")
    assert told[holder + 1].startswith("    http://")
    assert told[-1] == "it has got none since"


def test_who_banned_what_is_named(pharox: Pharox, storage: PostgresStorage) -> None:
    """With the reason and the actor; of many, five are listed and the others counted."""
    _, proxies = fill(storage, 7)
    with px.attributed(actor="ops"):
        for proxy in proxies:
            storage.set_status(proxy.id, px.ProxyStatus.BANNED, reason="429 \x1b[31meverywhere")
    assert px.ProxyManager(storage).acquire_proxy("pool", "late") is None
    told = pharox("why", "late").out
    assert told.count(" by ops: 429 ") == 5
    assert "2 proxies more" in told
    assert "\x1b" not in told


def test_a_limit_is_named_and_nobody_else_blamed(pharox: Pharox, storage: PostgresStorage) -> None:
    """On the command line and on the console's page."""
    pool, _ = fill(storage, 3)
    limits = px.PoolLimits(leases_per_consumer=1)
    storage.save_pool(pool.model_copy(update={"limits": limits}))
    manager = px.ProxyManager(storage)
    for consumer in ("aaa", "bbb", "bbb"):
        manager.acquire_proxy("pool", consumer)
    first = pharox("why", "bbb").out.splitlines()[0]
    assert first.endswith("; the limit is leases_per_consumer, of consumer 'bbb'")
    found = explained(storage, "bbb")
    assert found is not None
    sentence = culprit_of(found)
    assert sentence is not None
    assert sentence.text == "The limit is leases_per_consumer of the pool, of consumer 'bbb'."


def test_one_object_for_scripts(pharox: Pharox, storage: PostgresStorage) -> None:
    """It has the miss, the holders with their leases, and what was not usable."""
    fill(storage, 1)
    manager = px.ProxyManager(storage)
    lease = manager.acquire_proxy("pool", "hoarder")
    assert lease is not None
    manager.acquire_proxy("pool", "late")
    (found,) = pharox("why", "late", "--json").objects
    assert found["missed"]["reason"] == "at_capacity"
    assert found["pool_had"]["available_proxies"] == 0
    ((held,),) = [each["leases"] for each in found["holders"]]
    assert (held["lease_id"], held["proxy_id"]) == (str(lease.id), str(lease.proxy_id))
    (none,) = pharox("why", "hoarder", "--json").objects
    assert none == {"consumer": "hoarder", "missed": None}


def test_a_moment_before_the_miss(pharox: Pharox, storage: PostgresStorage) -> None:
    """There is nothing to explain yet; a consumer that nobody knows is an error."""
    fill(storage, 1)
    manager = px.ProxyManager(storage)
    manager.acquire_proxy("pool", "late")
    before = list(storage.events())[-1].seq
    manager.acquire_proxy("pool", "late")
    told = pharox("why", "late", "--at", before).out
    assert (
        told == f"late got a proxy each time that it asked for one up to {before}, or never asked\n"
    )
    outcome = pharox("why", "nobody")
    assert (outcome.status, outcome.out) == (1, "")
    assert "there never was a consumer 'nobody'" in outcome.err

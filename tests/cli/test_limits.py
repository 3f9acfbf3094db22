"""The limits of a pool at the command line."""

from __future__ import annotations

import pytest

from pharox import Pace, PoolLimits
from pharox.storage.postgres import PostgresStorage
from tests.conftest import DatabaseClock, fill

from .conftest import Pharox


def test_they_are_set_listed_and_taken_away(pharox: Pharox, storage: PostgresStorage) -> None:
    """``add`` and ``set`` take them; what is not named stays, the paces replace those before."""
    pool_id = pharox("pools", "add", "p", "--leases-per-consumer", "4").out.strip()
    options = ("--leases-per-target", "2", "--pace", "proxy:5/60s", "--pace", "pair:1/10s")
    assert pharox("pools", "set", "p", *options).status == 0
    paces = (Pace(starts=5, seconds=60), Pace(starts=1, seconds=10, per="pair"))
    limits = PoolLimits(leases_per_consumer=4, leases_per_target=2, paces=paces)
    assert storage.get_pool(pool_id).limits == limits
    assert "4 a consumer, 2 a target, proxy:5/60s, pair:1/10s" in pharox("pools").out
    told = pharox("audit", "pool", "p").out
    assert "a consumer holds 4 leases at most" in told
    assert "a proxy begins 5 leases in 1 min 0 s at most" in told
    pharox("pools", "set", "p", "--leases-per-consumer", "0", "--leases-per-target", "0")
    assert storage.get_pool(pool_id).limits == PoolLimits(paces=paces)
    pharox("pools", "set", "p", "--pace", "")
    assert storage.get_pool(pool_id).limits is None


@pytest.mark.parametrize(
    "pace",
    ["proxy", "proxy:5", "page:5/60s", "proxy:0/60s", "proxy:5/0s", "proxy:5/x", "proxy:-1/6"],
)
def test_a_pace_that_is_none_is_refused(
    pharox: Pharox, storage: PostgresStorage, pace: str
) -> None:
    pharox("pools", "add", "p")
    refused = pharox("pools", "set", "p", "--pace", pace)
    assert refused.status != 0
    assert refused.err
    assert storage.list_pools()[0].limits is None


def test_a_miss_is_explained_in_one_sentence(pharox: Pharox, storage: PostgresStorage) -> None:
    pool, _ = fill(storage, 1, max_concurrency=5)
    limits = PoolLimits(leases_per_consumer=1)
    storage.save_pool(pool.model_copy(update={"limits": limits}))
    assert pharox("acquire", "pool", "--consumer", "w").status == 0
    refused = pharox("acquire", "pool", "--consumer", "w")
    assert (
        "a limit of pool 'pool' is reached: the consumer has 1 of at most 1 leases" in refused.err
    )
    told = pharox("audit", "consumer", "w").out
    assert "consumer w already held 1 of at most 1 lease; time frees one in" in told
    paced = PoolLimits(paces=(Pace(starts=1, seconds=600),))
    storage.save_pool(pool.model_copy(update={"limits": paced}))
    assert pharox("acquire", "pool").status == 0
    assert pharox("acquire", "pool").status != 0
    told = pharox("audit", "pool", "pool").out
    assert "each free proxy had begun 1 of at most 1 lease in 10 min 0 s" in told
    assert '"limit_reached"' in pharox("log", "--json").out.replace("'", '"')


def test_a_miss_says_when_the_limit_is_freed(pharox: Pharox, storage: PostgresStorage) -> None:
    """Not when a proxy is, and also after other pools were tried."""
    pool, _ = fill(storage, 3)
    fill(storage, 0, name="other")
    DatabaseClock(storage)
    paced = PoolLimits(paces=(Pace(starts=1, seconds=3600, per="consumer"),))
    storage.save_pool(pool.model_copy(update={"limits": paced}))
    assert pharox("acquire", "pool", "--consumer", "w", "--duration", "60").status == 0
    for fallback in ((), ("--fallback", "other")):
        refused = pharox("acquire", "pool", "--consumer", "w", *fallback)
        assert (
            "the consumer began 1 of at most 1 leases in 3600 s; time frees one in 1 h 0 min"
            in (refused.err)
        )

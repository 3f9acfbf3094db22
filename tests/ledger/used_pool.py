"""A pool that is used at random, in every way that leaves something behind."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta

from pharox import (
    CoolDown,
    Lease,
    LeaseEndedError,
    Outcome,
    Proxy,
    ProxyManager,
    ProxyPool,
    ProxyStatus,
    Sticky,
)
from pharox.storage.reports import CoolDownRequest
from pharox.testing import checked
from tests.conftest import AnyStorage, clock_of, proxies_of

TARGETS = ("shop.example", "news.example", "maps.example")
KEYS = ("a", "b", "Z", "é", "k")


class UsedPool:
    """Uses a pool, its proxies, leases, sessions and rules."""

    def __init__(self, storage: AnyStorage, seed: int) -> None:
        self.storage, self.clock = storage, clock_of(storage)
        self.choose = random.Random(seed)
        self.manager = ProxyManager(storage)
        self.pool = ProxyPool(name="pool", cool_down=CoolDown(after=1))
        storage.save_pool(self.pool)
        self.proxies = proxies_of(self.pool, 5, max_concurrency=2)
        storage.add_proxies_bulk(self.proxies)
        self._held: list[Lease] = []

    def play(self, acts: int) -> None:
        """Do so many things, one after another."""
        ways: list[tuple[Callable[[], object], int]] = [
            (self._lease, 10),
            (self._release, 8),
            (self._check, 4),
            (self._sweep, 1),
            (self._wait, 6),
            (self._cool, 2),
            (self._forget, 2),
            (self._inherit, 1),
            (self._ban, 1),
            (self._replace, 1),
            (self._prune, 1),
            (self._change, 1),
        ]
        acting, weights = zip(*ways, strict=True)
        for act in self.choose.choices(acting, weights, k=acts):
            act()

    def _one(self) -> Proxy:
        return self.choose.choice(self.proxies)

    def _lease(self) -> None:
        sticky = Sticky(self.choose.choice(KEYS), seconds=self.choose.choice((50, 5000)))
        lease = self.manager.acquire_proxy(
            "pool",
            "worker",
            self.choose.choice((40, 900)),
            target=self.choose.choice((*TARGETS, None)),
            sticky=self.choose.choice((None, sticky)),
        )
        if lease is not None:
            self._held.append(lease)

    def _release(self) -> None:
        if not self._held:
            return
        lease = self._held.pop(self.choose.randrange(len(self._held)))
        target = lease.target or self.choose.choice(TARGETS)
        outcome = self.choose.choice(
            (Outcome.ok(target), Outcome.blocked(target=target, status=429), None)
        )
        with suppress(LeaseEndedError):  # it expired, and was pruned
            self.manager.release_proxy(lease, outcome=outcome)

    def _check(self) -> None:
        age = timedelta(seconds=self.choose.choice((0, 0, 300)))
        status = self.choose.choice((ProxyStatus.ACTIVE, ProxyStatus.SLOW, ProxyStatus.INACTIVE))
        self.storage.record_health_checks(
            [checked(self._one(), status=status, checked_at=self.clock.now - age)]
        )

    def _sweep(self) -> None:
        some = self.choose.sample(self.proxies, 3)
        rows = {proxy.id: proxy for proxy in self.storage.list_proxies(str(self.pool.id))}
        self.storage.record_health_checks(
            [
                checked(
                    proxy,
                    status=rows[proxy.id].status,
                    latency_ms=self.choose.randrange(900),
                    checked_at=self.clock.now,
                )
                for proxy in some
                if rows[proxy.id].status is not ProxyStatus.BANNED
            ]
        )

    def _wait(self) -> None:
        self.clock.advance(self.choose.choice((1, 30, 200)))
        self.manager.cleanup_expired_leases()

    def _cool(self) -> None:
        seconds = self.choose.choice((None, 20, 2000))
        asked = CoolDownRequest(self._one().id, self.choose.choice(TARGETS), seconds)
        self.storage.set_cool_down(asked)

    def _forget(self) -> None:
        self.storage.forget_session("pool", self.choose.choice(KEYS))

    def _inherit(self) -> None:
        living = {each.key for each in self.storage.list_sessions("pool")}
        if living and (free := set(KEYS) - living):
            self.storage.inherit_session("pool", min(living), min(free))

    def _ban(self) -> None:
        self.storage.set_status(self._one().id, self.choose.choice([*ProxyStatus]))

    def _replace(self) -> None:
        """Remove a proxy, and bring it back under the same id."""
        proxy = self._one()
        self._held = [lease for lease in self._held if lease.proxy_id != proxy.id]
        self.storage.delete_proxy(str(proxy.id))
        self.storage.add_proxies_bulk([proxy])

    def _prune(self) -> None:
        self.storage.prune_leases(self.clock.now - timedelta(seconds=600))

    def _change(self) -> None:
        rest = self.choose.choice((None, 15.0, 400.0))
        self.pool = self.pool.model_copy(update={"rest_after_release_seconds": rest})
        self.storage.save_pool(self.pool)

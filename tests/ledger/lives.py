"""Random histories: pools that come, are renamed and go, and what is leased from them meanwhile."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta
from uuid import uuid4

from hypothesis import strategies as st

from pharox import (
    CoolDown,
    HealthCheckResult,
    Lease,
    Outcome,
    OutcomeKind,
    Proxy,
    ProxyFilters,
    ProxyPool,
    ProxyProtocol,
    ProxyStatus,
    ProxyUnavailableError,
    SelectorStrategy,
)
from pharox.storage.reports import CoolDownRequest, ReportRequest
from pharox.storage.requests import AcquireRequest, RevokeRequest
from tests.conftest import AnyStorage, Clock

Command = tuple[str, int]

WEIGHTS = {
    "acquire": 6,
    "release": 4,
    "wait": 3,
    "check": 3,
    "sweep": 2,
    "register": 2,
    "change": 2,
    "remove": 1,
    "lease_one": 1,
    "find": 1,
    "prune": 1,
    "rename": 1,
    "revoke": 1,
    "rest": 1,
    "renew": 1,
    "report": 3,
    "cool_down": 1,
}
COMMANDS = st.lists(
    st.tuples(
        st.sampled_from([name for name, weight in WEIGHTS.items() for _ in range(weight)]),
        st.integers(0, 10**6),
    ),
    min_size=5,
    max_size=50,
)
"""What happens, and a number that picks to whom and how."""


class Life:
    """Leads the life of two pools in a storage; ``names`` are all that either ever had."""

    def __init__(self, storage: AnyStorage, clock: Clock) -> None:
        self.storage, self.clock = storage, clock
        self.pools: list[ProxyPool] = []
        self.proxies: list[Proxy] = []
        self.leases: list[Lease] = []
        for _ in range(2):
            self._begin_pool(f"pool {uuid4().hex[:8]}")

    def lead(self, commands: list[Command]) -> None:
        """Do one thing after another; what cannot be done is left out."""
        for name, pick in commands:
            with suppress(ProxyUnavailableError, IndexError):
                getattr(self, name)(pick)

    def acquire(self, pick: int) -> None:
        filters = (None, ProxyFilters(country="AR"))[pick % 2]
        selector = list(SelectorStrategy)[pick % 4]
        pool = self.pools[pick // 4 % 2]
        name = pool.name if pick % 7 else "nowhere"
        request = AcquireRequest(name, f"worker-{pick % 3}", 1 + pick % 50, filters, selector)
        if (lease := self.storage.acquire_lease(request).lease) is not None:
            self.leases.append(lease)

    def release(self, pick: int) -> None:
        lease = self.leases.pop(pick % (len(self.leases) or 1))
        self.storage.return_lease(lease, reason=(None, "done")[pick % 2])

    def wait(self, pick: int) -> None:
        self.clock.advance((0.5, 20, 90)[pick % 3])
        if pick % 2:
            self.storage.cleanup_expired_leases()

    def check(self, pick: int) -> None:
        self.storage.apply_health_check_result(
            HealthCheckResult(
                proxy_id=self._proxy(pick).id,
                status=list(ProxyStatus)[pick % 4],
                latency_ms=pick % 900,
                protocol=ProxyProtocol.HTTP,
                checked_at=self.clock.now - timedelta(seconds=pick % 3),
            )
        )

    def sweep(self, pick: int) -> None:
        """Check all proxies of both pools; most are found as they stand."""
        found = [self.storage.get_proxy(str(proxy.id)) for proxy in self.proxies]
        self.storage.record_health_checks(
            [
                HealthCheckResult(
                    proxy_id=proxy.id,
                    status=list(ProxyStatus)[pick % 4] if not (pick + i) % 5 else proxy.status,
                    latency_ms=(pick + i) % 900,
                    protocol=ProxyProtocol.HTTP,
                    checked_at=self.clock.now - timedelta(seconds=(pick + i) % 3),
                )
                for i, proxy in enumerate(found)
            ]
        )

    def register(self, pick: int) -> None:
        proxy = Proxy(
            host=f"10.0.0.{pick % 250}",
            port=1 + pick % 60_000,
            protocol=ProxyProtocol.HTTP,
            pool_id=self.pools[pick % 2].id,
            status=ProxyStatus.ACTIVE,
            checked_at=self.clock.now,
            country=("AR", None)[pick % 3 // 2],
            max_concurrency=(1, 1, 2, None)[pick % 4],
        )
        self.storage.save_proxy(proxy)
        self.proxies.append(proxy)

    def change(self, pick: int) -> None:
        changed = {"country": ("AR", "CL")[pick % 2], "status": list(ProxyStatus)[pick % 4]}
        self.storage.save_proxy(self._proxy(pick).model_copy(update=changed))

    def remove(self, pick: int) -> None:
        proxy = self._proxy(pick)
        self.storage.delete_proxy(str(proxy.id))
        self.proxies.remove(proxy)

    def lease_one(self, pick: int) -> None:
        self.leases.append(self.storage.create_lease(self._proxy(pick), "direct", 1 + pick % 50))

    def find(self, pick: int) -> None:
        name = self.pools[pick % 2].name
        self.storage.find_available_proxy(name, selector=SelectorStrategy.ROUND_ROBIN)

    def prune(self, pick: int) -> None:
        self.storage.prune_leases(self.clock.now - timedelta(seconds=pick % 120))

    def rename(self, pick: int) -> None:
        renamed = {"name": f"pool {uuid4().hex[:8]}"}
        self.pools[pick % 2] = self.pools[pick % 2].model_copy(update=renamed)
        self.storage.save_pool(self.pools[pick % 2])

    def revoke(self, pick: int) -> None:
        lease = self.leases.pop(pick % (len(self.leases) or 1))
        self.storage.revoke_leases(RevokeRequest((lease.id,), "why"))

    def rest(self, pick: int) -> None:
        rests = {
            "rest_after_release_seconds": (None, 5)[pick % 2],
            "rest_after_expiry_seconds": (None, 0, 30.5)[pick % 3],
            "max_held_seconds": (None, 45.5)[pick % 2],
            "selector": (None, *SelectorStrategy)[pick % (1 + len(SelectorStrategy))],
            "lease_seconds": (None, 20.5)[pick % 2],
            "max_concurrency": (None, 2)[pick % 2],
        }
        self.pools[pick % 2] = self.pools[pick % 2].model_copy(update=rests)
        self.storage.save_pool(self.pools[pick % 2])

    def renew(self, pick: int) -> None:
        """Remove a pool, and give its name to a new one."""
        pool = self.pools.pop(pick % 2)
        self.storage.delete_pool(str(pool.id))
        self.proxies = [proxy for proxy in self.proxies if proxy.pool_id != pool.id]
        self._begin_pool(pool.name)

    def report(self, pick: int) -> None:
        lease = self.leases[pick % (len(self.leases) or 1)]
        outcome = Outcome(
            kind=list(OutcomeKind)[pick % 5],
            target=("shop.example", "news.example", None)[pick % 3],
            status=(None, 403, 429)[pick // 3 % 3],
            retry_after_seconds=(None, None, 40)[pick // 5 % 3],
            count=1 + pick % 2,
        )
        self.storage.report_outcomes([ReportRequest(lease, outcome)])

    def cool_down(self, pick: int) -> None:
        """Have a proxy rest for a target by hand, or end that, or change the policy of a pool."""
        if pick % 4 == 0:
            policy = {"cool_down": (None, CoolDown(after=1, base_seconds=5))[pick // 4 % 2]}
            self.pools[pick % 2] = self.pools[pick % 2].model_copy(update=policy)
            self.storage.save_pool(self.pools[pick % 2])
            return
        seconds = (None, 0.5, 60)[pick % 3]
        request = CoolDownRequest(self._proxy(pick).id, "shop.example", seconds, "why")
        self.storage.set_cool_down(request)

    def _begin_pool(self, name: str) -> None:
        pool = ProxyPool(name=name)
        self.storage.save_pool(pool)
        self.pools.append(pool)
        for number in (1, 2):
            self.register(4 * number + len(self.pools) - 1)

    def _proxy(self, pick: int) -> Proxy:
        return self.proxies[pick % (len(self.proxies) or 1)]

"""What storages must do that fall back to further pools."""

from __future__ import annotations

from ..models import MissReason
from ..storage import IStorage
from ..storage.requests import AcquireRequest, AcquireSetRequest
from .making import lease_from, make_pool, make_proxy


class FallbackContract:
    """What a storage must do that falls back to further pools. A part of ``StorageContract``."""

    def test_the_next_pool_is_tried_and_it_says_why(self, storage: IStorage) -> None:
        """In their order; if none has a proxy there is one miss, with the reasons of all."""
        if not storage.can_fall_back:
            return
        first, second = make_pool(storage, "first"), make_pool(storage, "second")
        make_proxy(storage, first)
        make_proxy(storage, second)
        assert lease_from(storage, first, fallback=["second"]).pool_name == "first"
        lease = lease_from(storage, first, fallback=["second"])
        assert lease.pool_name == "second"
        missed = storage.acquire_lease(AcquireRequest("first", "worker", fallback=["second"]))
        assert missed.miss_reason is MissReason.AT_CAPACITY
        assert [each.pool_name for each in missed.missed_in] == ["first", "second"]
        storage.return_lease(lease)
        again = storage.acquire_lease(AcquireRequest("first", "worker", fallback=["second"]))
        assert again.lease is not None
        assert [each.pool_name for each in again.missed_in] == ["first"]

    def test_a_set_is_of_one_of_its_pools(self, storage: IStorage) -> None:
        """The first that has enough of it."""
        if not storage.can_fall_back:
            return
        first, second = make_pool(storage, "first"), make_pool(storage, "second")
        make_proxy(storage, first)
        for _ in range(2):
            make_proxy(storage, second)
        found = storage.acquire_set(AcquireSetRequest("first", "w", 2, fallback=["second"]))
        assert [lease.pool_name for lease in found.leases] == ["second"] * 2

"""What storages must do that keep sticky sessions."""

from __future__ import annotations

import pytest

from ..errors import ConflictError, InvalidInputError, SessionNotFoundError
from ..models import MissReason, Sticky
from ..storage import IStorage
from ..storage.requests import AcquireRequest
from .making import make_pool, make_proxy


class StickyContract:
    """What a storage must do that keeps sticky sessions. A part of ``StorageContract``."""

    def test_a_key_keeps_its_proxy_or_the_storage_cannot(self, storage: IStorage) -> None:
        """It is leased each time; while it is leased, another is, or none if it is required."""
        pool = make_pool(storage)
        for _ in range(3):
            make_proxy(storage, pool)
        if not storage.can_stick:
            assert storage.list_sessions() == []
            with pytest.raises(InvalidInputError):
                storage.forget_session(pool.name, "a")
            with pytest.raises(InvalidInputError):
                storage.inherit_session(pool.name, "a", "b")
            return
        first = storage.acquire_lease(AcquireRequest(pool.name, "w", sticky=Sticky("a"))).lease
        assert first is not None
        required = AcquireRequest(pool.name, "w", sticky=Sticky("a", policy="require"))
        assert storage.acquire_lease(required).miss_reason is MissReason.SESSION_BUSY
        other = storage.acquire_lease(AcquireRequest(pool.name, "w", sticky=Sticky("b"))).lease
        assert other is not None
        assert other.proxy_id != first.proxy_id
        storage.return_lease(first)
        again = storage.acquire_lease(required).lease
        assert again is not None
        assert again.proxy_id == first.proxy_id
        keys = [(each.key, each.proxy_id) for each in storage.list_sessions(pool.name)]
        assert keys == [("a", first.proxy_id), ("b", other.proxy_id)]

    def test_a_binding_is_handed_on_and_forgotten(self, storage: IStorage) -> None:
        """An heir has the proxy; one that is bound itself, or inherits nothing, is refused."""
        if not storage.can_stick:
            return
        pool = make_pool(storage)
        make_proxy(storage, pool)
        lease = storage.acquire_lease(AcquireRequest(pool.name, "w", sticky=Sticky("a"))).lease
        assert lease is not None
        storage.inherit_session(pool.name, "a", "b")
        with pytest.raises(SessionNotFoundError):
            storage.inherit_session(pool.name, "a", "c")
        assert [each.key for each in storage.list_sessions(pool.name)] == ["b"]
        assert storage.forget_session(pool.name, "b") == lease.proxy_id
        assert storage.forget_session(pool.name, "b") is None
        assert storage.list_sessions() == []

    def test_an_heir_has_no_proxy_of_its_own(self, storage: IStorage) -> None:
        """It is to be forgotten first."""
        if not storage.can_stick:
            return
        pool = make_pool(storage)
        for key in ("a", "b"):
            make_proxy(storage, pool)
            assert storage.acquire_lease(AcquireRequest(pool.name, "w", sticky=Sticky(key))).lease
        with pytest.raises(ConflictError):
            storage.inherit_session(pool.name, "a", "b")

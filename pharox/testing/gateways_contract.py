"""What storages must do with the templates of gateways."""

from __future__ import annotations

import pytest

from ..errors import InvalidInputError, LeaseEndedError
from ..models import Lease, ProxyCredentials
from ..storage import IStorage
from .making import lease_from, make_pool, make_proxy


class GatewaysContract:
    """What a storage must do with templates. A part of ``StorageContract``."""

    def test_a_template_is_filled_for_each_lease(self, storage: IStorage) -> None:
        """Each lease has an exit of its own, and a URL that is for it."""
        leases = _leased_from_a_template(storage)
        urls = [lease.proxy.url for lease in leases]
        assert len({*urls}) == len(urls)
        for lease, url in zip(leases, urls, strict=True):
            assert lease.exit is not None
            assert f"user-{lease.exit.session}-us-5:secret@" in url

    def test_a_lease_takes_another_exit_or_the_storage_cannot(self, storage: IStorage) -> None:
        """It is recorded with the lease; one that has ended takes none."""
        lease, other = _leased_from_a_template(storage)
        try:
            taken = storage.rotate_exit(lease.id)
        except InvalidInputError:
            return  # The storage does not know templates.
        assert lease.exit is not None
        assert taken.session not in (None, lease.exit.session)
        assert _known(storage, lease).exit == taken
        assert _known(storage, other).exit == other.exit
        storage.return_lease(lease)
        with pytest.raises(LeaseEndedError):
            storage.rotate_exit(lease.id)


def _leased_from_a_template(storage: IStorage) -> list[Lease]:
    """Register a template, and lease it twice."""
    login = ProxyCredentials(user="user-{session}-{country}-{lifetime}", password="secret")  # noqa: S106
    pool = make_pool(storage)
    make_proxy(storage, pool, credentials=login, country="US", max_concurrency=2)
    return [lease_from(storage, pool, duration_seconds=300) for _ in range(2)]


def _known(storage: IStorage, lease: Lease) -> Lease:
    known = storage.get_lease(str(lease.id))
    assert known is not None
    return known

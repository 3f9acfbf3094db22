"""A lab over any storage, with a manager for tasks of the same ledger."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pharox import AsyncProxyManager
from pharox.integrations.testing import Behaviour, ProxyLab, proxy_lab
from tests.conftest import AnyStorage, for_tasks

ONE = {"good": Behaviour()}
"""A lab's only proxy, where nothing depends on what proxies do."""


def events_of(lab: ProxyLab) -> list[Any]:
    """Return the events of a lab's ledger, in order."""
    storage: Any = lab.storage
    return list(storage.events())


@dataclass
class Lab:
    """A lab, and a manager whose storage is to be closed in the loop that used it."""

    lab: ProxyLab
    manager: AsyncProxyManager

    @property
    def pool(self) -> str:
        """The name of the pool."""
        return self.lab.pool_name

    async def close(self) -> None:
        """Write what is counted, and close the connections."""
        storage: Any = self.manager.storage
        await storage.close()


@contextmanager
def lab_for_tasks(storage: AnyStorage, behaviours: Mapping[str, Behaviour] = ONE) -> Iterator[Lab]:
    """Run a lab over a storage of the tests, for coroutines."""
    with proxy_lab(behaviours, storage=storage) as lab:
        yield Lab(lab, AsyncProxyManager(for_tasks(storage)))

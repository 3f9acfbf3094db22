"""A lab: proxies, a site, and a pool of them in a ledger. A thread serves their sockets."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar
from uuid import UUID

from ...errors import InvalidInputError
from ...events.types import OutcomeReported
from ...manager.async_proxy_manager import AsyncProxyManager
from ...manager.proxy_manager import ProxyManager
from ...models import (
    Lease,
    LeaseStatus,
    OutcomeKind,
    Proxy,
    ProxyCredentials,
    ProxyPool,
    ProxyProtocol,
    ProxyStatus,
)
from ...storage.async_in_memory import AsyncInMemoryStorage
from ...storage.interface import IStorage
from .behaviour import FIVE, Behaviour, Script
from .proxies import LabProxy
from .site import Seen, Site

HOST = "127.0.0.1"
SITE = "shop.example"

T = TypeVar("T")
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]


class Authority(Protocol):
    """What issues certificates, as ``trustme.CA()`` does."""

    def issue_cert(self, *identities: str) -> Any:
        """Return a certificate for hosts, with the method ``configure_cert(context)``."""


@dataclass(frozen=True)
class Told:
    """What was reported of a request, or of ``count`` requests alike.

    ``proxy`` is the name in the lab.
    """

    proxy: str
    kind: OutcomeKind
    target: str | None
    status: int | None
    count: int


class ProxyLab:
    """Proxies on loopback, and the pool that they are in.

    Made by :func:`proxy_lab`.

    Attributes
    ----------
    storage:
        The ledger.
    pool_name:
        The pool of all proxies.
    manager:
        A manager of the ledger.
    seen:
        Every request that reached the site, in order.
    proxies:
        Every proxy by its name, as registered.
    """

    def __init__(
        self, storage: IStorage, pool_name: str, memory: AsyncInMemoryStorage | None
    ) -> None:
        self.storage, self.pool_name, self._memory = storage, pool_name, memory
        self.manager = ProxyManager(storage)
        self.proxies: dict[str, Proxy] = {}
        self._site = Site()
        self.seen: list[Seen] = self._site.seen
        self._ports: dict[bool, int] = {}
        self._server = _Server()

    @property
    def async_manager(self) -> AsyncProxyManager:
        """A manager for coroutines, of the same ledger.

        Raises
        ------
        InvalidInputError
            If the lab was given a storage: make a manager of its twin for coroutines.
        """
        if self._memory is None:
            raise InvalidInputError("this lab's storage is yours; make an AsyncProxyManager of it")
        return AsyncProxyManager(self._memory)

    @property
    def held(self) -> list[Lease]:
        """The leases that somebody holds: none, when what is tested has given all back."""
        leases = self.storage.list_leases()
        return [lease for lease in leases if lease.status is LeaseStatus.ACTIVE]

    @property
    def outcomes(self) -> list[Told]:
        """What was reported, in order; counts that were not written yet are written first.

        Of a manager for coroutines, ``await manager.flush_reports()`` before.
        """
        self.manager.flush_reports()
        names = {proxy.id: name for name, proxy in self.proxies.items()}
        return [
            Told(names[each.proxy_id], each.outcome, each.target, each.status, each.count)
            for each in self.storage.events()  # type: ignore[attr-defined] # all of ours have them
            if isinstance(each, OutcomeReported) and each.proxy_id in names
        ]

    def name_of(self, lease: Lease) -> str:
        """Return the name of a lease's proxy."""
        return next(name for name, proxy in self.proxies.items() if proxy.id == lease.proxy_id)

    def url(self, path: str = "/", *, host: str = SITE, tls: bool = False) -> str:
        """Return the URL of a page, which is there through the lab's proxies only.

        Parameters
        ----------
        path:
            ``/status/N`` answers with that status, ``/redirect/PATH`` with a redirect to the
            path, and every other with 200.
        host:
            Any: the lab's site answers for all of them. No name is resolved.
        tls:
            Whether it is for TLS, which needs an ``authority``.
        """
        if tls and True not in self._ports:
            raise InvalidInputError("the site has no TLS; give proxy_lab an authority")
        return f"{'https' if tls else 'http'}://{host}{path}"

    def _start(
        self, behaviours: Mapping[str, Behaviour], context: ssl.SSLContext | None, most: int
    ) -> None:
        """Let the site and all proxies listen, and register the proxies."""
        self._server.start()
        self._ports[False] = self._server.listen(self._site.serve)
        if context is not None:
            self._ports[True] = self._server.listen(self._site.serve, context)
        pool = ProxyPool(name=self.pool_name)
        for name, behaviour in behaviours.items():
            server = LabProxy(name, Script(behaviour), self._site, self._port_of_site)
            port = _closed_port() if behaviour.is_down else self._server.listen(server.serve)
            self.proxies[name] = _registered(behaviour, pool.id, port, most)
        self.storage.save_pool(pool)
        self.storage.add_proxies_bulk([*self.proxies.values()])

    def _port_of_site(self, is_tls: bool) -> int:
        return self._ports.get(is_tls, self._ports[False])


@contextmanager
def proxy_lab(
    behaviours: Mapping[str, Behaviour] | None = None,
    *,
    storage: IStorage | None = None,
    pool_name: str = "lab",
    max_concurrency: int = 1,
    authority: Authority | None = None,
    hosts: Sequence[str] = (SITE,),
) -> Iterator[ProxyLab]:
    """Run proxies on loopback that behave as told, with a pool of them in a ledger.

    Parameters
    ----------
    behaviours:
        How each proxy behaves, by names of your own; :data:`FIVE` if None.
    storage:
        Where the pool is registered; a ledger in memory if None.
    pool_name:
        Its name.
    max_concurrency:
        How many leases a proxy can have at once.
    authority:
        What issues the site's certificate, such as ``trustme.CA()``. Without, the site has no TLS.
    hosts:
        The names that the certificate is for.

    Yields
    ------
    ProxyLab
        The running lab. Nothing of it runs after the block.
    """
    memory = AsyncInMemoryStorage() if storage is None else None
    lab = ProxyLab(memory.memory if memory else storage, pool_name, memory)  # type: ignore[arg-type]
    context = None
    if authority is not None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert(*hosts).configure_cert(context)
    try:
        lab._start(FIVE if behaviours is None else behaviours, context, max_concurrency)
        yield lab
    finally:
        lab._server.stop()


def _registered(behaviour: Behaviour, pool_id: UUID, port: int, most: int) -> Proxy:
    login = {"user": behaviour.user, "password": behaviour.password}
    return Proxy(
        host=HOST,
        port=port,
        protocol=ProxyProtocol(behaviour.protocol),
        pool_id=pool_id,
        status=ProxyStatus.ACTIVE,
        max_concurrency=most,
        credentials=ProxyCredentials.model_validate(login) if any(login.values()) else None,
    )


def _closed_port() -> int:
    """Return a port on which nobody listens."""
    with socket.socket() as free:
        free.bind((HOST, 0))
        return int(free.getsockname()[1])


class _Server:
    """An event loop in a thread of its own, and what listens there."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="lab", daemon=True)
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self) -> None:
        self._thread.start()

    def listen(self, serve: Serve, context: ssl.SSLContext | None = None) -> int:
        """Serve connections on a free port, and return it."""
        return self._call(self._listen(serve, context))

    def stop(self) -> None:
        """End all connections, and the thread."""
        if self._thread.is_alive():
            self._call(self._close())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        self._loop.close()

    def _call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    async def _listen(self, serve: Serve, context: ssl.SSLContext | None) -> int:
        async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None  # noqa: S101 - it is a coroutine's
            self._tasks.add(task)
            try:
                with suppress(OSError, EOFError, asyncio.LimitOverrunError, asyncio.CancelledError):
                    await serve(reader, writer)
            finally:
                self._tasks.discard(task)
                writer.close()

        server = await asyncio.start_server(one, HOST, 0, backlog=1024, ssl=context)
        self._servers.append(server)
        return int(server.sockets[0].getsockname()[1])

    async def _close(self) -> None:
        for server in self._servers:
            server.close()
        tasks = [*self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.05)  # Transports close in the loop's next turns.

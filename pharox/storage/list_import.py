"""Decide what becomes of each proxy of a list that is imported.

A proxy is *known* if the pool has it with the same credentials. If the pool has its
account (protocol, host, port, user) with another password, it depends on the whole list:
where list and pool have one proxy of that account each, it is a *changed* one; where either
has several, as a gateway with a session in each password, it is *new*. So a proxy
that may be changed waits until the list has ended, or until :data:`WAITING` others wait too:
memory stays bounded, and what the list says of its account after that counts as new.

What is not here: how a storage finds, registers and removes. It does so when the program
:func:`import_list` or :func:`remove_unlisted` asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any, NamedTuple, Protocol
from uuid import UUID

from ..effects import Calls
from ..errors import InvalidInputError, PoolNotFoundError
from ..models import Proxy, ProxyPool

WAITING = 10_000
"""How many proxies that may be changed wait for the end of the list."""

LISTED = 50
"""How many proxies a report names; it counts all."""

Account = tuple[str, str, int, str]
"""Protocol, host, port and user."""

AcquireArguments = Callable[..., Any]
"""Calls a step of a storage, such as ``ask(steps.match_listed, pool_id, proxies)``."""


class Match(NamedTuple):
    """How a proxy of a list stands to a pool.

    ``known`` is the pool's proxy with the same credentials; ``rivals``, at most two, are those
    of the same account with another password, looked for where none is known.
    """

    known: UUID | None = None
    rivals: tuple[UUID, ...] = ()


class ListedIds:
    """The ids of a pool's proxies that a list names, sixteen bytes each.

    Those that the list has just added are told apart from those that the pool had before.
    """

    def __init__(self) -> None:
        self._found, self._added = bytearray(), bytearray()

    def add(self, proxy_id: UUID, *, is_new: bool = False) -> None:
        """Note a proxy."""
        if is_new:
            self._added += proxy_id.bytes
        else:
            self._found += proxy_id.bytes

    def among(self, proxy_ids: Collection[UUID]) -> set[UUID]:
        """Return those of some proxies that are listed."""
        wanted = {proxy_id.bytes for proxy_id in proxy_ids}
        every = chain(_ids_in(self._found), _ids_in(self._added))
        return {UUID(bytes=each) for each in every if each in wanted}

    def found(self) -> set[bytes]:
        """Return those that the pool had, as the bytes of their ids."""
        return set(_ids_in(self._found))

    def added(self) -> set[bytes]:
        """Return those that the list has added, as the bytes of their ids."""
        return set(_ids_in(self._added))


def _ids_in(whole: bytearray) -> Iterator[bytes]:
    return (bytes(whole[start : start + 16]) for start in range(0, len(whole), 16))


class ChangedProxy(NamedTuple):
    """A proxy whose password differs in a list and in the pool, by its id there."""

    proxy_id: UUID
    proxy: Proxy


@dataclass
class ImportReport:
    """What came of a list in a pool.

    ``known`` counts what the pool or an earlier place of the list had already; ``updated``
    are the changed ones whose credentials were replaced, ``changed`` the others.
    ``changes`` names the first :data:`LISTED` of both.
    """

    pool_id: UUID
    new: int = 0
    known: int = 0
    changed: int = 0
    updated: int = 0
    changes: list[ChangedProxy] = field(default_factory=list)
    listed: ListedIds = field(default_factory=ListedIds, repr=False)


@dataclass(frozen=True, slots=True)
class MaxRemoved:
    """How many proxies may be removed because a list has them no more: a number, or a share."""

    count: int | None = None
    share: float | None = None

    def __post_init__(self) -> None:
        if (self.count is None) == (self.share is None):
            raise InvalidInputError("give a number of proxies, or a share of them")
        if self.share is not None and not 0 <= self.share <= 1:
            raise InvalidInputError("a share of proxies is from 0 to 100 %")
        if self.count is not None and self.count < 0:
            raise InvalidInputError("a number of proxies cannot be negative")

    def allows(self, gone: int, had: int) -> bool:
        """Tell whether ``gone`` of ``had`` proxies may go."""
        most = self.count if self.count is not None else (self.share or 0) * had
        return gone <= most

    def __str__(self) -> str:
        return f"{self.share:.0%}" if self.share is not None else str(self.count)


HALF = MaxRemoved(share=0.5)


@dataclass
class RemovalReport:
    """What came of the proxies that a list has no more.

    ``had`` counts the proxies of the source that were in the pool before its list came, ``gone``
    those that it has no more.
    Of these ``removed`` were removed and ``leased`` were held by somebody; both are 0 where
    ``refused`` says that more would have gone than may. ``leased_ids`` names the first
    :data:`LISTED`.
    """

    had: int = 0
    gone: int = 0
    removed: int = 0
    leased: int = 0
    leased_ids: list[UUID] = field(default_factory=list)
    refused: bool = False


class ListSteps(Protocol):
    """What a storage does for an import; each may be a program or return at once."""

    def match_listed(self, pool_id: UUID, proxies: Sequence[Proxy], /) -> Any:
        """Return a :class:`Match` for each proxy; raises :class:`PoolNotFoundError`."""

    def ensure_pool(self, pool: ProxyPool, /) -> Any:
        """Register a pool and return its id, or that of the one that has its name."""

    def register_listed(self, pool_id: UUID, proxies: Sequence[Proxy], /) -> Any:
        """Register proxies under ids made of what they are.

        Returns their ids, and how many of them are new: another import may be quicker.
        """

    def replace_credentials(self, changes: Sequence[ChangedProxy], /) -> Any:
        """Give known proxies the credentials of listed ones; return how many were there."""

    def sourced_page(self, pool_id: UUID, source: str | None, first: UUID, /) -> Any:
        """Return ids of proxies with this source, from ``first`` on, and where to go on."""

    def remove_idle(self, pool_id: UUID, proxy_ids: Sequence[UUID], /) -> Any:
        """Remove those that nobody holds; return their ids."""


class _Decisions:
    """What is known of a list so far."""

    def __init__(self, pool_id: UUID) -> None:
        self.report = ImportReport(pool_id)
        self.waiting: dict[Account, dict[str, ChangedProxy]] = {}
        self.waits = 0

    def sort(self, proxies: Sequence[Proxy], matches: Sequence[Match]) -> list[Proxy]:
        """Take note of a batch and return those of it that are new in any case."""
        fresh: list[Proxy] = []
        met: set[tuple[Account, str]] = set()
        for proxy, match in zip(proxies, matches, strict=True):
            if match.known is not None:
                self.report.known += 1
                self.report.listed.add(match.known)
                continue
            identity = account_of(proxy), password_of(proxy)
            if identity in met:
                self.report.known += 1
                continue
            met.add(identity)
            if len(match.rivals) == 1:
                self._wait(identity, ChangedProxy(match.rivals[0], proxy))
            else:
                fresh.append(proxy)
        return fresh

    def settle(self) -> tuple[list[Proxy], list[ChangedProxy]]:
        """Decide what waits: return what is new, and what is changed."""
        waiting, self.waiting, self.waits = self.waiting, {}, 0
        rivals = {each.proxy_id for several in waiting.values() for each in several.values()}
        met = self.report.listed.among(rivals)
        fresh: list[Proxy] = []
        changes: list[ChangedProxy] = []
        for several in waiting.values():
            candidates = list(several.values())
            if len(candidates) == 1 and candidates[0].proxy_id not in met:
                changes.append(candidates[0])
                self.report.listed.add(candidates[0].proxy_id)
            else:
                fresh += (each.proxy for each in candidates)
        return fresh, changes

    def _wait(self, identity: tuple[Account, str], candidate: ChangedProxy) -> None:
        account, password = identity
        others = self.waiting.setdefault(account, {})
        if password in others:
            self.report.known += 1
            return
        others[password] = candidate
        self.waits += 1


def import_list(
    steps: ListSteps,
    ask: AcquireArguments,
    pool_id: UUID,
    batches: Iterable[Sequence[Proxy]],
    *,
    update: bool = False,
    make: ProxyPool | None = None,
) -> Calls[ImportReport]:
    """Import a list batch by batch.

    With ``update`` changed proxies get its credentials. Where there is no pool, the one to
    ``make`` is registered, also where somebody has removed it in between.
    """
    decisions = _Decisions(pool_id)
    for batch in batches:
        try:
            matches = yield partial(ask, steps.match_listed, pool_id, batch)
        except PoolNotFoundError:
            if make is None:
                raise
            pool_id = decisions.report.pool_id = yield partial(ask, steps.ensure_pool, make)
            matches = yield partial(ask, steps.match_listed, pool_id, batch)
        yield from _register(steps, ask, pool_id, decisions, decisions.sort(batch, matches))
        if decisions.waits >= WAITING:
            yield from _clear_obstacle(steps, ask, pool_id, decisions, update=update)
    yield from _clear_obstacle(steps, ask, pool_id, decisions, update=update)
    return decisions.report


def remove_unlisted(
    steps: ListSteps,
    ask: AcquireArguments,
    pool_id: UUID,
    listed: ListedIds,
    source: str | None,
    max_removed: MaxRemoved,
) -> Calls[RemovalReport]:
    """Remove the pool's proxies of a source that its list has no more, and nobody holds."""
    report, gone = RemovalReport(), list[UUID]()
    found, added = listed.found(), listed.added()
    first: UUID | None = UUID(int=0)
    while first is not None:
        page, first = yield partial(ask, steps.sourced_page, pool_id, source, first)
        before = [proxy_id for proxy_id in page if proxy_id.bytes not in added]
        report.had += len(before)
        gone += (proxy_id for proxy_id in before if proxy_id.bytes not in found)
    report.gone = len(gone)
    if not max_removed.allows(report.gone, report.had):
        report.refused = True
        return report
    for start in range(0, len(gone), 1000):
        some = gone[start : start + 1000]
        removed = set((yield partial(ask, steps.remove_idle, pool_id, some)))
        kept = [proxy_id for proxy_id in some if proxy_id not in removed]
        report.removed += len(removed)
        report.leased += len(kept)
        report.leased_ids += kept[: LISTED - len(report.leased_ids)]
    return report


def account_of(proxy: Proxy) -> Account:
    """Return what tells a proxy from others of its pool, but for its password."""
    user = proxy.credentials.user if proxy.credentials else ""
    return proxy.protocol.value, str(proxy.host), proxy.port, user


def password_of(proxy: Proxy) -> str:
    """Return a proxy's password; it has none without credentials."""
    return proxy.credentials.password.get_secret_value() if proxy.credentials else ""


def _clear_obstacle(
    steps: ListSteps, ask: AcquireArguments, pool_id: UUID, decisions: _Decisions, *, update: bool
) -> Calls[None]:
    fresh, changes = decisions.settle()
    yield from _register(steps, ask, pool_id, decisions, fresh)
    report = decisions.report
    if changes and update:
        report.updated += yield partial(ask, steps.replace_credentials, changes)
    else:
        report.changed += len(changes)
    report.changes += changes[: LISTED - len(report.changes)]


def _register(
    steps: ListSteps,
    ask: AcquireArguments,
    pool_id: UUID,
    decisions: _Decisions,
    fresh: list[Proxy],
) -> Calls[None]:
    if not fresh:
        return
    ids, new = yield partial(ask, steps.register_listed, pool_id, fresh)
    decisions.report.new += new
    decisions.report.known += len(ids) - new
    for proxy_id in ids:
        decisions.report.listed.add(proxy_id, is_new=True)

"""Decide for each proxy of an imported list whether it is known, changed or new.

A proxy is *known* if the pool has it with the same credentials. If the pool has its
account (protocol, host, port, user) with another password, the whole list decides: if
list and pool have one proxy of that account each, it is *changed*. If either
has several, as a gateway does whose passwords name sessions, it is *new*. So a proxy
that may be changed waits until the list ends, or until :data:`WAITING` others wait too.
This bounds memory; later proxies of the same account then count as new.

The storage finds, registers and removes proxies. The programs :func:`import_list` and
:func:`remove_unlisted` request these steps.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any, NamedTuple, Protocol
from uuid import UUID

from ..effects import Calls
from ..errors import PoolNotFoundError
from ..models import Proxy, ProxyPool
from ..models.removal import HALF, MaxRemoved
from .validation import check_kind

__all__ = [
    "HALF",
    "LISTED",
    "WAITING",
    "ChangedProxy",
    "Decisions",
    "ImportReport",
    "ListSteps",
    "ListedIds",
    "Match",
    "MaxRemoved",
    "RemovalReport",
    "import_list",
    "remove_unlisted",
]

WAITING = 10_000
"""How many proxies that may be changed can wait for the end of the list."""

LISTED = 50
"""How many proxies a report names. It counts all of them."""

Account = tuple[str, str, int, str]
"""Protocol, host, port and user."""

CallStep = Callable[..., Any]
"""Calls a step of a storage, such as ``call_step(steps.match_listed, pool_id, proxies)``."""


class Match(NamedTuple):
    """The proxies of a pool that match a proxy of a list.

    ``known`` is the pool's proxy with the same credentials. If there is none, ``rivals`` are up
    to two proxies of the same account with another password.
    """

    known: UUID | None = None
    rivals: tuple[UUID, ...] = ()


class ListedIds:
    """The ids of a pool's proxies that are in a list, sixteen bytes each.

    It distinguishes proxies that the import added from those that the pool had before.
    """

    def __init__(self) -> None:
        self._found, self._added = bytearray(), bytearray()

    def add(self, proxy_id: UUID, *, is_new: bool = False) -> None:
        """Add a proxy."""
        if is_new:
            self._added += proxy_id.bytes
        else:
            self._found += proxy_id.bytes

    def among(self, proxy_ids: Collection[UUID]) -> set[UUID]:
        """Return those of the given proxies that are listed."""
        wanted = {proxy_id.bytes for proxy_id in proxy_ids}
        every = chain(_ids_in(self._found), _ids_in(self._added))
        return {UUID(bytes=each) for each in every if each in wanted}

    def found(self) -> set[bytes]:
        """Return the ids, as bytes, of listed proxies that the pool had before."""
        return set(_ids_in(self._found))

    def added(self) -> set[bytes]:
        """Return the ids, as bytes, of proxies that the import added."""
        return set(_ids_in(self._added))


def _ids_in(whole: bytearray) -> Iterator[bytes]:
    return (bytes(whole[start : start + 16]) for start in range(0, len(whole), 16))


class ChangedProxy(NamedTuple):
    """A listed proxy whose password differs in the pool, with its id in the pool."""

    proxy_id: UUID
    proxy: Proxy


@dataclass
class ImportReport:
    """The result of importing a list into a pool.

    ``known`` counts proxies that the pool had, or that occurred earlier in the list. ``updated``
    counts changed proxies whose credentials were replaced, ``changed`` the other changed ones.
    ``changes`` has the first :data:`LISTED` of both.
    """

    pool_id: UUID
    new: int = 0
    known: int = 0
    changed: int = 0
    updated: int = 0
    changes: list[ChangedProxy] = field(default_factory=list)
    listed: ListedIds = field(default_factory=ListedIds, repr=False)


@dataclass
class RemovalReport:
    """The result of removing proxies that are no longer in a list.

    ``had`` counts the proxies of the source that were in the pool before the import. ``gone``
    counts those that the list no longer has. Of these, ``removed`` were removed and ``leased``
    were kept because they are leased. Both are 0 if ``refused`` is True: then more were
    gone than may be removed. ``leased_ids`` has the first :data:`LISTED`.
    """

    had: int = 0
    gone: int = 0
    removed: int = 0
    leased: int = 0
    leased_ids: list[UUID] = field(default_factory=list)
    refused: bool = False


class ListSteps(Protocol):
    """The steps of an import that a storage implements. Each is a program or a plain method."""

    def match_listed(self, pool_id: UUID, proxies: Sequence[Proxy], /) -> Any:
        """Return a :class:`Match` for each proxy; raises :class:`PoolNotFoundError`."""

    def ensure_pool(self, pool: ProxyPool, /) -> Any:
        """Register a pool and return its id, or the id of the pool with the same name."""

    def register_listed(self, pool_id: UUID, proxies: Sequence[Proxy], /) -> Any:
        """Register proxies with ids derived from their attributes.

        Returns their ids, and how many are new: another import may have added some meanwhile.
        """

    def replace_credentials(self, changes: Sequence[ChangedProxy], /) -> Any:
        """Set the credentials of known proxies from the list. Return how many still exist."""

    def sourced_page(self, pool_id: UUID, source: str | None, first: UUID, /) -> Any:
        """Return a page of ids of proxies with this source, and the first id of the next."""

    def remove_idle(self, pool_id: UUID, proxy_ids: Sequence[UUID], /) -> Any:
        """Remove those that are not leased. Return their ids."""


class Decisions:
    """The state of an import: its report, and the proxies that wait for a decision."""

    def __init__(self, pool_id: UUID) -> None:
        self.report = ImportReport(pool_id)
        self.waiting: dict[Account, dict[str, ChangedProxy]] = {}
        self.waits = 0

    def sort(self, proxies: Sequence[Proxy], matches: Sequence[Match]) -> list[Proxy]:
        """Process a batch and return the proxies that are certainly new."""
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
        """Decide on the waiting proxies. Return the new ones and the changed ones."""
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
    call_step: CallStep,
    pool_id: UUID,
    batches: Iterable[Sequence[Proxy]],
    *,
    update: bool = False,
    make: ProxyPool | None = None,
) -> Calls[ImportReport]:
    """Import a list batch by batch.

    With ``update`` changed proxies get the list's credentials. If the pool does not exist,
    ``make`` is registered, also if somebody removed the pool during the import.
    """
    decisions = Decisions(pool_id)
    for batch in batches:
        for proxy in batch:
            check_kind(proxy, Proxy)
        try:
            matches = yield partial(call_step, steps.match_listed, pool_id, batch)
        except PoolNotFoundError:
            if make is None:
                raise
            # Somebody removed the pool, or it never existed: register it and repeat the batch.
            pool_id = decisions.report.pool_id = yield partial(call_step, steps.ensure_pool, make)
            matches = yield partial(call_step, steps.match_listed, pool_id, batch)
        yield from _register(steps, call_step, pool_id, decisions, decisions.sort(batch, matches))
        if decisions.waits >= WAITING:
            yield from _settle(steps, call_step, pool_id, decisions, update=update)
    yield from _settle(steps, call_step, pool_id, decisions, update=update)
    return decisions.report


def remove_unlisted(
    steps: ListSteps,
    call_step: CallStep,
    pool_id: UUID,
    listed: ListedIds,
    source: str | None,
    max_removed: MaxRemoved,
) -> Calls[RemovalReport]:
    """Remove a source's proxies that are no longer in its list and are not leased."""
    report, gone = RemovalReport(), list[UUID]()
    found, added = listed.found(), listed.added()
    first: UUID | None = UUID(int=0)
    while first is not None:
        page, first = yield partial(call_step, steps.sourced_page, pool_id, source, first)
        before = [proxy_id for proxy_id in page if proxy_id.bytes not in added]
        report.had += len(before)
        gone += (proxy_id for proxy_id in before if proxy_id.bytes not in found)
    report.gone = len(gone)
    if not max_removed.allows(report.gone, report.had):
        report.refused = True
        return report
    # Nothing is removed before the whole source was read: the limit is on the total.
    for start in range(0, len(gone), 1000):
        some = gone[start : start + 1000]
        removed = set((yield partial(call_step, steps.remove_idle, pool_id, some)))
        kept = [proxy_id for proxy_id in some if proxy_id not in removed]
        report.removed += len(removed)
        report.leased += len(kept)
        report.leased_ids += kept[: LISTED - len(report.leased_ids)]
    return report


def account_of(proxy: Proxy) -> Account:
    """Return the attributes that identify a proxy in its pool, without the password."""
    user = proxy.credentials.user if proxy.credentials else ""
    return proxy.protocol.value, str(proxy.host), proxy.port, user


def password_of(proxy: Proxy) -> str:
    """Return a proxy's password, empty if it has no credentials."""
    return proxy.credentials.password.get_secret_value() if proxy.credentials else ""


def _settle(
    steps: ListSteps, call_step: CallStep, pool_id: UUID, decisions: Decisions, *, update: bool
) -> Calls[None]:
    fresh, changes = decisions.settle()
    yield from _register(steps, call_step, pool_id, decisions, fresh)
    report = decisions.report
    if changes and update:
        report.updated += yield partial(call_step, steps.replace_credentials, changes)
    else:
        report.changed += len(changes)
    report.changes += changes[: LISTED - len(report.changes)]


def _register(
    steps: ListSteps,
    call_step: CallStep,
    pool_id: UUID,
    decisions: Decisions,
    fresh: list[Proxy],
) -> Calls[None]:
    if not fresh:
        return
    ids, new = yield partial(call_step, steps.register_listed, pool_id, fresh)
    decisions.report.new += new
    decisions.report.known += len(ids) - new
    for proxy_id in ids:
        decisions.report.listed.add(proxy_id, is_new=True)

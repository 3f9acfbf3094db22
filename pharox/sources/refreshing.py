"""Keep pools in step with their sources: fetch a list, read it, compare it, write what differs.

A refresh claims its source, so that no other process does the same at once. Whatever is wrong with
the list changes nothing, and is recorded as the source's failure: a list that cannot be fetched, is
a web page, has no proxy at all, or would remove more proxies than may be. The other sources are
refreshed all the same. If some entries cannot be
read, what is new is added and nothing is removed.

The events of one refresh have a correlation id in common.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from uuid import uuid4

from ..effects import Calls, call, call_async, run, run_async
from ..errors import (
    ConflictError,
    InvalidInputError,
    PharoxError,
    PoolNotFoundError,
    ProxyNotFoundError,
    SecretKeyError,
    SourceError,
)
from ..events.attribution import attributed
from ..models import Proxy, ProxySource, SourceCounts
from ..models.gateway import GATEWAY_CONCURRENCY
from ..models.text import escape_unprintable
from ..storage.sources import (
    MAX_REASON_LENGTH,
    MAX_REASONS,
    REFRESH_JOB,
    RefreshResult,
    SourceClaim,
    Validators,
)
from .entries import UNLIMITED, BadEntry, Defaults
from .fetching import FetchedList, fetch_list
from .formats import Format, read_proxies

if TYPE_CHECKING:
    from ..storage.async_interface import IAsyncStorage
    from ..storage.interface import IStorage

_HIDDEN = "***"
_LIST_FAULTS = (
    SourceError,
    InvalidInputError,
    SecretKeyError,
    PoolNotFoundError,
    ProxyNotFoundError,
)
"""What is one source's failure. The rest, such as a lost database, ends the refresh of all."""

_SHORTEST_SECRET = 4
"""Shorter texts, such as a header's value ``1``, are in every sentence."""

Stopped = Callable[[], bool]


@dataclass(frozen=True, slots=True)
class SourceRefresh:
    """What became of the refresh of one source.

    ``outcome`` is "changed" if proxies came, went or were changed, "unchanged", "failed", or "busy"
    if another process refreshes it. ``counts`` are None if the list was not read: it failed, or is
    the known one. ``reasons`` say of the first entries that were skipped why they could not be
    read, ``failure`` why it failed. In a dry run nothing is written.
    """

    source: str
    pool: str | None
    outcome: Literal["changed", "unchanged", "failed", "busy"]
    counts: SourceCounts | None = None
    reasons: tuple[str, ...] = ()
    failure: str | None = None
    dry_run: bool = False


def refresh_sources(
    storage: IStorage,
    names: Sequence[str] | None = None,
    *,
    only_due: bool | None = None,
    dry_run: bool = False,
    is_stopped: Stopped = lambda: False,
) -> list[SourceRefresh]:
    """Refresh sources one after another: those of the given names, else all that are due.

    Parameters
    ----------
    only_due:
        Whether named ones are refreshed only if they are due. None: not if they are named.
    dry_run:
        Whether to write nothing, and to return what would be done. All that are enabled are due.
    is_stopped:
        Asked now and then: whether to give up. A refresh that is stopped while it fetches changes
        nothing.

    Returns
    -------
    list of SourceRefresh
        In the order of the names. Without names, those that are not due, or that another process
        refreshes, are left out.

    Raises
    ------
    PharoxError
        If there is no source of one of the names, or the ledger cannot be used.
    """
    wish = _Wish(names, only_due, dry_run, is_stopped)
    return run(_refreshed(storage, wish, fetch_list), call)


async def refresh_sources_async(
    storage: IAsyncStorage,
    names: Sequence[str] | None = None,
    *,
    only_due: bool | None = None,
    dry_run: bool = False,
    is_stopped: Stopped = lambda: False,
) -> list[SourceRefresh]:
    """Refresh sources like :func:`refresh_sources`; lists are fetched in a thread."""
    wish = _Wish(names, only_due, dry_run, is_stopped)
    return await run_async(_refreshed(storage, wish, _fetch_in_thread), call_async)


async def _fetch_in_thread(
    url: str, headers: Mapping[str, str], known: Validators | None, is_stopped: Stopped
) -> FetchedList:
    """Fetch a list in a thread, which gives up soon if this task is cancelled."""
    is_left = threading.Event()
    try:
        return await asyncio.to_thread(
            fetch_list, url, headers, known, lambda: is_left.is_set() or is_stopped()
        )
    finally:
        is_left.set()


Fetch = Callable[..., Any]
"""Calls :func:`fetch_list`, or returns what is awaited for it."""


class _Wish(NamedTuple):
    """Which sources to refresh, and how."""

    names: Sequence[str] | None
    only_due: bool | None
    dry_run: bool
    is_stopped: Stopped


def _refreshed(storage: Any, wish: _Wish, fetch: Fetch) -> Calls[list[SourceRefresh]]:
    names = wish.names
    if isinstance(names, str):
        raise InvalidInputError("names of sources are needed, not one text", value=names)
    done: list[SourceRefresh] = []
    only_due = names is None if wish.only_due is None else wish.only_due
    if names is None:
        listed = yield storage.list_sources
        names = [each.name for each in listed if each.is_due or (wish.dry_run and each.enabled)]
    for name in dict.fromkeys(names):
        if wish.is_stopped():
            break
        refresh = _Refresh(storage, name, wish.is_stopped, fetch, is_named=wish.names is not None)
        if wish.dry_run:
            done.append((yield from refresh.tried()))
        elif (one := (yield from refresh.done(only_due=only_due))) is not None:
            done.append(one)
    return done


class _Refresh:
    """The refresh of one source."""

    def __init__(
        self, storage: Any, name: str, is_stopped: Stopped, fetch: Fetch, *, is_named: bool
    ) -> None:
        self._storage, self._name, self._is_named = storage, name, is_named
        self._is_stopped, self._fetch = is_stopped, fetch

    def done(self, *, only_due: bool) -> Calls[SourceRefresh | None]:
        """Refresh the source; None if only what is due is wanted, and it is not."""
        try:
            claim = yield partial(self._storage.claim_source, self._name, only_due=only_due)
        except SecretKeyError as error:  # Nobody without a key can record it as a failure either.
            return SourceRefresh(self._name, None, "failed", failure=str(error))
        except PharoxError:
            if self._is_named or (yield from self._is_there()):
                raise
            return None  # It was removed while those before it were refreshed.
        if claim is None:
            return None if only_due else SourceRefresh(self._name, None, "busy")
        with attributed(correlation_id=f"{REFRESH_JOB}{self._name} {uuid4().hex[:12]}"):
            try:
                result = yield from self._result(claim)
            except GeneratorExit:
                raise
            except ConflictError:
                return SourceRefresh(self._name, claim.source.pool_name, "busy")
            except BaseException:  # It was cancelled, or the database failed: nothing was found.
                yield partial(self._storage.finish_refresh, claim, None)
                raise
            if result.failure is not None and self._is_stopped():
                yield partial(self._storage.finish_refresh, claim, None)
                return None
            is_held = yield partial(self._storage.finish_refresh, claim, result)
        return _outcome(claim, result) if is_held else SourceRefresh(self._name, None, "busy")

    def _is_there(self) -> Calls[bool]:
        return self._name in {each.name for each in (yield self._storage.list_sources)}

    def tried(self) -> Calls[SourceRefresh]:
        """Fetch and compare the list, and write nothing."""
        statuses = yield self._storage.list_sources
        source = yield partial(self._storage.get_source, self._name)
        status = next(each for each in statuses if each.name == self._name)
        claim = SourceClaim(source, status, status.id, status.id, status.saved_at, 0)
        result = yield from self._result(claim, dry_run=True)
        return replace(_outcome(claim, result), dry_run=True)

    def _result(self, claim: SourceClaim, *, dry_run: bool = False) -> Calls[RefreshResult]:
        """Return what the list says, and what was done; every fault of the list is a failure."""
        source = claim.source
        try:
            headers = {name: value.get_secret_value() for name, value in source.headers.items()}
            url = source.url.get_secret_value()
            with _as_failure_of(source):
                fetched: FetchedList = yield partial(
                    self._fetch, url, headers, claim.validators, self._is_stopped
                )
            if fetched.is_known:
                return RefreshResult(validators=fetched.validators, owned=claim.owned)
            pool = yield partial(self._storage.get_pool_by_name, source.pool_name)
            listed = _Listed(source, pool and pool.max_concurrency)
            with _as_failure_of(source):
                listed.read(fetched.pages)
            report = yield partial(
                self._storage.sync_source,
                claim,
                listed.proxies,
                keeps_unlisted=listed.skipped > 0,
                dry_run=dry_run,
            )
            if report.refused:
                raise SourceError(
                    f"{source.host} no longer lists {report.gone} of its {report.had} proxies, and "
                    f"at most {source.max_removed} may be removed",
                    source=source.host,
                )
        except _LIST_FAULTS as error:
            return RefreshResult(failure=_hidden(str(error), source))
        counts = report.counts.model_copy(update={"skipped": listed.skipped})
        # Whether a listed proxy that others brought is still there, the number of the source's own
        # cannot tell: such a list is fetched whole each time.
        is_own = report.owned == counts.listed
        validators = fetched.validators if is_own and not listed.skipped else Validators()
        reasons = tuple(_hidden(reason, source) for reason in listed.reasons)
        return RefreshResult(counts, reasons, None, validators, report.owned)


@contextmanager
def _as_failure_of(source: ProxySource) -> Iterator[None]:
    """Raise whatever an answer brings about in a block as :class:`SourceError`.

    An answer may find a fault of pharox or of a library. That must not keep the other sources from
    being refreshed, and its text may repeat a secret.
    """
    try:
        yield
    except PharoxError:
        raise
    except Exception as error:
        raise SourceError(
            f"the answer of {source.host} cannot be handled: {type(error).__name__}",
            source=source.host,
        ) from error


class _Listed:
    """The proxies of all pages, and what of them could not be read."""

    def __init__(self, source: ProxySource, pool_max_concurrency: int | None) -> None:
        self._source = source
        self._defaults = _defaults_of(source, pool_max_concurrency)
        self.proxies: list[Proxy] = []
        self.skipped = 0
        self.reasons: list[str] = []

    def read(self, pages: Sequence[bytes]) -> None:
        """Read all entries of the pages.

        Raises
        ------
        SourceError
            If they have no proxy at all.
        """
        options = self._source.options
        kind = None if options.format is None else Format(options.format)
        for number, page in enumerate(pages, 1):
            place = f"page {number}, " if len(pages) > 1 else ""
            self._take(read_proxies([page], self._defaults, kind=kind, line=options.line), place)
        if not self.proxies:
            why = f": {self.reasons[0]}" if self.reasons else ""
            raise SourceError(
                f"{self._source.host} answered with a list without any proxy{why}",
                source=self._source.host,
            )

    def _take(self, entries: Iterable[Any], place: str) -> None:
        label = {"source": self._source.name}
        for entry in entries:
            if not isinstance(entry, BadEntry):
                self.proxies.append(entry.proxy.model_copy(update=label))
                continue
            self.skipped += 1
            if len(self.reasons) < MAX_REASONS:
                self.reasons.append(f"{place}{entry}")


def _defaults_of(source: ProxySource, pool_max_concurrency: int | None) -> Defaults:
    options = source.options
    limit: int | None
    if options.max_concurrency == UNLIMITED:
        limit = None
    elif options.max_concurrency is not None:
        limit = int(options.max_concurrency)
    else:
        limit = pool_max_concurrency or (GATEWAY_CONCURRENCY if options.template else 1)
    return Defaults(
        protocol=options.protocol,
        status=options.status,
        max_concurrency=limit,
        source=source.name,
        country=options.country,
        template=options.template,
        cost_per_gb=options.cost_per_gb,
        cost_per_lease=options.cost_per_lease,
    )


def _outcome(claim: SourceClaim, result: RefreshResult) -> SourceRefresh:
    name, pool = claim.source.name, claim.source.pool_name
    if result.failure is not None:
        return SourceRefresh(name, pool, "failed", failure=result.failure)
    is_change = result.counts is not None and result.counts.is_change
    outcome: Literal["changed", "unchanged"] = "changed" if is_change else "unchanged"
    return SourceRefresh(name, pool, outcome, result.counts, result.reasons)


def _hidden(text: str, source: ProxySource) -> str:
    """Return a sentence of bounded length, without the URL or a header of the source."""
    for secret in source.secrets:
        if len(secret) >= _SHORTEST_SECRET:
            text = text.replace(secret, _HIDDEN)
    return escape_unprintable(" ".join(text.split()))[:MAX_REASON_LENGTH]

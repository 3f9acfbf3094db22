"""Bring the proxies of a source in step with its list, or refuse.

Nothing is written before all of the list was compared: a list that would remove too many changes
nothing. What is new is written first and what went is removed last, in batches, so a refresh that
breaks off leaves what the source had and some of what came, and the next one goes on from there.

A proxy that went and is leased drains: it leaves with its last lease. One that drains and is listed
again is leased again. Proxies of the pool that others brought, with another ``source``, are left
alone, whether the list has them or not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Protocol, TypeVar
from uuid import UUID

from ..effects import Calls
from ..errors import ConflictError, ProxyNotFoundError
from ..models import Proxy, ProxyStatus, SourceCounts
from .list_import import CallStep, ChangedProxy, Decisions, ListSteps
from .sources import HELD_S, SourceClaim, SyncReport

T = TypeVar("T")

BATCH = 1000


class SyncSteps(ListSteps, Protocol):
    """The steps of a refresh that a storage implements."""

    def owned_page(self, pool_id: UUID, source: str, first: UUID, /) -> Any:
        """Return a page of ids of a source's proxies, each with whether it drains.

        The second part of the answer is the first id of the next page, or None.
        """

    def hold_source(self, claim: SourceClaim, for_seconds: float, /) -> Any:
        """Extend a claim. Return False if it was lost."""


def sync_source(
    storage: Any,
    steps: SyncSteps,
    call_step: CallStep,
    claim: SourceClaim,
    listed: Sequence[Proxy],
    *,
    keeps_unlisted: bool = False,
    dry_run: bool = False,
) -> Calls[SyncReport]:
    """Compare a source's proxies with its list, and write what differs unless it is a dry run.

    Parameters
    ----------
    keeps_unlisted:
        Whether nothing is removed, as what seems to be gone may be what could not be read.
    """
    sync = _Sync(storage, steps, call_step, claim)
    report = yield from sync.compare(listed, keeps_unlisted=keeps_unlisted)
    if not dry_run and not report.refused and (report.counts.is_change or sync.gone):
        yield from sync.write(report)
    return report


class _Sync:
    """One refresh: what it found, and how to write that."""

    def __init__(
        self, storage: Any, steps: SyncSteps, call_step: CallStep, claim: SourceClaim
    ) -> None:
        self._storage, self._steps, self._call_step, self._claim = storage, steps, call_step, claim
        self._pool_id, self._name = claim.status.pool_id, claim.source.name
        self._fresh: list[Proxy] = []
        self._changes: list[ChangedProxy] = []
        self._returned: list[UUID] = []
        self.gone: list[UUID] = []

    def compare(self, listed: Sequence[Proxy], *, keeps_unlisted: bool) -> Calls[SyncReport]:
        """Find out what differs, without writing anything."""
        decisions, matches = Decisions(self._pool_id), []
        for batch in _batches(listed):
            matches += yield self._step(self._steps.match_listed, self._pool_id, batch)
        self._fresh = decisions.sort(listed, matches)
        fresh, self._changes = decisions.settle()
        self._fresh += fresh
        owned = yield from self._owned()
        found = decisions.report.listed.found()
        self._returned = [each for each, drains in owned.items() if drains and each.bytes in found]
        gone = [each for each, drains in owned.items() if not drains and each.bytes not in found]
        had = sum(not drains for drains in owned.values())
        self.gone = [] if keeps_unlisted else gone
        counts = SourceCounts(
            listed=len(self._fresh) + len(self._changes) + decisions.report.known,
            added=len(self._fresh),
            changed=len(self._changes),
            removed=len(self.gone),
            returned=len(self._returned),
            unchanged=decisions.report.known - len(self._returned),
            kept=len(gone) - len(self.gone),
        )
        is_refused = not self._claim.source.most_removed.allows(len(self.gone), had)
        left = had + len(self._fresh) + len(self._returned) - len(self.gone)
        return SyncReport(counts, len(gone), had, left, is_refused)

    def write(self, report: SyncReport) -> Calls[None]:
        """Register what is new, change what differs, and then remove what went."""
        added = changed = 0
        for batch in _batches(self._fresh):
            yield from self._check_held()
            _, new = yield self._step(self._steps.register_listed, self._pool_id, batch)
            added += new
        for changes in _batches(self._changes):
            yield from self._check_held()
            changed += yield self._step(self._steps.replace_credentials, changes)
        for proxy_id in self._returned:
            yield from self._return_one(proxy_id)
        removed = 0
        for gone in _batches(self.gone):
            yield from self._check_held()
            removed += yield from self._remove(gone)
        drained = len(self.gone) - removed
        counts = {"added": added, "changed": changed, "removed": removed, "draining": drained}
        report.counts = report.counts.model_copy(update=counts)

    def _owned(self) -> Calls[dict[UUID, bool]]:
        owned: dict[UUID, bool] = {}
        first: UUID | None = UUID(int=0)
        while first is not None:
            page, first = yield self._step(self._steps.owned_page, self._pool_id, self._name, first)
            owned.update(page)
        return owned

    def _remove(self, gone: Sequence[UUID]) -> Calls[int]:
        """Remove those that are not leased, and drain the others. Return how many are removed."""
        removed = set((yield self._step(self._steps.remove_idle, self._pool_id, gone)))
        reason = f"source {self._name} no longer lists it"
        for proxy_id in gone:
            if proxy_id not in removed:
                try:
                    left = yield partial(self._storage.drain_proxy, proxy_id, reason=reason)
                except ProxyNotFoundError:
                    left = None
                if left is None:
                    removed.add(proxy_id)
        return len(removed)

    def _return_one(self, proxy_id: UUID) -> Calls[None]:
        reason = f"source {self._name} lists it again"
        # If its last lease has ended meanwhile, the next refresh registers it anew.
        with suppress(ProxyNotFoundError):
            yield partial(self._storage.set_status, proxy_id, ProxyStatus.ACTIVE, reason=reason)

    def _check_held(self) -> Calls[None]:
        if not (yield self._step(self._steps.hold_source, self._claim, HELD_S)):
            raise ConflictError(
                f"another process took over the refresh of source {self._name!r}",
                source=self._name,
            )

    def _step(self, step: Any, *arguments: Any) -> Any:
        return partial(self._call_step, step, *arguments)


def _batches(items: Sequence[T]) -> Iterator[Sequence[T]]:
    return (items[start : start + BATCH] for start in range(0, len(items), BATCH))

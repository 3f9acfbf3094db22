"""What can be asked for: one table of operations, from which requests are served and described.

Each operation names the right that it needs. A token acts for its consumer: a lease of another one
is as one that does not exist. Batches are single operations at once, which share commits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs
from uuid import UUID

from pydantic import BaseModel

from ..effects import call_async, run_async
from ..errors import PharoxError
from ..manager import AsyncProxyManager
from ..manager.granting import grant_lease, grant_set
from ..manager.leasing import AcquireArguments, AcquireSetArguments
from ..manager.ruling import rules_of
from ..models import (
    DEFAULT_DURATION_S,
    ApiRight,
    ApiToken,
    Lease,
    LeaseStatus,
    Outcome,
    ProxyFilters,
)
from ..storage.async_interface import IAsyncStorage
from ..storage.requests import Acquisition, EndedLease, RenewRequest, RevokeRequest
from . import bodies
from .answers import (
    GrantedLease,
    GrantedSet,
    LeaseResults,
    LeaseState,
    ReportedState,
    ReportResults,
    Stats,
    granted_lease,
    lease_state,
    pool_state,
    reported_state,
    result,
)
from .problems import (
    LEASE_CONFLICT,
    LEASE_NOT_FOUND,
    POOL_NOT_FOUND,
    Problem,
    of_the_body,
)
from .tokens import Tokens, check_right

GIVEN_BACK = "the client did not take it"
"""The reason recorded for the release of a lease that nobody received."""

MAX_HELD = 20_000
"""How many leases a process remembers, so that it need not look up what it granted itself."""


@dataclass(slots=True)
class Call:
    """A request that was let in: who asks, the body, and the rest of the path and the query."""

    token: ApiToken
    body: Any = None
    rest: str = ""
    query: str = ""


@dataclass(slots=True)
class Answer:
    """A status and a JSON value, and the leases that were granted with it."""

    status: int
    value: Any
    granted: Sequence[Lease] = ()


@dataclass(frozen=True)
class Operation:
    """One thing that can be asked for.

    Parameters
    ----------
    name:
        Its name in the description, and in metrics.
    right:
        What the token must have.
    body:
        The model of its body, None if it has none.
    answers:
        The models of its answers by their status.
    problems:
        The codes of the problems that are its own; those of all operations are not named.
    """

    name: str
    method: str
    path: str
    summary: str
    right: ApiRight
    handler: Callable[[Operations, Call], Awaitable[Answer]]
    body: type[BaseModel] | None
    answers: dict[int, type[BaseModel]]
    problems: tuple[str, ...] = ()
    query: dict[str, str] = field(default_factory=dict)


class Operations:
    """Carries out what tokens ask for."""

    def __init__(self, storage: IAsyncStorage, tokens: Tokens) -> None:
        self._storage = storage
        self._tokens = tokens
        self._manager = AsyncProxyManager(storage)
        self._held: dict[UUID, Lease] = {}

    async def acquire(self, call: Call) -> Answer:
        """Lease a proxy."""
        body: bodies.Acquire = call.body
        check_right(call.token, ApiRight.ACQUIRE, body.pools)
        arguments = AcquireArguments(
            body.pool,
            call.token.consumer,
            _duration(body.lease_seconds),
            _filters(body),
            body.selector,
            body.lease_id,
            sticky=None if body.session is None else body.session.as_sticky(),
            **body.options(),
        )
        found = await grant_lease(self._manager, arguments)
        return await self._granted(call, body, [found])

    async def acquire_set(self, call: Call) -> Answer:
        """Lease several proxies at once."""
        body: bodies.AcquireSet = call.body
        check_right(call.token, ApiRight.ACQUIRE, body.pools)
        arguments = AcquireSetArguments(
            body.pool,
            body.count,
            call.token.consumer,
            _duration(body.lease_seconds),
            _filters(body),
            body.selector,
            body.at_least,
            body.distinct,
            body.lease_ids,
            **body.options(),
        )
        found = await grant_set(self._manager, arguments)
        return await self._granted(call, body, found.acquisitions)

    async def renew(self, call: Call) -> Answer:
        """Extend a lease."""
        (renewed,) = await self._renew_all(call, [call.body])
        if isinstance(renewed, Exception):
            raise renewed
        return Answer(200, renewed)

    async def renew_batch(self, call: Call) -> Answer:
        """Extend leases, in few commits."""
        renewed = await self._renew_all(call, call.body.leases)
        return Answer(200, {"results": [result(each) for each in renewed]})

    async def release(self, call: Call) -> Answer:
        """Give a lease back."""
        return Answer(200, await self._release(call.token, call.body))

    async def release_batch(self, call: Call) -> Answer:
        """Give leases back at once."""
        return await _at_once(self._release(call.token, each) for each in call.body.leases)

    async def report(self, call: Call) -> Answer:
        """Record an outcome."""
        return Answer(200, await self._report(call.token, call.body))

    async def report_batch(self, call: Call) -> Answer:
        """Record outcomes at once."""
        return await _at_once(self._report(call.token, each) for each in call.body.reports)

    async def lease(self, call: Call) -> Answer:
        """Look at a lease of one's own, as the ledger has it."""
        lease = await self._storage.get_lease(str(_uuid(call.rest)))
        return Answer(200, lease_state(_own(call.token, lease)))

    async def revoke(self, call: Call) -> Answer:
        """End leases of others, in the pools of the token."""
        body: bodies.Revoke = call.body
        request = RevokeRequest(tuple(body.lease_ids), body.reason)
        hidden = await self._of_other_pools(call.token, request.lease_ids)
        wanted = [each for each in request.lease_ids if each not in hidden]
        done: list[EndedLease | PharoxError] = []
        if wanted:
            done = [
                *await self._storage.revoke_leases(RevokeRequest(tuple(wanted), request.reason))
            ]
        outcomes = iter(done)
        results = [
            Problem(LEASE_NOT_FOUND, lease_id=each).members()
            if each in hidden
            else _revoked(next(outcomes))
            for each in request.lease_ids
        ]
        return Answer(200, {"results": results})

    async def stats(self, call: Call) -> Answer:
        """Count the pools of the token."""
        names = [pool.name for pool in await self._storage.list_pools()]
        wanted = parse_qs(call.query, max_num_fields=10, errors="replace").get("pool")
        if wanted is not None:
            check_right(call.token, ApiRight.STATS, wanted[-1:])
            names = [name for name in names if name == wanted[-1]]
            if not names:
                raise Problem(POOL_NOT_FOUND)
        queues = {each.pool_name: each for each in await self._storage.queue_stats()}
        allowed = [name for name in names if call.token.may(ApiRight.STATS, [name])]
        counts = [await self._storage.get_pool_stats(name) for name in allowed]
        pools = [pool_state(each, queues.get(each.pool_name)) for each in counts if each]
        return Answer(200, {"pools": pools})

    async def give_back(self, leases: Sequence[Lease]) -> None:
        """Release leases that nobody received."""
        for lease in leases:
            self._held.pop(lease.id, None)
        await self._storage.return_leases(leases, reason=GIVEN_BACK)

    async def _granted(
        self,
        call: Call,
        body: bodies.Acquire | bodies.AcquireSet,
        found: Sequence[Acquisition],
    ) -> Answer:
        """Return the answer with these leases, or give the new ones back if it cannot be made."""
        leases = [each.lease for each in found if each.lease is not None]
        granted = [each.lease for each in found if each.lease is not None and each.is_new]
        try:
            await self._still_good(call, body, leases)
            states = [granted_lease(lease) for lease in leases]
        except BaseException:  # Such as: no key decrypts the password, or the token was withdrawn.
            if granted:
                await self.give_back(granted)
            raise
        for lease in leases:
            self._remember(lease)
        answer = {"leases": states} if isinstance(body, bodies.AcquireSet) else states[0]
        return Answer(201 if granted else 200, answer, granted)

    async def _still_good(
        self, call: Call, body: bodies.Acquire | bodies.AcquireSet, leases: Sequence[Lease]
    ) -> None:
        """Check what may have changed, or may be of an earlier request, once there is a lease."""
        if body.wait_seconds:
            await self._tokens.check_again(call.token)
        if not call.token.may(ApiRight.ACQUIRE, [lease.pool_name for lease in leases]):
            raise Problem(LEASE_CONFLICT, lease_id=leases[0].id)

    async def _renew_all(
        self, call: Call, asked: Sequence[bodies.Renew]
    ) -> list[dict[str, Any] | Exception]:
        leases = await self._own_leases(call.token, [each.lease_id for each in asked])
        requests = []
        for each, lease in zip(asked, leases, strict=True):
            if isinstance(lease, Lease):
                token = lease.fencing_token if each.fencing_token is None else each.fencing_token
                own = lease.model_copy(update={"fencing_token": token})
                requests.append(RenewRequest(own, each.lease_seconds))
        renewed = iter(await self._storage.renew_leases(requests) if requests else [])
        outcomes = [next(renewed) if isinstance(each, Lease) else each for each in leases]
        for outcome in outcomes:
            if isinstance(outcome, Lease) and (held := self._held.get(outcome.id)) is not None:
                held.expires_at, held.renewed_at = outcome.expires_at, outcome.renewed_at
        return [lease_state(each) if isinstance(each, Lease) else each for each in outcomes]

    async def _release(self, token: ApiToken, asked: bodies.Release) -> dict[str, Any]:
        lease = await self._own_lease(token, asked.lease_id)
        outcome = None
        # The outcome of a lease that was released before was recorded with that release.
        if asked.outcome is not None and lease.status is not LeaseStatus.RELEASED:
            outcome = await self._outcome(lease, asked.outcome)
        await self._manager.release_proxy(lease, outcome)
        self._held.pop(lease.id, None)
        if lease.status is LeaseStatus.ACTIVE:  # It had ended, and only the ledger knows how.
            lease = _own(token, await self._storage.get_lease(str(lease.id)))
        return lease_state(lease)

    async def _report(self, token: ApiToken, asked: bodies.Report) -> dict[str, Any]:
        lease = await self._own_lease(token, asked.lease_id)
        outcome = await self._outcome(lease, asked.outcome)
        reported = await self._manager.report(lease, outcome)
        return reported_state(lease, asked.outcome.kind, reported)

    async def _outcome(self, lease: Lease, said: bodies.ReportedOutcome) -> Outcome:
        """Return an outcome as it was said, or as the fleet's rules for the target judge it."""
        if said.kind is not None:
            with of_the_body():
                return said.as_outcome(None)
        rules = rules_of(self._storage)
        await run_async(rules.reading(self._storage), call_async)
        with of_the_body():
            return said.as_outcome(rules.of(said.target or lease.target))

    async def _own_leases(self, token: ApiToken, ids: Sequence[UUID]) -> list[Lease | Exception]:
        found = await asyncio.gather(
            *(self._own_lease(token, each) for each in ids), return_exceptions=True
        )
        return [_expected(each) for each in found]

    async def _own_lease(self, token: ApiToken, lease_id: UUID) -> Lease:
        """Return a lease of the token's consumer, remembered or looked up."""
        lease = self._held.get(lease_id)
        if lease is None:
            lease = await self._storage.get_lease(str(lease_id))
        return _own(token, lease)

    async def _of_other_pools(self, token: ApiToken, ids: Sequence[UUID]) -> set[UUID]:
        """Return which leases are not of the pools that a token is for, or do not exist."""
        if not token.pools:
            return set()
        leases = [await self._storage.get_lease(str(each)) for each in ids]
        return {
            lease_id
            for lease_id, lease in zip(ids, leases, strict=True)
            if lease is None or not token.may(ApiRight.REVOKE, [lease.pool_name])
        }

    def _remember(self, lease: Lease) -> None:
        self._held[lease.id] = lease
        if len(self._held) > MAX_HELD:
            del self._held[next(iter(self._held))]


def _duration(seconds: float | None) -> Any:
    """Return how long to lease; the pool says it if the caller does not."""
    return DEFAULT_DURATION_S if seconds is None else seconds


def _filters(body: bodies.Acquire | bodies.AcquireSet) -> ProxyFilters | None:
    """Return the conditions that are asked for, which are checked here."""
    with of_the_body():
        return None if body.filters is None else body.filters.as_filters()


def _own(token: ApiToken, lease: Lease | None) -> Lease:
    """Return a lease of the token's consumer and pools; any other is as one that does not exist."""
    if lease is None or lease.consumer_name != token.consumer:
        raise Problem(LEASE_NOT_FOUND)
    if not token.may(ApiRight.ACQUIRE, [lease.pool_name]):
        raise Problem(LEASE_NOT_FOUND)
    return lease


def _uuid(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise Problem(LEASE_NOT_FOUND) from None


def _expected(outcome: Any) -> Any:
    """Return an outcome of several, unless it is an interruption of all."""
    if isinstance(outcome, BaseException) and not isinstance(outcome, Exception):
        raise outcome
    return outcome


async def _at_once(doing: Iterable[Awaitable[dict[str, Any]]]) -> Answer:
    """Return the outcome of each; their statements share commits."""
    outcomes = await asyncio.gather(*doing, return_exceptions=True)
    return Answer(200, {"results": [result(_expected(each)) for each in outcomes]})


def _revoked(outcome: EndedLease | PharoxError) -> dict[str, Any]:
    if isinstance(outcome, EndedLease):
        return lease_state(outcome.lease)
    return result(outcome)


_OF_LEASES = ("no_proxy", "limit_reached", "queue_full", "pool_not_found", "lease_conflict")
_TABLE = (
    Operation(
        "acquire",
        "POST",
        "/acquire",
        "Lease a proxy; wait for one if asked to.",
        ApiRight.ACQUIRE,
        Operations.acquire,
        bodies.Acquire,
        {201: GrantedLease, 200: GrantedLease},
        (*_OF_LEASES, "lease_ended", "credentials_locked"),
    ),
    Operation(
        "acquire_set",
        "POST",
        "/acquire-set",
        "Lease several proxies at once, or none.",
        ApiRight.ACQUIRE,
        Operations.acquire_set,
        bodies.AcquireSet,
        {201: GrantedSet, 200: GrantedSet},
        (*_OF_LEASES, "lease_ended", "credentials_locked"),
    ),
    Operation(
        "renew",
        "POST",
        "/renew",
        "Extend a lease from now on.",
        ApiRight.ACQUIRE,
        Operations.renew,
        bodies.Renew,
        {200: LeaseState},
        ("lease_not_found", "lease_ended", "lease_conflict", "lease_busy"),
    ),
    Operation(
        "renew_batch",
        "POST",
        "/renew-batch",
        "Extend leases.",
        ApiRight.ACQUIRE,
        Operations.renew_batch,
        bodies.RenewBatch,
        {200: LeaseResults},
    ),
    Operation(
        "release",
        "POST",
        "/release",
        "Give a lease back, and say what became of its requests.",
        ApiRight.ACQUIRE,
        Operations.release,
        bodies.Release,
        {200: LeaseState},
        ("lease_not_found",),
    ),
    Operation(
        "release_batch",
        "POST",
        "/release-batch",
        "Give leases back.",
        ApiRight.ACQUIRE,
        Operations.release_batch,
        bodies.ReleaseBatch,
        {200: LeaseResults},
    ),
    Operation(
        "report",
        "POST",
        "/report",
        "Say what became of a request through the proxy.",
        ApiRight.ACQUIRE,
        Operations.report,
        bodies.Report,
        {200: ReportedState},
        ("lease_not_found",),
    ),
    Operation(
        "report_batch",
        "POST",
        "/report-batch",
        "Say what became of requests.",
        ApiRight.ACQUIRE,
        Operations.report_batch,
        bodies.ReportBatch,
        {200: ReportResults},
    ),
    Operation(
        "lease",
        "GET",
        "/leases/",
        "Look at a lease of one's own.",
        ApiRight.ACQUIRE,
        Operations.lease,
        None,
        {200: LeaseState},
        ("lease_not_found",),
    ),
    Operation(
        "revoke",
        "POST",
        "/revoke",
        "End leases of others, for a reason.",
        ApiRight.REVOKE,
        Operations.revoke,
        bodies.Revoke,
        {200: LeaseResults},
    ),
    Operation(
        "stats",
        "GET",
        "/stats",
        "Count the pools of the token.",
        ApiRight.STATS,
        Operations.stats,
        None,
        {200: Stats},
        ("pool_not_found",),
        {"pool": "Only this pool."},
    ),
)

OPERATIONS = {(each.method, each.path): each for each in _TABLE}
"""All of them, by method and path. A path that ends with a slash goes on with an id."""

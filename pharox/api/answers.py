"""The answers: their models, for the description, and how they are made of what the ledger says.

They are written as JSON without a model in between, as every acquisition has one. Tests hold each
of them to its model.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from ..errors import PharoxError
from ..models import Lease, LeaseStatus, OutcomeKind, PoolStatsSnapshot, QueueStats
from ..storage.reports import Reported
from .problems import Problem, problem_of


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class LeaseState(_Answer):
    """What the ledger says of a lease."""

    lease_id: UUID
    pool: str | None
    consumer: str | None
    proxy_id: UUID
    status: LeaseStatus
    target: str | None
    fencing_token: int | None
    acquired_at: datetime
    renewed_at: datetime | None
    expires_at: datetime
    ended_at: datetime | None
    revoke_reason: str | None


class GrantedLease(LeaseState):
    """A lease with the URL of its proxy, which has the password: it is for the holder alone."""

    proxy_url: str


class GrantedSet(_Answer):
    """The leases of a set."""

    leases: list[GrantedLease]


class ReportedState(_Answer):
    """A report. A success is counted, and written seconds later, so nothing is known of it yet."""

    lease_id: UUID
    kind: OutcomeKind | None = Field(description="The kind that was reported, if it was said.")
    is_recorded: bool
    target: str | None
    cools_until: datetime | None
    streak: int | None


class PoolState(_Answer):
    """The counts of a pool at one moment."""

    pool: str
    total_proxies: int
    active_proxies: int
    available_proxies: int
    leased_proxies: int
    total_leases: int
    waiting: int
    longest_wait_seconds: float
    collected_at: datetime


class Stats(_Answer):
    """The pools that the token is for, by name."""

    pools: list[PoolState]


class LeaseResults(_Answer):
    """The outcome for each lease that was named, in the same order."""

    results: list[LeaseState | ProblemAnswer]


class ReportResults(_Answer):
    """The outcome of each report, in the same order."""

    results: list[ReportedState | ProblemAnswer]


class FieldFault(_Answer):
    """What is wrong with one field of a request."""

    field: str
    message: str


class ProblemAnswer(_Answer):
    """Why a request got nothing: problem details (RFC 9457). ``code`` never changes its meaning."""

    title: str
    status: int
    code: str
    detail: str
    reason: str | None = Field(None, description="Why nothing could be leased.")
    retry_after_seconds: float | None = Field(None, description="When trying again may help.")
    lease_id: UUID | None = None
    errors: list[FieldFault] | None = None


LeaseResults.model_rebuild()
ReportResults.model_rebuild()


def lease_state(lease: Lease) -> dict[str, Any]:
    """Return a lease as its holder, or whoever revokes it, may see it."""
    return {
        "lease_id": lease.id,
        "pool": lease.pool_name,
        "consumer": lease.consumer_name,
        "proxy_id": lease.proxy_id,
        "status": lease.status,
        "target": lease.target,
        "fencing_token": lease.fencing_token,
        "acquired_at": lease.acquired_at,
        "renewed_at": lease.renewed_at,
        "expires_at": lease.expires_at,
        "ended_at": lease.released_at,
        "revoke_reason": lease.revoke_reason,
    }


def granted_lease(lease: Lease) -> dict[str, Any]:
    """Return a lease for its holder, with the proxy's URL."""
    return {**lease_state(lease), "proxy_url": lease.proxy.url}


def reported_state(
    lease: Lease, kind: OutcomeKind | None, reported: Reported | None
) -> dict[str, Any]:
    """Return a report as it was recorded, or as it will be if None."""
    return {
        "lease_id": lease.id,
        "kind": kind,
        "is_recorded": reported is not None,
        "target": None if reported is None else reported.target,
        "cools_until": None if reported is None else reported.cools_until,
        "streak": None if reported is None else reported.streak,
    }


def pool_state(stats: PoolStatsSnapshot, queue: QueueStats | None) -> dict[str, Any]:
    """Return the counts of a pool."""
    return {
        "pool": stats.pool_name,
        **stats.figures(),
        "waiting": 0 if queue is None else queue.waiting,
        "longest_wait_seconds": 0.0 if queue is None else queue.longest_wait_seconds,
        "collected_at": stats.collected_at,
    }


def result(outcome: dict[str, Any] | BaseException) -> dict[str, Any]:
    """Return one outcome of many: what was done, or the problem."""
    if isinstance(outcome, Problem):
        return outcome.members()
    if isinstance(outcome, PharoxError):
        return problem_of(outcome).members()
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome

"""The bodies of requests: what checks them is what the OpenAPI description is written from."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..models import (
    MAX_REMARK_LENGTH,
    Outcome,
    OutcomeKind,
    ProxyFilters,
    ProxyProtocol,
    SelectorStrategy,
    Sticky,
    TargetRules,
    outcome_by_rules,
)
from ..models.fallback import MAX_FALLBACK
from ..models.outcome import MAX_RETRY_AFTER_S, Target
from ..models.validation import MAX_DURATION_S, MAX_TEXT_LENGTH, Name, Text
from ..storage.requests import MAX_SET

MAX_WAIT_S = 60.0
"""How long a request may wait for a proxy. Whoever wants to wait longer asks again."""

MAX_BATCH = 500
"""How many leases one request may name."""

Seconds = Annotated[float, Field(gt=0, le=MAX_DURATION_S, allow_inf_nan=False)]


class Body(BaseModel):
    """The body of a request. A field that is not known is refused, as it may be misspelt."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Filters(Body):
    """Conditions that a proxy must meet; all of them must hold."""

    proxy_id: UUID | None = None
    host: Text | None = None
    protocol: ProxyProtocol | None = None
    source: Text | None = None
    country: Text | None = None
    city: Text | None = None
    isp: Text | None = None
    asn: int | None = None
    latitude: float | None = None
    longitude: float | None = None
    radius_km: float | None = None
    all_of: list[Filters] | None = None
    any_of: list[Filters] | None = None
    none_of: list[Filters] | None = None

    def as_filters(self) -> ProxyFilters:
        """Return the library's filters, which check the rest."""
        return ProxyFilters.model_validate(self.model_dump(exclude_none=True))


class Session(Body):
    """Ask for the same proxy each time, under a key."""

    key: Name
    seconds: Seconds = 1800
    policy: Literal["prefer", "require"] = "prefer"
    sliding: bool = False
    shared: bool = False

    def as_sticky(self) -> Sticky:
        """Return what the library calls it."""
        return Sticky(**self.model_dump())


class _Acquire(Body):
    pool: Name
    target: Annotated[Text | None, Field(description="The host, or a URL, that it is for.")] = None
    lease_seconds: Annotated[
        Seconds | None, Field(description="How long a lease lasts; else as the pool says, or 300.")
    ] = None
    wait_seconds: Annotated[
        float, Field(ge=0, le=MAX_WAIT_S, description="How long to wait in turn if none is free.")
    ] = 0
    filters: Filters | None = None
    selector: SelectorStrategy | None = None
    fallback: Annotated[
        list[Name], Field(max_length=MAX_FALLBACK, description="Pools to try next, in order.")
    ] = []

    @property
    def pools(self) -> tuple[str, ...]:
        """All pools that are asked for."""
        return (self.pool, *self.fallback)

    def options(self) -> dict[str, Any]:
        """Return what the library's requests for one lease and for several have in common."""
        return {
            "wait_seconds": self.wait_seconds or None,
            "target": self.target,
            "fallback": self.fallback,
        }


class Acquire(_Acquire):
    """Lease a proxy. Repeated under the same ``lease_id``, it returns the same lease."""

    lease_id: Annotated[
        UUID | None, Field(description="A UUID of the caller's; at most one lease is granted.")
    ] = None
    session: Session | None = None


class AcquireSet(_Acquire):
    """Lease several proxies at once: ``count`` of them, or ``at_least`` as many, or none."""

    count: Annotated[int, Field(ge=1, le=MAX_SET)]
    at_least: Annotated[int | None, Field(ge=1, le=MAX_SET)] = None
    distinct: Annotated[bool, Field(description="Whether no proxy is leased twice.")] = True
    lease_ids: Annotated[list[UUID] | None, Field(max_length=MAX_SET)] = None


class Renew(Body):
    """Extend a lease from now on."""

    lease_id: UUID
    lease_seconds: Annotated[
        Seconds | None, Field(description="How long it then lasts; else as before.")
    ] = None
    fencing_token: Annotated[
        int | None, Field(ge=0, lt=2**63, description="If given, it must be the lease's.")
    ] = None


class ReportedOutcome(Body):
    """What became of a request through the proxy.

    Without ``kind`` the fleet's rules for the target judge by ``status``.
    """

    kind: OutcomeKind | None = None
    status: Annotated[int | None, Field(ge=100, le=999)] = None
    target: Target | None = None
    retry_after_seconds: Annotated[float | None, Field(ge=0, le=MAX_RETRY_AFTER_S)] = None
    bytes: Annotated[int | None, Field(ge=0, lt=2**63)] = None
    note: Annotated[Text | None, Field(max_length=MAX_TEXT_LENGTH)] = None
    count: Annotated[int, Field(ge=1, lt=2**31)] = 1

    @model_validator(mode="after")
    def _says_enough(self) -> Self:
        if self.kind is None and self.status is None:
            raise ValueError("an outcome has a kind, or the status that it is judged by")
        return self

    def as_outcome(self, rules: TargetRules | None) -> Outcome:
        """Return an outcome: as it was said, or as the rules of its target judge the status."""
        said = self.model_dump(exclude_none=True)
        if self.kind is not None:
            return Outcome.model_validate(said)
        response = SimpleNamespace(status_code=self.status)
        judged = outcome_by_rules(rules, response, target=self.target, body=None)
        if judged.kind is OutcomeKind.OK:  # As with responses: a success asks for no pause.
            said.pop("retry_after_seconds", None)
        return Outcome.model_validate({**judged.model_dump(), **said})


class Release(Body):
    """Give a lease back. Repeated, it does nothing: the outcome is not recorded again."""

    lease_id: UUID
    outcome: ReportedOutcome | None = None


class Report(Body):
    """Say what became of a request under a lease, which may have ended."""

    lease_id: UUID
    outcome: ReportedOutcome


class Revoke(Body):
    """End leases of others."""

    lease_ids: Annotated[list[UUID], Field(min_length=1, max_length=MAX_BATCH)]
    reason: Annotated[Text, Field(min_length=1, max_length=MAX_REMARK_LENGTH)]


class RenewBatch(Body):
    """Extend leases."""

    leases: Annotated[list[Renew], Field(min_length=1, max_length=MAX_BATCH)]


class ReleaseBatch(Body):
    """Give leases back."""

    leases: Annotated[list[Release], Field(min_length=1, max_length=MAX_BATCH)]


class ReportBatch(Body):
    """Say what became of requests."""

    reports: Annotated[list[Report], Field(min_length=1, max_length=MAX_BATCH)]

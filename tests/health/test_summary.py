"""A sweep's summary: all results are counted once, by what their proxies are."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pharox import (
    CheckFailure,
    HealthCheckResult,
    HealthOutcome,
    Proxy,
    ProxyProtocol,
    ProxyStatus,
    SweepSummary,
)

ACTIVE, SLOW, INACTIVE, BANNED = (
    ProxyStatus.ACTIVE,
    ProxyStatus.SLOW,
    ProxyStatus.INACTIVE,
    ProxyStatus.BANNED,
)


def proxy(**facts: object) -> Proxy:
    known = {"host": "h", "port": 1, "protocol": "http", "pool_id": uuid4()}
    return Proxy.model_validate({**known, **facts})


def outcome(
    checked: Proxy,
    found: ProxyStatus = ACTIVE,
    *,
    moved: tuple[ProxyStatus, ProxyStatus] = (ACTIVE, ACTIVE),
    leases: int = 0,
    failure: CheckFailure | None = None,
) -> HealthOutcome:
    result = HealthCheckResult(
        proxy_id=checked.id,
        status=found,
        latency_ms=1,
        protocol=checked.protocol,
        failure=failure,
    )
    before, after = moved
    return HealthOutcome(result, status_before=before, status_after=after, leases=leases)


def watched(summary: SweepSummary, proxies: list[Proxy]) -> list[Proxy]:
    async def collected() -> list[Proxy]:
        return [checked async for checked in summary.watch(proxies)]

    return asyncio.run(collected())


@given(
    st.lists(
        st.tuples(
            st.sampled_from(ProxyProtocol),
            st.none() | st.sampled_from(["AR", "DE", ""]),
            st.sampled_from(ProxyStatus),
        )
    )
)
def test_each_way_of_counting_counts_all(
    found: list[tuple[ProxyProtocol, str | None, ProxyStatus]],
) -> None:
    """By status and by each dimension the sums are the same, in whatever order results come."""
    summary = SweepSummary()
    proxies = [proxy(protocol=protocol, country=country) for protocol, country, _ in found]
    assert watched(summary, proxies) == proxies
    for checked, (_, _, status) in reversed(list(zip(proxies, found, strict=True))):
        summary.add(outcome(checked, status))
    assert summary.checked == len(found)
    assert summary.statuses.total() == len(found)
    for groups in summary.by.values():
        assert sum(group.total() for group in groups.values()) == len(found)
    for protocol, country, status in found:
        assert summary.by["protocol"][protocol.value][status] > 0
        assert summary.by["country"][country][status] > 0


@pytest.mark.parametrize(
    ("moved", "dropped", "recovered"),
    [
        ((ACTIVE, INACTIVE), 1, 0),
        ((SLOW, INACTIVE), 1, 0),
        ((ACTIVE, BANNED), 1, 0),
        ((INACTIVE, ACTIVE), 0, 1),
        ((INACTIVE, SLOW), 0, 1),
        ((ACTIVE, SLOW), 0, 0),
        ((SLOW, ACTIVE), 0, 0),
        ((INACTIVE, BANNED), 0, 0),
        ((BANNED, BANNED), 0, 0),
    ],
)
def test_who_dropped_out_and_who_came_back(
    moved: tuple[ProxyStatus, ProxyStatus], dropped: int, recovered: int
) -> None:
    """It counts whether a proxy may be leased; leases only on those that may be no more."""
    summary = SweepSummary()
    summary.add(outcome(proxy(), moved=moved, leases=3))
    counted = (summary.dropped, summary.dropped_leases, summary.recovered)
    assert counted == (dropped, 3 * dropped, recovered)


def test_failures_are_counted_by_reason() -> None:
    """A success has none."""
    summary = SweepSummary()
    for failure in (CheckFailure.TIMEOUT, None, CheckFailure.TIMEOUT, CheckFailure.TLS):
        summary.add(outcome(proxy(), failure=failure))
    assert summary.failures == {"timeout": 2, "tls": 1}


def test_a_proxy_that_is_gone_counts_as_checked_alone() -> None:
    """Nothing was recorded of it."""
    summary = SweepSummary()
    (checked,) = watched(summary, [proxy(country="AR")])
    summary.add(HealthOutcome(outcome(checked).result, known=False))
    assert (summary.checked, summary.unknown) == (1, 1)
    assert not summary.statuses
    assert not any(summary.by.values())


def test_a_proxy_that_was_not_watched_has_its_protocol() -> None:
    """A result says nothing else of what its proxy is."""
    summary = SweepSummary()
    summary.add(outcome(proxy(protocol="socks5", country="AR")))
    assert summary.by == {
        "protocol": {"socks5": {ACTIVE: 1}},
        "country": {None: {ACTIVE: 1}},
        "source": {None: {ACTIVE: 1}},
    }


def test_it_remembers_only_those_under_way() -> None:
    """A sweep of any length takes no more room than its checks at once."""
    summary = SweepSummary()

    async def one_by_one() -> None:
        async for checked in summary.watch(proxy() for _ in range(1000)):
            assert len(summary._watched) == 1
            summary.add(outcome(checked))

    asyncio.run(one_by_one())
    assert not summary._watched

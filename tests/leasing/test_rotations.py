"""A proxy with a link rests until it has another exit, or until the bound."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from pydantic import SecretStr

from pharox import (
    ConflictError,
    CoolDown,
    InvalidInputError,
    Lease,
    MissReason,
    Outcome,
    Proxy,
    ProxyCredentials,
    ProxyManager,
    ProxyNotFoundError,
    ProxyPool,
    ProxyStatus,
    RotationAnswer,
    RotationFailure,
    RotationPolicy,
    SecretKeyError,
)
from pharox.events import (
    LeaseReleased,
    ProxyChanged,
    RotationAnswered,
    RotationBegan,
    RotationCalled,
)
from pharox.models import DueRotation
from pharox.storage.postgres import PostgresStorage
from pharox.storage.postgres.registry import Registry
from pharox.storage.postgres.vault import Vault
from pharox.storage.reports import CoolDownRequest, ReportRequest
from pharox.storage.requests import AcquireRequest, ReleaseRequest, RevokeRequest
from tests.conftest import AnyStorage, clock_of, fill, run_sql, types_of

LINK = "https://provider.example/rotate?token=hunter2"
SHOP = "shop.example"
ROTATED = RotationAnswer(status=200, exit_ip="203.0.113.9")
REFUSED = RotationAnswer(RotationFailure.REFUSED, status=500)
ON_RELEASE = RotationPolicy(on="release")


def mobile(
    storage: AnyStorage, policy: RotationPolicy | None = ON_RELEASE, link: str = LINK, **facts: Any
) -> tuple[ProxyPool, Proxy]:
    """Register a pool with one proxy that has a link."""
    pool, (proxy,) = fill(storage, 1, rotate_url=SecretStr(link), **facts)
    pool = pool.model_copy(update={"rotation": policy})
    storage.save_pool(pool)
    return pool, proxy


def acquired(storage: AnyStorage, **options: Any) -> Lease:
    """Lease a proxy for a minute."""
    lease = storage.acquire_lease(AcquireRequest("pool", "w", 60, **options)).lease
    assert lease is not None
    return lease


def missed(storage: AnyStorage, **options: Any) -> MissReason | None:
    """Return why nothing is granted, or None if a proxy is."""
    outcome = storage.acquire_lease(AcquireRequest("pool", "w", 60, **options))
    return outcome.miss_reason


def claimed(storage: AnyStorage) -> DueRotation:
    """Claim the only link that is due."""
    (due,) = storage.claim_rotations(seconds=35).due
    return due


def is_fold(storage: AnyStorage) -> bool:
    """Return whether all read models are what the log says."""
    return list(storage.verify()) == []


class TestAfterALease:
    """The end of the last lease has its proxy rest, and one process calls the link."""

    def test_a_release_begins_it_and_an_answer_ends_it(self, any_storage: AnyStorage) -> None:
        clock = clock_of(any_storage)
        _, proxy = mobile(any_storage)
        lease = acquired(any_storage)
        assert lease.rotates
        assert pickle.loads(pickle.dumps(lease.proxy)).rotates
        any_storage.return_lease(lease)
        assert missed(any_storage) is MissReason.ROTATING
        assert any_storage.seconds_to_next_change("pool") == 60
        clock.advance(3)
        due = claimed(any_storage)
        assert due.url is not None
        assert due.url.get_secret_value() == LINK
        again = any_storage.claim_rotations(seconds=35)
        assert (again.due, again.next_in_seconds) == ((), 35)
        clock.advance(20)
        assert any_storage.answer_rotation(due, ROTATED)
        assert any_storage.claim_rotations([proxy.id]).rotated_at == clock.now
        known = any_storage.get_proxy(str(proxy.id))
        assert (known.exit_ip, known.rests_until, known.rotates) == ("203.0.113.9", None, True)
        assert known.rotate_url is None
        assert acquired(any_storage).proxy_id == proxy.id
        ended, began, called, answered = (
            e
            for e in any_storage.events()
            if isinstance(e, LeaseReleased | RotationBegan | RotationCalled | RotationAnswered)
        )
        assert isinstance(ended, LeaseReleased)
        assert isinstance(began, RotationBegan)
        assert ended.rests_until == began.rests_until == began.ends_at
        assert (began.because, began.lease_id) == ("release", lease.id)
        assert isinstance(called, RotationCalled)
        assert called.claimed_until == due.claimed_until
        assert isinstance(answered, RotationAnswered)
        assert answered.rotated_at == answered.recorded_at
        assert is_fold(any_storage)

    def test_the_bound_ends_it(self, any_storage: AnyStorage) -> None:
        """Also if the process that released was killed before it called the link, or meanwhile."""
        clock = clock_of(any_storage)
        mobile(any_storage)
        any_storage.return_lease(acquired(any_storage))
        clock.advance(59)
        assert missed(any_storage) is MissReason.ROTATING
        clock.advance(1)
        assert any_storage.claim_rotations().due == ()
        lease = acquired(any_storage)
        any_storage.return_lease(lease)
        due = claimed(any_storage)
        clock.advance(40)  # Who claimed it is gone: another process calls the link.
        other = claimed(any_storage)
        assert not any_storage.answer_rotation(due, ROTATED)
        assert any_storage.answer_rotation(other, ROTATED)
        assert not any_storage.answer_rotation(other, ROTATED)
        assert is_fold(any_storage)

    def test_a_claim_keeps_the_proxy_beyond_the_bound(self, any_storage: AnyStorage) -> None:
        """The link is never called while another lease holds the proxy."""
        clock = clock_of(any_storage)
        mobile(any_storage)
        any_storage.return_lease(acquired(any_storage))
        clock.advance(59)
        due = claimed(any_storage)
        clock.advance(34)
        assert missed(any_storage) is MissReason.RESTING
        assert any_storage.answer_rotation(due, ROTATED)
        acquired(any_storage)
        assert is_fold(any_storage)

    def test_a_failure_is_tried_again_until_the_bound(self, any_storage: AnyStorage) -> None:
        clock = clock_of(any_storage)
        mobile(any_storage)
        any_storage.return_lease(acquired(any_storage))
        any_storage.answer_rotation(claimed(any_storage), REFUSED)
        assert any_storage.claim_rotations().next_in_seconds == 5
        assert missed(any_storage) is MissReason.ROTATING
        clock.advance(5)
        asks = replace(REFUSED, status=429, retry_after_seconds=240)
        any_storage.answer_rotation(claimed(any_storage), asks)
        # It may not be called before the bound: nobody waits for that.
        lease = acquired(any_storage)
        any_storage.return_lease(lease)
        assert missed(any_storage) is None
        last = [e for e in any_storage.events() if isinstance(e, RotationAnswered)][-1]
        assert (last.failure, last.status, last.ends_at) == (RotationFailure.REFUSED, 429, None)
        clock.advance(240)
        any_storage.cleanup_expired_leases()
        assert missed(any_storage) is MissReason.ROTATING
        assert is_fold(any_storage)

    def test_expiry_revocation_and_batches_begin_it(self, any_storage: AnyStorage) -> None:
        clock = clock_of(any_storage)
        _, proxies = fill(any_storage, 4, rotate_url=SecretStr(LINK))
        pool = any_storage.get_pool_by_name("pool")
        assert pool is not None
        any_storage.save_pool(pool.model_copy(update={"rotation": ON_RELEASE}))
        first, second, *others = (acquired(any_storage) for _ in proxies)
        any_storage.revoke_leases(RevokeRequest((first.id,), "why"))
        any_storage.run_batch([ReleaseRequest(second), AcquireRequest("pool", "w", 60)])
        assert types_of(any_storage).count("RotationBegan") == 2
        clock.advance(60)
        any_storage.cleanup_expired_leases()
        began = [e for e in any_storage.events() if isinstance(e, RotationBegan)]
        assert {e.proxy_id for e in began} == {each.id for each in proxies}
        assert {e.lease_id for e in began[2:]} == {each.id for each in others}
        assert is_fold(any_storage)

    def test_the_own_rest_of_the_pool_goes_on(self, any_storage: AnyStorage) -> None:
        clock = clock_of(any_storage)
        pool, _ = mobile(any_storage)
        rests = {"rest_after_release_seconds": 90.0}
        any_storage.save_pool(pool.model_copy(update=rests))
        any_storage.return_lease(acquired(any_storage))
        any_storage.answer_rotation(claimed(any_storage), ROTATED)
        assert missed(any_storage) is MissReason.RESTING
        clock.advance(90)
        any_storage.return_lease(acquired(any_storage))
        settles = RotationPolicy(on="release", settle_seconds=10)
        any_storage.save_pool(pool.model_copy(update={"rotation": settles}))
        clock.advance(90)
        any_storage.return_lease(acquired(any_storage))
        any_storage.answer_rotation(claimed(any_storage), ROTATED)
        assert missed(any_storage) is MissReason.RESTING
        clock.advance(10)
        acquired(any_storage)
        assert is_fold(any_storage)

    def test_a_pause_between_exits_is_kept(self, any_storage: AnyStorage) -> None:
        """Within the bound it is waited for; else the proxy is leased with the exit it has."""
        clock = clock_of(any_storage)
        mobile(any_storage, RotationPolicy(on="release", every_seconds=100, within_seconds=50))
        any_storage.return_lease(acquired(any_storage))
        any_storage.answer_rotation(claimed(any_storage), ROTATED)
        clock.advance(10)
        any_storage.return_lease(acquired(any_storage))
        lease = acquired(any_storage)
        clock.advance(50)
        any_storage.return_lease(lease)
        assert any_storage.claim_rotations().next_in_seconds == 40
        clock.advance(40)
        claimed(any_storage)
        assert is_fold(any_storage)


class TestWhenRefused:
    """With "blocked" only a refusal at some target has a proxy take another exit."""

    def test_only_a_refused_exit_is_rotated(self, any_storage: AnyStorage) -> None:
        clock = clock_of(any_storage)
        _, proxy = mobile(any_storage, RotationPolicy(on="blocked"))
        lease = acquired(any_storage, target=SHOP)
        any_storage.report_outcomes([ReportRequest(lease, Outcome.ok())])
        any_storage.return_lease(lease)
        lease = acquired(any_storage, target=SHOP)
        for _ in range(3):
            (reported,) = any_storage.report_outcomes(
                [ReportRequest(lease, Outcome.blocked(status=429, retry_after=600))]
            )
            assert getattr(reported, "cools_until", 0) == clock.now + timedelta(seconds=600)
        any_storage.return_lease(lease)
        clock.advance(1)
        any_storage.answer_rotation(claimed(any_storage), ROTATED)
        lease = acquired(any_storage, target=SHOP)
        assert lease.proxy_id == proxy.id
        any_storage.return_lease(lease)  # Nobody refused the exit since it was taken.
        acquired(any_storage)
        began = [e.because for e in any_storage.events() if isinstance(e, RotationBegan)]
        assert began == ["blocked"]
        assert is_fold(any_storage)

    def test_an_exit_that_stays_rests_for_who_refused_it(self, any_storage: AnyStorage) -> None:
        """No rotation begins, or its link fails: the target does not see it again and again."""
        clock = clock_of(any_storage)
        policy = RotationPolicy(on="blocked", every_seconds=240, within_seconds=60)
        pool, proxy = mobile(any_storage, policy)
        cools = {"rotation": policy, "cool_down": CoolDown(base_seconds=30, jitter=0)}
        any_storage.save_pool(pool.model_copy(update=cools))

        def refused() -> MissReason | None:
            lease = acquired(any_storage, target=SHOP)
            said = Outcome.blocked(status=429)
            any_storage.report_outcomes([ReportRequest(lease, said)])
            any_storage.return_lease(lease)
            return missed(any_storage, target=SHOP)

        assert refused() is MissReason.ROTATING
        any_storage.answer_rotation(claimed(any_storage), ROTATED)
        assert refused() is MissReason.COOLING_DOWN  # Its link may not be called before the bound.
        any_storage.return_lease(acquired(any_storage))
        clock.advance(240)
        asks = replace(REFUSED, status=429, retry_after_seconds=600)
        assert refused() is MissReason.ROTATING
        any_storage.answer_rotation(claimed(any_storage), asks)
        assert missed(any_storage, target=SHOP) is MissReason.COOLING_DOWN
        any_storage.set_cool_down(CoolDownRequest(proxy.id, "else.example", 9000))
        clock.advance(600)
        any_storage.begin_rotation(proxy.id)
        any_storage.answer_rotation(claimed(any_storage), ROTATED)
        # What a person had it rest for has nothing to do with its exit.
        assert missed(any_storage, target="else.example") is MissReason.COOLING_DOWN
        assert missed(any_storage, target=SHOP) is None
        assert is_fold(any_storage)

    def test_a_shared_proxy_is_emptied_first(self, any_storage: AnyStorage) -> None:
        """Its link is not called before the last lease has ended."""
        clock = clock_of(any_storage)
        mobile(any_storage, RotationPolicy(on="blocked"), max_concurrency=3)
        one, two, three = (acquired(any_storage, target=SHOP) for _ in range(3))
        any_storage.report_outcomes([ReportRequest(one, Outcome.blocked(status=403))])
        any_storage.return_lease(one)
        assert missed(any_storage) is MissReason.ROTATING
        claims = any_storage.claim_rotations()
        assert (claims.due, claims.next_in_seconds) == ((), 1)
        clock.advance(30)
        any_storage.return_lease(two)
        assert any_storage.claim_rotations().due == ()
        any_storage.return_lease(three)
        clock.advance(45)  # The bound counts from the end of the last lease.
        any_storage.answer_rotation(claimed(any_storage), ROTATED)
        acquired(any_storage)
        assert is_fold(any_storage)

    def test_after_each_lease_a_shared_one_waits_for_the_last(
        self, any_storage: AnyStorage
    ) -> None:
        """Until then it is leased as ever."""
        clock_of(any_storage)
        mobile(any_storage, max_concurrency=2)
        one, two = acquired(any_storage), acquired(any_storage)
        any_storage.return_lease(one)
        three = acquired(any_storage)
        any_storage.return_lease(two)
        any_storage.return_lease(three)
        claimed(any_storage)
        assert is_fold(any_storage)


class TestAskedFor:
    """Somebody may have a proxy take another exit, whatever its pool says."""

    def test_it_waits_for_leases(self, any_storage: AnyStorage) -> None:
        clock = clock_of(any_storage)
        _, proxy = mobile(any_storage, None)
        lease = acquired(any_storage)
        assert not lease.rotates  # Nobody looks at its end.
        any_storage.begin_rotation(proxy.id, 30)
        assert any_storage.claim_rotations([proxy.id]).due == ()
        any_storage.return_lease(lease)
        assert missed(any_storage) is MissReason.ROTATING
        due = claimed(any_storage)
        any_storage.begin_rotation(proxy.id)  # It is being called.
        any_storage.answer_rotation(due, ROTATED)
        any_storage.return_lease(acquired(any_storage))
        acquired(any_storage)
        clock.advance(30)
        assert is_fold(any_storage)

    def test_who_asks_for_less_shortens_no_other(self, any_storage: AnyStorage) -> None:
        """The link is called for as long as the proxy rests for it."""
        clock = clock_of(any_storage)
        _, proxy = mobile(any_storage)
        lease = acquired(any_storage)
        any_storage.begin_rotation(proxy.id, 300)
        any_storage.begin_rotation(proxy.id, 10)
        any_storage.return_lease(lease)
        clock.advance(100)
        claimed(any_storage)
        assert is_fold(any_storage)

    def test_what_cannot_be_is_refused(self, any_storage: AnyStorage) -> None:
        clock_of(any_storage)
        policy = RotationPolicy(on="release", every_seconds=300)
        _, proxy = mobile(any_storage, policy)
        with pytest.raises(ProxyNotFoundError):
            any_storage.begin_rotation(uuid4())
        bad: Any
        for bad in (0, -1, 1e9, float("nan"), True, "60"):
            with pytest.raises(InvalidInputError, match="within_seconds"):
                any_storage.begin_rotation(proxy.id, bad)
        any_storage.begin_rotation(proxy.id)
        any_storage.answer_rotation(claimed(any_storage), ROTATED)
        with pytest.raises(ConflictError, match="300 s") as refusal:
            any_storage.begin_rotation(proxy.id)
        assert refusal.value.data["retry_after_seconds"] == 300
        any_storage.save_proxy(proxy.model_copy(update={"rotate_url": SecretStr("")}))
        with pytest.raises(InvalidInputError, match="no rotate_url"):
            any_storage.begin_rotation(proxy.id)
        with pytest.raises(InvalidInputError, match="DueRotation"):
            any_storage.answer_rotation(None, ROTATED)  # type: ignore[arg-type]
        for seconds, most in ((0, 1), (601, 1), (1, 0), (1, True)):
            with pytest.raises(InvalidInputError):
                any_storage.claim_rotations(seconds=seconds, most=most)


class TestTheLink:
    """A link is encrypted, and given to nobody but who calls it."""

    def test_it_is_kept_until_another_or_none_is_given(self, any_storage: AnyStorage) -> None:
        clock_of(any_storage)
        _, proxy = mobile(any_storage, credentials=ProxyCredentials(user="u", password="p"))
        bare = proxy.model_copy(update={"rotate_url": None})
        any_storage.save_proxy(proxy)  # The same link is no change.
        assert "ProxyChanged" not in types_of(any_storage)
        any_storage.save_proxy(bare.model_copy(update={"city": "x"}))
        any_storage.set_status(proxy.id, ProxyStatus.BANNED, for_seconds=1)
        any_storage.set_status(proxy.id, ProxyStatus.ACTIVE)
        assert any_storage.get_proxy(str(proxy.id)).rotates
        other = proxy.model_copy(update={"rotate_url": SecretStr(f"{LINK}2"), "city": "x"})
        any_storage.save_proxy(other)
        any_storage.begin_rotation(proxy.id)
        due = claimed(any_storage)
        assert due.url == other.rotate_url
        any_storage.answer_rotation(due, ROTATED)
        if isinstance(any_storage, PostgresStorage):
            assert any_storage.rotate_secrets() == 2
            ((kept,),) = run_sql(
                any_storage.engine, "SELECT count(*) FROM pharox.proxy_credentials"
            )
            assert kept == 2
        any_storage.save_proxy(other.model_copy(update={"rotate_url": SecretStr("")}))
        assert not any_storage.get_proxy(str(proxy.id)).rotates
        changes = [e.rotate_id for e in any_storage.events() if isinstance(e, ProxyChanged)]
        assert [each is not None for each in changes] == [True, True, True, True, False]
        assert is_fold(any_storage)
        any_storage.delete_proxy(str(proxy.id))
        assert is_fold(any_storage)

    def test_nobody_loses_what_another_process_saves(
        self, postgres: PostgresStorage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It saves a link after this one has read the proxy, and before this one saves it."""
        clock_of(postgres)
        _, proxy = mobile(postgres)
        other = proxy.model_copy(update={"rotate_url": SecretStr(f"{LINK}2")})
        read = Registry._known_credentials
        given: SecretStr | None

        def late(self: Any, proxies: Any) -> Any:
            known = yield from read(self, proxies)
            monkeypatch.setattr(Registry, "_known_credentials", read)
            postgres.save_proxy(other)
            return known

        for given, kept in ((None, other.rotate_url), (proxy.rotate_url, proxy.rotate_url)):
            monkeypatch.setattr(Registry, "_known_credentials", late)
            changed = {"rotate_url": given, "city": str(kept is proxy.rotate_url)}
            postgres.save_proxy(proxy.model_copy(update=changed))
            postgres.begin_rotation(proxy.id)
            due = claimed(postgres)
            assert due.url == kept
            postgres.answer_rotation(due, ROTATED)
            postgres.save_proxy(proxy)
        assert is_fold(postgres)

    def test_who_cannot_read_it_leaves_it_to_others(
        self, postgres: PostgresStorage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A claim of a process without the key would keep them from calling it."""
        clock_of(postgres)
        _, proxy = mobile(postgres)
        with monkeypatch.context() as without:

            def fails(*_: object) -> None:
                raise SecretKeyError("no key")

            without.setattr(Vault, "open_link", fails)
            answer = ProxyManager(postgres).rotate_proxy(proxy.id)
            assert answer.failure is RotationFailure.UNREADABLE
            claims = postgres.claim_rotations()
            assert (claims.due, claims.unreadable) == ((), (proxy.id,))
            assert ProxyManager(postgres).rotate_due() == []
        assert claimed(postgres).url == proxy.rotate_url

    def test_it_is_in_no_event_dump_or_repr(self, any_storage: AnyStorage) -> None:
        clock_of(any_storage)
        _, proxy = mobile(any_storage)
        any_storage.return_lease(acquired(any_storage))
        due = claimed(any_storage)
        any_storage.answer_rotation(due, REFUSED)
        shown = [
            *(e.model_dump_json() for e in any_storage.events()),
            repr(proxy),
            proxy.model_dump_json(),
            str(proxy.model_dump()),
            repr(due),
            repr(any_storage.get_proxy(str(proxy.id))),
        ]
        assert not [text for text in shown if "hunter2" in text or "provider.example" in text]

    @pytest.mark.parametrize(
        "link",
        [
            *("provider.example/x", "ftp://x/y", "http://", "x\x00", "http://["),
            *(
                "http://h:provider.example/",
                "http://h:99999/",
                "http://h:0/",
            ),
        ],
    )
    def test_what_is_no_link_is_refused(self, link: str) -> None:
        with pytest.raises(ValueError, match="rotate_url") as refusal:
            Proxy(
                host="192.0.2.1",
                port=1,
                protocol="http",
                pool_id=uuid4(),
                rotate_url=link,
            )
        assert "provider.example" not in str(refusal.value)


def test_a_policy_is_validated() -> None:
    """Its times are bounded, and what is no rule is none."""
    for bad in (
        {"on": "always"},
        {"on": "release", "within_seconds": 0},
        {"on": "release", "within_seconds": 3601},
        {"on": "release", "every_seconds": -1},
        {"on": "release", "settle_seconds": True},
        {},
    ):
        with pytest.raises(ValueError, match="RotationPolicy"):
            RotationPolicy.model_validate(bad)
    policy = RotationPolicy(on="blocked")
    assert json.loads(policy.model_dump_json())["within_seconds"] == 60
    assert timedelta(seconds=policy.within_seconds) == timedelta(minutes=1)

"""Rotations are the same in memory, in PostgreSQL and in the fold of the log."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from pharox import (
    CoolDown,
    InMemoryStorage,
    Outcome,
    RotationAnswer,
    RotationFailure,
    RotationPolicy,
)
from pharox.models import DueRotation
from pharox.storage.postgres import PostgresStorage
from pharox.storage.reports import ReportRequest
from tests.conftest import clock_of

from .test_sticky import ASKED, TwoLives

POLICIES = (
    RotationPolicy(on="release"),
    RotationPolicy(on="blocked"),
    RotationPolicy(on="release", every_seconds=40, within_seconds=30, settle_seconds=7),
    RotationPolicy(on="blocked", every_seconds=20),
    None,
)
ANSWERS = (
    RotationAnswer(),
    RotationAnswer(exit_ip="203.0.113.1", status=200),
    RotationAnswer(RotationFailure.REFUSED, status=500),
    RotationAnswer(RotationFailure.REFUSED, status=429, retry_after_seconds=200),
    RotationAnswer(RotationFailure.TIMEOUT),
)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                *["acquire"] * 6,
                *["release"] * 5,
                *["blocked"] * 4,
                *["claim"] * 4,
                *["answer"] * 4,
                *["wait", "wait", "rest", "policy", "ask", "status", "remove", "expire"],
            ]
        ),
        st.integers(0, 10**6),
        ASKED,
    ),
    min_size=8,
    max_size=40,
)


class RotatingLives(TwoLives):
    """Leads the same life with proxies of which all but one have links."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        for number, proxy in enumerate(self.proxies[1:]):
            proxy.rotate_url = SecretStr(f"https://provider.example/{number}")
            for storage in self.both:
                storage.save_proxy(proxy)
        self.due: list[tuple[DueRotation, DueRotation]] = []
        self.policy(0, {})

    def policy(self, pick: int, _: dict[str, Any]) -> None:
        rule = POLICIES[pick % len(POLICIES)]
        changes = {"rotation": rule, "cool_down": CoolDown(jitter=0)}
        self.pool = self.pool.model_copy(update=changes)
        for storage in self.both:
            storage.save_pool(self.pool)

    def blocked(self, pick: int, _: dict[str, Any]) -> None:
        if not self.leases:
            return
        outcome = (Outcome.blocked("shop.example", status=429), Outcome.ok("shop.example"))
        held = self.leases[pick % len(self.leases)]
        for storage, lease in zip(self.both, held, strict=True):
            storage.report_outcomes([ReportRequest(lease, outcome[pick // 7 % 4 == 0])])

    def expire(self, _: int, __: dict[str, Any]) -> None:
        for storage in self.both:
            storage.cleanup_expired_leases()

    def ask(self, pick: int, _: dict[str, Any]) -> None:
        proxy_id, within = self.proxies[pick % 4].id, (None, 10, 500)[pick // 4 % 3]
        ours, theirs = self.both_do(lambda storage: storage.begin_rotation(proxy_id, within))
        assert ours == theirs

    def claim(self, pick: int, _: dict[str, Any]) -> None:
        ids = [proxy.id for proxy in self.proxies]
        seconds, most = (35, 8)[pick % 2], (1, 4)[pick // 2 % 2]
        ours, theirs = self.both_do(
            lambda storage: storage.claim_rotations(ids, seconds=seconds, most=most)
        )
        assert ours == theirs
        self.due += zip(ours.due, theirs.due, strict=True)

    def answer(self, pick: int, _: dict[str, Any]) -> None:
        if not self.due:
            return
        due = self.due.pop(pick % len(self.due))
        answer = ANSWERS[pick // 3 % len(ANSWERS)]
        done = [
            storage.answer_rotation(each, answer)
            for storage, each in zip(self.both, due, strict=True)
        ]
        assert done[0] == done[1]

    def compare(self) -> None:
        super().compare()
        ours, theirs = (
            {
                proxy.id: (proxy.rests_until, proxy.exit_ip, proxy.rotates, proxy.current_leases)
                for proxy in storage.list_proxies(str(self.pool.id))
            }
            for storage in self.both
        )
        assert ours == theirs
        now: datetime = self.clocks[0].now
        for due, _ in self.due:
            known = ours.get(due.proxy_id)
            if known is not None and due.claimed_until > now and known[0] is not None:
                assert known[3] == 0  # Nobody holds what is claimed.


def test_memory_postgres_and_the_fold_tell_the_same_of_rotations(
    postgres: PostgresStorage,
) -> None:
    """Whatever is leased, refused, claimed, answered late or not at all, banned and removed."""
    clock = clock_of(postgres)

    @given(STEPS)
    @settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
    def agree(steps: list[tuple[str, int, dict[str, Any]]]) -> None:
        memory = InMemoryStorage()
        clocks = [clock_of(memory), clock]
        clocks[0].advance((clock.now - clocks[0].now).total_seconds())
        lives = RotatingLives((memory, postgres), clocks)
        for name, pick, asked in steps:
            getattr(lives, name)(pick, asked)
            lives.compare()
        assert memory.verify() == []

    agree()
    assert postgres.verify() == []

"""Outcomes are reported: successes are counted, all others written at once, in order."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID, uuid4
from weakref import ref

import pytest

from pharox import (
    DatabaseUnavailableError,
    HealthCheckResult,
    HealthEventPayload,
    HealthPolicy,
    InMemoryStorage,
    InvalidInputError,
    Lease,
    LeaseEndedError,
    LeaseStatus,
    Outcome,
    OutcomeEventPayload,
    OutcomeUnknownError,
    ProxyManager,
    ProxyStatus,
)
from pharox.events import HealthChecked, OutcomeReported
from pharox.manager import tally
from pharox.manager.tally import ThreadTally, known_tally, tally_of
from pharox.storage.interface import IStorage
from pharox.storage.reports import ReportRequest
from tests.conftest import AnyStorage, clock_of, fill, types_of
from tests.ledger.following import until

SHOP = "shop.example"
BLOCKED = Outcome.blocked(SHOP, status=403)
OK = Outcome.ok(SHOP, status=200)


def reports(storage: Any) -> list[OutcomeReported]:
    """Return the reports in the log."""
    return [event for event in storage.events() if isinstance(event, OutcomeReported)]


def told(storage: Any) -> list[tuple[str, int | None, int, int | None]]:
    """Return kind, status, count and streak of each report."""
    return [(each.outcome.value, each.status, each.count, each.streak) for each in reports(storage)]


def leased(manager: ProxyManager, **options: Any) -> Lease:
    lease = manager.acquire_proxy("pool", "w", 60, **options)
    assert lease is not None
    return lease


def waiting(storage: Any) -> int:
    """Return how many reports wait."""
    known = known_tally(storage)
    return 0 if known is None else len(known)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write what waits after a moment."""
    monkeypatch.setattr(tally, "PERIOD_S", 0.1)


def test_successes_are_counted_until_the_release(any_storage: AnyStorage) -> None:
    """A thousand of one lease, target and status are one event, with the bytes of all."""
    fill(any_storage, 1)
    manager = ProxyManager(any_storage)
    with manager.with_lease("pool", "w") as lease:
        assert lease is not None
        for _ in range(1000):
            assert manager.report(lease, Outcome.ok(SHOP, status=200, bytes=7)) is None
        manager.report(lease, Outcome.ok(SHOP, status=404))
        manager.report(lease, Outcome.ok("https://other.example/page", status=200))
        assert reports(any_storage) == []
        assert waiting(any_storage) == 3
    assert [
        (each.target, each.status, each.count, each.bytes) for each in reports(any_storage)
    ] == [
        (SHOP, 200, 1000, 7000),
        ("other.example", 200, 1, None),
        (SHOP, 404, 1, None),
    ]
    assert types_of(any_storage)[-1] == "LeaseReleased"
    assert waiting(any_storage) == 0
    assert any_storage.verify() == []


def test_other_outcomes_are_written_at_once_after_what_was_counted(
    any_storage: AnyStorage,
) -> None:
    """So the streak is right, and the answer says until when the pair rests."""
    fill(any_storage, 1)
    manager = ProxyManager(any_storage)
    lease = leased(manager)
    manager.report(lease, OK)
    manager.report(lease, OK)
    first = manager.report(lease, BLOCKED)
    second = manager.report(lease, BLOCKED)
    assert first is not None
    assert second is not None
    assert (first.streak, first.cools_until) == (-1, None)
    assert second.streak == -2
    assert second.cools_until is not None
    manager.report(lease, OK)
    assert told(any_storage) == [
        ("ok", 200, 2, 2),
        ("blocked", 403, 1, -1),
        ("blocked", 403, 1, -2),
    ]
    manager.flush_reports()
    assert told(any_storage)[3:] == [("ok", 200, 1, 1)]


def test_an_outcome_comes_before_its_release(any_storage: AnyStorage) -> None:
    """With what was counted; a success is counted with the others."""
    fill(any_storage, 3)
    manager = ProxyManager(any_storage)
    first, second, third = (leased(manager) for _ in range(3))
    manager.report(first, OK)
    manager.release_proxy(first, OK)
    manager.report(second, OK)
    manager.release_proxies([second, third], [BLOCKED, None])
    assert told(any_storage) == [("ok", 200, 2, 2), ("ok", 200, 1, 1), ("blocked", 403, 1, -1)]
    assert [
        each for each in types_of(any_storage) if each in ("OutcomeReported", "LeaseReleased")
    ] == [
        "OutcomeReported",
        "LeaseReleased",
        "OutcomeReported",
        "OutcomeReported",
        "LeaseReleased",
        "LeaseReleased",
    ]


def test_a_batch_is_in_order_and_all_of_it_is_tried(any_storage: AnyStorage) -> None:
    """An unknown lease has its error afterwards; the others are recorded."""
    fill(any_storage, 2)
    manager = ProxyManager(any_storage)
    first, second = leased(manager), leased(manager)
    manager.report(first, OK)
    recorded = manager.report_outcomes([(first, OK), (first, BLOCKED), (second, OK), (first, OK)])
    assert [(each.target, each.streak) for each in recorded] == [
        (SHOP, 2),
        (SHOP, -1),
        (SHOP, 1),
        (SHOP, 1),
    ]
    unknown = first.model_copy(update={"id": uuid4()})
    with pytest.raises(LeaseEndedError, match=f"There is no lease {unknown.id}"):
        manager.report_outcomes([(unknown, OK), (second, BLOCKED)])
    assert told(any_storage)[-1] == ("blocked", 403, 1, -1)
    assert manager.report_outcomes([]) == []


def test_bad_input_is_refused(any_storage: AnyStorage) -> None:
    """A wrong lease, outcome or pair: nothing is recorded."""
    fill(any_storage, 1)
    manager: Any = ProxyManager(any_storage)
    lease = leased(manager)
    for call in (
        lambda: manager.report(lease, "ok"),
        lambda: manager.report(str(lease.id), OK),
        lambda: manager.report_outcomes([lease]),
        lambda: manager.report_outcomes([(lease, OK), (lease, None)]),
        lambda: ProxyManager(any_storage, reported_failures=3),  # type: ignore[arg-type]
    ):
        with pytest.raises(InvalidInputError):
            call()
    assert reports(any_storage) == []
    with pytest.raises(LeaseEndedError, match="There is no lease"):
        manager.report(lease.model_copy(update={"id": uuid4()}), BLOCKED)


def test_what_is_no_outcome_is_refused_before_anything_is_released(
    any_storage: AnyStorage,
) -> None:
    """Alone and in batches, with too few too; then the same leases are released."""
    fill(any_storage, 4)
    manager: Any = ProxyManager(any_storage)
    lease, *pair = (leased(manager) for _ in range(3))
    types = types_of(any_storage)
    calls: list[tuple[Callable[[], Any], str]] = [
        (lambda: manager.release_proxy(lease, "blocked"), "an Outcome is needed"),
        (lambda: manager.release_proxies([lease], ["blocked"]), "not a str"),
        (lambda: manager.release_proxies(pair, [BLOCKED, "blocked"]), "an Outcome is needed"),
        (lambda: manager.release_proxies(pair, 5), "an Outcome is needed"),
        (lambda: manager.release_proxies(pair, [BLOCKED]), "1 for 2 leases"),
        (lambda: manager.release_proxies([lease], []), "0 for 1 leases"),
    ]
    for call, words in calls:
        with pytest.raises(InvalidInputError, match=words):
            call()
    assert types_of(any_storage) == types
    manager.release_proxy(lease)
    manager.release_proxies(pair)
    assert {each.status for each in (lease, *pair)} == {LeaseStatus.RELEASED}
    assert reports(any_storage) == []
    unknown = leased(manager).model_copy(update={"id": uuid4()})
    with pytest.raises(LeaseEndedError, match="There is no lease"):
        manager.release_proxy(unknown, BLOCKED)
    with pytest.raises(LeaseEndedError, match="There is no lease"):
        manager.release_proxy(unknown, OK)


def test_a_release_that_fails_has_its_report(
    any_storage: AnyStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report is recorded, and the error is that of the release."""
    fill(any_storage, 1)
    manager = ProxyManager(any_storage)
    lease = leased(manager)

    def refuse(*_: Any, **__: Any) -> Any:
        raise DatabaseUnavailableError("down")

    monkeypatch.setattr(any_storage, "return_lease", refuse)
    with pytest.raises(DatabaseUnavailableError):
        manager.release_proxy(lease, BLOCKED)
    assert told(any_storage) == [("blocked", 403, 1, -1)]
    unknown = lease.model_copy(update={"id": uuid4()})
    with pytest.raises(DatabaseUnavailableError) as raised:
        manager.release_proxy(unknown, BLOCKED)
    assert "There is no lease" in raised.value.__notes__[0]


class _Flaky(InMemoryStorage):
    """A storage that fails to record outcomes as often as it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[Exception] = []
        self.hold: Callable[[], None] = lambda: None

    def report_outcomes(self, requests: Sequence[ReportRequest]) -> Any:
        self.hold()
        if self.errors:
            raise self.errors.pop()
        return super().report_outcomes(requests)


@pytest.mark.usefixtures("soon")
def test_what_waits_is_written_by_the_clock(any_storage: AnyStorage) -> None:
    """By one thread, which ends when nothing waits."""
    fill(any_storage, 1)
    manager = ProxyManager(any_storage)
    lease = leased(manager)
    for _ in range(5):
        manager.report(lease, OK)
    until(lambda: told(any_storage) == [("ok", 200, 5, 5)], 5)
    counted: Any = known_tally(any_storage)
    until(lambda: counted._thread is None, 5)
    manager.report(lease, OK)
    until(lambda: len(reports(any_storage)) == 2, 5)
    manager.release_proxy(lease)


@pytest.mark.usefixtures("soon")
def test_what_failed_is_tried_again_in_its_order(caplog: pytest.LogCaptureFixture) -> None:
    """The holder is not told, and nothing is counted twice."""
    storage = _Flaky()
    fill(storage, 1)
    storage.errors = [DatabaseUnavailableError("down")] * 3
    manager = ProxyManager(storage)
    lease = leased(manager)
    manager.report(lease, OK)
    manager.flush_reports()
    manager.report(lease, OK)
    manager.report_later(lease, BLOCKED)
    until(lambda: not waiting(storage) and not storage.errors, 5)
    assert [each[0] for each in told(storage)] == ["ok", "ok", "blocked"]
    assert sum(each.count for each in reports(storage)) == 3
    assert "pharox.report.failed" in caplog.text


def test_an_outcome_that_cannot_be_written_now_is_an_error() -> None:
    """It is not tried again; what was counted before it is."""
    storage = _Flaky()
    fill(storage, 1)
    manager = ProxyManager(storage)
    lease = leased(manager)
    manager.report(lease, OK)
    storage.errors = [DatabaseUnavailableError("down")]
    with pytest.raises(DatabaseUnavailableError):
        manager.report(lease, BLOCKED)
    assert waiting(storage) == 1
    manager.release_proxy(lease)
    assert told(storage) == [("ok", 200, 1, 1)]


def test_what_may_have_been_written_is_not_written_again() -> None:
    storage = _Flaky()
    fill(storage, 1)
    manager = ProxyManager(storage)
    lease = leased(manager)
    manager.report(lease, OK)
    storage.errors = [OutcomeUnknownError("the connection broke")]
    manager.flush_reports()
    assert waiting(storage) == 0
    assert reports(storage) == []


def test_what_cannot_be_written_for_long_is_lost(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And so is what would be too much; the log says how many."""
    monkeypatch.setattr(tally, "KEPT_S", 0.0)
    monkeypatch.setattr(tally, "MOST", 2)
    storage = _Flaky()
    fill(storage, 1)
    manager = ProxyManager(storage)
    lease = leased(manager)
    for target in ("a.example", "b.example", "c.example", "a.example"):
        manager.report(lease, Outcome.ok(target))
    assert waiting(storage) == 2
    storage.errors = [DatabaseUnavailableError("down")]
    manager.flush_reports()
    assert waiting(storage) == 0
    assert "4 outcomes could not be written" in caplog.text


def test_a_report_waits_for_what_is_written_of_its_proxy() -> None:
    """A success that is under way comes before the refusal after it."""
    storage = _Flaky()
    fill(storage, 2)
    manager = ProxyManager(storage)
    lease, other = leased(manager), leased(manager)
    begun, free = threading.Event(), threading.Event()

    def hold() -> None:
        storage.hold = lambda: None
        begun.set()
        assert free.wait(10)

    storage.hold = hold
    manager.report(lease, OK)
    flushing = threading.Thread(target=manager.flush_reports)
    flushing.start()
    assert begun.wait(10)
    refusing = threading.Thread(target=manager.report, args=(lease, BLOCKED))
    refusing.start()
    manager.report(other, BLOCKED)  # Another proxy's is not kept waiting.
    assert refusing.is_alive()
    free.set()
    flushing.join(10)
    refusing.join(10)
    of_lease = [each for each in reports(storage) if each.proxy_id == lease.proxy_id]
    assert [each.outcome.value for each in of_lease] == ["ok", "blocked"]


def test_nothing_is_lost_or_counted_twice_by_threads(any_storage: AnyStorage) -> None:
    """Threads report under shared leases, while another writes all the time."""
    fill(any_storage, 2, max_concurrency=None)
    manager = ProxyManager(any_storage)
    leases = [leased(manager) for _ in range(4)]
    over = threading.Event()

    def flush() -> None:
        while not over.is_set():
            manager.flush_reports()

    def work(n: int) -> None:
        for turn in range(60):
            lease = leases[(n + turn) % 4]
            manager.report(lease, OK)
            if turn % 20 == 10:
                manager.report(lease, BLOCKED)
        manager.flush_reports()

    workers = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    flusher = threading.Thread(target=flush)
    for thread in (flusher, *workers):
        thread.start()
    for thread in workers:
        thread.join(60)
    over.set()
    flusher.join(60)
    manager.release_proxies(leases)
    found = reports(any_storage)
    assert sum(each.count for each in found if each.outcome.value == "ok") == 240
    assert sum(each.count for each in found if each.outcome.value == "blocked") == 12
    assert waiting(any_storage) == 0
    assert any_storage.verify() == []


def test_the_keeper_writes_with_a_renewal(any_storage: AnyStorage) -> None:
    """A holder that is killed loses what it reported since the last renewal at most."""
    fill(any_storage, 1)
    manager = ProxyManager(any_storage)
    lease = manager.acquire_proxy("pool", "w", 1, keep_alive=True)
    assert lease is not None
    manager.report(lease, OK)
    until(lambda: bool(reports(any_storage)), 5)
    assert "LeaseRenewed" in types_of(any_storage)
    manager.release_proxy(lease)


def test_closing_a_storage_writes_what_is_left(any_storage: AnyStorage) -> None:
    fill(any_storage, 1)
    manager = ProxyManager(any_storage)
    lease = leased(manager)
    manager.report(lease, OK)
    if isinstance(any_storage, InMemoryStorage):
        manager.flush_reports()  # There is nothing to close.
    else:
        any_storage.close()
    assert told(any_storage) == [("ok", 200, 1, 1)]


def test_a_tally_keeps_neither_lease_nor_storage_alive() -> None:
    """Its holder may have forgotten the lease, which is then not renewed."""
    storage = InMemoryStorage()
    fill(storage, 1)
    manager = ProxyManager(storage)
    lease = leased(manager)
    manager.report(lease, OK)
    gone = ref(lease)
    del lease
    gc.collect()
    assert gone() is None
    manager.flush_reports()
    forgotten = ref(storage)
    del storage, manager
    gc.collect()
    assert forgotten() is None


def test_a_forked_child_writes_nothing_of_its_parent() -> None:
    storage = InMemoryStorage()
    fill(storage, 2)
    manager = ProxyManager(storage)
    lease = leased(manager)
    manager.report(lease, OK)

    def child(answer: Any) -> None:
        manager.flush_reports()
        before = len(reports(storage))
        manager.report(leased(manager), OK)
        manager.flush_reports()
        answer.put((before, len(reports(storage))))

    fork = multiprocessing.get_context("fork")
    answer = fork.SimpleQueue()
    process = fork.Process(target=child, args=(answer,))
    process.start()
    assert answer.get() == (0, 1)
    process.join(10)
    manager.release_proxy(lease)
    assert told(storage) == [("ok", 200, 1, 1)]


def test_reports_are_written_without_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that may have no more threads reports; the release writes."""
    storage, original = InMemoryStorage(), threading.Thread.start
    fill(storage, 1)

    def start(thread: threading.Thread) -> None:
        if thread.name == "pharox-reports":
            raise RuntimeError("can't start new thread")
        original(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    manager = ProxyManager(storage)
    lease = leased(manager)
    manager.report(lease, OK)
    manager.report(lease, OK)
    manager.release_proxy(lease)
    assert told(storage) == [("ok", 200, 2, 2)]


def test_sums_stay_what_can_be_recorded(any_storage: AnyStorage) -> None:
    """What would be too much for one event becomes two."""
    fill(any_storage, 1)
    manager = ProxyManager(any_storage)
    lease = leased(manager)
    many = Outcome(kind=OK.kind, target=SHOP, count=2**31 - 1, bytes=2**63 - 1)
    for _ in range(2):
        manager.report(lease, many)
    manager.report(lease, Outcome.ok(SHOP))
    manager.release_proxy(lease)
    assert [(each.count, each.bytes) for each in reports(any_storage)] == [
        (2**31 - 1, 2**63 - 1),
        (2**31 - 1, 2**63 - 1),
        (1, None),
    ]


def test_a_storage_without_support_says_so() -> None:
    """An adapter written for 0.11.0 leases and releases as ever."""

    class Plain(InMemoryStorage):
        report_outcomes = IStorage.report_outcomes

    storage = Plain()
    fill(storage, 1)
    manager = ProxyManager(storage)
    lease = leased(manager)
    for outcome in (OK, BLOCKED):
        with pytest.raises(InvalidInputError, match="Plain cannot record outcomes"):
            manager.report(lease, outcome)
    manager.report_later(lease, BLOCKED)
    with pytest.raises(InvalidInputError, match="Plain cannot record outcomes"):
        manager.release_proxy(lease, BLOCKED)
    assert lease.status is LeaseStatus.RELEASED
    manager.flush_reports()


def test_a_handle_reports(any_storage: AnyStorage) -> None:
    fill(any_storage, 1)
    pool = ProxyManager(any_storage).pool("pool")
    with pool.lease() as lease:
        reported = pool.report(lease, BLOCKED)
    assert reported is not None
    assert reported.streak == -1


def checked(storage: AnyStorage, proxy_id: UUID) -> None:
    """Record a good check of a proxy."""
    proxy = storage.get_proxy(str(proxy_id))
    result = HealthCheckResult(
        proxy_id=proxy_id, status=ProxyStatus.ACTIVE, latency_ms=5, protocol=proxy.protocol
    )
    storage.record_health_checks([result])
    time.sleep(0.002)  # A check counts only if it is later.


def test_a_proxy_that_failed_has_failed_a_check(any_storage: AnyStorage) -> None:
    """Three in a row make it inactive, and a good check begins the row anew."""
    _, (proxy,) = fill(any_storage, 1)
    manager, payloads = ProxyManager(any_storage), list[HealthEventPayload]()
    manager.register_health_callback(payloads.append)
    failed = Outcome.proxy_failed(SHOP, status=407, note="the proxy answered CONNECT with 407")
    lease = leased(manager)
    manager.report(lease, failed)
    assert payloads == [], "a proxy that nobody checks would stay inactive for ever"
    checked(any_storage, proxy.id)
    for _ in range(2):
        manager.report(lease, failed)
        manager.report(lease, BLOCKED)
        manager.report(lease, Outcome.unclear(SHOP))
        time.sleep(0.002)
    assert any_storage.get_proxy(str(proxy.id)).status is ProxyStatus.ACTIVE
    manager.release_proxy(lease, failed)
    assert any_storage.get_proxy(str(proxy.id)).status is ProxyStatus.INACTIVE
    events = [each for each in any_storage.events() if isinstance(each, HealthChecked)]
    assert len(events) == 4
    assert events[-1].failure == "reported"
    assert events[-1].error == "a holder reported it: the proxy answered CONNECT with 407"
    assert events[-1].status_code == 407
    assert [payload.status_after for payload in payloads][-1] is ProxyStatus.INACTIVE
    checked(any_storage, proxy.id)
    assert any_storage.get_proxy(str(proxy.id)).status is ProxyStatus.ACTIVE
    assert any_storage.verify() == []


@pytest.mark.parametrize(
    ("policy", "status"), [(None, ProxyStatus.ACTIVE), (HealthPolicy(), ProxyStatus.INACTIVE)]
)
def test_a_manager_has_its_own_policy(
    any_storage: AnyStorage, policy: HealthPolicy | None, status: ProxyStatus
) -> None:
    """None counts nothing; another may be stricter."""
    _, (proxy,) = fill(any_storage, 1)
    checked(any_storage, proxy.id)
    manager = ProxyManager(any_storage, reported_failures=policy)
    manager.report(leased(manager), Outcome.proxy_failed(SHOP))
    assert any_storage.get_proxy(str(proxy.id)).status is status


def test_a_failure_that_cannot_be_counted_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The report is recorded, and its holder goes on."""
    storage = InMemoryStorage()
    _, (proxy,) = fill(storage, 1)
    checked(storage, proxy.id)

    def refuse(*_: Any) -> Any:
        raise DatabaseUnavailableError("down")

    monkeypatch.setattr(storage, "record_health_checks", refuse)
    manager = ProxyManager(storage)
    with caplog.at_level(logging.WARNING, "pharox"):
        assert manager.report(leased(manager), Outcome.proxy_failed(SHOP)) is not None
    assert "not counted: down" in caplog.text


def test_a_tally_is_its_storages() -> None:
    """All managers of a storage have one."""
    storage = InMemoryStorage()
    fill(storage, 1)
    first, second = ProxyManager(storage), ProxyManager(storage)
    lease = leased(first)
    first.report(lease, OK)
    second.report(lease, OK)
    assert tally_of(storage, ThreadTally) is known_tally(storage)
    assert waiting(storage) == 1
    second.release_proxy(lease)
    assert told(storage) == [("ok", 200, 2, 2)]


def test_unclear_failures_count_from_two_targets(any_storage: AnyStorage) -> None:
    """Of late, and with no success of the proxy since: else one bad site ends a good proxy."""
    _, (proxy,) = fill(any_storage, 1)
    clock = clock_of(any_storage)
    manager = ProxyManager(any_storage, reported_failures=HealthPolicy())
    lease = leased(manager)

    def failed_checks(*outcomes: Outcome) -> int:
        """Report outcomes, and return how many checks have failed by them."""
        checked(any_storage, proxy.id)
        before = len(list(any_storage.events()))
        for outcome in outcomes:
            clock.advance(1)
            manager.report_outcomes([(lease, outcome)])
        later = list(any_storage.events())[before:]
        return len([each for each in later if isinstance(each, HealthChecked)])

    shop, news = Outcome.unclear("shop.example"), Outcome.unclear("news.example")
    assert failed_checks(shop, shop, Outcome.unclear()) == 0
    clock.advance(601)
    assert failed_checks(news, news) == 0, "the other is too long ago"
    assert failed_checks(Outcome.ok("mail.example"), shop) == 0, "something has succeeded since"
    assert failed_checks(Outcome.blocked("mail.example"), Outcome.target_failed("a.example")) == 0
    assert failed_checks(news) == 1
    assert any_storage.get_proxy(str(proxy.id)).status is ProxyStatus.INACTIVE
    assert any_storage.count_unclear_targets(proxy.id) == 2
    assert any_storage.count_unclear_targets(uuid4()) == 0
    assert any_storage.verify() == []


@pytest.mark.parametrize(
    ("of_pool", "of_manager", "counts"),
    [
        (None, HealthPolicy(), True),
        (False, HealthPolicy(), False),
        (True, HealthPolicy(), True),
        (None, None, False),
        (True, None, True),
    ],
)
def test_a_pool_says_whether_its_proxies_are_counted(
    any_storage: AnyStorage, of_pool: bool | None, of_manager: HealthPolicy | None, counts: bool
) -> None:
    """If it says nothing, the manager does."""
    pool, (proxy,) = fill(any_storage, 1)
    any_storage.save_pool(pool.model_copy(update={"reported_failures": of_pool}))
    assert any_storage.get_pool(str(pool.id)).reported_failures is of_pool
    checked(any_storage, proxy.id)
    before = len(types_of(any_storage))
    manager = ProxyManager(any_storage, reported_failures=of_manager)
    manager.report(leased(manager), Outcome.proxy_failed(SHOP))
    assert ("HealthChecked" in types_of(any_storage)[before:]) is counts
    assert any_storage.verify() == []


def test_callbacks_hear_of_recorded_outcomes(
    any_storage: AnyStorage, caplog: pytest.LogCaptureFixture
) -> None:
    """Of successes once they are written, with their count; what a callback raises is logged."""
    fill(any_storage, 1)
    manager, heard = ProxyManager(any_storage), list[OutcomeEventPayload]()

    def fail(payload: OutcomeEventPayload) -> None:
        raise KeyError("mine")

    manager.register_outcome_callback(fail)
    manager.register_outcome_callback(heard.append)
    lease = leased(manager)
    manager.report(lease, OK)
    manager.report(lease, OK)
    assert heard == []
    with caplog.at_level(logging.ERROR, "pharox"):
        manager.report(lease, Outcome.blocked(status=429, retry_after=60, target=SHOP))
    manager.release_proxy(lease, Outcome.unclear())
    assert [(each.outcome.kind.value, each.outcome.count) for each in heard] == [
        ("ok", 2),
        ("blocked", 1),
        ("unclear", 1),
    ]
    assert [each.target for each in heard] == [SHOP, SHOP, None]
    assert [each.cools_until is not None for each in heard] == [False, True, False]
    assert {each.pool_name for each in heard} == {"pool"}
    assert "mine" in caplog.text

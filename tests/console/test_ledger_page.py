"""The page of the ledger: seals, verification, subscriptions, checks; and jobs of a console."""

from __future__ import annotations

import html
import re
import threading

from psycopg import sql

from pharox import InMemoryStorage, ProxyManager, ProxyPool, Subscription
from pharox.console import Access, create_app
from pharox.console.condition import checks_of
from pharox.console.jobs import Job, Jobs, Outcome, Progress
from pharox.console.pages import ledger as ledger_page
from pharox.storage.postgres import PostgresStorage
from pharox.testing import checked
from tests.conftest import AnyStorage, clock_of, fill, run_sql
from tests.console.conftest import Client, everything
from tests.ledger.following import following, is_level, until


def ended(jobs: Jobs, kind: str) -> Job:
    """Return a job once it has ended."""
    for thread in threading.enumerate():
        if thread.name == f"pharox-console-{kind}":
            thread.join(60)
    job = jobs.of(kind)
    assert job is not None
    return job


def text_of(page: str) -> str:
    """Return what a page says, without markup."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


class TestVerification:
    def test_it_is_started_by_who_may_read_and_says_what_it_found(
        self, any_storage: AnyStorage
    ) -> None:
        """The page leads back to itself, and shows the outcome."""
        fill(any_storage, 3)
        app = create_app(any_storage, authorize=lambda _: Access.read("ada"))
        client = Client(app)
        assert "It was not verified" in client.get("/ledger").text
        answer = client.post("/ledger/verify")
        assert (answer.status_code, answer.headers["location"]) == (303, "/ledger#verify")
        job = ended(app.state.console.jobs, "verify")
        assert (job.actor, job.outcome and job.outcome.is_good) == ("ada", True)
        assert "Nothing is wrong" in client.get("/ledger").text

    def test_what_it_found_is_shown(self, storage: PostgresStorage) -> None:
        """Each difference, and how far it came on the way."""
        fill(storage, 3)
        table = sql.Identifier(storage.schema, "available_proxies")
        run_sql(storage.engine, sql.SQL("UPDATE {} SET status = 'slow'").format(table))
        steps: list[tuple[str, int, int]] = []
        outcome = ledger_page.verify(storage, lambda *step: steps.append(step))
        expected = [str(finding) for finding in storage.verify()]
        assert expected
        assert (outcome.is_good, list(outcome.findings)) == (False, expected)
        checks = [step for step in steps if step[0].startswith("checking")]
        assert [done for _, done, _ in checks] == list(range(len(checks)))
        assert {total for _, _, total in checks} == {len(checks)}
        last = storage.seal()
        assert (f"folding the log: {last} of {last} events", last, last) in steps

    def test_another_site_cannot_start_it(self) -> None:
        """A browser says from where a form was sent."""
        app = create_app(InMemoryStorage(), authorize=everything)
        for headers in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": "http://evil.example"}):
            assert Client(app).post("/ledger/verify", headers=headers).status_code == 403
        assert app.state.console.jobs.of("verify") is None
        nobody = create_app(InMemoryStorage(), authorize=lambda _: Access.none())
        assert Client(nobody).post("/ledger/verify").status_code == 403


class TestJobs:
    def test_one_of_a_kind_runs_at_a_time(self) -> None:
        """Another can begin when it has ended; a failure is an outcome, without its reason."""
        jobs, may_end, has_begun = Jobs(), threading.Event(), threading.Event()

        def work(progress: Progress) -> Outcome:
            progress("waiting", 1, 4)
            has_begun.set()
            may_end.wait(30)
            raise ValueError("a secret")

        assert jobs.start("verify", work)
        assert has_begun.wait(30)
        assert not jobs.start("verify", work)
        assert jobs.start("other", lambda _: Outcome("done"))
        job = jobs.of("verify")
        assert job is not None
        assert (job.is_running, job.what, job.percent) == (True, "waiting", 25)
        may_end.set()
        job = ended(jobs, "verify")
        assert job.outcome is not None
        assert not job.outcome.is_good
        assert "secret" not in job.outcome.sentence
        assert jobs.start("verify", lambda _: Outcome("done"))
        assert ended(jobs, "verify").outcome == Outcome("done")


def test_subscriptions_have_their_lag_and_what_is_parked(storage: PostgresStorage) -> None:
    """And the parked events with their errors."""
    fill(storage, 2)

    def handler(_: object) -> None:
        raise ValueError("<b>no</b>")

    with following(Subscription("mailer", handler, attempts=1, start="beginning"), storage):
        until(lambda: is_level(storage, "mailer"))
    storage.save_pool(ProxyPool(name="later"))
    client = Client(create_app(storage, authorize=everything))
    text = text_of(client.get("/ledger").text)
    assert "mailer" in text
    parked = client.get("/ledger?parked=mailer")
    assert "ValueError: <b>no</b>" in text_of(parked.text)
    assert "<b>no</b>" not in parked.text


def test_seals_parts_and_checks_are_those_of_the_ledger(storage: PostgresStorage) -> None:
    """The last tick, its root, the parts of the log, and what was checked."""
    pool, _ = fill(storage, 4)
    seq = storage.seal()
    ProxyManager(storage).acquire_proxy(pool.name, "worker", 60)
    ((root,),) = run_sql(
        storage.engine,
        sql.SQL("SELECT encode(root, 'hex') FROM {}").format(
            sql.Identifier(storage.schema, "last_tick")
        ),
    )
    shown = ledger_page.data(storage, Jobs())
    seal = shown.condition.seal
    assert (seal.last_seq, seal.root) == (seq, root)
    assert seal.unsealed >= 1
    assert [part.first_position for part in shown.condition.parts] == [0]
    (checks,) = shown.condition.checks
    assert (checks.pool, checks.total, checks.fresh, checks.never) == (pool.name, 4, 0, 4)
    assert not shown.condition.maintenance


def test_checks_at_the_same_time_are_of_one_sweep(any_storage: AnyStorage) -> None:
    """Whatever the order of their proxies: none falls into the sweep that came next."""
    clock = clock_of(any_storage)
    _, proxies = fill(any_storage, 6)
    for pause, swept in ((0, (0, 2, 3, 5)), (200, (1, 4))):
        clock.advance(pause)
        checks = [checked(proxies[number], checked_at=clock.now) for number in swept]
        any_storage.record_health_checks(checks)
    (found,) = checks_of(any_storage)
    assert [run.found for run in found.runs] == [{"active": 2}, {"active": 4}]


def test_sweeps_are_told_by_their_checks(any_storage: AnyStorage) -> None:
    """Checks within a minute are one; the last goes on, and who was checked again is in that."""
    clock = clock_of(any_storage)
    _, proxies = fill(any_storage, 5)
    done = ((0, "active"), (1, "slow"), (2, "active"), (0, "inactive"), (3, "active"))
    for pause, (number, status) in zip((0, 50, 50, 200, 10), done, strict=True):
        clock.advance(pause)
        check = checked(proxies[number], status=status, checked_at=clock.now)
        any_storage.record_health_checks([check])
    (found,) = checks_of(any_storage)
    last, before = found.runs
    assert (last.goes_on, last.found) == (True, {"active": 1, "inactive": 1})
    assert (before.goes_on, before.found) == (False, {"active": 1, "slow": 1})
    clock.advance(61)
    assert not checks_of(any_storage)[0].runs[0].goes_on

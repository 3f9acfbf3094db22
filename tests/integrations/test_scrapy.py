"""Real crawls of Scrapy, each in a process of its own, through proxies on loopback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest

from pharox import ProxyManager
from pharox.storage.postgres import PostgresStorage
from scripts.lib.crawl_lab import PASSWORD, USER, Lab, running_lab
from tests.conftest import SECRET_KEY
from tests.integrations.crawling import fill
from tests.ledger.following import until

ROOT = Path(__file__).parents[2]
LOGIN = f"{USER}:{quote(PASSWORD, safe='')}"
OVER_HTTPX = {"http": "scrapy.core.downloader.handlers._httpx.HttpxDownloadHandler"}
HERE = "tests.integrations.crawling"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with running_lab() as lab:
        yield lab


class Report(NamedTuple):
    """What a crawl came to."""

    pages: list[dict[str, Any]]
    failed: list[list[str]]
    stats: dict[str, str]
    events: list[dict[str, Any]]
    log: str
    exit_code: int

    def of_type(self, name: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["type"] == name]

    def leases_at_once(self) -> list[int]:
        """How many leases there were after each event."""
        steps = {"LeaseAcquired": 1, "LeaseReleased": -1, "LeaseExpired": -1, "LeaseRevoked": -1}
        return list(accumulate(steps.get(event["type"], 0) for event in self.events))


def pages(*paths: str, site: str = "http://shop.example/", **meta: Any) -> list[dict[str, Any]]:
    return [{"url": f"{site}{path}", "meta": meta} for path in paths]


def numbered(count: int) -> list[dict[str, Any]]:
    return pages(*map(str, range(count)))


@contextmanager
def crawling(
    requests: list[dict[str, Any]],
    proxies: list[str] | None = None,
    database_url: str | None = None,
    env: dict[str, str] | None = None,
    pool: dict[str, Any] | None = None,
    **settings: Any,
) -> Iterator[subprocess.Popen[str]]:
    """Run a crawl for a block, of a ledger in its memory or in a database."""
    order: dict[str, Any] = {"requests": requests, "settings": settings, "pool": pool or {}}
    if database_url is None:
        settings.setdefault("PHAROX_STORAGE", f"{HERE}.memory")
        order["proxies"] = proxies or []
    else:
        settings["PHAROX_DATABASE_URL"] = database_url
    order["raises"] = settings.pop("raises", False)
    with subprocess.Popen(
        [sys.executable, "-m", HERE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PHAROX_SECRET_KEY": SECRET_KEY, **(env or {})},
    ) as process:
        assert process.stdin is not None
        process.stdin.write(json.dumps(order))
        process.stdin.close()
        process.stdin = None
        try:
            yield process
        finally:
            process.kill()


def crawl(*arguments: Any, **options: Any) -> Report:
    with crawling(*arguments, **options) as process:
        out, log = process.communicate(timeout=150)
    return report_of(out, log, process.returncode)


def report_of(out: str, log: str, exit_code: int) -> Report:
    found = [line for line in out.splitlines() if line.startswith("report ")]
    assert found, log
    return Report(**json.loads(found[0].removeprefix("report ")), log=log, exit_code=exit_code)


def test_every_page_comes_through_a_leased_proxy(lab: Lab) -> None:
    """A request names its proxy, and that one's login, only while it is downloaded."""
    report = crawl(
        [*numbered(8), *pages("redirect/there")],
        [lab.url("good"), lab.url("password", LOGIN)],
        env={"SCRAPY_JOB": "job-7"},
        PHAROX_SELECTOR="least_used",
    )
    assert {page["status"] for page in report.pages} == {200}
    assert len(report.pages) == 9
    assert {(page["proxy"], page["login"]) for page in report.pages} == {
        ("good", ""),
        ("password", f"{USER}:{PASSWORD}"),
    }
    assert not any("proxy" in page["meta"] or page["header"] for page in report.pages)
    assert all(page["meta"]["pharox_proxy"].startswith("http://127.") for page in report.pages)
    leased = report.of_type("LeaseAcquired")
    assert len(leased) == len(report.of_type("LeaseReleased")) == 10
    assert {(event["correlation_id"], event["consumer"]) for event in leased} == {
        ("crawl/job-7", "crawl")
    }
    assert sum(event["count"] for event in report.of_type("OutcomeReported")) == 10
    assert report.stats["pharox/lease/acquired"] == report.stats["pharox/outcome/ok"] == "10"
    assert PASSWORD not in report.log


def test_what_is_refused_or_breaks_off_is_tried_with_another_proxy(lab: Lab) -> None:
    kinds = ("good", "refusing", "limiting", "captcha", "dying", "nobody")
    report = crawl(
        numbered(20),
        [lab.url(kind) for kind in kinds],
        PHAROX_SELECTOR="least_used",
        PHAROX_IS_BLOCKED=f"{HERE}.is_captcha",
        RETRY_TIMES=5,
    )
    assert sorted(page["url"] for page in report.pages) == sorted(
        each["url"] for each in numbered(20)
    )
    assert {page["proxy"] for page in report.pages} == {"good"}
    assert not report.failed
    for page in report.pages:  # each time with another one
        tried = page["meta"].get("pharox_tried", [])
        assert len(set(tried)) == len(tried) == page["meta"].get("retry_times", 0)
    kinds_reported = {event["outcome"] for event in report.of_type("OutcomeReported")}
    assert kinds_reported == {"ok", "blocked", "unclear", "proxy_failed"}
    assert {event["target"] for event in report.of_type("OutcomeReported")} == {"shop.example"}
    assert report.leases_at_once()[-1] == 0
    assert_no_cool_down_was_broken(report.events)


def assert_no_cool_down_was_broken(events: list[dict[str, Any]]) -> None:
    """Nobody leased a proxy for a target while it rested for that."""
    until: dict[tuple[str, str], str] = {}
    for event in events:
        if event["type"] == "OutcomeReported" and event["target"]:
            until[event["proxy_id"], event["target"]] = event["cools_until"] or ""
        elif event["type"] == "LeaseAcquired" and event["target"]:
            assert until.get((event["proxy_id"], event["target"]), "") <= event["recorded_at"]


def test_requests_wait_for_a_proxy_in_their_slot(lab: Lab) -> None:
    """Eight downloads at a time share one exclusive proxy: they take turns, and none fails."""
    report = crawl(numbered(12), [lab.url("good")], PHAROX_WAIT_SECONDS=60)
    assert len(report.pages) == 12
    assert not report.failed
    assert max(report.leases_at_once()) == 1
    assert "retry/count" not in report.stats


def test_a_request_that_has_no_turn_yet_holds_no_proxy(lab: Lab) -> None:
    """With a delay one request goes at a time, so one lease is enough, whatever is queued."""
    report = crawl(
        numbered(6),
        [lab.url("good"), lab.url("good-2"), lab.url("good-3")],
        DOWNLOAD_DELAY=0.5,
        RANDOMIZE_DOWNLOAD_DELAY=False,
    )
    assert len(report.pages) == 6
    assert max(report.leases_at_once()) == 1


@pytest.mark.parametrize("handlers", [{}, OVER_HTTPX], ids=["default", "httpx"])
def test_no_connection_is_of_two_proxies_or_logins(lab: Lab, handlers: dict[str, str]) -> None:
    """A gateway has one address: its login says which exit a connection is of."""
    proxies = [lab.url("good"), lab.url("good-2")]
    proxies += [lab.url("gateway", f"session-{number}:secret") for number in (1, 2, 3)]
    report = crawl(
        numbered(60), proxies, PHAROX_SELECTOR="least_recently_used", DOWNLOAD_HANDLERS=handlers
    )
    logins = defaultdict(set)
    for page in report.pages:
        logins[page["proxy"], page["connection"]].add(page["login"])
    assert len(report.pages) == 60
    assert all(len(each) == 1 for each in logins.values())
    assert {page["login"] for page in report.pages} == {
        "",
        *(f"session-{number}:secret" for number in (1, 2, 3)),
    }
    assert len(logins) < 60  # connections are kept, each for its own


def test_a_lease_is_of_a_domain_a_session_or_the_spider(lab: Lab) -> None:
    proxies = [lab.url("good"), lab.url("good-2"), lab.url("good-3")]
    sites = ("http://a.example/", "http://b.example/")
    of_domains = [each for site in sites for each in pages(*"123456", site=site)]
    report = crawl(of_domains, proxies, PHAROX_LEASE_PER="domain")
    assert len(report.pages) == 12
    assert len(report.of_type("LeaseAcquired")) == 2
    assert report.leases_at_once()[-1] == 0

    report = crawl(of_domains, proxies, PHAROX_LEASE_PER="spider")
    assert len({page["proxy"] for page in report.pages}) == 1
    assert len(report.of_type("LeaseAcquired")) == 1
    assert report.leases_at_once()[-1] == 0


def test_a_session_has_one_proxy(lab: Lab) -> None:
    """It does so in another crawl, too: the ledger binds its key."""
    proxies = [lab.url("good"), lab.url("good-2"), lab.url("good-3")]
    requests = [each for key in ("ann", "ben") for each in pages(*"1234", pharox_session=key)]
    report = crawl(requests, proxies)
    used = defaultdict(set)
    for page in report.pages:
        used[page["meta"]["pharox_session"]].add(page["proxy"])
    assert sorted(map(len, used.values())) == [1, 1]
    assert used["ann"] != used["ben"]
    assert {event["key"] for event in report.of_type("SessionBound")} == {"ann", "ben"}


def test_more_domains_than_proxies_take_turns(lab: Lab) -> None:
    """A lease that no request goes by does not keep others waiting."""
    requests = [each for site in "abcdef" for each in pages(*"12", site=f"http://{site}.example/")]
    report = crawl(requests, [lab.url("good")], PHAROX_LEASE_PER="domain", PHAROX_IDLE_SECONDS=3600)
    assert len(report.pages) == 12
    assert not report.failed


def test_pages_of_https_go_through_a_tunnel(lab: Lab) -> None:
    site = f"https://127.0.0.1:{lab.ports['tls-site']}/"
    report = crawl(
        pages(*"123456", site=site),
        [lab.url("no-tunnel"), lab.url("good"), lab.url("password", LOGIN), lab.url("nobody")],
        PHAROX_SELECTOR="least_used",
        RETRY_TIMES=4,
    )
    assert {page["proxy"] for page in report.pages} == {"tunnel"}
    assert len(report.pages) == 6
    kinds = {event["outcome"]: event["note"] for event in report.of_type("OutcomeReported")}
    assert kinds["unclear"] == "the proxy answered CONNECT with 502"
    assert set(kinds) == {"ok", "unclear", "proxy_failed"}


def test_socks_is_for_handlers_that_can(lab: Lab) -> None:
    """Scrapy's own cannot: it gets others, or the crawl ends with the reason."""
    socks, good = lab.url("socks5", LOGIN), lab.url("good")
    report = crawl(numbered(4), [socks, good])
    assert {page["proxy"] for page in report.pages} == {"good"}

    report = crawl(numbered(4), [socks])
    assert not report.pages
    assert report.stats["finish_reason"] == "pharox_no_proxy"
    assert "goes through proxies of http only" in report.log

    report = crawl(numbered(6), [socks], DOWNLOAD_HANDLERS=OVER_HTTPX)
    assert {(page["proxy"], page["name"]) for page in report.pages} == {("socks5", "shop.example")}
    assert len(report.pages) == 6


def test_a_request_with_a_proxy_of_its_own_is_left_alone(lab: Lab) -> None:
    report = crawl(pages("1", proxy=lab.url("good-2")), [lab.url("good")])
    assert [page["proxy"] for page in report.pages] == ["good-2"]
    assert not report.of_type("LeaseAcquired")
    assert report.stats["pharox/bypassed"] == "1"


def test_a_bug_of_the_project_keeps_no_lease(lab: Lab) -> None:
    report = crawl(
        numbered(6),
        [lab.url("good"), lab.url("refusing")],
        PHAROX_IS_BLOCKED=f"{HERE}.broken",
        raises=True,
    )
    assert len(report.pages) == 6
    assert report.stats["spider_exceptions/RuntimeError"] == "6"
    assert report.leases_at_once()[-1] == 0
    assert "pharox.judgement.failed" in report.log


def test_a_crawl_without_asyncios_reactor_has_one_all_the_same(lab: Lab) -> None:
    """Without Twisted's reactor Scrapy downloads with aiohttp."""
    report = crawl(
        numbered(8),
        [lab.url("good"), lab.url("refusing"), lab.url("dying"), lab.url("nobody")],
        TWISTED_REACTOR_ENABLED=False,
        PHAROX_SELECTOR="least_used",
        RETRY_TIMES=4,
    )
    assert {page["proxy"] for page in report.pages} == {"good"}
    assert len(report.pages) == 8
    assert report.leases_at_once()[-1] == 0
    assert_no_cool_down_was_broken(report.events)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"PHAROX_POOL": ""}, "PHAROX_POOL must name the pool"),
        ({"PHAROX_LEASE_PER": "page"}, "PHAROX_LEASE_PER is one of request, domain"),
        (
            {"TWISTED_REACTOR": "twisted.internet.selectreactor.SelectReactor"},
            "pharox needs Scrapy's asyncio reactor",
        ),
    ],
)
def test_a_crawl_that_cannot_lease_does_not_begin(
    lab: Lab, settings: dict[str, Any], says: str
) -> None:
    """It would show whose it is."""
    report = crawl(numbered(1), [lab.url("good")], **settings)
    assert not report.pages
    assert says in report.log


def test_a_pool_or_a_ledger_that_is_not_there_ends_the_crawl(lab: Lab, database_url: str) -> None:
    report = crawl(numbered(3), [lab.url("good")], PHAROX_POOL="nowhere")
    assert report.stats["finish_reason"] == "pharox_no_proxy"
    assert "There is no pool 'nowhere'" in report.log

    nowhere = database_url.rsplit("/", 1)[0].partition("?")[0] + "/no_such_database"
    report = crawl(numbered(3), database_url=nowhere)
    assert not report.pages
    assert report.stats["finish_reason"] == "pharox_unavailable"


def leases_left(storage: PostgresStorage) -> int:
    return sum(each.total_leases for each in [storage.get_pool_stats("scraping")] if each)


@pytest.mark.parametrize("interrupts", [1, 2])
@pytest.mark.parametrize("has_reactor", [True, False])
def test_ctrl_c_gives_all_leases_back(
    lab: Lab, postgres: PostgresStorage, database_url: str, interrupts: int, *, has_reactor: bool
) -> None:
    """The first waits for what is under way, the second for nothing."""
    kinds = ("good", "good-2", "good-3")
    fill(postgres, [lab.url(kind) for kind in kinds], {"max_concurrency": 2})
    # The leases of sessions are held between requests; those of slow pages while they come.
    requests = pages("1", "2", pharox_session="ann")
    requests += pages(*(f"slow/{number}" for number in range(12))) if interrupts == 2 else []
    requests += numbered(400)
    with crawling(
        requests,
        database_url=database_url,
        TWISTED_REACTOR_ENABLED=has_reactor,
        DOWNLOAD_DELAY=0.05 if interrupts == 1 else 0,
        RANDOMIZE_DOWNLOAD_DELAY=False,
    ) as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        assert next(lines).startswith("page")
        until(lambda: leases_left(postgres) > 1 or interrupts == 1, 60)
        for number in range(interrupts):
            process.send_signal(signal.SIGINT)
            if number + 1 < interrupts:
                time.sleep(0.5)
        drained = threading.Thread(target=lambda: list(lines), daemon=True)
        drained.start()
        log = process.stderr.read() if process.stderr else ""
        process.wait(60)
        drained.join(10)
    assert "Received SIGINT" in log
    assert ("forcing unclean shutdown" in log) == (interrupts == 2), log
    assert leases_left(postgres) == 0, log
    types = [event.type for event in postgres.events()]
    assert types.count("LeaseAcquired") == types.count("LeaseReleased") > 0


def test_a_lost_lease_ends_its_download_and_the_page_comes_through_another(
    lab: Lab, postgres: PostgresStorage, database_url: str
) -> None:
    fill(postgres, [lab.url("silent")], {})
    with crawling(numbered(1), database_url=database_url, PHAROX_LEASE_SECONDS=3) as process:
        until(lambda: leases_left(postgres) == 1, 60)
        (held,) = postgres.list_leases()
        pool = postgres.get_pool_by_name("scraping")
        assert pool is not None
        from pharox import bootstrap_proxy

        bootstrap_proxy(
            postgres, pool=pool, host="127.0.0.1", port=lab.ports["good"], max_concurrency=1
        )
        ProxyManager(postgres).revoke_lease(held.id, "an operator needs it")
        out, log = process.communicate(timeout=90)
    report = report_of(out, log, process.returncode)
    assert [page["proxy"] for page in report.pages] == ["good"]
    assert report.stats["pharox/lease/lost"] == "1"
    assert report.stats["retry/reason_count/pharox.errors.LeaseLostError"] == "1"
    assert "an operator needs it" in log
    assert leases_left(postgres) == 0, log


@pytest.mark.parametrize("example", ["scrapy_crawl.py", "scrapy_accounts.py"])
def test_the_examples_run_as_they_are(
    lab: Lab, postgres: PostgresStorage, database_url: str, example: str
) -> None:
    fill(postgres, [lab.url("good"), lab.url("password", LOGIN), lab.url("captcha")], {})
    pool = postgres.get_pool_by_name("scraping")
    assert pool is not None
    postgres.save_pool(pool.model_copy(update={"name": "residential"}))
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs/examples" / example), "http://shop.example/"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PHAROX_DATABASE_URL": database_url, "PHAROX_SECRET_KEY": SECRET_KEY},
        check=True,
    )
    items = [json.loads(line) for line in done.stdout.splitlines() if line]
    types = [event.type for event in postgres.events()]
    assert types.count("LeaseAcquired") == types.count("LeaseReleased") > 0
    if example == "scrapy_crawl.py":
        assert len(items) == 10
        return
    used = defaultdict(set)
    for item in items:
        used[item["account"]].add(item["proxy"])
    assert [len(each) for each in used.values()] == [1, 1]
    assert used["account-42"] != used["account-43"]

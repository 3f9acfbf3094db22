"""``pharox targets``, ``pharox cooldown`` and the rule of a pool: who rests for which target."""

from __future__ import annotations

from pharox import CoolDown, Lease, Outcome, ProxyManager
from pharox.events import CoolDownSet
from pharox.history.describing import describe
from pharox.storage.postgres import PostgresStorage
from pharox.storage.reports import ReportRequest
from tests.conftest import clock_of, fill

from .conftest import Pharox

SHOP, NEWS = "shop.example", "news.example"


def reported(storage: PostgresStorage, *outcomes: Outcome) -> list[Lease]:
    """Lease proxies, and report one outcome of each; the clock stands still from then on."""
    clock_of(storage).advance(0)
    fill(storage, len(outcomes))
    leases = ProxyManager(storage).acquire_proxies("pool", len(outcomes), "crawler")
    storage.report_outcomes(list(map(ReportRequest, leases, outcomes)))
    return leases


class TestTargets:
    def test_targets_are_summed_up(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """One line for each, with the share of what succeeded and when the first comes back."""
        reported(
            storage,
            Outcome.ok(SHOP, count=3),
            Outcome.blocked(SHOP, status=403, retry_after=90),
            Outcome.ok(NEWS),
        )
        found = pharox("targets")
        header, news, shop = found.out.splitlines()
        assert header.split("  ")[0] == "target"
        assert news.split()[:7] == [NEWS, "pool", "1", "0", "0", "0", "100.0%"]
        assert shop.split()[:7] == [SHOP, "pool", "2", "1", "1", "0", "75.0%"]
        assert pharox("targets", "--pool", "pool").out == found.out
        assert [each["target"] for each in pharox("targets", "--json").objects] == [NEWS, SHOP]

    def test_proxies_at_a_target_are_listed(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """With the last outcome of each, and for how long it still rests."""
        leases = reported(
            storage, Outcome.ok(SHOP), Outcome.blocked(SHOP, status=429, retry_after=90)
        )
        _, *lines = pharox("targets", "--target", f"https://{SHOP}/cart").out.splitlines()
        resting = next(line for line in lines if "blocked" in line)
        assert len(lines) == 2
        assert "blocked (429)" in resting
        assert "1 refused or unclear " in resting
        assert resting.endswith("1 min 30 s")
        only = pharox("targets", "--cooling", "--json").objects
        assert [pair["proxy_id"] for pair in only] == [str(leases[1].proxy_id)]
        address = leases[0].proxy.url
        assert [p["streak"] for p in pharox("targets", "--proxy", address, "--json").objects] == [1]

    def test_nothing_is_said_to_be_nothing(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """Without a report there is a sentence, or no line of JSON; a wrong name is an error."""
        fill(storage)
        assert pharox("targets").err.startswith("pharox: there is nothing to show")
        assert pharox("targets", "--json") == (0, "", "")
        assert pharox("targets", "--pool", "nowhere").status == 1
        assert pharox("targets", "--target", "  ").status != 0
        assert pharox("targets", "--proxy", "10.9.9.9:1").status == 1


class TestCoolDown:
    def test_a_proxy_rests_for_a_target(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """Until the time that is printed, for a reason in the log; with --end no longer."""
        clock_of(storage).advance(0)
        _, (proxy,) = fill(storage)
        name, target = f"{proxy.host}:{proxy.port}", ("--target", f"http://{SHOP}")
        rests = pharox("cooldown", name, *target, "--for", "30m", "--reason", "captcha")
        assert rests.out.startswith(f"{proxy.url} ({proxy.id}) rests for {SHOP} until 2")
        (pair,) = storage.list_target_outcomes(cooling=True)
        assert pair.remaining_seconds == 1800
        assert pharox("cooldown", proxy.id, *target, "--end").out.endswith(
            f"does not rest for {SHOP}\n"
        )
        assert storage.list_target_outcomes(cooling=True) == []
        first, last = (event for event in storage.events() if isinstance(event, CoolDownSet))
        assert (first.reason, first.cools_until) == ("captcha", pair.cools_until)
        assert last.cools_until is None
        story = pharox("audit", "proxy", proxy.id).out
        assert f"{proxy.url} was told to rest for {SHOP}, for 30 min 0 s, until " in story
        assert f"the rest of {proxy.url} for {SHOP} was ended" in story

    def test_what_makes_no_sense_is_refused(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """A time or an end, of one proxy that there is, for a target that is a host."""
        _, (proxy,) = fill(storage)
        target = ("--target", SHOP)
        assert "either --for TIME or --end" in pharox("cooldown", proxy.id, *target).err
        assert pharox("cooldown", proxy.id, *target, "--end", "--for", "5").status == 2
        assert pharox("cooldown", proxy.id, *target, "--for", "-5").status == 2
        assert pharox("cooldown", proxy.id, "--for", "5").status == 2
        assert pharox("cooldown", "10.9.9.9:1", *target, "--for", "5").status == 1
        assert pharox("cooldown", proxy.id, "--target", "", "--for", "5").status == 2
        assert storage.list_target_outcomes() == []

    def test_json(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """The pair, and until when it rests."""
        _, (proxy,) = fill(storage)
        target = ("--target", SHOP, "--json")
        (told,) = pharox("cooldown", proxy.id, *target, "--for", "5").objects
        (pair,) = storage.list_target_outcomes()
        assert pair.cools_until is not None
        until = pair.cools_until.isoformat()
        assert told == {"proxy_id": str(proxy.id), "target": SHOP, "cools_until": until}
        (ended,) = pharox("cooldown", proxy.id, *target, "--end").objects
        assert ended["cools_until"] is None


class TestRuleOfAPool:
    def test_parts_of_it_are_set(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """What is not named keeps its value; `pools` prints what `set` takes."""
        pool_id = pharox("pools", "add", "p", "--cool-down", "base=1m, after=3").out.strip()
        assert storage.get_pool(pool_id).cool_down == CoolDown(base_seconds=60, after=3)
        pharox("pools", "set", "p", "--cool-down", "factor=1.5,max=1h,jitter=0")
        rule = CoolDown(base_seconds=60, factor=1.5, max_seconds=3600, jitter=0, after=3)
        assert storage.get_pool(pool_id).cool_down == rule
        shown = "base=60,factor=1.5,max=3600,jitter=0,after=3"
        assert shown in pharox("pools").out
        pharox("pools", "set", "p", "--cool-down", shown)
        assert storage.get_pool(pool_id).cool_down == rule
        pharox("pools", "set", "p", "--description", "x")
        assert storage.get_pool(pool_id).cool_down == rule
        story = pharox("audit", "pool", "p").out
        assert "a proxy rests for a target for 1 min 0 s after 3 refusals in a row" in story
        assert "1.5 times as long each time, up to 1 h 0 min" in story

    def test_no_proxy_rests(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """With --no-cool-down, until a base is set again."""
        pool_id = pharox("pools", "add", "p", "--no-cool-down").out.strip()
        assert storage.get_pool(pool_id).cool_down == CoolDown(base_seconds=0)
        assert "no proxy rests for a target" in pharox("audit", "pool", "p").out
        pharox("pools", "set", "p", "--cool-down", "base=30")
        assert storage.get_pool(pool_id).cool_down == CoolDown()

    def test_what_is_no_rule_is_refused(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """Nothing is changed then."""
        pool_id = pharox("pools", "add", "p").out.strip()
        for rule in ("", "base", "bass=30", "base=x", "base=30,base=40", "factor=0.5", "after=0"):
            assert pharox("pools", "set", "p", "--cool-down", rule).status in (1, 2), rule
        both = ("--cool-down", "base=30", "--no-cool-down")
        assert "either --cool-down or --no-cool-down" in pharox("pools", "set", "p", *both).err
        assert storage.get_pool(pool_id).cool_down is None


class TestStories:
    def test_an_audit_says_who_was_refused_where_and_since_when(
        self, pharox: Pharox, storage: PostgresStorage
    ) -> None:
        """In the story of the proxy and of the lease; the log has the facts on a line."""
        clock = clock_of(storage)
        _, (proxy,) = fill(storage)
        storage.save_pool(
            storage.list_pools()[0].model_copy(update={"cool_down": CoolDown(jitter=0)})
        )
        (lease,) = ProxyManager(storage).acquire_proxies("pool", 1, "crawler")
        for outcome in (
            Outcome.ok(SHOP, count=40),
            Outcome.blocked(SHOP, status=403, note="captcha"),
            Outcome.blocked(SHOP, status=403),
            Outcome.target_failed(NEWS, status=503, retry_after=20),
            Outcome.proxy_failed(),
            Outcome.unclear(NEWS),
        ):
            storage.report_outcomes([ReportRequest(lease, outcome)])
            clock.advance(1)
        url = proxy.url
        for story in (pharox("audit", "proxy", proxy.id), pharox("audit", "lease", lease.id)):
            assert f"{SHOP} answered {url}, 40 times, said crawler" in story.out
            assert f"{SHOP} refused {url} with 403, said crawler: captcha\n" in story.out
            assert (
                f"{SHOP} refused {url} with 403, 2 times in a row refused or unclear, "
                "said crawler; the proxy rests for it, for 30 s, until "
            ) in story.out
            assert (
                f"{NEWS} failed, asked through {url} with 503, asking to be left alone for 20 s, "
                "said crawler; the proxy rests for it, for 20 s, until "
            ) in story.out
            assert f"{url} let nothing through to a target, said crawler" in story.out
            assert f"a request to {NEWS} failed behind {url}, said crawler" in story.out
            assert f"refused 2 times by {SHOP} since " in story.out
        replayed = pharox("replay", "--pool", "pool", "--at", "now").out.splitlines()
        (row,) = (line for line in replayed if url in line)
        assert f"{NEWS} until 2" in row
        assert f"{SHOP} until 2" in row
        lines = pharox("log", "--type", "OutcomeReported").out.splitlines()
        assert f"outcome=blocked target={SHOP} count=1 status=403 note=captcha" in lines[1]


class TestRules:
    def test_rules_are_set_changed_listed_and_unset(
        self, pharox: Pharox, storage: PostgresStorage
    ) -> None:
        """What is not named stays; `targets` shows them beside the target, and the log has all."""
        reported(storage, Outcome.ok(SHOP), Outcome.ok(NEWS))
        pattern = "captcha|unusual traffic"
        options = ("--blocked-status", "429, 403", "--blocked-if-body", pattern)
        first = pharox("targets", "set", f"https://{SHOP}/cart", *options)
        words = f"403, 429 blocked; a body with '{pattern}' blocked"
        assert first.err == f"pharox: rules for {SHOP}: {words}\n"
        pharox("targets", "set", SHOP, "--ok-status", "404", "--target-failed-status", "418")
        pharox("targets", "set", SHOP, "--blocked-status", "")
        (known,) = pharox("targets", "rules", "--json").objects
        assert known.pop("set_at")
        assert known == {
            "target": SHOP,
            "ok_statuses": [404],
            "blocked_statuses": [],
            "target_failed_statuses": [418],
            "blocked_if_body": pattern,
        }
        words = f"404 ok; 418 target_failed; a body with '{pattern}' blocked"
        assert words in pharox("targets", "rules").out
        _, news, shop = pharox("targets").out.splitlines()
        assert shop.endswith(words)
        assert news.endswith("-")
        assert pharox("targets", "unset", SHOP).status == 0
        assert storage.list_target_rules() == []
        assert pharox("log", "--type", "TargetRulesSet").out.count("TargetRulesSet") == 4
        told = [
            describe(e, pool=None, address=None).sentence
            for e in storage.events()
            if e.type == "TargetRulesSet"
        ]
        assert told[-2:] == [
            f"rules were set for {SHOP}: {words}",
            f"the default rules hold for {SHOP} again",
        ]

    def test_a_status_of_another_kind_by_stored_rules_is_named(
        self, pharox: Pharox, storage: PostgresStorage
    ) -> None:
        """With what to give to move it."""
        pharox("targets", "set", SHOP, "--blocked-status", "403,404")
        refused = pharox("targets", "set", SHOP, "--ok-status", "404")
        assert refused.status == 2
        assert f"the rules of {SHOP} that are there already have 404 as blocked" in refused.err
        assert "give --blocked-status without it" in refused.err
        both = ("--ok-status", "404", "--blocked-status", "403")
        assert pharox("targets", "set", SHOP, *both).status == 0
        assert pharox("targets", "set", "*.a.example", "--ok-status", "404").status == 0

    def test_a_wrong_rule_is_refused(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """With one line that names it; nothing is written."""
        for options, message in (
            ((SHOP,), "say what to set"),
            ((SHOP, "--blocked-status", "403;429"), "'403;429' is not a status"),
            (
                (SHOP, "--blocked-status", "403", "--ok-status", "403"),
                "pharox: 403: a status is of one kind only",
            ),
            ((SHOP, "--blocked-if-body", ".*captcha"), "a repetition needs a bound"),
            ((SHOP, "--blocked-if-body", ""), "need a status or a pattern"),
            (("a..b", "--ok-status", "404"), "empty part"),
        ):
            refused = pharox("targets", "set", *options)
            assert refused.status != 0
            assert message in refused.err
            assert refused.err.count("\n") == 1
        unset = pharox("targets", "unset", SHOP)
        assert unset == (1, "", f"pharox: {SHOP} has no rules of its own\n")
        assert "no target has rules" in pharox("targets", "rules").err
        assert list(storage.events()) == []


def test_blocked_and_unclear_are_told_apart(pharox: Pharox, storage: PostgresStorage) -> None:
    """A failure that nobody knows the cause of is no refusal of the target."""
    reported(storage, Outcome.blocked(SHOP, status=403), *[Outcome.unclear(SHOP)] * 2)
    (target,) = pharox("targets", "--json").objects
    assert (target["blocked"], target["unclear"]) == (1, 2)
    (blocked,) = [p for p in pharox("targets", "--target", SHOP, "--json").objects if p["status"]]
    assert target["refused_at"] == blocked["reported_at"]
    header, _ = pharox("targets").out.splitlines()
    assert "blocked  unclear" in header


def test_ending_where_nothing_rests_is_no_event(pharox: Pharox, storage: PostgresStorage) -> None:
    """Neither for an unknown pair nor for one that was refused and does not rest."""
    (lease,) = reported(storage, Outcome.blocked(SHOP, status=403))
    name = str(lease.proxy_id)
    for target in (NEWS, SHOP):
        ended = pharox("cooldown", name, "--target", target, "--end")
        assert (ended.status, "does not rest" in ended.out) == (0, True)
    assert not any(isinstance(event, CoolDownSet) for event in storage.events())
    assert pharox("cooldown", name, "--target", SHOP, "--for", "0").status != 0
    assert not any(isinstance(event, CoolDownSet) for event in storage.events())


def test_a_miss_says_when_the_first_comes_back(pharox: Pharox, storage: PostgresStorage) -> None:
    """And for which target; with the exit status of a miss."""
    (lease,) = reported(storage, Outcome.blocked(SHOP, status=429, retry_after=90))
    ProxyManager(storage).release_proxy(lease)
    for command, words in (("acquire", ()), ("run", ("--", "true"))):
        missed = pharox(command, "pool", "--target", f"https://{SHOP}/cart", *words)
        assert missed.status != 0
        assert f"rests for {SHOP}: the first may be free in 1 min 30 s" in missed.err


def test_a_pool_says_whether_reported_failures_count(
    pharox: Pharox, storage: PostgresStorage
) -> None:
    """Yes, no, or as each manager has it; the log and the list say it."""
    pharox("pools", "add", "residential", "--reported-failures", "no")
    assert storage.list_pools()[0].reported_failures is False
    assert "reported failures do not count" in pharox("pools").out
    pharox("pools", "set", "residential", "--reported-failures", "yes")
    assert storage.list_pools()[0].reported_failures is True
    pharox("pools", "set", "residential", "--reported-failures", "default")
    assert storage.list_pools()[0].reported_failures is None
    story = pharox("audit", "pool", "residential").out
    assert "failures that holders report do not count as failed health checks" in story
    assert "failures that holders report count as failed health checks" in story

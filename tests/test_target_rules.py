"""Rules for targets: what is refused, which rules hold for a host, and what answers mean."""

from __future__ import annotations

import gzip
import re
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from pharox import InvalidInputError, Outcome, OutcomeKind, TargetRules
from pharox.manager.beginnings import Beginning
from pharox.models import (
    MAX_RULES,
    MOST_BODY_BYTES,
    body_of,
    outcome_by_rules,
    rule_target_of,
    rules_for,
)
from tests.conftest import AnyStorage

SHOP = "shop.example"
CAPTCHA = TargetRules(target=SHOP, blocked_if_body="captcha|unusual.{0,20}traffic")


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({}, "need a status or a pattern"),
        ({"target": "two words", "ok_statuses": (404,)}, "target"),
        ({"target": "*.", "ok_statuses": (404,)}, "target"),
        ({"ok_statuses": (99,)}, "ok_statuses"),
        ({"ok_statuses": (600,)}, "ok_statuses"),
        ({"ok_statuses": (404,), "blocked_statuses": (403, 404)}, "404: a status is of one kind"),
        ({"blocked_if_body": "("}, "not a regular expression"),
        ({"blocked_if_body": ""}, "1 to 500 characters"),
        ({"blocked_if_body": "x" * 501}, "1 to 500 characters"),
        ({"blocked_if_body": "x?"}, "matches every body"),
        ({"blocked_if_body": "a.*b"}, "needs a bound"),
        ({"blocked_if_body": "(a+)+b"}, "needs a bound"),
        ({"blocked_if_body": "(a|a){0,30}b"}, "too long"),
        ({"blocked_if_body": "(a{0,30}){0,30}b"}, "too long"),
        ({"blocked_if_body": "(ab|c){0,99}d"}, "too long"),
        ({"blocked_if_body": "[a-z]{0,200}[a-z]{0,200}!"}, "too long"),
        ({"blocked_if_body": "(?=a)a"}, "ahead or behind"),
        ({"blocked_if_body": r"(a)\1"}, "its groups"),
        ({"blocked_if_body": "a\x00"}, "NUL"),
    ],
)
def test_rules_are_checked(rules: dict[str, Any], message: str) -> None:
    """What is of no use, or could take long, is refused with its reason."""
    with pytest.raises(InvalidInputError, match=message):
        TargetRules(**{"target": SHOP, **rules})


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("shop.example", "shop.example"),
        ("www.shop.example", "*.shop.example"),
        ("a.b.shop.example", "*.b.shop.example"),
        ("b.shop.example", "*.shop.example"),
        ("notshop.example", None),
        ("example", None),
        ("192.0.2.1", "192.0.2.1"),
        (None, None),
    ],
)
def test_the_nearest_rules_hold(asked: str | None, found: str | None) -> None:
    """Those of the host itself, else of the nearest host above it that says *."""
    targets = ("shop.example", "*.shop.example", "*.b.shop.example", "192.0.2.1")
    known = {each: TargetRules(target=each, ok_statuses=(404,)) for each in targets}
    rules = rules_for(known, asked)
    assert (rules and rules.target) == found


def test_a_target_of_rules_has_a_normal_form() -> None:
    """It is that of outcomes, below * as well."""
    assert rule_target_of(" https://Shop.Example:443/a?b ") == SHOP
    assert rule_target_of("*.München.example") == "*.xn--mnchen-3ya.example"


def answer(status: int, **options: Any) -> httpx.Response:
    request = httpx.Request("GET", options.pop("url", f"https://{SHOP}/"))
    return httpx.Response(status, request=request, **options)


@pytest.mark.parametrize(
    ("rules", "response", "kind"),
    [
        ({"blocked_statuses": (404,)}, answer(404), OutcomeKind.BLOCKED),
        ({"ok_statuses": (403,)}, answer(403), OutcomeKind.OK),
        ({"target_failed_statuses": (404,)}, answer(404), OutcomeKind.TARGET_FAILED),
        ({"blocked_statuses": (404,)}, answer(403), OutcomeKind.BLOCKED),
        ({"blocked_statuses": (404,)}, answer(200), OutcomeKind.OK),
        ({"ok_statuses": (407,)}, answer(407), OutcomeKind.OK),
        (
            {"ok_statuses": (407,)},
            answer(407, url=f"http://{SHOP}/"),
            OutcomeKind.PROXY_FAILED,
        ),
        ({"blocked_if_body": "CAPTCHA"}, answer(200, text="a Captcha"), OutcomeKind.BLOCKED),
        (
            {"blocked_if_body": "captcha", "ok_statuses": (200,)},
            answer(200, text="captcha"),
            OutcomeKind.BLOCKED,
        ),
        ({"blocked_if_body": "captcha"}, answer(200, text="welcome"), OutcomeKind.OK),
        ({"blocked_if_body": "captcha"}, answer(503, text="captcha"), OutcomeKind.BLOCKED),
    ],
)
def test_an_answer_means_what_its_rules_say(
    rules: dict[str, Any], response: httpx.Response, kind: OutcomeKind
) -> None:
    """A rule is about its own statuses only, and never about what the proxy itself answered."""
    known = TargetRules(target=SHOP, **rules)
    outcome = outcome_by_rules(known, response, body=response.content)
    assert (outcome.kind, outcome.status, outcome.target) == (kind, response.status_code, SHOP)


def test_a_refusal_by_a_rule_says_when_to_come_back() -> None:
    """Retry-After counts once the answer is none of OK."""
    response = answer(404, headers={"Retry-After": "20"})
    assert Outcome.from_response(response).retry_after_seconds is None
    rules = TargetRules(target=SHOP, blocked_statuses=(404,))
    assert outcome_by_rules(rules, response, body=None).retry_after_seconds == 20


def test_only_the_beginning_of_a_body_counts() -> None:
    """64 KiB are looked at."""
    body = b"x" * (MOST_BODY_BYTES - 7)
    assert CAPTCHA.matches(body + b"captcha")
    assert not CAPTCHA.matches(body + b"xcaptcha")
    assert CAPTCHA.matches("ünusual? unusual \xff traffic".encode("latin-1"))


class TestBeginning:
    """What a client keeps of a body."""

    @staticmethod
    def of(body: bytes, headers: dict[str, str] | None = None) -> httpx.Response:
        parts = 5000
        beginning = Beginning(answer(200, headers=headers))
        for start in range(0, len(body), parts):
            if beginning.add(body[start : start + parts]):
                break
        return beginning.response()

    def test_it_is_decoded(self) -> None:
        """A body that is cut off as well."""
        text = "".join(f"line {number} " for number in range(40_000)).encode()
        coded = {"Content-Encoding": "gzip"}
        assert self.of(gzip.compress(text), coded).content == text[:MOST_BODY_BYTES]
        cut = self.of(gzip.compress(text)[:3000], coded).content
        assert len(cut) > 3000
        assert text.startswith(cut)

    def test_it_is_bounded(self) -> None:
        """A bomb, several codings and what is no gzip at all."""
        bomb = gzip.compress(bytes(100_000_000))
        assert self.of(bomb, {"Content-Encoding": "gzip"}).content == bytes(MOST_BODY_BYTES)
        assert self.of(bomb, {"Content-Encoding": "gzip, gzip"}).content == b""
        assert self.of(b"captcha", {"Content-Encoding": "gzip"}).content == b""
        assert self.of(b"x" * 100_000).content == b"x" * MOST_BODY_BYTES

    def test_it_keeps_what_the_head_says(self) -> None:
        """Status, URL, length and other headers."""
        response = self.of(b"abc", {"Content-Length": "3", "Retry-After": "7"})
        outcome = Outcome.from_response(response, kind=OutcomeKind.BLOCKED)
        assert (outcome.target, outcome.bytes, outcome.retry_after_seconds) == (SHOP, 3, 7)


def test_the_body_of_a_response_is_found_if_it_was_read() -> None:
    """Of httpx, requests, Scrapy and aiohttp."""
    streamed = httpx.Response(200, stream=httpx.ByteStream(b"x"))
    assert body_of(streamed) is None
    assert body_of(answer(200, text="captcha")) == b"captcha"
    assert body_of(SimpleNamespace(_content=False, content=b"not yet")) is None
    assert body_of(SimpleNamespace(_content=b"a", content=b"a")) == b"a"
    assert body_of(SimpleNamespace(body=b"scrapy")) == b"scrapy"
    assert body_of(SimpleNamespace(content=object(), _body=b"aiohttp")) == b"aiohttp"
    assert body_of(SimpleNamespace(content=object(), _body=None)) is None


def listed(storage: AnyStorage) -> dict[str, dict[str, Any]]:
    """Return the rules by target."""
    return {known.rules.target: known.rules.facts for known in storage.list_target_rules()}


def test_a_storage_keeps_rules(any_storage: AnyStorage) -> None:
    """The last of a target hold; an event is written for a change only."""
    blocked = TargetRules(target=SHOP, blocked_statuses=(429, 403, 403))
    assert any_storage.set_target_rules(blocked)
    assert not any_storage.set_target_rules(blocked)
    assert any_storage.set_target_rules(TargetRules(target="*.b.example", ok_statuses=(404,)))
    assert any_storage.set_target_rules(CAPTCHA)
    assert listed(any_storage) == {
        "*.b.example": {"ok_statuses": [404]},
        SHOP: {"blocked_if_body": CAPTCHA.blocked_if_body},
    }
    assert any_storage.unset_target_rules("*.B.example")
    assert not any_storage.unset_target_rules("*.b.example")
    assert [*listed(any_storage)] == [SHOP]
    types = [event.type for event in any_storage.events()]
    assert types == ["TargetRulesSet"] * 4
    assert any_storage.verify() == []


def test_a_storage_refuses_what_is_no_rule(any_storage: AnyStorage) -> None:
    """Nothing is written."""
    wrong: Any = {"target": SHOP}
    with pytest.raises(InvalidInputError, match="TargetRules are needed, not a dict"):
        any_storage.set_target_rules(wrong)
    with pytest.raises(InvalidInputError, match="host"):
        any_storage.unset_target_rules("two words")
    assert list(any_storage.events()) == []


def test_so_many_targets_have_rules(any_storage: AnyStorage) -> None:
    """One more is refused; those that are there can be changed."""
    assert MAX_RULES == 1000
    for number in range(MAX_RULES):
        any_storage.set_target_rules(TargetRules(target=f"{number}.example", ok_statuses=(404,)))
    with pytest.raises(InvalidInputError, match=re.escape("1000 targets have rules")):
        any_storage.set_target_rules(CAPTCHA)
    assert any_storage.set_target_rules(TargetRules(target="7.example", ok_statuses=(410,)))
    assert any_storage.unset_target_rules("8.example")
    assert any_storage.set_target_rules(CAPTCHA)

"""``pharox tokens``: each is printed once, and the list has no secret."""

from __future__ import annotations

import json

from pharox.models import digest_of
from pharox.storage.postgres import PostgresStorage

from .conftest import Pharox


def test_a_token_is_issued_and_withdrawn(pharox: Pharox, storage: PostgresStorage) -> None:
    assert pharox("pools", "add", "residential").status == 0
    options = ("--can", "acquire", "--can", "stats", "--pool", "residential", "--expires", "30d")
    added = pharox("tokens", "add", "go-worker", *options)
    text = added.out.strip()
    (token,) = storage.list_api_tokens()
    assert token.digest == digest_of(text)
    assert "go-worker" in added.err
    assert text not in added.err
    assert pharox("tokens", "add", "other", "--json").status == 0
    listed = json.loads(pharox("tokens", "list", "--output", "json").out)
    assert [each["consumer"] for each in listed] == ["go-worker", "other"]
    assert listed[0]["rights"] == ["acquire", "stats"]
    assert listed[0]["pools"] == ["residential"]
    table = pharox("tokens", "list").out
    assert "all" in table
    assert token.digest not in table + json.dumps(listed)
    assert pharox("tokens", "withdraw", str(token.id)[:13]).status == 0
    assert [each.consumer for each in storage.list_api_tokens()] == ["other"]
    log = pharox("log").out
    assert log.count("ApiToken") == 3
    assert text not in log


def test_what_makes_no_sense_is_refused(pharox: Pharox) -> None:
    assert "no pool is named" in pharox("tokens", "add", "x", "--pool", "nowhere").err
    assert pharox("tokens", "add", "").status == 2
    assert "there is no token" in pharox("tokens", "withdraw", "7").err
    assert "there are no tokens" in pharox("tokens", "list").err
    assert "three digits" in pharox("api", "--uds", "x", "--uds-mode", "999").err

"""An answer is the target's if it has the text and the headers that only the target sends."""

from __future__ import annotations

import gzip
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pharox import CheckFailure, HealthCheckOptions, ProxyStatus
from pharox.failures import CheckFailedError
from pharox.health.answers import TextSearch, check_headers
from tests.health.test_probing import check
from tests.health.zoo import REAL, Zoo

TEXT = "served by the target of Zürich"


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize(("name", "protocol", "user"), REAL)
def test_the_targets_own_answer_is_good(
    zoo: Zoo, name: str, protocol: str, user: str, secure: bool
) -> None:
    """Through every kind of proxy, and over TLS."""
    url = zoo.tls_target("/marked") if secure else zoo.target("/marked")
    proxy = zoo.proxy(name, protocol, user)
    headers = {"X-SERVED-BY": "the target"}
    result = check(zoo, proxy, url, expected_text=TEXT, expected_headers=headers)
    assert (result.status, result.failure) == (ProxyStatus.ACTIVE, None), result


@pytest.mark.parametrize(
    "expected",
    [
        {"expected_text": TEXT},
        {"expected_headers": {"X-Served-By": None}},
        {"expected_headers": {"X-Served-By": "the target"}},
    ],
)
def test_a_page_of_the_proxys_own_is_not(zoo: Zoo, expected: dict[str, Any]) -> None:
    """Though it has the status that is expected; without these options nobody could tell."""
    own = zoo.proxy("http-answers", "http")
    assert check(zoo, own, zoo.target("/marked")).status == ProxyStatus.ACTIVE
    result = check(zoo, own, zoo.target("/marked"), attempts=2, **expected)
    assert (result.status, result.status_code) == (ProxyStatus.INACTIVE, 200)
    assert (result.failure, result.attempts) == (CheckFailure.UNEXPECTED_CONTENT, 2)
    assert TEXT not in str(result.error_message)


def test_over_tls_it_cannot_even_answer(zoo: Zoo) -> None:
    """Who opens no tunnel fails by itself: a proxy has no certificate of the target."""
    for name in ("tunnel-garbage", "http-503"):
        result = check(zoo, zoo.proxy(name, "http"), zoo.tls_target("/marked"))
        assert result.failure in (CheckFailure.TLS, CheckFailure.HANDSHAKE)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/marked/plain", TEXT),
        ("/marked/late", TEXT),
        ("/marked/in-pieces", TEXT),
        ("/marked/gzip", TEXT),
        ("/marked/deflate", TEXT),
        ("/marked/raw-deflate", TEXT),
        ("/marked/gzip-members", TEXT),
        ("/marked/gzip-in-pieces", TEXT),
        ("/marked/utf-8", TEXT),
        ("/marked/iso-8859-1", TEXT),
        ("/marked/utf-16", TEXT),
        ("/marked/shift_jis", "ユ"),
        ("/marked/no-such-charset", TEXT),
        ("/marked/zip", TEXT),
        ("/marked/mbcs", TEXT),
    ],
)
def test_the_text_is_found_however_it_comes(zoo: Zoo, path: str, text: str) -> None:
    """In pieces, compressed, in any character set; UTF-8 where the answer names none that is."""
    result = check(zoo, zoo.proxy("pproxy-http", "http"), zoo.target(path), expected_text=text)
    assert (result.status, result.failure) == (ProxyStatus.ACTIVE, None), result


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("/marked/late", {"max_body_bytes": 65_010}, "in its first 65010 bytes"),
        ("/marked/gzip-in-pieces", {"max_body_bytes": 31}, "lacks the expected text"),
        ("/gzip-bomb", {}, "in its first 65536 bytes"),
        ("/endless", {}, "in its first 65536 bytes"),
        ("/marked/no-gzip", {}, "cannot be decompressed"),
        ("/marked/br", {}, "unsupported Content-Encoding"),
        ("/status/200", {}, "in its first 2 bytes"),
    ],
)
def test_a_text_that_is_not_seen_is_not_there(
    zoo: Zoo, path: str, options: dict[str, Any], message: str
) -> None:
    """Beyond the bound nothing is looked for, and nothing is unpacked."""
    proxy = zoo.proxy("pproxy-http", "http")
    result = check(zoo, proxy, zoo.target(path), expected_text=TEXT, **options)
    assert result.failure == CheckFailure.UNEXPECTED_CONTENT, result
    assert message in str(result.error_message)


def test_the_status_comes_first(zoo: Zoo) -> None:
    """An answer with another status is not looked at, nor is one that leads elsewhere."""
    proxy = zoo.proxy("pproxy-http", "http")
    expected = {"expected_text": TEXT, "expected_headers": {"Y": None}}
    result = check(zoo, proxy, zoo.target("/status/418"), **expected)
    assert result.failure == CheckFailure.UNEXPECTED_STATUS
    result = check(zoo, proxy, zoo.target("/redirect-once"), expected_text="ok")
    assert result.status == ProxyStatus.ACTIVE


FOUND = [(b"X-Shard", b"Zurich"), (b"via", b"a"), (b"Via", b"b"), (b"X-Name", "Zürich".encode())]


@pytest.mark.parametrize(
    "expected",
    [
        {},
        {"x-shard": "Zurich", "VIA": "a"},
        {"Via": "b"},
        {"via": None, "X-SHARD": ""},
        {"x-name": "Zürich"},
    ],
)
def test_a_header_is_there_under_its_name_in_any_case(expected: dict[str, str | None]) -> None:
    """One of its values is enough; without a value its presence is."""
    check_headers(FOUND, expected)


@pytest.mark.parametrize(
    "expected", [{"x-shard": "zurich"}, {"X-Shard": "Zur"}, {"Via": "a, b"}, {"Via": "a", "Y": ""}]
)
def test_another_value_is_not_it(expected: dict[str, str | None]) -> None:
    """A value is the whole of it, with its case; all headers are needed."""
    with pytest.raises(CheckFailedError) as caught:
        check_headers(FOUND, expected)
    assert caught.value.failure.kind == CheckFailure.UNEXPECTED_CONTENT


@given(st.text(min_size=1), st.text(), st.text(), st.integers(1, 9), st.booleans())
def test_pieces_make_no_difference(
    text: str, before: str, after: str, size: int, packed: bool
) -> None:
    """A text is found in pieces exactly where it is in the whole."""
    surrogates = {"errors": "replace"}
    plain = (before + after).encode(**surrogates)
    for body in (plain, (before + text + after).encode(**surrogates)):
        sent = gzip.compress(body) if packed else body
        headers = [(b"content-encoding", b"gzip")] if packed else []
        search = TextSearch(text, headers, max(1, len(body)))
        for start in range(0, len(sent), size):
            search.feed(sent[start : start + size])
        if text in body.decode():
            search.check()
        else:
            with pytest.raises(CheckFailedError):
                search.check()


@pytest.mark.parametrize(
    "options",
    [
        {"expected_text": ""},
        {"expected_text": " \n"},
        {"expected_text": "a\0"},
        {"expected_text": b"\xff"},
        {"expected_text": "abc", "max_body_bytes": 2},
        {"expected_text": "a", "max_body_bytes": 0},
        {"expected_headers": {"": "a"}},
        {"expected_headers": {"X Y": None}},
        {"expected_headers": {"X": "a\nb"}},
        {"expected_headers": {"X": " a"}},
        {"expected_headers": {"X": 5}},
        {"expected_headers": ["X"]},
    ],
)
def test_what_no_answer_could_have_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        HealthCheckOptions(**options)
    assert next(iter(options)) in str(caught.value)

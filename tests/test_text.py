"""What a person typed is repeated without what may be a secret."""

from __future__ import annotations

import pytest

from pharox.models.text import without_secrets


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("192.0.2.1:80", "192.0.2.1:80"),
        ("http://192.0.2.1:80/", "http://192.0.2.1:80"),
        ("http://ann:pw@gw.example:80", "http://***@gw.example:80"),
        ("ann:p@w@gw.example:80", "***@gw.example:80"),
        ("socks5://ann:pw@[2001:db8::1]:1080", "socks5://***@[2001:db8::1]:1080"),
        ("2001:db8::1", "2001:db8::1"),
        ("gw.example:80:ann:pw", "***"),
        ("http://gw.example:80:ann:pw", "http://***"),
        ("gw.example:80@ann:12345", "***"),
        ("ann:12345:gw.example:80", "***"),
        ("gw:8000@ann:12345", "***"),
        ("gw:80@s3cret", "***"),
        ("gw.example:80/ann:s3cret", "***"),
        ("a://ann:s3cret://gw:80", "a://***"),
        ("0197f9a1-0000-7000-8000-000000000000", "0197f9a1-0000-7000-8000-000000000000"),
        ("", ""),
    ],
)
def test_an_address_is_shown_without_secrets(typed: str, shown: str) -> None:
    """Only what is plainly a host and its port is repeated."""
    assert without_secrets(typed) == shown

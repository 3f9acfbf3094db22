"""Options that would fail every check are refused before any is made."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from pharox import HealthCheckOptions


@pytest.mark.parametrize(
    "options",
    [
        {"headers": {"X": "a\nb"}},
        {"headers": {"X": "caf\u00e9"}},
        {"headers": {"X": " a"}},
        {"headers": {"X": "a "}},
        {"headers": {"X": "a\0"}},
        {"headers": {"bad name": "a"}},
        {"headers": {"": "a"}},
        {"headers": {"X:": "a"}},
        {"expected_status_codes": []},
        {"expected_status_codes": [99999]},
        {"expected_status_codes": [100]},
        {"target_url": "http://target.example:0/"},
        {"target_url": "ftp://target.example/"},
        {"timeout": float("nan")},
        {"timeout": float("inf")},
        {"timeout": 0},
        {"max_body_bytes": -1},
        {"bogus": 1},
    ],
)
def test_what_cannot_work_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        HealthCheckOptions(**options)
    assert next(iter(options)) in str(caught.value)


@pytest.mark.parametrize("value", ["", "a", "a b", "a\tb", "Bearer abc=="])
def test_what_can_be_sent_is_taken(value: str) -> None:
    assert HealthCheckOptions(headers={"X-Token": value}).headers == {"X-Token": value}

"""What a caller may hand over by mistake or by malice, and what must come of it."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

from pydantic import ValidationError

from pharox import PharoxError

UNSTORABLE = {
    "a NUL": "a\x00b",
    "a lone surrogate": "a\ud800",
    "ten million characters": "x" * 10_000_000,
    "bytes": b"\xff",
    "a number": 5,
    "a list": ["x"],
}
"""What no text field takes."""

AWKWARD = {
    "SQL": "a'; DROP SCHEMA pharox CASCADE; --\"",
    "placeholders": "%s {} $1 :x %(y)s",
    "an escape sequence": "\x1b[2J\x1b]0;owned\x07",
    "a right-to-left override": "\u202egpj.exe",
    "a forged line": "one\r\ntwo\u2028three",
    "markup": "[bold red]x[/] <script>alert(1)</script> &amp;",
    "an exposition": 'a"} 1\npharox_forged{x="y\\',
}
"""What is only text, and must stay that wherever it comes out."""

NO_NUMBERS = {
    "a text": "5",
    "a list": [1],
    "NaN": float("nan"),
    "infinity": float("inf"),
    "minus infinity": float("-inf"),
    "a decimal": Decimal("1.5"),
}
"""What is no number of anything, wherever one is needed."""

ENDLESS = {"10**18": 10**18, "10**400": 10**400, "1e300": 1e300}
"""More than any duration or limit."""

Outcome = tuple[str, str]


def outcome(call: Callable[[], Any]) -> Outcome:
    """Return how a call ended: the name and text of an error of ours, or that it did not fail."""
    try:
        call()
    except (PharoxError, ValidationError) as error:
        return type(error).__name__, str(error)
    return "", ""


def is_refused(ended: Outcome) -> bool:
    """Return whether a call was refused for its input, with a message of readable length."""
    name, message = ended
    return name in ("InvalidInputError", "InvalidLeaseError", "ValidationError") and (
        0 < len(message) < 3000
    )

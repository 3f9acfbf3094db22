"""Read the address from which a target saw a proxy, out of the target's answer.

What is not an address is none: a check never fails for it.
"""

from __future__ import annotations

import json
from typing import Any

from ..failures import CheckFailedError
from ..models.text import normal_ip
from .answers import Headers, PlainBody

MAX_BYTES = 8192
"""How much of a body, unpacked, is looked at; a longer one has no address."""

_JSON = "json:"


class ExitSearch:
    """Finds the address in a body that arrives in pieces.

    Parameters
    ----------
    where:
        The ``exit_ip_from`` of the options.
    headers:
        The response's headers, which name its compression.
    """

    def __init__(self, where: str, headers: Headers) -> None:
        self._where, self._body = where, bytearray()
        self._plain: PlainBody | None = None
        try:
            self._plain = PlainBody(headers, MAX_BYTES + 1)
        except CheckFailedError:  # It is compressed in a way that nobody asked for.
            return

    def feed(self, piece: bytes) -> None:
        """Keep the next piece."""
        if self._plain is None or self._plain.is_full:
            return
        try:
            self._body += self._plain.plain(piece)
        except CheckFailedError:
            self._plain = None

    def found(self) -> str | None:
        """Return the address in its normal form, or None if there is none where it should be."""
        if self._plain is None or len(self._body) > MAX_BYTES:
            return None
        text = self._body.decode("utf-8-sig", "replace")
        if self._where.startswith(_JSON):
            return normal_ip(_field(text, self._where.removeprefix(_JSON)))
        return normal_ip(text)


def _field(text: str, path: str) -> Any:
    """Return the value at a dotted path in a JSON object, or None."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    for name in path.split("."):
        if not isinstance(value, dict):
            return None
        value = value.get(name)
    return value

"""Parse common values of lists: protocols, countries, and placeholders for unknown."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from ..models import PROTOCOL_ALIASES, ProxyProtocol

PROTOCOLS = frozenset({*ProxyProtocol, *PROTOCOL_ALIASES, "socks"})
"""The names of protocols; ``socks`` alone does not say which version."""

_UNKNOWN = frozenset({"", "?", "-", "--", "n/a", "none", "null", "nil", "unknown", "undefined"})
_NO_COUNTRY = frozenset({"zz", "xx"})


@lru_cache(maxsize=4096)
def protocol_of_name(name: str) -> str | None:
    """Return the protocol that a column or a key is named after, or None."""
    key = name.strip().lower()
    return key if key in PROTOCOLS else None


def words_of(value: Any) -> list[str]:
    """Return the words in a text or in a list of texts: ``"HTTP, SOCKS4/5"`` has three."""
    texts = value if isinstance(value, list | tuple) else [value]
    found: list[str] = []
    for text in texts:
        if not isinstance(text, str):
            continue
        for word in re.split(r"[\s,;/|+&]+", text.strip().lower()):
            if word in ("4", "5") and found and found[-1].startswith("socks"):
                found.append(f"socks{word}")
            elif word:
                found.append(word)
    return list(dict.fromkeys(found))


def country_of(value: Any) -> Any:
    """Return a country's code in capitals, another name as it is, None if unknown."""
    value = known(value)
    if not isinstance(value, str) or value.lower() in _NO_COUNTRY:
        return None
    return value.upper() if len(value) == 2 and value.isascii() and value.isalpha() else value


def known(value: Any) -> Any:
    """Return a text, or None if it is a placeholder for unknown."""
    if not isinstance(value, str):
        return value
    value = value.strip()
    return None if value.lower() in _UNKNOWN else value

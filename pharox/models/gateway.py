"""Templates: proxies whose credentials say which exit a gateway takes, filled for each lease.

A gateway is one address with many exits. Which one a connection gets is in its user or password:
a session id, a country, a lifetime. Where these come, the credentials of a template have a
placeholder; only the exact names below are placeholders, every other brace is itself.

A session id is made of the id of the lease that brings it, or of the session id before. So no
statement is needed for one, a repeat under the same lease id has the same, and
``exit_session_v1`` in the schema makes the same ones.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator
from datetime import timedelta
from hashlib import md5
from math import ceil
from typing import TYPE_CHECKING
from uuid import UUID

from pydantic import ConfigDict

from .model import Model

if TYPE_CHECKING:
    from .filters import ProxyFilters

SESSION, COUNTRY, LIFETIME = "session", "country", "lifetime"

GATEWAY_CONCURRENCY = 100
"""How many leases at once a template takes, unless it or its pool says."""

_WORD = re.compile(r"\{[A-Za-z_-]{1,30}\}")
_PLACEHOLDER = re.compile(r"\{(session|country|COUNTRY|lifetime)\}")
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_LENGTH = 8
"""The length of a session id: some providers take exactly so many letters and digits."""

_HASHED_DIGITS = 15
"""How many hexadecimal digits of a hash a session id is made of: 60 bits, which SQL can hold."""


class GatewayExit(Model):
    """The exit that a lease asks a gateway for: what its template is filled with. No secret.

    Parameters
    ----------
    session:
        The session id: the same one is the same exit, as long as the provider keeps it. None if
        the template has no ``{session}``.
    country:
        The country, as the filters or the proxy name it. None without ``{country}``.
    minutes:
        How long the provider is to keep the exit. None without ``{lifetime}``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    session: str | None = None
    country: str | None = None
    minutes: int | None = None

    def fill(self, text: str) -> str:
        """Return a text with the values in place of the placeholders.

        :meta private:
        """
        country = self.country or ""
        values = {
            SESSION: self.session or "",
            COUNTRY: country.lower(),
            COUNTRY.upper(): country.upper(),
            LIFETIME: str(self.minutes or 1),
        }
        return _PLACEHOLDER.sub(lambda found: values[found[1]], text)


def exit_for_lease(
    placeholders: Container[str], lease_id: UUID, country: str | None, lasting: timedelta
) -> GatewayExit:
    """Return the exit that a lease of a template asks for, if no session keeps another.

    ``lasting`` is how long the exit is to be kept.
    """
    return GatewayExit(
        session=session_id_after(lease_id) if SESSION in placeholders else None,
        country=country if COUNTRY in placeholders else None,
        minutes=whole_minutes(lasting) if LIFETIME in placeholders else None,
    )


def placeholders_in(*texts: str) -> tuple[str, ...]:
    """Return the names of the placeholders in texts, sorted."""
    found = (match[1].lower() for text in texts for match in _PLACEHOLDER.finditer(text))
    return tuple(sorted(set(found)))


def words_left_in(text: str) -> set[str]:
    """Return what looks like a placeholder in a template's text, with its braces, and is none."""
    return {word for word in _WORD.findall(text) if not _PLACEHOLDER.fullmatch(word)}


def session_id_after(what: UUID | str) -> str:
    """Return the session id that follows from a lease's id, or from another session id."""
    hashed = md5(str(what).encode(), usedforsecurity=False).hexdigest()
    number, digits = int(hashed[:_HASHED_DIGITS], 16), ""
    for _ in range(_LENGTH):
        number, digit = divmod(number, len(_DIGITS))
        digits += _DIGITS[digit]
    return digits


def next_session_id(session: str, lease_id: UUID) -> str:
    """Return the session id that a lease takes in place of another."""
    return session_id_after(f"{session}:{lease_id}")


def whole_minutes(length: timedelta) -> int:
    """Return a length of time in minutes, rounded up; at least one."""
    return max(1, ceil(length / timedelta(minutes=1)))


def wished_country(filters: ProxyFilters | None) -> str | None:
    """Return the country in which filters look for a proxy: the first that they name.

    What a filter says itself comes first, then the filters in ``all_of``, then those in
    ``any_of``. A country in ``none_of`` is none that is wished for.
    """
    return None if filters is None else next(_countries(filters), None)


def _countries(filters: ProxyFilters) -> Iterator[str]:
    if filters.country:
        yield filters.country
    for child in (*(filters.all_of or ()), *(filters.any_of or ())):
        yield from _countries(child)

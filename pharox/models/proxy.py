"""Proxies, their credentials, and pools of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address
from typing import Annotated, Any
from urllib.parse import quote
from uuid import UUID, uuid4

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    IPvAnyAddress,
    SecretStr,
    ValidationInfo,
    field_validator,
)

from .outcome import CoolDown
from .selection import SelectorStrategy
from .text import normal_host, url_of
from .validation import (
    MAX_DURATION_S,
    MAX_NAME_LENGTH,
    Asn,
    Confidential,
    Latitude,
    Longitude,
    MaxConcurrency,
    Name,
    Text,
    UtcDatetime,
    check_text,
    utc_now,
)

_ZONE = re.compile(r"[A-Za-z0-9_.-]{1,15}")


class ProxyStatus(StrEnum):
    """The health of a proxy. Only a person can lift BANNED."""

    ACTIVE = "active"
    INACTIVE = "inactive"
    SLOW = "slow"
    BANNED = "banned"


LEASABLE = (ProxyStatus.ACTIVE, ProxyStatus.SLOW)
"""The statuses of a working proxy. The pool decides whether SLOW proxies are leased."""


class ProxyProtocol(StrEnum):
    """The protocol that a proxy speaks to its clients."""

    HTTP = "http"
    HTTPS = "https"
    SOCKS4 = "socks4"
    SOCKS5 = "socks5"


PROTOCOL_ALIASES = {"socks5h": ProxyProtocol.SOCKS5, "socks4a": ProxyProtocol.SOCKS4}
"""Schemes that also say who resolves names. Here the proxy always does."""


class ProxyCredentials(Confidential, extra="forbid"):
    """The credentials that a proxy requires. Neither part is shown in a repr.

    The password may be empty: an API key is often sent as the user alone, and SOCKS4 has no
    passwords.
    """

    user: Text = Field(repr=False)
    password: SecretStr = SecretStr("")

    @field_validator("user")
    @classmethod
    def _user_not_blank(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("cannot be empty")
        return value

    @field_validator("password")
    @classmethod
    def _password_is_text(cls, value: SecretStr) -> SecretStr:
        check_text(value.get_secret_value())
        return value


_MAX_CREDENTIAL_BYTES = {ProxyProtocol.SOCKS5: 255}
"""The maximum length in a protocol's handshake (RFC 1929)."""

_NO_HOST = "/@:?#[]<>\\^|%"
"""Characters that a host must not contain: some client would parse another host or a path."""


def _check_host(host: Any) -> Any:
    if isinstance(host, str):
        check_text(host)
        if len(host) > MAX_NAME_LENGTH:
            raise ValueError(f"a host has at most {MAX_NAME_LENGTH} characters")
        if not host or any(c.isspace() or c in _NO_HOST or not c.isprintable() for c in host):
            raise ValueError(
                f"a host is a name or an address, without spaces or any of {' '.join(_NO_HOST)}"
            )
    return host


def _in_normal_form(host: Any) -> Any:
    """Reject numbers and bytes that Python accepts as addresses, and normalize a text."""
    if not isinstance(host, str):
        return _is_text_or_address(host)
    return _is_text_or_address(normal_host(host))


def _is_text_or_address(host: Any) -> Any:
    """Reject numbers and bytes that Python accepts as addresses."""
    if not isinstance(host, str | IPv4Address | IPv6Address):
        raise ValueError("a host is a text or an IP address")
    address, _, zone = str(host).partition("%")
    # Any text would be accepted as the zone of an IPv6 address.
    if zone and ":" in address and not _ZONE.fullmatch(zone):
        raise ValueError("the zone of an IPv6 address is the name of a network interface")
    return host


class Proxy(Confidential, extra="forbid"):
    """A network proxy, its description and its current state.

    The ledger sets ``current_leases``, ``draining``, ``rests_until``, ``banned_until`` and
    ``exit_ip``. Values from the caller are ignored when the proxy is saved.
    """

    id: UUID = Field(default_factory=uuid4)
    host: Annotated[
        IPvAnyAddress | str, BeforeValidator(_in_normal_form), AfterValidator(_check_host)
    ]
    port: int = Field(gt=0, le=65535)
    protocol: ProxyProtocol
    pool_id: UUID
    status: ProxyStatus = ProxyStatus.INACTIVE
    checked_at: UtcDatetime = Field(default_factory=utc_now)
    credentials: ProxyCredentials | None = None
    source: Text | None = None
    country: Text | None = None
    city: Text | None = None
    latitude: Latitude | None = None
    longitude: Longitude | None = None
    isp: Text | None = None
    asn: Asn | None = None
    max_concurrency: MaxConcurrency | None = Field(
        default=None, description="How many leases at once; None for any number."
    )
    current_leases: int = Field(default=0, ge=0, description="Active leases, kept by the storage.")
    draining: bool = Field(
        default=False, description="Whether it is BANNED and leaves its pool with its last lease."
    )
    rests_until: UtcDatetime | None = Field(
        default=None, description="Until when it is not leased after a lease on it has ended."
    )
    banned_until: UtcDatetime | None = Field(
        default=None, description="When its ban ends by itself; None for no end, or no ban."
    )
    exit_ip: Text | None = Field(
        default=None, description="The address from which a target last saw it, as checks found."
    )

    @field_validator("credentials")
    @classmethod
    def _credentials_can_be_sent(
        cls, credentials: ProxyCredentials | None, info: ValidationInfo
    ) -> ProxyCredentials | None:
        protocol = info.data.get("protocol")
        most = _MAX_CREDENTIAL_BYTES.get(protocol) if protocol else None
        if credentials is not None and most is not None:
            password = credentials.password.get_secret_value()
            for name, text in (("user", credentials.user), ("password", password)):
                if len(text.encode()) > most:
                    raise ValueError(
                        f"{protocol} carries a {name} of at most {most} bytes in UTF-8"
                    )
        return credentials

    @property
    def url(self) -> str:
        """The proxy's URL with its credentials, quoted so that a client sends them unchanged."""
        return _url_with_login(self.protocol, self.host, self.port, self.credentials)


class LeasedProxy:
    """The proxy of a lease: what a client needs to connect through it.

    Its repr has no credentials. They are decrypted when they are first read.
    """

    __slots__ = ("_credentials", "host", "port", "protocol")

    def __init__(
        self,
        protocol: ProxyProtocol,
        host: str,
        port: int,
        credentials: ProxyCredentials | Callable[[], ProxyCredentials] | None,
    ) -> None:
        self.protocol = protocol
        self.host = host
        self.port = port
        self._credentials = credentials

    @property
    def credentials(self) -> ProxyCredentials | None:
        """What the proxy requires, or None.

        Raises
        ------
        SecretKeyError
            If they cannot be decrypted with the keys of this process.
        """
        if callable(self._credentials):
            self._credentials = self._credentials()
        return self._credentials

    @property
    def url(self) -> str:
        """The proxy's URL with its credentials, quoted so that a client sends them unchanged."""
        return _url_with_login(self.protocol, self.host, self.port, self.credentials)

    def __repr__(self) -> str:
        return f"LeasedProxy({url_of(self.protocol, self.host, self.port)!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return LeasedProxy, (self.protocol, self.host, self.port, self.credentials)


def _url_with_login(
    protocol: ProxyProtocol, host: object, port: int, credentials: ProxyCredentials | None
) -> str:
    auth = ""
    if credentials:
        user = quote(credentials.user, safe="")
        password = quote(credentials.password.get_secret_value(), safe="")
        auth = f"{user}:{password}@"
    return url_of(protocol, host, port, auth)


RestSeconds = Annotated[float, Field(ge=0, le=MAX_DURATION_S, allow_inf_nan=False)]
HeldSeconds = Annotated[float, Field(gt=0, le=MAX_DURATION_S, allow_inf_nan=False)]


class ProxyPool(BaseModel, extra="forbid"):
    """A named set of proxies.

    With ``lease_slow`` its SLOW proxies may be leased too, after all ACTIVE ones. After a lease
    on one of its proxies was released, or ran out or was revoked, the proxy rests for so many
    seconds: it is not leased again. None is no rest.

    ``max_held_seconds`` bounds renewals: none makes a lease last longer than so many seconds from
    its acquisition. A lease that was acquired for longer keeps that. None is no bound.

    ``cool_down`` says when a proxy rests for a target that refused it. None is ``CoolDown()``.

    The others are for who does not say: the ``selector`` of an acquisition without one, the
    duration of a lease in ``lease_seconds``, and the ``max_concurrency`` of a proxy that is
    registered without one. None is pharox's own: FIRST_AVAILABLE, 300 seconds, no limit.
    """

    id: UUID = Field(default_factory=uuid4)
    name: Name
    description: Text | None = None
    lease_slow: bool = False
    rest_after_release_seconds: RestSeconds | None = None
    rest_after_expiry_seconds: RestSeconds | None = None
    max_held_seconds: HeldSeconds | None = None
    cool_down: CoolDown | None = None
    selector: SelectorStrategy | None = None
    lease_seconds: HeldSeconds | None = None
    max_concurrency: MaxConcurrency | None = None

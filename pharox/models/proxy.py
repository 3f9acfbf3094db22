"""Proxies, their credentials, and pools of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import StrEnum
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from typing import Annotated, Any, Self
from urllib.parse import quote, urlsplit
from uuid import UUID, uuid4

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    IPvAnyAddress,
    SecretStr,
    ValidationInfo,
    field_validator,
    model_validator,
)

from .gateway import COUNTRY, GatewayExit, placeholders_in
from .limits import PoolLimits
from .money import Price
from .outcome import CoolDown
from .refusing import Refusing
from .rotation import RotationPolicy
from .selection import SelectorStrategy
from .text import host_fault, normal_host, url_of
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
    Weight,
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

    @property
    def placeholders(self) -> tuple[str, ...]:
        """The names of the placeholders in it, sorted: "country", "lifetime" and "session"."""
        return placeholders_in(self.user, self.password.get_secret_value())

    def filled(self, gateway_exit: GatewayExit) -> ProxyCredentials:
        """Return the credentials that ask a gateway for an exit."""
        password = gateway_exit.fill(self.password.get_secret_value())
        return ProxyCredentials(user=gateway_exit.fill(self.user), password=password)


_MAX_CREDENTIAL_BYTES = {ProxyProtocol.SOCKS5: 255}
"""The maximum length in a protocol's handshake (RFC 1929)."""

_NO_HOST = "/@:?#[]<>\\^|%"
"""Characters that a host must not contain: some client would parse another host or a path."""


RECORDED = {"is_recorded": True}
"""The context in which a proxy is validated that was saved before hosts were checked as now."""


def _check_host(host: Any, info: ValidationInfo) -> Any:
    if isinstance(host, str):
        check_text(host)
        if len(host) > MAX_NAME_LENGTH:
            raise ValueError(f"a host has at most {MAX_NAME_LENGTH} characters")
        if not host or any(c.isspace() or c in _NO_HOST or not c.isprintable() for c in host):
            raise ValueError(
                f"a host is a name or an address, without spaces or any of {' '.join(_NO_HOST)}"
            )
        if info.context != RECORDED and (fault := host_fault(host)) is not None:
            raise ValueError(fault)
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

    The ledger sets ``current_leases``, ``draining``, ``rests_until``, ``banned_until``,
    ``exit_ip`` and ``rotates``. Values from the caller are ignored when the proxy is saved.

    ``rotate_url`` is only written: the ledger gives it to nobody but who calls it. Saving a known
    proxy without one leaves its link alone; an empty one removes it.

    If its credentials hold ``{session}``, ``{country}``, ``{COUNTRY}`` or ``{lifetime}``, the
    proxy is a template of a gateway: each lease has them filled. With ``template=False`` these
    are taken literally; with ``template=True`` there has to be one.
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
    template: bool | None = Field(
        default=None,
        description="Whether its credentials are filled for each lease; None: if they can be.",
    )
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
    cost_per_gb: Price | None = Field(
        default=None, description="What 10**9 bytes through it cost; None for what its pool says."
    )
    cost_per_lease: Price | None = Field(
        default=None, description="What each lease of it costs; None for what its pool says."
    )
    weight: Weight | None = Field(
        default=None, description="How many leases it gets beside one of weight 1; None for 1."
    )

    rotate_url: SecretStr | None = Field(
        default=None,
        repr=False,
        description="The provider's link that gives it another exit, http or https; a secret.",
    )
    rotates: bool = Field(default=False, description="Whether the ledger has such a link.")

    @field_validator("rotate_url")
    @classmethod
    def _link_can_be_called(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and (link := value.get_secret_value()):
            check_text(link)
            if not _is_callable(link):
                raise ValueError("it is not the URL of a link: http://... or https://...")
        return value

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

    @model_validator(mode="after")
    def _template_can_be_filled(self) -> Self:
        if self.template and self.credentials is not None and not self.placeholders:
            raise ValueError(
                "the credentials of a template hold {session}, {country} or {lifetime}"
            )
        if COUNTRY in self.placeholders and self.country is None:
            raise ValueError(
                "a template with {country} needs a country, for leases that ask for none"
            )
        return self

    @property
    def placeholders(self) -> tuple[str, ...]:
        """What is filled for each lease: "country", "lifetime", "session"; empty if no template."""
        if self.template is False or self.credentials is None:
            return ()
        return self.credentials.placeholders

    @property
    def recorded_placeholders(self) -> str | None:
        """The placeholders as events record them; None if the proxy is no template.

        :meta private:
        """
        return " ".join(self.placeholders) or None

    def with_exit(self, gateway_exit: GatewayExit | None) -> LeasedProxy:
        """Return what the holder of a lease with this exit connects to (``lease.exit``)."""
        filled_with = gateway_exit if self.placeholders else None
        place = self.protocol, str(self.host), self.port
        return LeasedProxy(*place, self.credentials, filled_with, rotates=self.rotates)

    @property
    def url(self) -> str:
        """The proxy's URL with its credentials, quoted so that a client sends them unchanged.

        That of a template is not filled: ``lease.proxy.url`` is.
        """
        return _url_with_login(self.protocol, self.host, self.port, self.credentials)


def _is_callable(link: str) -> bool:
    """Return whether a link is a URL that a client takes; no error says what stands in it."""
    import httpx  # noqa: PLC0415 - it takes a while to import

    try:
        parts = urlsplit(link)
        host = httpx.URL(link).host
        return parts.scheme in ("http", "https") and bool(host) and parts.port != 0
    except (ValueError, httpx.InvalidURL):  # a port that is no number, or too large a one
        return False


def recorded_template(
    credentials: ProxyCredentials | None, placeholders: str | None
) -> bool | None:
    """Return ``template`` of a recorded proxy: False only if it has to be said."""
    if placeholders is not None:
        return True
    return False if credentials is not None and credentials.placeholders else None


class LeasedProxy:
    """The proxy of a lease: what a client needs to connect through it.

    Its repr has no credentials. They are decrypted when they are first read. Those of a template
    are filled with the lease's exit.
    """

    __slots__ = ("_credentials", "_exit", "host", "port", "protocol", "rotates")

    def __init__(
        self,
        protocol: ProxyProtocol,
        host: str,
        port: int,
        credentials: ProxyCredentials | Callable[[], ProxyCredentials] | None,
        gateway_exit: GatewayExit | None = None,
        *,
        rotates: bool = False,
    ) -> None:
        self.protocol = protocol
        self.host = host
        self.port = port
        self._credentials = credentials
        self._exit = gateway_exit
        self.rotates = rotates

    @property
    def credentials(self) -> ProxyCredentials | None:
        """What the proxy requires, or None.

        Raises
        ------
        SecretKeyError
            If they cannot be decrypted with the keys of this process.
        """
        known = self._template()
        return known if known is None or self._exit is None else known.filled(self._exit)

    def with_exit(self, gateway_exit: GatewayExit | None) -> LeasedProxy:
        """Return the proxy with another exit of the same gateway.

        :meta private:
        """
        place = self.protocol, self.host, self.port
        return LeasedProxy(*place, self._template(), gateway_exit, rotates=self.rotates)

    def _template(self) -> ProxyCredentials | None:
        """Return the credentials as they are kept."""
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
        place = self.protocol, self.host, self.port
        make = partial(LeasedProxy, rotates=self.rotates)
        return make, (*place, self._template(), self._exit)


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


class ProxyPool(Refusing, extra="forbid"):
    """A named set of proxies.

    With ``lease_slow`` its SLOW proxies may be leased too, after all ACTIVE ones. After a lease
    on one of its proxies was released, or ran out or was revoked, the proxy rests for so many
    seconds: it is not leased again. None is no rest.

    ``max_held_seconds`` bounds renewals: none makes a lease last longer than so many seconds from
    its acquisition. A lease that was acquired for longer keeps that. None is no bound.

    ``cool_down`` says when a proxy rests for a target that refused it. None is ``CoolDown()``.

    ``limits`` bound how many leases there are at once and how many begin in a window of time. None
    is no limit.

    The others are for who does not say: the ``selector`` of an acquisition without one, the
    duration of a lease in ``lease_seconds``, and the ``max_concurrency`` of a proxy that is
    registered without one. None is pharox's own: FIRST_AVAILABLE, 300 seconds, no limit.

    ``reported_failures`` says whether a proxy that holders report as failed has failed a health
    check, too. None leaves it to the manager that reports, which counts them unless it was made
    without.

    ``cost_per_gb`` is what 10**9 bytes cost that outcomes report, and ``cost_per_lease`` what each
    lease does, unless the proxy says it. They are plain numbers in a currency of one's own. None
    is nothing.

    ``rotation`` says when proxies that have a ``rotate_url`` take another exit. None is only when
    somebody asks for it.
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
    limits: PoolLimits | None = None
    cost_per_gb: Price | None = None
    cost_per_lease: Price | None = None
    reported_failures: bool | None = None
    rotation: RotationPolicy | None = None

"""The nouns of leasing, with the names and defaults of pharox 0.11.0.

Pydantic models, validated when they are made: a moment has a time zone and is
kept in UTC, text is text that any storage can hold, a password is a secret.
What differs from 0.11.0 is told in ``docs/switching.md``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from typing import Annotated, Any, Literal, Self
from urllib.parse import quote
from uuid import UUID, uuid4

from pydantic import (
    AfterValidator,
    AnyHttpUrl,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    IPvAnyAddress,
    ModelWrapValidatorHandler,
    PrivateAttr,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from .errors import InvalidInputError, InvalidLeaseError
from .geo import same_coordinate, within_radius
from .text import normal_host, url_of

MAX_NAME_LENGTH = 500
"""Of pools, consumers and hosts; an index holds no more than a few thousand bytes."""

_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_ZONE = re.compile(r"[A-Za-z0-9_.-]{1,15}")
_HEADER_VALUE = re.compile(r"([!-~]([ \t!-~]*[!-~])?)?")

MAX_TEXT_LENGTH = 100_000
"""Of every text, in characters: the log keeps it for ever, and hands it to every reader."""

MAX_FILTER_DEPTH = 50
"""How deep filters may nest."""

MAX_FILTERS = 1000
"""How many filters one tree of them has; one that stands in several places counts in each."""

MAX_DURATION_S = 100 * 365 * 86_400
"""The longest lease: a hundred years, which every storage's calendar can hold."""


def utc_now() -> datetime:
    """Return this machine's idea of now, in UTC."""
    return datetime.now(UTC)


def _in_utc(moment: datetime) -> datetime:
    try:
        in_utc = moment if moment.tzinfo is UTC else moment.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("a moment must lie between the years 1900 and 9000") from error
    if not 1900 <= in_utc.year <= 9000:  # what every storage's calendar can hold, in any zone
        raise ValueError("a moment must lie between the years 1900 and 9000")
    return in_utc


def check_text(value: str) -> str:
    """Return ``value`` if every storage can hold it.

    Raises
    ------
    InvalidInputError
        If it is too long, or has a NUL or an unpaired surrogate; a ``ValueError``
        too, so that pydantic reports it with the field's name.
    """
    if not isinstance(value, str):
        raise InvalidInputError(f"a text is needed here, not a {type(value).__name__}", value=value)
    if len(value) > MAX_TEXT_LENGTH:
        raise InvalidInputError(f"a text has at most {MAX_TEXT_LENGTH} characters")
    if "\x00" in value:
        raise InvalidInputError("text cannot contain a NUL character", value=value)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidInputError("text cannot contain an unpaired surrogate") from error
    return value


def check_name(value: str, what: str) -> str:
    """Return a pool's or a consumer's name if it is one, else raise :class:`InvalidInputError`."""
    if not isinstance(value, str) or not value.strip():
        raise InvalidInputError(f"a {what} name cannot be empty", name=value)
    if len(value) > MAX_NAME_LENGTH:
        raise InvalidInputError(f"a {what} name has at most {MAX_NAME_LENGTH} characters")
    return check_text(value)


def check_whole(value: int, name: str) -> int:
    """Return a whole number that is one, else raise :class:`InvalidInputError`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidInputError(f"{name} must be a whole number", value=value)
    return value


def check_pause(seconds: float, name: str) -> float:
    """Return how long to wait if it is a time to wait, else raise :class:`InvalidInputError`."""
    is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not is_number or not 0 <= seconds <= MAX_DURATION_S:  # which NaN is not either
        raise InvalidInputError(f"{name} must be a number of seconds", value=seconds)
    return seconds


def check_duration(duration_seconds: float) -> float:
    """Return a lease's duration if it is one, else raise :class:`InvalidLeaseError`."""
    if isinstance(duration_seconds, bool) or not isinstance(duration_seconds, int | float):
        raise InvalidLeaseError("duration_seconds must be a number", duration=duration_seconds)
    if not 0 < duration_seconds <= MAX_DURATION_S:  # which NaN is not either
        raise InvalidLeaseError(
            f"duration_seconds must be greater than zero and at most {MAX_DURATION_S}",
            duration=duration_seconds,
        )
    return duration_seconds


def check_aware(moment: datetime) -> datetime:
    """Return a moment that has a time zone, else raise :class:`InvalidInputError`."""
    if not isinstance(moment, datetime):
        raise InvalidInputError("a moment must be a datetime with a time zone", value=moment)
    if moment.tzinfo is None:
        raise InvalidInputError("a moment needs a time zone; this datetime has none", value=moment)
    return moment


UtcDatetime = Annotated[AwareDatetime, AfterValidator(_in_utc)]
Text = Annotated[str, AfterValidator(check_text)]
Name = Annotated[str, AfterValidator(lambda value: check_name(value, "pool or consumer"))]


def _to_a_tenth_of_a_millimetre(degrees: float) -> float:
    """Round a coordinate: the square of a tinier one is no number for PostgreSQL."""
    return round(degrees, 9)


Latitude = Annotated[
    float,
    Field(ge=-90, le=90, allow_inf_nan=False),
    AfterValidator(_to_a_tenth_of_a_millimetre),
]
Longitude = Annotated[
    float,
    Field(ge=-180, le=180, allow_inf_nan=False),
    AfterValidator(_to_a_tenth_of_a_millimetre),
]
Asn = Annotated[int, Field(ge=0, le=2**32 - 1)]
MaxConcurrency = Annotated[int, Field(gt=0, le=2**31 - 1)]


class ProxyStatus(StrEnum):
    """What is known of a proxy's health. Only a person lifts BANNED."""

    ACTIVE = "active"
    INACTIVE = "inactive"
    SLOW = "slow"
    BANNED = "banned"


LEASABLE = (ProxyStatus.ACTIVE, ProxyStatus.SLOW)
"""What a proxy that does its work is; whether a SLOW one is leased is for its pool to say."""


class LeaseStatus(StrEnum):
    """Where a lease is in its life: held, given back, or run out."""

    ACTIVE = "active"
    RELEASED = "released"
    EXPIRED = "expired"


class ProxyProtocol(StrEnum):
    """The protocol that a proxy speaks to its clients."""

    HTTP = "http"
    HTTPS = "https"
    SOCKS4 = "socks4"
    SOCKS5 = "socks5"


PROTOCOL_ALIASES = {"socks5h": ProxyProtocol.SOCKS5, "socks4a": ProxyProtocol.SOCKS4}
"""What says beside the protocol who resolves names, which is the proxy in any case."""


class SelectorStrategy(StrEnum):
    """The order in which free proxies are offered. ``docs/leasing.md`` defines each."""

    FIRST_AVAILABLE = "first_available"
    LEAST_USED = "least_used"
    ROUND_ROBIN = "round_robin"
    LOWEST_LATENCY = "lowest_latency"


class MissReason(StrEnum):
    """Why an acquisition found nothing; TOO_FEW is of a set, of which some were free."""

    UNKNOWN_POOL = "unknown_pool"
    EMPTY_POOL = "empty_pool"
    NO_MATCH = "no_match"
    NONE_HEALTHY = "none_healthy"
    AT_CAPACITY = "at_capacity"
    TOO_FEW = "too_few"


class CheckFailure(StrEnum):
    """Why a health check failed. ``docs/health-checks.md`` tells what each looks like."""

    REFUSED = "refused"
    UNREACHABLE = "unreachable"
    TIMEOUT = "timeout"
    HANDSHAKE = "handshake"
    TLS = "tls"
    PROXY_AUTHENTICATION = "proxy_authentication"
    UNEXPECTED_STATUS = "unexpected_status"
    UNEXPECTED_CONTENT = "unexpected_content"
    REDIRECTS = "redirects"
    DISCONNECTED = "disconnected"
    PROTOCOL = "protocol"
    OTHER = "other"


class _Confidential(BaseModel):
    """A model whose errors quote nothing: what was given may be a password in a wrong place."""

    model_config = ConfigDict(hide_input_in_errors=True)

    @model_validator(mode="wrap")
    @classmethod
    def _without_input(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(data)
        except ValidationError as error:
            raise _without_inputs(error) from None


def _without_inputs(error: ValidationError) -> ValidationError:
    """Return the same complaints without the values they are about."""
    kept = [
        InitErrorDetails(
            type=PydanticCustomError(fault["type"], fault["msg"]),
            loc=fault["loc"],
            input=None,
        )
        for fault in error.errors(include_url=False, include_input=False, include_context=False)
    ]
    return ValidationError.from_exception_data(error.title, kept, hide_input=True)


class ProxyCredentials(_Confidential):
    """What a proxy asks of its clients. Neither part shows in a repr.

    The password may be empty: a key is often the user alone, and SOCKS4 knows no passwords.
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
"""What a protocol's handshake has room for (RFC 1929)."""

_NO_HOST = "/@:?#[]<>\\^|%"
"""What no host of a URL may have: some client would read another host there, or a path."""


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
    """Refuse the numbers and bytes that Python reads as addresses, and spell a text in one way."""
    if not isinstance(host, str):
        return _is_text_or_address(host)
    return _is_text_or_address(normal_host(host))


def _is_text_or_address(host: Any) -> Any:
    """Refuse the numbers and bytes that Python reads as addresses."""
    if not isinstance(host, str | IPv4Address | IPv6Address):
        raise ValueError("a host is a text or an IP address")
    address, _, zone = str(host).partition("%")
    # Any text would pass as the zone of an IPv6 address.
    if zone and ":" in address and not _ZONE.fullmatch(zone):
        raise ValueError("the zone of an IPv6 address is the name of a network interface")
    return host


class Proxy(_Confidential):
    """A network proxy and what is known of it.

    ``current_leases`` is the ledger's to say: whatever a caller puts there is
    ignored when the proxy is saved.
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
        """The proxy's URL, secrets included, quoted so that a client sends them unchanged."""
        auth = ""
        if self.credentials:
            user = quote(self.credentials.user, safe="")
            password = quote(self.credentials.password.get_secret_value(), safe="")
            auth = f"{user}:{password}@"
        return url_of(self.protocol, self.host, self.port, auth)


class ProxyPool(BaseModel):
    """A named set of proxies.

    With ``lease_slow`` its SLOW proxies may be leased too, each after every
    ACTIVE one.
    """

    id: UUID = Field(default_factory=uuid4)
    name: Name
    description: Text | None = None
    lease_slow: bool = False


class Lease(BaseModel):
    """The right of one consumer to use one proxy until ``expires_at``.

    ``fencing_token`` is the log position of the event that granted the lease:
    of two leases on one proxy the later has the greater token.
    """

    id: UUID = Field(default_factory=uuid4)
    proxy_id: UUID
    consumer_id: UUID
    pool_id: UUID | None = None
    pool_name: str | None = None
    consumer_name: str | None = None
    status: LeaseStatus = LeaseStatus.ACTIVE
    acquired_at: UtcDatetime = Field(default_factory=utc_now)
    expires_at: UtcDatetime
    released_at: UtcDatetime | None = None
    fencing_token: int | None = None

    @property
    def duration_ms(self) -> int | None:
        """Milliseconds from acquisition to release or expiry; None while the lease is held."""
        if self.released_at is None:
            return None
        return max(0, int((self.released_at - self.acquired_at).total_seconds() * 1000))


class Consumer(BaseModel):
    """Whoever leases proxies: a worker, a job, a tenant."""

    id: UUID = Field(default_factory=uuid4)
    name: Name


class HealthCheckResult(BaseModel):
    """What one health check of one proxy found."""

    proxy_id: UUID
    status: ProxyStatus
    latency_ms: int = Field(ge=0, le=2**31 - 1)
    protocol: ProxyProtocol
    attempts: int = Field(default=1, ge=1, le=2**31 - 1)
    status_code: int | None = Field(default=None, ge=0, le=2**31 - 1)
    checked_at: UtcDatetime = Field(default_factory=utc_now)
    error_message: Text | None = None
    failure: CheckFailure | None = None

    @property
    def healthy(self) -> bool:
        """Whether the proxy did what was asked of it, at whatever speed."""
        return self.status in LEASABLE


class ProxyHealthRecord(BaseModel):
    """One health check as it stands in the log."""

    id: UUID = Field(default_factory=uuid4)
    proxy_id: UUID
    checked_at: UtcDatetime = Field(default_factory=utc_now)
    reachable: bool
    latency_ms: int | None = Field(default=None, ge=0, le=2**31 - 1)
    protocol: ProxyProtocol
    status_before: ProxyStatus | None = None
    status_after: ProxyStatus
    error: Text | None = None
    failure: CheckFailure | None = None
    status_code: int | None = Field(default=None, ge=0, le=2**31 - 1)
    attempts: int = Field(default=1, ge=1, le=2**31 - 1)


def qualified_name(function: Callable[..., Any]) -> str:
    """Return a function's module and name; of an object that is called, those of its class."""
    if isinstance(function, partial):
        return f"functools.partial({qualified_name(function.func)})"
    is_named = isinstance(getattr(function, "__qualname__", None), str)
    named: Any = function if is_named else type(function)
    module = getattr(named, "__module__", None)
    return f"{module}.{named.__qualname__}" if isinstance(module, str) else str(named.__qualname__)


class ProxyFilters(BaseModel):
    """Which proxies will do.

    :meth:`matches` is the meaning. It is two-valued: a proxy without a country
    is simply not in "AR", so ``none_of=[ProxyFilters(country="AR")]`` lets it
    pass. All conditions of one object must hold together. A dump has a predicate's
    qualified name, which cannot be read back as one.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    source: Text | None = None
    country: Text | None = None
    city: Text | None = None
    isp: Text | None = None
    asn: Asn | None = None
    latitude: Latitude | None = None
    longitude: Longitude | None = None
    radius_km: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    all_of: list[ProxyFilters] | None = None
    any_of: list[ProxyFilters] | None = None
    none_of: list[ProxyFilters] | None = None
    predicate: Callable[[Proxy], bool] | None = Field(default=None, repr=False)

    _depth: int = PrivateAttr(default=1)
    _size: int = PrivateAttr(default=1)

    @field_validator("predicate", mode="before")
    @classmethod
    def _predicate_is_no_name(cls, value: Any) -> Any:
        if isinstance(value, str):
            raise ValueError(
                "a dump has only the name of its predicate, which is code: give the function "
                "itself, or leave the predicate out"
            )
        return value

    @field_serializer("predicate", when_used="unless-none")
    def _predicate_as_its_name(self, predicate: Callable[[Proxy], bool]) -> str:
        return qualified_name(predicate)

    @field_validator("all_of", "any_of", "none_of", mode="before")
    @classmethod
    def _drop_absent_children(cls, children: Any) -> Any:
        """Read an empty list as asking for nothing, as 0.11.0 did."""
        if children is None:
            return None
        return [child for child in children if child is not None] or None

    @model_validator(mode="after")
    def _geo_is_complete(self) -> Self:
        if (self.latitude is None) != (self.longitude is None):
            raise ValueError("latitude and longitude must be provided together")
        if self.radius_km is not None and self.latitude is None:
            raise ValueError("latitude and longitude must be provided when radius_km is set")
        return self

    @model_validator(mode="after")
    def _tree_is_bounded(self) -> Self:
        self._depth = 1 + max((child._depth for child in self.children()), default=0)
        self._size = 1 + sum(child._size for child in self.children())
        if self._depth > MAX_FILTER_DEPTH:
            raise ValueError(f"filters may be nested {MAX_FILTER_DEPTH} deep")
        if self._size > MAX_FILTERS:
            raise ValueError(f"there may be {MAX_FILTERS} filters in one")
        return self

    def matches(self, proxy: Proxy) -> bool:
        """Tell whether the proxy meets every condition."""
        return (
            self._matches_attributes(proxy)
            and self._matches_location(proxy)
            and (self.predicate is None or bool(self.predicate(proxy)))
            and all(child.matches(proxy) for child in self.all_of or ())
            and (not self.any_of or any(child.matches(proxy) for child in self.any_of))
            and not any(child.matches(proxy) for child in self.none_of or ())
        )

    def requires_python(self) -> bool:
        """Tell whether a predicate stands anywhere in the tree."""
        return self.predicate is not None or any(
            child.requires_python() for child in self.children()
        )

    def children(self) -> Iterator[ProxyFilters]:
        """Yield the filters directly below this one."""
        for group in (self.all_of, self.any_of, self.none_of):
            yield from group or ()

    def recorded(self) -> dict[str, Any]:
        """Return the filters as an event keeps them: all but the predicates, which are code."""
        own = self.model_dump(
            mode="json", exclude_none=True, exclude={"predicate", "all_of", "any_of", "none_of"}
        )
        for group in ("all_of", "any_of", "none_of"):
            if children := getattr(self, group):
                own[group] = [child.recorded() for child in children]
        return own

    def _matches_attributes(self, proxy: Proxy) -> bool:
        return (
            (not self.source or proxy.source == self.source)
            and (not self.country or proxy.country == self.country)
            and (not self.city or proxy.city == self.city)
            and (not self.isp or proxy.isp == self.isp)
            and (self.asn is None or proxy.asn == self.asn)
        )

    def _matches_location(self, proxy: Proxy) -> bool:
        if self.latitude is None or self.longitude is None:
            return True
        if proxy.latitude is None or proxy.longitude is None:
            return False
        if self.radius_km is None:
            return same_coordinate(proxy.latitude, self.latitude) and same_coordinate(
                proxy.longitude, self.longitude
            )
        return within_radius(
            self.latitude, self.longitude, proxy.latitude, proxy.longitude, self.radius_km
        )


_GROUPS = frozenset({"all_of", "any_of", "none_of"})
_TEXTS = frozenset({"source", "country", "city", "isp"})
_OWN_FIELDS = sorted(ProxyFilters.model_fields.keys() - _GROUPS)


def check_filters(filters: ProxyFilters | None) -> ProxyFilters | None:
    """Return filters that are valid also if parts of them were assigned after they were made.

    Raises
    ------
    InvalidInputError
        If they are not: no storage could answer them, or one would and another not.
    """
    waiting: list[tuple[Any, int]] = [] if filters is None else [(filters, 1)]
    for _ in range(MAX_FILTERS + 1):
        if not waiting:
            return filters
        each, depth = waiting.pop()
        if not isinstance(each, ProxyFilters):
            raise InvalidInputError(f"filters are needed, not a {type(each).__name__}", value=each)
        if depth > MAX_FILTER_DEPTH:
            raise InvalidInputError(f"filters may be nested {MAX_FILTER_DEPTH} deep")
        if not _is_plainly_sound(each):
            _check_own_fields(each)
        waiting += [(child, depth + 1) for child in each.children()]
    raise InvalidInputError(f"there may be {MAX_FILTERS} filters in one")


def _is_plainly_sound(filters: ProxyFilters) -> bool:
    """Tell at a glance that nothing is wrong, as nearly always; False calls for another look."""
    asked = filters.__dict__
    return all(
        value is None
        or (name in _TEXTS and type(value) is str and value.isascii() and "\x00" not in value)
        or (name in _GROUPS and type(value) is list)
        for name, value in asked.items()
    ) and all(len(asked[name] or "") <= MAX_TEXT_LENGTH for name in _TEXTS)


def _check_own_fields(filters: ProxyFilters) -> None:
    for name in sorted(_GROUPS):
        if not isinstance(getattr(filters, name), list | tuple | None):
            raise InvalidInputError(f"the filters are not valid: {name} is no list")
    try:
        own = {name: getattr(filters, name) for name in _OWN_FIELDS}
        ProxyFilters.model_validate(own, strict=True)
    except ValidationError as error:
        (fault, *_) = error.errors(include_input=False)
        place = ".".join(map(str, fault["loc"]))
        raise InvalidInputError(f"the filters are not valid: {place}: {fault['msg']}") from None


class HealthCheckOptions(BaseModel):
    """How to probe a proxy.

    Who sets ``expected_text`` or ``expected_headers`` tells the target's answer from
    a page that the proxy makes itself. A header is there under its name in any case;
    its value, where one is given, is the whole of it.
    """

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)  # A header may be a key.

    target_url: AnyHttpUrl = Field(
        default_factory=lambda: AnyHttpUrl("https://httpbin.org/ip"),
        description="What to fetch through the proxy.",
    )
    timeout: float = Field(
        default=5.0,
        gt=0,
        le=3600,
        description="Seconds for one attempt: connecting, handshakes, answer and body together.",
    )
    attempts: int = Field(default=1, ge=1, le=5)
    expected_status_codes: list[Annotated[int, Field(ge=200, le=599)]] = Field(
        default_factory=lambda: [200], min_length=1
    )
    slow_threshold_ms: int = Field(default=2000, ge=0, le=2**31 - 1)
    allow_redirects: bool = True
    headers: dict[str, str] = Field(default_factory=dict)
    max_body_bytes: int = Field(
        default=65_536,
        ge=0,
        le=2**31 - 1,
        description="How much of the answer's body to wait for at most.",
    )
    expected_text: Text | None = Field(
        default=None,
        description="What the answer's body must contain, within max_body_bytes.",
    )
    expected_headers: dict[str, str | None] = Field(
        default_factory=dict,
        description="Headers that the answer must have; None or an empty text for any value.",
    )

    @field_validator("target_url")
    @classmethod
    def _target_has_a_port(cls, value: AnyHttpUrl) -> AnyHttpUrl:
        if value.port == 0:
            raise ValueError("nobody listens at port 0")
        return value

    @field_validator("expected_text")
    @classmethod
    def _text_not_blank(cls, value: str | None) -> str | None:
        if value is not None and not value.strip():
            raise ValueError("cannot be empty, as it would be found in any answer")
        return value

    @field_validator("expected_headers")
    @classmethod
    def _headers_can_be_found(cls, value: dict[str, str | None]) -> dict[str, str | None]:
        for name, text in value.items():
            if not _HEADER_NAME.fullmatch(name):
                raise ValueError(f"{name!r} is no name of a header")
            if text and (text != text.strip() or not text.replace("\t", " ").isprintable()):
                raise ValueError(
                    f"no answer can have this value of the header {name}: it has control "
                    "characters, or spaces around it"
                )
        return value

    @model_validator(mode="after")
    def _text_fits(self) -> Self:
        if self.expected_text is not None and len(self.expected_text) > self.max_body_bytes:
            raise ValueError(
                "expected_text is longer than max_body_bytes, so no answer could have it"
            )
        return self

    @field_validator("headers")
    @classmethod
    def _headers_can_be_sent(cls, value: dict[str, str]) -> dict[str, str]:
        for name, text in value.items():
            if not _HEADER_NAME.fullmatch(name):
                raise ValueError(f"{name!r} is no name of a header")
            if not _HEADER_VALUE.fullmatch(text):
                raise ValueError(
                    f"the header {name} cannot be sent: it has letters beyond ASCII, control "
                    "characters, or spaces around it"
                )
        return value


@dataclass(frozen=True)
class HealthPolicy:
    """When results become a proxy's status.

    A proxy that may be leased becomes INACTIVE after so many failures in a row,
    one that may not is leasable again after so many successes in a row; both are
    counted in the log. ``latency_window`` is how many results LOWEST_LATENCY goes
    by: 1 for the latest alone, else the span of an exponential moving average.
    """

    failures_before_inactive: int = 1
    successes_before_active: int = 1
    latency_window: int = 1

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 1000:
                raise InvalidInputError(f"{name} must be a whole number from 1 to 1000")


class PoolStatsSnapshot(BaseModel):
    """A pool in numbers at one moment.

    ``available_proxies`` are ACTIVE and below their capacity, ``leased_proxies``
    have at least one active lease, ``total_leases`` counts the active leases.
    """

    pool_name: str
    total_proxies: int = Field(ge=0, default=0)
    active_proxies: int = Field(ge=0, default=0)
    available_proxies: int = Field(ge=0, default=0)
    leased_proxies: int = Field(ge=0, default=0)
    total_leases: int = Field(ge=0, default=0)
    collected_at: UtcDatetime = Field(default_factory=utc_now)

    def figures(self) -> dict[str, int]:
        """Return the numbers by their names."""
        figures = vars(self).copy()
        del figures["pool_name"], figures["collected_at"]
        return figures


class AcquireEventPayload(BaseModel):
    """What an acquire callback is told of one attempt.

    ``lease`` is None for a miss, and ``miss_reason`` then says why. The
    duration covers expiry, search and commit, in milliseconds by this
    machine's clock.
    """

    lease: Lease | None
    pool_name: str
    consumer_name: str
    filters: ProxyFilters | None = None
    selector: SelectorStrategy = SelectorStrategy.FIRST_AVAILABLE
    started_at: UtcDatetime
    completed_at: UtcDatetime
    duration_ms: int = Field(ge=0)
    pool_stats: PoolStatsSnapshot | None = None
    miss_reason: MissReason | None = None


class ReleaseEventPayload(BaseModel):
    """What a release callback is told of one release, as the ledger recorded it.

    ``started_at`` and ``completed_at`` are when it was asked for and done, by this
    machine's clock; a log does not know them.
    """

    lease: Lease
    pool_name: str | None = None
    released_at: UtcDatetime = Field(default_factory=utc_now)
    lease_duration_ms: int | None = Field(default=None, ge=0)
    pool_stats: PoolStatsSnapshot | None = None
    reason: str | None = None
    started_at: UtcDatetime | None = None
    completed_at: UtcDatetime | None = None


class ExpireEventPayload(BaseModel):
    """What an expire callback is told of one lease that ran out."""

    lease: Lease
    pool_name: str | None = None
    expired_at: UtcDatetime
    lease_duration_ms: int | None = Field(default=None, ge=0)
    pool_stats: PoolStatsSnapshot | None = None


class HealthEventPayload(BaseModel):
    """What a health callback is told of one check, as the ledger recorded it.

    ``applied`` is False for a result that is not newer than the newest; ``leases``
    are held on the proxy at that moment. ``lease_ids`` names them if this check
    made the proxy unleasable: their holders may want to know. ``source`` is the proxy's.
    """

    result: HealthCheckResult
    pool_name: str | None = None
    status_before: ProxyStatus
    status_after: ProxyStatus
    applied: bool = True
    leases: int = Field(ge=0, default=0)
    lease_ids: tuple[UUID, ...] = ()
    source: str | None = None
    pool_stats: PoolStatsSnapshot | None = None


class CallbackFailurePayload(BaseModel):
    """What a failure callback is told of a callback that raised.

    ``told`` is what that one was told of. Of the exception there is only its
    class, as its text may hold anything; the exception itself reaches the caller.
    """

    told: Literal["acquire", "release", "expire", "health"]
    callback: str
    error_type: str
    pool_name: str | None = None
    lease_id: UUID | None = None


@dataclass
class RetryConfig:
    """How often to ask for a proxy, and how long to wait in between, in seconds."""

    max_attempts: int = 3
    backoff_seconds: float = 0.5
    backoff_multiplier: float = 2.0
    max_backoff_seconds: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.max_attempts, bool) or not isinstance(self.max_attempts, int):
            raise InvalidInputError("max_attempts must be a whole number.")
        for name in ("backoff_seconds", "backoff_multiplier", "max_backoff_seconds"):
            value = getattr(self, name)
            is_missing = value is None and name == "max_backoff_seconds"
            if isinstance(value, bool) or not (is_missing or isinstance(value, int | float)):
                raise InvalidInputError(f"{name} must be a number.")
        if self.max_attempts < 1:
            raise InvalidInputError("max_attempts must be at least 1.")
        if not 0 <= self.backoff_seconds <= sys.float_info.max:  # which NaN is not either
            raise InvalidInputError("backoff_seconds must be non-negative.")
        if not 1 <= self.backoff_multiplier <= sys.float_info.max:
            raise InvalidInputError("backoff_multiplier must be at least 1.")
        if self.max_backoff_seconds is not None and not (
            0 < self.max_backoff_seconds <= sys.float_info.max
        ):
            raise InvalidInputError("max_backoff_seconds must be positive when provided.")

    def delays(self) -> Iterator[float]:
        """Yield the pause after each attempt but the last, in seconds."""
        delay, cap = self.backoff_seconds, self.max_backoff_seconds
        for _ in range(self.max_attempts - 1):
            yield delay if cap is None else min(delay, cap)
            delay = min(delay * self.backoff_multiplier, 1e9)

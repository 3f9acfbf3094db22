"""Models of health checks: their options, results and the policy that sets a status."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Self
from uuid import UUID, uuid4

from pydantic import AnyHttpUrl, ConfigDict, Field, field_validator, model_validator

from ..errors import InvalidInputError
from .model import Model
from .proxy import LEASABLE, ProxyProtocol, ProxyStatus
from .text import normal_ip
from .validation import Text, UtcDatetime, utc_now

_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_EXIT_FROM = re.compile(r"body|json:[^.\s]{1,200}(\.[^.\s]{1,200}){0,9}")
_HEADER_VALUE = re.compile(r"([!-~]([ \t!-~]*[!-~])?)?")


class CheckFailure(StrEnum):
    """Why a health check failed. ``docs/health-checks.md`` describes each reason."""

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
    REPORTED = "reported"
    OTHER = "other"


class HealthCheckResult(Model):
    """The result of one health check of one proxy."""

    proxy_id: UUID
    status: ProxyStatus
    latency_ms: int = Field(ge=0, le=2**31 - 1)
    protocol: ProxyProtocol
    attempts: int = Field(default=1, ge=1, le=2**31 - 1)
    status_code: int | None = Field(default=None, ge=0, le=2**31 - 1)
    checked_at: UtcDatetime = Field(default_factory=utc_now)
    error_message: Text | None = None
    failure: CheckFailure | None = None
    exit_ip: Text | None = Field(
        default=None, description="The address from which the target saw the proxy, if it told."
    )

    @field_validator("exit_ip")
    @classmethod
    def _exit_is_an_address(cls, value: str | None) -> str | None:
        found = normal_ip(value)
        if value is not None and found is None:
            raise ValueError("an exit is an IP address")
        return found

    @property
    def healthy(self) -> bool:
        """Whether the check succeeded, at any speed."""
        return self.status in LEASABLE


class ProxyHealthRecord(Model):
    """One health check as recorded in the log."""

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


class HealthCheckOptions(Model):
    """How to probe a proxy.

    Set ``expected_text`` or ``expected_headers`` to tell the target's response from
    a page that the proxy generates. Header names are case-insensitive. If a value is
    given, it must equal the whole header value.
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

    exit_ip_from: Text | None = Field(
        default=None,
        description="Where the answer has the address from which it saw the proxy: 'body' for its "
        "whole body, or 'json:FIELD' for a field of the JSON object in it, such as 'json:origin' "
        "or 'json:client.ip'.",
    )

    @field_validator("exit_ip_from")
    @classmethod
    def _exit_can_be_found(cls, value: str | None) -> str | None:
        if value is not None and not _EXIT_FROM.fullmatch(value):
            raise ValueError("it is 'body' or 'json:FIELD'; a FIELD within another follows a dot")
        return value

    @field_validator("target_url")
    @classmethod
    def _target_has_a_port(cls, value: AnyHttpUrl) -> AnyHttpUrl:
        if value.port == 0:
            raise ValueError("port 0 cannot be used")
        return value

    @field_validator("expected_text")
    @classmethod
    def _text_not_blank(cls, value: str | None) -> str | None:
        if value is not None and not value.strip():
            raise ValueError("cannot be empty, because every answer contains an empty text")
        return value

    @field_validator("expected_headers")
    @classmethod
    def _headers_can_be_found(cls, value: dict[str, str | None]) -> dict[str, str | None]:
        for name, text in value.items():
            if not _HEADER_NAME.fullmatch(name):
                raise ValueError(f"{name!r} is not a valid header name")
            if text and (text != text.strip() or not text.replace("\t", " ").isprintable()):
                raise ValueError(
                    f"the value of the header {name} is not valid: it has control characters, or "
                    "spaces around it"
                )
        return value

    @model_validator(mode="after")
    def _text_fits(self) -> Self:
        if self.exit_ip_from is not None and not self.max_body_bytes:
            raise ValueError("exit_ip_from needs a body, and max_body_bytes is 0")
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
                raise ValueError(f"{name!r} is not a valid header name")
            if not _HEADER_VALUE.fullmatch(text):
                raise ValueError(
                    f"the header {name} cannot be sent: its value has non-ASCII characters, "
                    "control characters, or spaces around it"
                )
        return value


@dataclass(frozen=True)
class HealthPolicy:
    """When health check results change a proxy's status.

    A leasable proxy becomes INACTIVE after a number of consecutive failures. A proxy that
    is not leasable becomes leasable after a number of consecutive successes. Both are
    counted in the log. ``latency_window`` is how many results LOWEST_LATENCY uses:
    1 for the latest one only, else the span of an exponential moving average.
    """

    failures_before_inactive: int = 1
    successes_before_active: int = 1
    latency_window: int = 1

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 1000:
                raise InvalidInputError(f"{name} must be a whole number from 1 to 1000")

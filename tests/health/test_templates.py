"""A check of a template asks for an exit of its own, which is not the proxy's."""

from __future__ import annotations

import asyncio
import re

from pharox import HealthCheckOptions, Proxy, ProxyCredentials, ProxyProtocol, ProxyStatus
from pharox.health import HealthChecker, HealthCheckStrategy
from pharox.models import HealthCheckResult
from pharox.models.ids import NIL


class Remembering(HealthCheckStrategy):
    """Finds every proxy good, and keeps what it was given."""

    def __init__(self) -> None:
        self.logins: list[ProxyCredentials | None] = []

    async def check(self, proxy: Proxy, options: HealthCheckOptions) -> HealthCheckResult:
        """Return a good result."""
        self.logins.append(proxy.credentials)
        return HealthCheckResult(
            proxy_id=proxy.id,
            status=ProxyStatus.ACTIVE,
            latency_ms=1,
            protocol=proxy.protocol,
            exit_ip="198.51.100.7",
        )


def checked(*proxies: Proxy) -> tuple[list[ProxyCredentials | None], list[str | None]]:
    """Check proxies; return the credentials that were used, and the exits that were found."""
    strategy, checker = Remembering(), HealthChecker()
    checker.register_strategy(ProxyProtocol.HTTP, strategy)

    async def check() -> list[HealthCheckResult]:
        return [await checker.check_proxy(proxy) for proxy in proxies]

    return strategy.logins, [result.exit_ip for result in asyncio.run(check())]


def made(user: str, *, template: bool | None = None) -> Proxy:
    """Return a proxy with this user."""
    login = ProxyCredentials(user=user, password="p{lifetime}")
    return Proxy(
        host="192.0.2.1",
        port=1,
        protocol="http",
        pool_id=NIL,
        credentials=login,
        country="US",
        template=template,
    )


def test_each_check_has_an_exit_of_its_own() -> None:
    """Its credentials are filled, and the exit that it is seen from is nobody's."""
    template = made("u-{session}-{country}")
    logins, exits = checked(template, template)
    users = {login.user for login in logins if login}
    assert len(users) == 2
    for user in users:
        assert re.fullmatch("u-[a-z0-9]{8}-us", user)
    assert {login.password.get_secret_value() for login in logins if login} == {"p1"}
    assert exits == [None, None]


def test_a_literal_login_is_sent_as_it_is() -> None:
    """The exit of such a proxy is its own."""
    literal = made("u-{session}", template=False)
    logins, exits = checked(literal)
    assert logins == [literal.credentials]
    assert exits == ["198.51.100.7"]

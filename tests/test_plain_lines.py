"""The short way of plain lines: what it makes is what the models make."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pharox import Proxy, ProxyProtocol, ProxyStatus
from pharox.models import ProxyCredentials
from pharox.models.ids import NIL
from pharox.sources import Defaults
from pharox.sources.orders import Orders
from pharox.sources.plain import PlainLines

DEFAULTS = Defaults(protocol=ProxyProtocol.HTTP, max_concurrency=3, source="list")
WORDS = st.from_regex(r"[A-Za-z0-9!$&*+.=^_~-]{1,20}", fullmatch=True)
HOSTS = st.ip_addresses(v=4).map(str) | st.from_regex(
    r"([A-Za-z0-9_][A-Za-z0-9_-]{0,9}\.){1,3}[A-Za-z][A-Za-z0-9-]{0,9}", fullmatch=True
)


@given(
    scheme=st.sampled_from(["", "http", "HTTPS", "socks4", "socks5", "socks5h"]),
    host=HOSTS,
    port=st.integers(1, 65_535),
    login=st.none() | st.tuples(WORDS, WORDS),
    layout=st.sampled_from(["{h}:{p}:{l}", "{l}@{h}:{p}", "{l}:{h}:{p}"]),
)
def test_a_copy_is_as_good_as_a_model(
    scheme: str, host: str, port: int, login: tuple[str, str] | None, layout: str
) -> None:
    """Whatever the short way takes is valid, and equal to what validation makes of its parts."""
    text = layout.format(h=host, p=port, l=":".join(login)) if login else f"{host}:{port}"
    line = f"{scheme}://{text}" if scheme else text
    found = PlainLines(DEFAULTS, Orders()).proxy(line)
    if found is None:  # The longer way takes it, or refuses it.
        assert login is not None
        return
    expected = Proxy(
        id=found.id,
        host=host,
        port=port,
        protocol=(scheme.lower() or "http").removesuffix("h"),  # of socks5h
        pool_id=NIL,
        status=ProxyStatus.ACTIVE,
        checked_at=DEFAULTS.checked_at,
        max_concurrency=3,
        source="list",
        credentials=login and ProxyCredentials(user=login[0], password=login[1]),
    )
    assert found == expected
    assert Proxy.model_validate(found.model_dump()) == expected
    assert found.model_dump() == expected.model_dump()
    assert found.model_copy(deep=True) == expected
    assert found.model_fields_set >= {"host", "port", "protocol"}


def test_each_proxy_is_its_own() -> None:
    """Two of the same line share neither an id nor what can be changed in them."""
    plain = PlainLines(DEFAULTS, Orders())
    one, two = plain.proxy("gw.example:80:ann:pw"), plain.proxy("gw.example:80:ann:pw")
    assert one is not None
    assert two is not None
    assert one.id != two.id
    one.port = 81
    assert one.credentials is not None
    one.credentials.user = "bob"
    assert (two.port, two.credentials) == (80, ProxyCredentials(user="ann", password="pw"))

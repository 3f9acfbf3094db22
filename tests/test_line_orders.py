"""In which order an address has its parts: recognised, or refused, and never guessed."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pharox import ProxyProtocol
from pharox.errors import InvalidInputError
from pharox.sources import BadEntry, Defaults, Entry, read_proxies

HTTP = Defaults(protocol=ProxyProtocol.HTTP)
PASSWORD = "12345"


def entries(content: str, line: str | None = None) -> list[Entry | BadEntry]:
    return list(read_proxies([content.encode()], HTTP, line=line))


def urls(content: str, line: str | None = None) -> list[str]:
    return [each.proxy.url for each in entries(content, line) if isinstance(each, Entry)]


def reasons(content: str, line: str | None = None) -> list[str]:
    return [str(each) for each in entries(content, line) if isinstance(each, BadEntry)]


@pytest.mark.parametrize(
    "line",
    [
        "gw.example:8000:ann:pw",
        "ann:pw:gw.example:8000",
        "ann:pw@gw.example:8000",
        "gw.example:8000@ann:pw",
        "http://gw.example:8000:ann:pw",
        "http://ann:pw:gw.example:8000",
        "http://ann:pw@gw.example:8000",
        "http://gw.example:8000@ann:pw",
    ],
)
def test_each_order_is_recognised(line: str) -> None:
    """Where only one end can be host and port, that end is."""
    assert urls(line) == ["http://ann:pw@gw.example:8000"]


@pytest.mark.parametrize(
    ("line", "url"),
    [
        ("gw.example:8000:ann:12345", "http://ann:12345@gw.example:8000"),
        ("ann:12345:gw.example:8000", "http://ann:12345@gw.example:8000"),
        ("ann:12345@gw.example:8000", "http://ann:12345@gw.example:8000"),
        ("gw.example:8000@ann:12345", "http://ann:12345@gw.example:8000"),
        ("socks5://ann:12345:gw.example:8000", "socks5://ann:12345@gw.example:8000"),
        ("john.doe:12345:192.0.2.1:80", "http://john.doe:12345@192.0.2.1:80"),
        ("192.0.2.1:80:john.doe:12345", "http://john.doe:12345@192.0.2.1:80"),
        ("s-a1:99887:192.0.2.9:10000", "http://s-a1:99887@192.0.2.9:10000"),
        ("a.b:99887:c.example:80", "http://a.b:99887@c.example:80"),
        ("12345:12345:gw.example:80", "http://12345:12345@gw.example:80"),
        ("localhost:3128:ann:12345", "http://ann:12345@localhost:3128"),
        ("[2001:db8::1]:80:ann:12345", "http://ann:12345@[2001:db8::1]:80"),
        ("ann:12345:[2001:db8::1]:80", "http://ann:12345@[2001:db8::1]:80"),
        ("zone-ip-192.0.2.1:12345:gw.example:80", "http://zone-ip-192.0.2.1:12345@gw.example:80"),
        ("ann:p:w@x:gw.example:80", "http://ann:p%3Aw%40x@gw.example:80"),
        ("gw.example:80:ann:p:w@x:99", "http://ann:p%3Aw%40x%3A99@gw.example:80"),
        ("ann@a.example:pw@gw.example:80", "http://ann%40a.example:pw@gw.example:80"),
        ("http://ann:12345@squid:3128", "http://ann:12345@squid:3128"),
    ],
)
def test_a_numeric_password_is_told_by_the_hosts_shape(line: str, url: str) -> None:
    """An IP address is more of a host than a domain, and a domain more than a word."""
    assert urls(line) == [url]


@pytest.mark.parametrize(
    "line",
    [
        "ann:12345:squid:3128",
        "squid:3128:ann:12345",
        "ann:12345@squid:3128",
        "a.example:8000:b.example:12345",
        "http://gw.example:8000@ann:12345",
        "http://first.last:12345@squid:3128",
    ],
)
def test_what_can_be_read_in_two_ways_is_refused(line: str) -> None:
    """The reason names the option that tells, and nothing of the line."""
    (reason,) = reasons(line)
    assert "--line" in reason
    assert "12345" not in reason


@pytest.mark.parametrize(
    ("other", "line"),
    [
        ("bob:pw:squid:3128", "ann:12345:squid:3128"),
        ("squid:3128:bob:pw", "squid:3128:ann:12345"),
        ("bob:pw@squid:3128", "ann:12345@squid:3128"),
        ("squid:3128@bob:pw", "squid:3128@ann:12345"),
    ],
)
@pytest.mark.parametrize("is_before", [True, False])
def test_the_list_shows_its_order(other: str, line: str, is_before: bool) -> None:
    """One line that is clear, before or behind, tells how the others are to be read."""
    both = (other, line) if is_before else (line, other)
    assert "http://ann:12345@squid:3128" in urls("\n".join(both))
    assert reasons("\n".join(both)) == []


def test_a_list_in_two_orders_shows_none() -> None:
    """Where the clear lines contradict each other, the unclear ones are refused."""
    content = "bob:pw:squid:3128\nsquid:3128:bob:pw\nann:12345:squid:3128\n"
    assert [reason[:6] for reason in reasons(content)] == ["line 3"]


def test_a_line_that_contradicts_its_list_is_refused() -> None:
    """A host that looks like one, at the wrong end for this list, may be somebody's user."""
    (reason,) = reasons("squid:3128:bob:pw\nann:12345:gw.example:8000\n")
    assert reason.startswith("line 2 may be ")


@pytest.mark.parametrize(
    ("layout", "line"),
    [
        ("user:pass:host:port", "ann:12345:squid:3128"),
        ("host:port:user:pass", "squid:3128:ann:12345"),
        ("USER:PASSWORD@HOST:PORT", "ann:%312345@squid:3128"),
        ("user|pass|host|port", "ann|12345|squid|3128"),
        ("user pass host port", "ann\t12345   squid 3128"),
        ("port host username password", "3128 squid ann 12345"),
        ("protocol host port user pass", "http squid 3128 ann 12345"),
        ("host:port user pass *", "squid:3128 ann 12345 US elite"),
        ("user:pass:host:port", "http://ann:12345:squid:3128"),
        ("user:pass:host:port", '"ann:12345:squid:3128", # note'),
    ],
)
def test_the_order_can_be_given(layout: str, line: str) -> None:
    """Each arrangement of the words is read, with a scheme in front or without."""
    assert urls(line, layout) == ["http://ann:12345@squid:3128"]


def test_a_user_alone_can_be_given() -> None:
    """A layout without a password reads users without one."""
    assert urls("squid:3128:key", "host:port:user") == ["http://key:@squid:3128"]


def test_a_line_of_another_layout_is_bad() -> None:
    """What does not fit is told by the layout, not by the line."""
    assert reasons("ann:s3cret", "user:pass:host:port") == [
        "line 1 is not laid out as user:pass:host:port"
    ]


@pytest.mark.parametrize(
    ("layout", "why"),
    [
        ("", "names no host"),
        ("host", "names no port"),
        ("user:pass", "names no host"),
        ("host:port:host", "a part twice"),
        ("host:port:pass", "a password and no user"),
        ("hostport", "nothing between"),
        ("host:port:login:word", "an unknown word"),
        ("host:port:user:pass:country", "an unknown word"),
    ],
)
def test_a_layout_that_says_nothing_is_refused(layout: str, why: str) -> None:
    """It is an error before anything is read."""
    with pytest.raises(InvalidInputError, match=why):
        read_proxies([b"x"], HTTP, line=layout)


@given(
    user=st.from_regex(r"[a-z][a-z0-9-]{0,8}(\.[a-z]{1,4})?", fullmatch=True),
    password=st.integers(0, 70_000).map(str),
    host=st.sampled_from(["gw.example", "192.0.2.1", "squid", "[2001:db8::1]", "a.b.example"]),
    port=st.integers(1, 65_535),
    layout=st.sampled_from(
        ["{h}:{p}:{u}:{w}", "{u}:{w}:{h}:{p}", "{u}:{w}@{h}:{p}", "{h}:{p}@{u}:{w}"]
    ),
    others=st.booleans(),
)
def test_a_numeric_password_is_never_a_port(
    user: str, password: str, host: str, port: int, layout: str, others: bool
) -> None:
    """Whatever the order: the proxy is the right one or none, and no reason quotes it."""
    # Of a user that is spelled like a domain, beside a host that is not, only the list can tell.
    assume(others or host != "squid" or "." not in user)
    line = layout.format(h=host, p=port, u=user, w=password)
    clear = layout.format(h=host, p=port, u="zed", w="pw")
    content = f"{clear}\n{line}\n{clear}\n" if others else line
    for each in entries(content):
        if isinstance(each, BadEntry):
            assert "--line" in each.reason
            continue
        assert (str(each.proxy.host), each.proxy.port) == (host.strip("[]"), port)
        assert each.proxy.credentials is not None
        assert each.proxy.credentials.user in (user, "zed")


@pytest.mark.parametrize("separator", [";", ",", "\t", " ", "|"])
@pytest.mark.parametrize("host", ["gw.example", "192.0.2.1"])
def test_a_login_in_columns_is_no_address(separator: str, host: str) -> None:
    """User and password before host and port are read as such, whatever stands between them."""
    line = separator.join(("ann", "12345", host, "80"))
    (entry,) = read_proxies([line.encode()], Defaults(protocol=ProxyProtocol.HTTP))
    assert isinstance(entry, Entry)
    assert entry.proxy.url == f"http://ann:12345@{host}:80"


@pytest.mark.parametrize(
    "line",
    [
        "192.0.2.1,8080,ann,s3cret,US",
        "192.0.2.1 8080 ann s3cret US",
        "192.0.2.1:8080 ann s3cret US",
        "ann 12345 squid 3128",
    ],
)
def test_a_login_before_a_country_is_not_dropped(line: str) -> None:
    """Words behind an address that may be credentials are refused, whatever follows them."""
    (entry,) = read_proxies([line.encode()], Defaults(protocol=ProxyProtocol.HTTP))
    assert isinstance(entry, BadEntry)
    assert "s3cret" not in entry.reason


@pytest.mark.parametrize(
    "source", ['[{"proxy": "ann:12345:squid:8000"}]', "proxy,country\nann:12345:squid:8000,US"]
)
def test_a_layout_holds_for_the_addresses_of_records(source: str) -> None:
    """What is refused in a field of JSON or CSV can be told as for a line."""
    defaults = Defaults(protocol=ProxyProtocol.HTTP)
    (refused,) = read_proxies([source.encode()], defaults)
    assert isinstance(refused, BadEntry)
    assert "--line" in refused.reason
    (entry,) = read_proxies([source.encode()], defaults, line="user:pass:host:port")
    assert isinstance(entry, Entry)
    assert entry.proxy.url == "http://ann:12345@squid:8000"

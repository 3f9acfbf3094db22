"""The shapes in which providers and free lists write proxies down."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pharox import ProxyProtocol
from pharox.errors import SourceError
from pharox.sources import BadEntry, Defaults, Entry, read_proxies

HTTP = Defaults(protocol=ProxyProtocol.HTTP)


def read(content: Any, defaults: Defaults = HTTP) -> list[Entry | BadEntry]:
    data = content if isinstance(content, bytes) else content.encode()
    return list(read_proxies([data], defaults))


def urls(content: Any, defaults: Defaults = HTTP) -> list[str]:
    found = read(content, defaults)
    assert [str(each) for each in found if isinstance(each, BadEntry)] == []
    return [each.proxy.url for each in found if isinstance(each, Entry)]


def facts(content: Any) -> dict[str, Any]:
    (entry,) = read(content)
    assert isinstance(entry, Entry), str(entry)
    described = entry.proxy.model_dump(exclude_none=True)
    return {"url": entry.proxy.url} | {
        name: described[name] for name in ("country", "city", "isp", "asn") if name in described
    }


PROVIDERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "Geonode": (
        {
            "data": [
                {
                    "_id": "60d",
                    "ip": "192.0.2.1",
                    "anonymityLevel": "elite",
                    "asn": "AS64500",
                    "city": "Boston",
                    "country": "US",
                    "isp": "Example Net",
                    "port": "8080",
                    "protocols": ["http"],
                    "upTime": 99.9,
                }
            ],
            "total": 1,
            "page": 1,
        },
        {
            "url": "http://192.0.2.1:8080",
            "country": "US",
            "city": "Boston",
            "isp": "Example Net",
            "asn": 64500,
        },
    ),
    "Webshare": (
        {
            "count": 1,
            "next": None,
            "results": [
                {
                    "id": "d-1",
                    "username": "ann",
                    "password": "pw",
                    "proxy_address": "192.0.2.1",
                    "port": 8168,
                    "valid": True,
                    "country_code": "US",
                    "city_name": "New York",
                    "asn_name": "Example",
                    "asn_number": 64500,
                }
            ],
        },
        {
            "url": "http://ann:pw@192.0.2.1:8168",
            "country": "US",
            "city": "New York",
            "isp": "Example",
            "asn": 64500,
        },
    ),
    "ProxyScrape": (
        {
            "shown_records": 1,
            "proxies": [
                {
                    "alive": True,
                    "ip_data": {
                        "as": "AS64500 Example Net",
                        "city": "Paris",
                        "country": "France",
                        "countryCode": "FR",
                        "isp": "Example ISP",
                        "proxy": False,
                    },
                    "port": 80,
                    "protocol": "socks4",
                    "proxy": "socks4://192.0.2.1:80",
                    "ip": "192.0.2.1",
                }
            ],
        },
        {
            "url": "socks4://192.0.2.1:80",
            "country": "FR",
            "city": "Paris",
            "isp": "Example ISP",
            "asn": 64500,
        },
    ),
    "proxifly": (
        [
            {
                "proxy": "http://192.0.2.1:8080",
                "protocol": "http",
                "ip": "192.0.2.1",
                "port": 8080,
                "https": False,
                "geolocation": {"country": "ZZ", "city": "Unknown"},
            }
        ],
        {"url": "http://192.0.2.1:8080"},
    ),
    "a flat geolocation": (
        [{"host": "192.0.2.1", "port": 80, "geolocation": "us", "type": "residential"}],
        {"url": "http://192.0.2.1:80", "country": "US"},
    ),
    "a geolocation in columns": (
        [{"host": "192.0.2.1", "port": 80, "geolocation": "US|Massachusetts|Boston"}],
        {"url": "http://192.0.2.1:80", "country": "US", "city": "Boston"},
    ),
    "a login": (
        {"list": [{"ip": "192.0.2.1", "port": "80", "login": "ann", "pass": "pw", "status": "ok"}]},
        {"url": "http://ann:pw@192.0.2.1:80"},
    ),
    "an object in an object": (
        [
            {
                "proxy": {
                    "host": "192.0.2.1",
                    "port": 80,
                    "auth": {"username": "ann", "password": "pw"},
                }
            }
        ],
        {"url": "http://ann:pw@192.0.2.1:80"},
    ),
    "a server of a browser's": (
        [{"server": "http://192.0.2.1:8080", "username": "ann", "password": "pw"}],
        {"url": "http://ann:pw@192.0.2.1:8080"},
    ),
    "a URL for a host": (
        [{"host": "http://ann:pw@gw.example", "port": 80}],
        {"url": "http://ann:pw@gw.example:80"},
    ),
    "the gateway, not its exit": (
        [{"proxy": "gw.example:8000", "ip": "192.0.2.9"}],
        {"url": "http://gw.example:8000"},
    ),
    "nested wrappers": (
        {"status": "ok", "data": {"proxies": ["192.0.2.1:80"]}},
        {"url": "http://192.0.2.1:80"},
    ),
    "addresses as keys": (
        {"192.0.2.1:80": {"country": "US"}},
        {"url": "http://192.0.2.1:80", "country": "US"},
    ),
    "one object": ({"ip": "192.0.2.1", "port": "80"}, {"url": "http://192.0.2.1:80"}),
}


@pytest.mark.parametrize("name", PROVIDERS)
@pytest.mark.parametrize("indent", [None, 2])
def test_an_export_is_read(name: str, indent: int | None) -> None:
    """Wherever the entries stand and whatever their fields are called, on one line or on many."""
    content, expected = PROVIDERS[name]
    assert facts(json.dumps(content, indent=indent)) == expected


TABLES: dict[str, tuple[str, dict[str, Any]]] = {
    "free-proxy-list": (
        "IP Address,Port,Code,Country,Anonymity,Google,Https,Last Checked\n"
        "192.0.2.1,80,US,United States,elite proxy,no,yes,1 min ago\n",
        {"url": "http://192.0.2.1:80", "country": "US"},
    ),
    "Excel": (
        "\ufeffsep=;\r\nHost;Port;Login;Password\r\n192.0.2.1;80;ann;12345\r\n",
        {"url": "http://ann:12345@192.0.2.1:80"},
    ),
    "tabs": ("ip\tport\ttype\n192.0.2.1\t1080\tSOCKS5\n", {"url": "socks5://192.0.2.1:1080"}),
    "one column": ("proxy\nsocks5h://192.0.2.1:1080\n", {"url": "socks5://192.0.2.1:1080"}),
    "flattened": (
        "ip_data.countryCode,ip,port,protocol\nFR,192.0.2.1,80,http\n",
        {"url": "http://192.0.2.1:80", "country": "FR"},
    ),
    "a delimiter at the end": ("ip,port\n192.0.2.1,80,\n", {"url": "http://192.0.2.1:80"}),
    "monosans": (
        "192.0.2.2:3128|Ireland|Leinster|Dublin",
        {"url": "http://192.0.2.2:3128", "country": "Ireland", "city": "Dublin"},
    ),
    "monosans, unknown": ("192.0.2.1:8080|?|?|?", {"url": "http://192.0.2.1:8080"}),
    "spys.me": ("192.0.2.1:8080 US-A-S +", {"url": "http://192.0.2.1:8080", "country": "US"}),
    "a pasted page": (
        "192.0.2.1\t8080\tUS\tUnited States\telite proxy\tno\tyes\t1 min ago",
        {"url": "http://192.0.2.1:8080", "country": "US"},
    ),
    "proxychains": ("socks5 192.0.2.1 1080 ann pw", {"url": "socks5://ann:pw@192.0.2.1:1080"}),
    "its protocol behind": ("192.0.2.1:1080:socks5", {"url": "socks5://192.0.2.1:1080"}),
}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_table_is_read(name: str, encoding: str) -> None:
    """By the names of its columns, or by their contents; also as Excel saves Unicode text."""
    content, expected = TABLES[name]
    if encoding == "utf-16":
        content = content.removeprefix("\ufeff")
    assert facts(content.encode(encoding)) == expected


def test_addresses_stand_below_their_protocol() -> None:
    """The columns of a CSV and the keys of a JSON object may be protocols."""
    table = (
        "http,https,socks4,socks5\n"
        "192.0.2.1:80,192.0.2.1:80,192.0.2.2:4153,192.0.2.3:33080\n"
        "192.0.2.4:80,,192.0.2.5:4153,\n"
    )
    assert urls(table) == [
        "http://192.0.2.1:80",
        "https://192.0.2.1:80",
        "socks4://192.0.2.2:4153",
        "socks5://192.0.2.3:33080",
        "http://192.0.2.4:80",
        "socks4://192.0.2.5:4153",
    ]
    document = {
        "socks4": ["192.0.2.2:4153"],
        "http": ["192.0.2.1:80", {"ip": "192.0.2.4", "port": 80}],
    }
    assert urls(json.dumps(document)) == [
        "socks4://192.0.2.2:4153",
        "http://192.0.2.1:80",
        "http://192.0.2.4:80",
    ]


@pytest.mark.parametrize(
    "offer",
    [
        {"port": 80, "protocols": ["http", "socks5"]},
        {"port": 80, "type": "HTTP/SOCKS5"},
        {"port": 80, "http": 1, "https": 0, "socks4": False, "socks5": True},
        {"ports": {"http": 80, "socks5": 80}},
    ],
)
def test_of_several_protocols_all_are_read_or_one_is_picked(offer: dict[str, Any]) -> None:
    """What an entry offers becomes a proxy each, unless the default is one of them."""
    content = json.dumps([{"ip": "192.0.2.1", **offer}])
    both = ["http://192.0.2.1:80", "socks5://192.0.2.1:80"]
    assert urls(content, Defaults()) == both
    assert urls(content, Defaults(protocol=ProxyProtocol.SOCKS5)) == both[1:]
    assert urls(content, Defaults(protocol=ProxyProtocol.SOCKS4)) == both


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps([{"Adresse": "192.0.2.1", "Puerto": 80}] * 400, indent=2), "Adresse, Puerto"),
        (json.dumps({"data": [{"name": "x", "id": 1}] * 400}, indent=2), "name, id"),
        ('{"Adresse": "192.0.2.1"}\n{"Adresse": "192.0.2.2"}\n', "Adresse"),
        (json.dumps({"message": "invalid key", "code": 401}), "no array of proxies, but message"),
        (
            "Server Name,Kind\nx,y\n",
            "does not name the columns host and port, but server name, kind",
        ),
        (json.dumps({"data": {"s3cret:1": 5}}), "no array of proxies"),
    ],
)
def test_an_unknown_shape_is_one_sentence(content: str, message: str) -> None:
    """It says what is missing and what was found instead, and quotes no values."""
    with pytest.raises(SourceError, match=message) as raised:
        read(content)
    assert "192.0.2" not in str(raised.value)
    assert "s3cret" not in str(raised.value)


def test_a_long_document_is_read_as_it_comes() -> None:
    """The entries of a wrapped array may be longer than any buffer, and broken ones harm none."""
    entries = [{"ip": f"192.0.2.{n % 250 + 1}", "port": n % 60_000 + 1} for n in range(20_000)]
    entries[7] = {"ip": "192.0.2.1", "port": "eighty"}
    found = read(json.dumps({"meta": {"count": 20_000}, "data": entries, "page": 1}, indent=1))
    assert [each.number for each in found if isinstance(each, BadEntry)] == [8]
    assert len(found) == 20_000


@pytest.mark.parametrize(
    ("cut", "reason"),
    [
        (-1, "entry 3 is missing: the JSON ends too early"),
        (-2, "entry 3 is missing: the JSON ends before its array does"),
        (-10, "entry 2 is cut off"),
        (None, None),
    ],
)
def test_a_document_that_breaks_off_says_so(cut: int | None, reason: str | None) -> None:
    """What came before the end is read."""
    whole = json.dumps({"data": [{"ip": "192.0.2.1", "port": 80}] * 2})
    found = read(whole[:cut])
    bad = [str(each) for each in found if isinstance(each, BadEntry)]
    assert [each.startswith(reason or "-") for each in bad] == [True] * len(bad)
    assert bool(bad) is (cut is not None)


@pytest.mark.parametrize(
    "line",
    [
        "192.0.2.1:8080 # US fast",
        "192.0.2.1:8080 // note",
        "192.0.2.1:8080\t",
        "192.0.2.1:8080;",
        "192.0.2.1:8080,",
        '"192.0.2.1:8080"',
        "'192.0.2.1:8080',",
        '"192.0.2.1","8080"',
        " 192.0.2.1 : 8080",
        "192.0.2.1 8080",
        "192.0.2.1\t8080",
        "192.0.2.1;8080",
        "- 192.0.2.1:8080",
        "1. 192.0.2.1:8080",
        "| 192.0.2.1 | 8080 |",
        "<http://192.0.2.1:8080/>",
        "; comment\n// comment\n# comment\n192.0.2.1:8080",
    ],
)
def test_a_pasted_line_is_read(line: str) -> None:
    """Notes, separators, quotes, blanks and bullets around an address are no part of it."""
    assert urls(line) == ["http://192.0.2.1:8080"]


@pytest.mark.parametrize(
    ("line", "password"),
    [
        ("192.0.2.1:80:ann:p#w", "p%23w"),
        ("192.0.2.1:80:ann:pw # note", "pw"),
        ("192.0.2.1:80:ann:pw;", "pw"),
        ('"192.0.2.1:80:ann:pw;"', "pw%3B"),
        ("192.0.2.1 80 ann pw", "pw"),
        ("192.0.2.1:80 ann:pw", "pw"),
        ("192.0.2.1;80;ann;p:w", "p%3Aw"),
        ("192.0.2.1:80:ann:p'w", "p%27w"),
    ],
)
def test_a_password_keeps_its_characters(line: str, password: str) -> None:
    """Only a blank begins a note, and quotes keep what stands at the end."""
    assert urls(line) == [f"http://ann:{password}@192.0.2.1:80"]


def test_several_addresses_on_a_line_are_all_read() -> None:
    """Addresses that were joined by blanks or commas are entries of the same line."""
    assert urls("192.0.2.1:80, 192.0.2.2:80 http://ann:pw@192.0.2.3:80") == [
        "http://192.0.2.1:80",
        "http://192.0.2.2:80",
        "http://ann:pw@192.0.2.3:80",
    ]


@pytest.mark.parametrize(
    "line", ["192.0.2.1:80 Germany Berlin", "192.0.2.1:80 word", "192.0.2.1:80:word"]
)
def test_words_that_may_be_credentials_are_not_guessed(line: str) -> None:
    """The reason names the option that says what they are."""
    (bad,) = read(line)
    assert isinstance(bad, BadEntry)
    assert "--line 'host:port" in bad.reason


@pytest.mark.parametrize(
    ("spelled", "url"),
    [
        ("GW.Example.:80", "http://gw.example:80"),
        ("http://gw.example.:80/", "http://gw.example:80"),
        ("bücher.example:80", "http://xn--bcher-kva.example:80"),
        ("[2001:DB8:0::1]:80", "http://[2001:db8::1]:80"),
        ("SOCKS5H://192.0.2.1:80", "socks5://192.0.2.1:80"),
        ("socks4a://192.0.2.1:80", "socks4://192.0.2.1:80"),
    ],
)
def test_what_is_the_same_is_spelled_in_one_way(spelled: str, url: str) -> None:
    """Dots, capitals, other alphabets and who resolves names make no other proxy."""
    assert urls(spelled) == [url]


def test_socks_alone_says_too_little() -> None:
    """Programs disagree on which it is, so it is the default's to say, if that is one of them."""
    (bad,) = read("socks://192.0.2.1:1080")
    assert str(bad).startswith("line 1 says socks without a version")
    socks5 = Defaults(protocol=ProxyProtocol.SOCKS5)
    assert urls("socks://192.0.2.1:1080", socks5) == ["socks5://192.0.2.1:1080"]

"""Sources: what is read as a proxy, what is a bad entry, and what is neither."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pharox import Proxy, ProxyProtocol, ProxyStatus
from pharox.errors import SourceError
from pharox.models import ProxyCredentials
from pharox.models.ids import NIL
from pharox.models.text import host_fault, normal_host
from pharox.sources import BadEntry, Defaults, Entry, Format, open_source, read_proxies
from pharox.sources.text import ENTRY_LIMIT
from tests.conftest import serving

HTTP = Defaults(protocol=ProxyProtocol.HTTP)
SECRET = "s3cret"

COMPLETE = {
    "protocol": "socks5",
    "username": "ann",
    "password": SECRET,
    "host": "192.0.2.7",
    "port": 1080,
    "timeout": 0.18,
    "exit_ip": "192.0.2.8",
    "asn": {"autonomous_system_number": 64500, "autonomous_system_organization": "Example Net"},
    "geolocation": {
        "city": {"geoname_id": 1, "names": {"en": "Córdoba"}},
        "country": {"geoname_id": 2, "iso_code": "AR", "names": {"en": "Argentina"}},
        "location": {"accuracy_radius": 5, "latitude": -31.4, "longitude": -64.2},
    },
}

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
HOSTS = st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,20})", fullmatch=True).filter(
    lambda host: host_fault(normal_host(host)) is None
)
SECRETS = st.text(st.characters(exclude_characters="\x00", codec="utf-8"), min_size=1).filter(
    str.strip
)


def read(content: str | bytes, kind: Format | None = None) -> list[Entry | BadEntry]:
    data = content.encode() if isinstance(content, str) else content
    return list(read_proxies([data], HTTP, kind=kind))


def proxies(content: str | bytes, kind: Format | None = None) -> list[Proxy]:
    return [entry.proxy for entry in read(content, kind) if isinstance(entry, Entry)]


def reasons(content: str | bytes, kind: Format | None = None) -> list[str]:
    return [str(entry) for entry in read(content, kind) if isinstance(entry, BadEntry)]


class TestLines:
    @pytest.mark.parametrize(
        ("line", "url"),
        [
            ("192.0.2.1:8080", "http://192.0.2.1:8080"),
            ("socks5://proxy.example:1080", "socks5://proxy.example:1080"),
            ("SOCKS4://192.0.2.1:1080/", "socks4://192.0.2.1:1080"),
            ("https://ann:pw@192.0.2.1:443", "https://ann:pw@192.0.2.1:443"),
            ("ann:pw@192.0.2.1:80", "http://ann:pw@192.0.2.1:80"),
            ("192.0.2.1:80:ann:p:w@x", "http://ann:p%3Aw%40x@192.0.2.1:80"),
            ("http://ann:p@w:x@192.0.2.1:80", "http://ann:p%40w%3Ax@192.0.2.1:80"),
            ("http://ann:100%@192.0.2.1:80", "http://ann:100%25@192.0.2.1:80"),
            ("[2001:db8::1]:80", "http://[2001:db8::1]:80"),
            ("[2001:db8::1]:80:ann:pw", "http://ann:pw@[2001:db8::1]:80"),
            ("socks5://ann:pw@[2001:db8::1]:80", "socks5://ann:pw@[2001:db8::1]:80"),
        ],
    )
    def test_an_address_is_read_in_each_of_its_forms(self, line: str, url: str) -> None:
        """A line is a URL, or host and port with or without user and password."""
        assert [proxy.url for proxy in proxies(line)] == [url]

    @pytest.mark.parametrize(
        "line",
        [
            f"http://ann:{SECRET}@",
            f"http://ann:{SECRET}@192.0.2.1",
            f"http://ann:{SECRET}@192.0.2.1:0",
            f"http://ann:{SECRET}@192.0.2.1:99999999999999999999",
            f"http://ann:{SECRET}@192.0.2.1:80/path",
            f"http://ann:{SECRET}%ff@192.0.2.1:80",
            f"http://ann:{SECRET}%00@192.0.2.1:80",
            f"http://:{SECRET}@192.0.2.1:80",
            f"{SECRET}://192.0.2.1:80",
            f"{SECRET}x://ann@192.0.2.1:80",
            f"192.0.2.1:80:ann\x00:{SECRET}"[1:],
            f"[{SECRET}]:{SECRET}",
            f"[::{SECRET}]:80",
            f"{SECRET}",
        ],
    )
    def test_a_bad_line_is_told_without_what_stands_in_it(self, line: str) -> None:
        """A bad entry names its line and a reason, and quotes nothing."""
        # Two long lines before it, as NUL characters in the beginning mean a binary source.
        padding = "#" * (ENTRY_LIMIT - 1) + "\n"
        (reason,) = reasons(padding * 2 + line)
        assert reason.startswith("line 3 ")
        assert SECRET not in reason

    def test_blank_lines_and_comments_are_no_entries(self) -> None:
        """Blank lines and lines after a # are passed over, and counted as lines."""
        entries = read("\n# mine\n  \r\n192.0.2.1:80\r\n\n192.0.2.2:80")
        assert [entry.number for entry in entries] == [4, 6]

    def test_a_host_and_port_need_a_protocol_from_somewhere(self) -> None:
        """Without a scheme and without a default, the protocol is missing."""
        (entry,) = read_proxies([b"192.0.2.1:80"])
        assert str(entry) == "line 1 has no protocol"

    def test_an_overlong_line_spoils_no_other(self) -> None:
        """A line of more than 65,536 characters is a bad entry, and the next line is read."""
        assert len(proxies("x" * (ENTRY_LIMIT + 1) + "\n192.0.2.1:80")) == 1
        entries = read("x" * (9 * ENTRY_LIMIT) + "\n192.0.2.1:80\n" + "y" * (2 * ENTRY_LIMIT))
        assert [type(entry) for entry in entries] == [BadEntry, Entry, BadEntry]

    def test_what_is_not_utf8_spoils_one_line(self) -> None:
        """Bytes that are not UTF-8 make their line a bad entry and no other."""
        entries = read(b"192.0.2.1:80\n\xff\xfe:80\n192.0.2.2:80")
        assert [type(entry) for entry in entries] == [Entry, BadEntry, Entry]

    def test_a_byte_order_mark_is_no_content(self) -> None:
        """A file saved by an editor that writes a byte order mark is read like any other."""
        assert len(proxies(b"\xef\xbb\xbf192.0.2.1:80")) == 1


class TestCsv:
    def test_columns_are_named_by_the_header(self) -> None:
        """A CSV's columns have the names of a proxy's fields, in any order and letter case."""
        (proxy,) = proxies(
            "Port,HOST,protocol,username,password,country,city,latitude,longitude,isp,asn,"
            "source,status,max_concurrency,checked_at,comment\n"
            f'1080,192.0.2.7,SOCKS5,ann,"{SECRET},""x",AR,Córdoba,-31.4,-64.2,Example Net,64500,'
            "list,slow,3,2026-01-01T00:00:00Z,x\n"
        )
        assert proxy.url == f"socks5://ann:{SECRET}%2C%22x@192.0.2.7:1080"
        assert (proxy.country, proxy.city, proxy.isp, proxy.asn) == (
            "AR",
            "Córdoba",
            "Example Net",
            64500,
        )
        assert (proxy.latitude, proxy.longitude) == (-31.4, -64.2)
        assert (proxy.source, proxy.status, proxy.max_concurrency) == (
            "list",
            ProxyStatus.SLOW,
            3,
        )
        assert proxy.checked_at.isoformat() == "2026-01-01T00:00:00+00:00"

    @pytest.mark.parametrize("delimiter", [",", ";", "\t"])
    def test_the_delimiter_is_that_of_the_header(self, delimiter: str) -> None:
        """Comma, semicolon and tab are told apart by the header."""
        (proxy,) = proxies(f"host{delimiter}port\n192.0.2.7{delimiter}80\n")
        assert proxy.port == 80

    def test_empty_cells_mean_nothing(self) -> None:
        """An empty or missing cell leaves its field to the defaults."""
        (proxy,) = proxies("host,port,protocol,user,password,country\n192.0.2.7,80,,,")
        assert (proxy.protocol, proxy.credentials, proxy.country) == (
            ProxyProtocol.HTTP,
            None,
            None,
        )

    def test_a_broken_row_spoils_no_other(self) -> None:
        """An unclosed quote, a cell too many or a missing host is told with its line."""
        assert reasons('host,port\n"192.0.2.7,80\n192.0.2.7,80,x\n,80\n192.0.2.7,80\n') == [
            "line 2 is not valid CSV (unexpected end of data)",
            "line 3 has more cells than the header has columns",
            "line 4 has no host",
        ]

    @pytest.mark.parametrize("content", ["", "\n\n", "a,b\n", "x" * (2 * ENTRY_LIMIT), '"'])
    def test_a_csv_without_such_a_header_is_refused(self, content: str) -> None:
        """What is said to be CSV and names no host and port is an error of the whole source."""
        with pytest.raises(SourceError, match="does not name the columns host and port"):
            read(content, Format.CSV)


class TestJson:
    def test_an_object_gives_all_that_a_proxy_has(self) -> None:
        """Country, city, coordinates, network and credentials are taken over."""
        (proxy,) = proxies(json.dumps([COMPLETE]))
        assert proxy.url == f"socks5://ann:{SECRET}@192.0.2.7:1080"
        assert (proxy.country, proxy.city) == ("AR", "Córdoba")
        assert (proxy.latitude, proxy.longitude) == (-31.4, -64.2)
        assert (proxy.asn, proxy.isp) == (64500, "Example Net")

    @pytest.mark.parametrize("missing", ["city", "country", "location"])
    def test_a_part_that_is_missing_is_unknown(self, missing: str) -> None:
        """Each part of the geolocation may be missing or null."""
        for place in ({}, {missing: None}):
            kept = {k: v for k, v in COMPLETE["geolocation"].items() if k != missing}  # type: ignore[attr-defined]
            (proxy,) = proxies(json.dumps([{**COMPLETE, "geolocation": {**kept, **place}}]))
            unknown = {name for name in ("city", "country", "latitude") if not getattr(proxy, name)}
            assert unknown == {"latitude" if missing == "location" else missing}

    @pytest.mark.parametrize("name", ["geolocation", "asn", "username", "password"])
    def test_null_is_as_good_as_missing(self, name: str) -> None:
        """A null says nothing; a proxy without user and password needs none."""
        nulls = {"username": None, "password": None, name: None}
        (proxy,) = proxies(json.dumps([{**COMPLETE, **nulls}]))
        assert proxy.credentials is None

    def test_plain_fields_are_read_too(self) -> None:
        """An object may have the fields of a proxy itself, as ``pharox proxies --json`` has."""
        proxy = Proxy(
            host="192.0.2.7", port=80, protocol=ProxyProtocol.HTTP, pool_id=NIL, country="AR", asn=1
        )
        (again,) = proxies(proxy.model_dump_json(exclude={"credentials"}))
        assert again == proxy.model_copy(update={"id": again.id})

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"host": None}, "has no host"),
            ({"host": ""}, "has no host"),
            ({"host": 3221225985}, "has an invalid host: a value of the wrong type"),
            ({"host": "a:b"}, "has an invalid host: with a colon, but not an IPv6 address"),
            ({"port": True}, "has an invalid port: a value of the wrong type"),
            ({"port": []}, "has an invalid port: input should be a valid integer"),
            ({"protocol": {}}, "has an invalid protocol: a value of the wrong type"),
            ({"username": 5}, "has an invalid user: input should be a valid string"),
            ({"username": None}, "has a password but no user"),
            ({"geolocation": [1]}, "has a geolocation that is not a JSON object"),
            ({"asn": "x"}, "has an invalid asn: input should be a valid integer"),
            ({"country": "\ud800"}, "has an invalid country: text cannot contain"),
        ],
    )
    def test_a_wrong_type_spoils_one_entry(self, change: dict[str, Any], reason: str) -> None:
        """A value of the wrong type is told with the entry's number, and the next is read."""
        entries = read(json.dumps([COMPLETE, {**COMPLETE, **change}, COMPLETE]))
        assert [type(entry) for entry in entries] == [Entry, BadEntry, Entry]
        assert str(entries[1]).startswith(f"entry 2 {reason}")

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            ("[", "entry 1 is cut off"),
            ('[{"host', "entry 1 is cut off"),
            ("[{}", "entry 2 is missing: the JSON ends before its array does"),
            ("[{},", "entry 2 is cut off"),
            ("[{},]", "entry 2 is not valid JSON (expecting value)"),
            ("[{} {}]", "entry 2 does not follow a comma"),
            ("[{}] {}", "entry 2 follows the end of the array"),
            ("[{host: 1}]", "entry 1 is not valid JSON"),
            ("[" * 50_000, "entry 1 is not valid JSON"),
            ('[{"port":' + "9" * 5_000 + "}]", "entry 1 is not valid JSON"),
            ('[{"host":"' + "x" * 9 * ENTRY_LIMIT + '"}]', "entry 1 is longer than 65536"),
        ],
    )
    def test_a_broken_array_ends_with_a_bad_entry(self, content: str, reason: str) -> None:
        """Where the JSON breaks off, the last entry says so, and nothing is raised."""
        assert reasons(content)[-1].startswith(reason)

    def test_an_overlong_value_is_not_held(self) -> None:
        """A value that never ends is told as soon as it is longer than an entry may be."""
        read_so_far = 0

        def chunks() -> Iterator[bytes]:
            nonlocal read_so_far
            yield b'[{"host":"'
            while True:
                read_so_far += 1
                yield b"x" * 1000

        (entry,) = read_proxies(chunks())
        assert "is longer than 65536 characters" in str(entry)
        assert read_so_far < 100

    def test_an_array_may_be_spread_out(self) -> None:
        """White space of any length may stand between an array's parts."""
        space = " \n" * ENTRY_LIMIT
        parts = ("[", json.dumps(COMPLETE, indent=4), ",", json.dumps(COMPLETE), "]", "")
        assert len(proxies(space.join(parts))) == 2

    @pytest.mark.parametrize("content", ["[]", " [ ] \n", "", " \n"])
    def test_an_empty_source_has_no_entries(self, content: str) -> None:
        """Nothing is no error."""
        assert read(content) == []

    def test_what_is_said_to_be_an_array_must_be_one(self) -> None:
        """An object where an array is announced is an error of the whole source."""
        with pytest.raises(SourceError, match="no array"):
            read("{}", Format.JSON)

    def test_json_lines_are_independent(self) -> None:
        """Of objects on lines of their own, a broken one spoils no other."""
        lines = [json.dumps(COMPLETE), '{"host":', "[]", "", "1", json.dumps(COMPLETE)]
        entries = read("\n".join(lines))
        assert [(entry.number, type(entry)) for entry in entries] == [
            (1, Entry),
            (2, BadEntry),
            (3, BadEntry),
            (5, BadEntry),
            (6, Entry),
        ]


class TestAnySource:
    @pytest.mark.parametrize(
        "content", [b"\x1f\x8b\x00", b"a\x00", "192.0.2.1:80".encode("utf-16-le")]
    )
    def test_a_binary_source_is_one_error(self, content: bytes) -> None:
        """What has NUL characters in its beginning is no list of proxies."""
        with pytest.raises(SourceError, match="binary, or UTF-16"):
            read(content)

    @given(content=st.binary(max_size=300), cut=st.integers(1, 50))
    @example(content=b"[::1]:80", cut=1)
    @example(content=b'[{"host":"a","port":1,"protocol":"http"} ]', cut=1)
    @example(content=b"host,port\na,1", cut=3)
    def test_no_bytes_crash_it_and_no_cut_matters(self, content: bytes, cut: int) -> None:
        """Any bytes give entries, bad entries or a SourceError, however they arrive."""
        pieces = [content[start : start + cut] for start in range(0, len(content), cut)]

        def outcome(chunks: list[bytes], kind: Format | None) -> list[tuple[int, str]] | str:
            try:
                return [
                    (e.number, str(e) if isinstance(e, BadEntry) else e.proxy.url)
                    for e in read_proxies(chunks, HTTP, kind=kind)
                ]
            except SourceError as error:
                return str(error)

        for kind in (None, *Format):
            assert outcome(pieces, kind) == outcome([content], kind)

    @given(
        st.lists(
            st.fixed_dictionaries(
                {},
                optional={name: JSON_VALUES | st.just(value) for name, value in COMPLETE.items()},
            )
        )
    )
    def test_no_json_crashes_it(self, values: list[dict[str, Any]]) -> None:
        """Objects with anything in the places that are looked at give one entry each.

        If none of them has a host, the list is of a shape that nobody knows: one error.
        """
        if any(values) and not any("host" in value for value in values):
            with pytest.raises(SourceError, match="neither a host"):
                read(json.dumps(values))
        else:
            assert len(read(json.dumps(values))) == len(values)

    @given(
        user=SECRETS,
        password=SECRETS,
        host=st.ip_addresses().map(str) | HOSTS,
        port=st.integers(1, 65535),
        protocol=st.sampled_from(ProxyProtocol),
    )
    def test_a_proxys_url_reads_back_as_the_proxy(
        self, user: str, password: str, host: str, port: int, protocol: ProxyProtocol
    ) -> None:
        """Whatever its user and password are made of, ``Proxy.url`` is a line that gives them."""
        proxy = Proxy(
            host=host,
            port=port,
            protocol=protocol,
            pool_id=NIL,
            credentials=ProxyCredentials(user=user, password=password),
        )
        (again,) = proxies(proxy.url)
        assert again.credentials == proxy.credentials
        assert (again.host, again.port, again.protocol) == (proxy.host, port, protocol)

    def test_it_is_read_lazily(self) -> None:
        """No more is read than the entries that are asked for need."""
        read_so_far = 0

        def chunks() -> Iterator[bytes]:
            nonlocal read_so_far
            while True:
                read_so_far += 1
                yield b"192.0.2.1:80\n" * 100

        entries = read_proxies(chunks(), HTTP)
        for _ in range(1000):
            next(entries)
        assert read_so_far * 1300 < 2 * ENTRY_LIMIT + 13_000

    def test_the_defaults_hold_where_the_source_is_silent(self) -> None:
        """What an entry says itself comes before the defaults."""
        defaults = Defaults(
            pool_id=NIL, protocol=ProxyProtocol.SOCKS4, max_concurrency=2, source="list"
        )
        content = b'{"host":"a","port":1}\n{"host":"b","port":1,"protocol":"http","source":"x"}'
        first, second = (e.proxy for e in read_proxies([content], defaults) if isinstance(e, Entry))
        assert (first.protocol, first.source) == (ProxyProtocol.SOCKS4, "list")
        assert (second.protocol, second.source) == (ProxyProtocol.HTTP, "x")
        assert (second.status, second.max_concurrency) == (ProxyStatus.ACTIVE, 2)
        assert first.checked_at == second.checked_at


class _Site(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/list?key=" + SECRET)
            self.end_headers()
        elif self.path.startswith("/list"):
            self._send(200, b"192.0.2.1:80\n" * 10)
        elif self.path == "/compressed":
            self._send(200, gzip.compress(b"192.0.2.1:80\n" * 10), encoding="gzip")
        elif self.path == "/cut":
            self._send(200, b"192.0.2.1:80\n", length=1000)
        else:
            self._send(404, b"no")

    def _send(
        self, status: int, body: bytes, *, length: int | None = None, encoding: str | None = None
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length or len(body)))
        if encoding:
            self.send_header("Content-Encoding", encoding)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site() -> Iterator[str]:
    with serving(_Site) as port:
        yield f"http://ann:{SECRET}@127.0.0.1:{port}"


class TestOpening:
    def test_a_file_knows_its_size(self, tmp_path: Path) -> None:
        """A file is read in chunks, and its size is known beforehand."""
        path = tmp_path / "list"
        path.write_bytes(b"192.0.2.1:80\n" * 10_000)
        with open_source(str(path)) as source:
            assert source.size_bytes == 130_000
            assert len(list(read_proxies(source.chunks, HTTP))) == 10_000

    @pytest.mark.parametrize("path", ["/no/such/file", "/", "", "ftp://192.0.2.1/x"])
    def test_a_file_that_cannot_be_read_is_one_error(self, path: str) -> None:
        """A missing file, a folder and an unknown scheme are told in one sentence."""
        with pytest.raises(SourceError, match="cannot be read: "), open_source(path) as source:
            list(source.chunks)

    @pytest.mark.parametrize("path", ["/list", "/moved", "/compressed"])
    def test_a_url_is_fetched(self, site: str, path: str) -> None:
        """Redirects are followed, and compressed content is read as what it was."""
        with open_source(site + path) as source:
            assert source.size_bytes == (None if path == "/compressed" else 130)
            assert len(list(read_proxies(source.chunks, HTTP))) == 10

    @pytest.mark.parametrize(
        ("path", "message"), [("/nothing", "answered 404 Not Found"), ("/cut", "cannot be read: ")]
    )
    def test_a_url_that_fails_is_one_error(self, site: str, path: str, message: str) -> None:
        """An error answer and a connection that breaks off are told without the URL's secrets."""
        with (
            pytest.raises(SourceError, match=message) as raised,
            open_source(site + path) as source,
        ):
            list(source.chunks)
        assert SECRET not in str(raised.value)

    @pytest.mark.parametrize(
        "url",
        [
            f"http://ann:{SECRET}@127.0.0.1:1/",
            f"http://127.0.0.1:1/?key={SECRET}",
            f"http://ann:{SECRET}@/",
            f"http://ann:{SECRET}@[::1/",
            f"http://ann:{SECRET}@127.0.0.1:99999/",
            f"http://ann:{SECRET}@127.0.0.1:port/",
            f"http://\x7f{SECRET}/",
        ],
    )
    def test_an_impossible_url_is_one_error(self, url: str) -> None:
        """A URL that leads nowhere is told without its secrets."""
        with pytest.raises(SourceError) as raised, open_source(url) as source:
            list(source.chunks)
        assert SECRET not in str(raised.value).replace(f"\x7f{SECRET}", "")

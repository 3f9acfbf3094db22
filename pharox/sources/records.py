"""Parse a JSON or CSV record into the parts of a proxy.

Every provider has its own names for the same few fields; only their letters and digits
are compared. Of several names for one field the more exact one wins: a country's code
before its name, an address before the parts of one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any

from .entries import UNLIMITED
from .unreadable import Unreadable
from .values import country_of, known, protocol_of_name, words_of

Parts = dict[str, Any]
Address = Callable[[str], Parts]

_NAMES: dict[str, tuple[str, ...]] = {
    # The first of these with a value wins.
    "address": (
        *("proxy", "url", "proxyurl", "uri", "link", "ipport", "hostport", "proxyserver"),
        *("address", "addr", "server", "endpoint", "gateway"),
    ),
    "host": (
        *("host", "hostname", "ip", "ipaddress", "ipaddr", "ipv4", "proxyaddress", "proxyip"),
        *("proxyhost", "serverip", "domain"),
    ),
    "port": ("port", "proxyport", "portnumber"),
    "ports": ("ports",),
    "protocol": ("protocol", "protocols", "scheme", "proxyprotocol"),
    "type": ("type", "types", "proxytype", "schemes"),
    "login": ("auth", "credentials", "authentication"),
    "user": ("user", "username", "login", "proxyuser", "proxyusername", "proxylogin", "authuser"),
    "password": ("password", "pass", "passwd", "pwd", "proxypassword", "proxypass", "authpass"),
    "country": (
        *("countrycode", "countryiso", "countryisocode", "isocode", "code", "cc"),
        *("country", "countryname"),
    ),
    "city": ("city", "cityname"),
    "latitude": ("latitude", "lat"),
    "longitude": ("longitude", "lon", "lng", "long"),
    "isp": ("isp", "org", "organization", "asname", "asorganization", "asnname"),
    "asn": ("asn", "asnnumber", "asnumber", "as", "autonomoussystemnumber"),
    "place": ("geolocation", "geo", "geoip", "ipdata", "location", "geodata"),
    "source": ("source",),
    "status": ("status",),
    "checked_at": ("checkedat",),
    "max_concurrency": ("maxconcurrency",),
    "cost_per_gb": ("costpergb",),
    "cost_per_lease": ("costperlease",),
    "weight": ("weight",),
    "rotate_url": (
        *("rotateurl", "rotationurl", "rotationlink", "rotatelink", "rotateipurl", "rotateip"),
        *("changeipurl", "changeiplink", "changeip", "reseturl", "resetlink", "linkreboot"),
    ),
}
_FIELD_OF = {name: field for field, names in _NAMES.items() for name in names}
_RANK = {name: rank for names in _NAMES.values() for rank, name in enumerate(names)}
_TAKEN_OVER = (
    *("latitude", "longitude", "source", "checked_at", "max_concurrency"),
    *("cost_per_gb", "cost_per_lease", "weight", "rotate_url"),
)
_OF_PLACES = ("country", "city", "latitude", "longitude", "isp", "asn")
_PREFIXES = re.compile(r"(?:ipdata|geolocation|geoip|geo|location)(?=[a-z])")
_NO_WORD = re.compile(r"[^a-z0-9]+")

_AS = re.compile(r"AS\s*([0-9]+)\b.*", re.IGNORECASE | re.DOTALL)
_STATUSES = frozenset({"active", "inactive", "slow", "banned"})
_YES = frozenset({"yes", "true", "1", "y", "+"})
_YES_OR_NO = _YES | {"no", "false", "0", "n", "-"}


def field_of(name: str) -> str | None:
    """Return the meaning of a field's name, or None if it is not a field of a proxy."""
    return _ranked(name)[0]


@lru_cache(maxsize=4096)
def _ranked(name: str) -> tuple[str | None, int]:
    """Return the meaning of a name, and its rank among the names for it; the lowest wins."""
    key = _key(name)
    if key in _FIELD_OF:
        return _FIELD_OF[key], _RANK[key]
    bare = _PREFIXES.sub("", key, count=1)
    return _FIELD_OF.get(bare), len(_RANK) + _RANK.get(bare, 0)


def has_address(names: Iterable[str]) -> bool:
    """Return whether one of these fields may have a proxy's address."""
    return any(field_of(name) in ("address", "host") for name in names)


def parts_of(record: Mapping[str, Any], address: Address) -> Parts:
    """Return the parts of the proxy that a record describes.

    Parameters
    ----------
    address:
        Reads an address such as ``http://user:password@host:port``.

    Raises
    ------
    Unreadable
        If a value is of the wrong kind.
    """
    found = _found(record)
    for name in ("address", "login"):
        if isinstance(nested := found.get(name), dict):
            found = _found(nested) | {key: value for key, value in found.items() if key != name}
    if "place" in found:
        found = _place(found["place"]) | found
    parts: Parts = {name: found[name] for name in _TAKEN_OVER if name in found}
    if "country" in found:
        parts["country"] = _country(found["country"])
    if "city" in found:
        parts["city"] = known(_named(found["city"]))
    if "isp" in found:
        parts["isp"] = known(found["isp"])
    if "asn" in found:
        parts["asn"], operator = _network(found["asn"])
        parts["isp"] = parts.get("isp") or operator
    if str(status := found.get("status")).strip().lower() in _STATUSES:
        parts["status"] = str(status).strip().lower()
    return parts | _login(found) | _where(found, address) | _protocols(record, found)


def _found(record: Mapping[str, Any]) -> Parts:
    """Return the values of a record by pharox's names."""
    best: dict[str, tuple[int, Any]] = {}
    for name, given in record.items():
        field, rank = _ranked(name)
        # The output of `pharox proxies --json`.
        is_unlimited = field == "max_concurrency" and given is None
        value = UNLIMITED if is_unlimited else given
        if field is None or value is None or (isinstance(value, str) and not value.strip()):
            continue
        if field == "address" and not _may_be_address(value):
            continue  # such as "proxy": false of services that classify addresses
        if field not in best or rank < best[field][0]:
            best[field] = rank, value
    return {field: value for field, (_, value) in best.items()}


def _may_be_address(value: Any) -> bool:
    return isinstance(value, dict) or (
        isinstance(value, str) and value.strip().lower() not in _YES_OR_NO
    )


def _where(found: Parts, address: Address) -> Parts:
    """Return host, port and the other parts of an address."""
    parts: Parts = {name: found[name] for name in ("host", "port") if name in found}
    text = found.get("address")
    if text is None and isinstance(host := found.get("host"), str) and _is_more(host):
        text = host
    if not isinstance(text, str):
        return parts
    try:
        return parts | address(text)
    except Unreadable:
        if "port" in found and "host" not in found | {"host": None} | parts:
            return parts
    if isinstance(port := found.get("port"), int | str) and not isinstance(port, bool):
        try:
            return parts | address(f"{text.strip().rstrip('/')}:{str(port).strip()}")
        except Unreadable:
            pass
    if "host" in parts and not ("://" in text or "@" in text):
        return parts
    return address(text)


def _is_more(host: str) -> bool:
    """Return whether a host's field has more than a host."""
    return "://" in host or "@" in host or re.fullmatch(r"[^:]+:[0-9]+", host.strip()) is not None


def _login(found: Parts) -> Parts:
    login = found.get("login")
    if isinstance(login, str) and ":" in login and "user" not in found:
        user, _, password = login.partition(":")
        return {"user": user, "password": password}
    return {name: found[name] for name in ("user", "password") if name in found}


def _protocols(record: Mapping[str, Any], found: Parts) -> Parts:
    """Return the named protocols, from a text or a list of texts."""
    if isinstance(ports := found.get("ports"), dict):
        return {"ports": {name: port for name, port in ports.items() if protocol_of_name(name)}}
    if (named := found.get("protocol")) is not None:
        return {"protocol": named}
    # A type may also be residential or elite.
    kinds = [kind for kind in words_of(found.get("type")) if protocol_of_name(kind)]
    if kinds:
        return {"protocol": kinds}
    flags = {name: value for name, value in record.items() if protocol_of_name(name)}
    if len(flags) < 2:  # A single flag says whether https targets can be reached.
        return {}
    return {"protocol": [name for name, value in flags.items() if str(value).lower() in _YES]}


def _place(value: Any) -> Parts:
    """Parse a geolocation: an object, or a text such as ``US`` or ``US|CA|Boston``."""
    if isinstance(value, str):
        country, *rest = re.split(r"\s*[|,]\s*", value.strip())
        return {"country": country, "city": rest[-1] if rest else None}
    if not isinstance(value, dict):
        raise Unreadable("has a geolocation that is not a JSON object")
    found = _found(value)
    if isinstance(found.get("place"), dict):
        found = _found(found["place"]) | found
    return {name: part for name, part in found.items() if name in _OF_PLACES}


def _country(value: Any) -> Any:
    if isinstance(value, dict):
        value = _found(value).get("country") or value.get("name")
    if isinstance(value, dict):
        return None
    return country_of(value)


def _named(value: Any) -> Any:
    """Return the English name in a MaxMind object; any other value as it is."""
    if not isinstance(value, dict):
        return value
    names = value.get("names")
    return names.get("en") if isinstance(names, dict) else value.get("name")


def _network(value: Any) -> tuple[Any, Any]:
    """Return a network's number and its operator."""
    if isinstance(value, dict):
        number = value.get("autonomous_system_number", value.get("asn", value.get("number")))
        operator = value.get("autonomous_system_organization", value.get("name"))
        return _network(number)[0], operator if isinstance(operator, str) else None
    value = known(value)
    if isinstance(value, str) and (numbered := _AS.fullmatch(value)):
        return numbered[1], None
    return value, None


def _key(name: str) -> str:
    return _NO_WORD.sub("", name.lower())

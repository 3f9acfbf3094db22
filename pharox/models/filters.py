"""Filters: conditions on the proxies that an acquisition may lease."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from ipaddress import ip_address
from typing import Annotated, Any, Self
from uuid import UUID

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    field_serializer,
    field_validator,
    model_validator,
)

from ..errors import InvalidInputError
from .gateway import COUNTRY, wished_country
from .geo import same_coordinate, within_radius
from .model import Model
from .proxy import Proxy, ProxyProtocol
from .text import normal_host
from .validation import MAX_TEXT_LENGTH, Asn, Latitude, Longitude, Text

MAX_FILTER_DEPTH = 50
"""How deep filters may nest."""

MAX_FILTERS = 1000
"""How many filters a tree may have. A filter that is used in several places counts in each."""


def qualified_name(function: Callable[..., Any]) -> str:
    """Return a function's module and name, or those of the class of a callable object."""
    if isinstance(function, partial):
        return f"functools.partial({qualified_name(function.func)})"
    is_named = isinstance(getattr(function, "__qualname__", None), str)
    named: Any = function if is_named else type(function)
    module = getattr(named, "__module__", None)
    return f"{module}.{named.__qualname__}" if isinstance(module, str) else str(named.__qualname__)


def _in_normal_form(host: str) -> str:
    """Return a host as a proxy has it."""
    try:
        return str(ip_address(host.strip("[]")))
    except ValueError:
        return normal_host(host)


class ProxyFilters(Model):
    """Conditions that a proxy must meet; all of them must hold.

    :meth:`matches` defines the semantics. There is no third value as in SQL: a proxy
    without a country is not in "AR", so ``none_of=[ProxyFilters(country="AR")]`` matches it.
    A dump contains the qualified name of a predicate, which cannot be loaded again.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    proxy_id: UUID | None = None
    host: Annotated[Text, AfterValidator(_in_normal_form)] | None = None
    protocol: ProxyProtocol | None = None
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
                "a dump has only the name of its predicate, not the code: give the function "
                "itself, or leave the predicate out"
            )
        return value

    @field_serializer("predicate", when_used="unless-none")
    def _predicate_as_its_name(self, predicate: Callable[[Proxy], bool]) -> str:
        return qualified_name(predicate)

    @field_validator("all_of", "any_of", "none_of", mode="before")
    @classmethod
    def _drop_absent_children(cls, children: Any) -> Any:
        """Treat an empty list as no condition, as 0.11.0 did."""
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
        """Return whether the proxy meets every condition.

        A template with ``{country}`` is in the country that the filters name: the first that they
        do, in their own field, ``all_of`` or ``any_of``.
        """
        wished = wished_country(self)
        if wished is not None and COUNTRY in proxy.placeholders:
            return self._matches(proxy.model_copy(update={"country": wished}))
        return self._matches(proxy)

    def _matches(self, proxy: Proxy) -> bool:
        return (
            self._matches_attributes(proxy)
            and self._matches_location(proxy)
            and (self.predicate is None or bool(self.predicate(proxy)))
            and all(child._matches(proxy) for child in self.all_of or ())
            and (not self.any_of or any(child._matches(proxy) for child in self.any_of))
            and not any(child._matches(proxy) for child in self.none_of or ())
        )

    def requires_python(self) -> bool:
        """Return whether the tree contains a predicate."""
        return self.predicate is not None or any(
            child.requires_python() for child in self.children()
        )

    def children(self) -> Iterator[ProxyFilters]:
        """Yield the filters directly below this one."""
        for group in (self.all_of, self.any_of, self.none_of):
            yield from group or ()

    def recorded(self) -> dict[str, Any]:
        """Return the filters as an event records them: without predicates, which are code."""
        own = self.model_dump(
            mode="json", exclude_none=True, exclude={"predicate", "all_of", "any_of", "none_of"}
        )
        for group in ("all_of", "any_of", "none_of"):
            if children := getattr(self, group):
                own[group] = [child.recorded() for child in children]
        return own

    def _matches_attributes(self, proxy: Proxy) -> bool:
        return (
            (self.proxy_id is None or proxy.id == self.proxy_id)
            and (not self.host or str(proxy.host) == self.host)
            and (self.protocol is None or proxy.protocol is self.protocol)
            and (not self.source or proxy.source == self.source)
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
_TEXTS = frozenset({"host", "source", "country", "city", "isp"})
_OWN_FIELDS = sorted(ProxyFilters.model_fields.keys() - _GROUPS)


def check_filters(filters: ProxyFilters | None) -> ProxyFilters | None:
    """Validate filters again, because fields may have been assigned after creation.

    Raises
    ------
    InvalidInputError
        If they are invalid, so that not every storage could evaluate them.
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
    """Return True for most valid filters, after a cheap check. False requires full validation."""
    fields = filters.__dict__
    return all(
        value is None
        or (name in _TEXTS and type(value) is str and value.isascii() and "\x00" not in value)
        or (name in _GROUPS and type(value) is list)
        for name, value in fields.items()
    ) and all(len(fields[name] or "") <= MAX_TEXT_LENGTH for name in _TEXTS)


def _check_own_fields(filters: ProxyFilters) -> None:
    for name in sorted(_GROUPS):
        if not isinstance(getattr(filters, name), list | tuple | None):
            raise InvalidInputError(f"the filters are not valid: {name} is not a list")
    try:
        own = {name: getattr(filters, name) for name in _OWN_FIELDS}
        ProxyFilters.model_validate(own, strict=True)
    except ValidationError as error:
        (fault, *_) = error.errors(include_input=False)
        place = ".".join(map(str, fault["loc"]))
        raise InvalidInputError(f"the filters are not valid: {place}: {fault['msg']}") from None

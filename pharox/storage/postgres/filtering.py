"""Convert ProxyFilters to SQL that gives the same answer as ``ProxyFilters.matches``.

SQL has three truth values, so each condition is written to be true or false and
never null. A predicate is Python code. In its place the SQL matches every proxy that the
predicate might accept (inside ``none_of`` it rejects only proxies that are surely
rejected), and Python decides the rest.

Statements are compiled once for each *shape*: which fields are set where.
The values are passed as parameters, in the order of :func:`values_of`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import count
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Double,
    FromClause,
    Text,
    Uuid,
    and_,
    case,
    cast,
    false,
    func,
    literal_column,
    not_,
    or_,
    true,
)

from ...models import ProxyFilters
from ...models.gateway import COUNTRY
from ...models.geo import COORDINATE_TOLERANCE_DEG, DISTANCE_TOLERANCE_KM, EARTH_RADIUS_KM
from .reading import description
from .sql import parameter, template

FilterShape = tuple[Any, ...]

Value = Callable[[int, Any], ColumnElement[Any]]

_TEXTS = ("host", "protocol", "source", "country", "city", "isp")
_GROUPS = ("all_of", "any_of", "none_of")


def filter_shape_of(filters: ProxyFilters | None) -> FilterShape | None:
    """Return the shape of a filter, which is all of it except the values."""
    if filters is None:
        return None
    return (
        tuple(name for name in _TEXTS if getattr(filters, name)),
        filters.proxy_id is not None,
        filters.asn is not None,
        None if filters.latitude is None else filters.radius_km is not None,
        filters.predicate is not None,
        *(
            tuple(filter_shape_of(child) for child in getattr(filters, group) or ())
            for group in _GROUPS
        ),
    )


def values_of(filters: ProxyFilters | None) -> dict[str, Any]:
    """Return the values of a filter, named as the parameters in :func:`condition`."""
    return {f"f{number}": value for number, value in enumerate(_walk(filters))}


def _walk(filters: ProxyFilters | None) -> Iterator[Any]:
    if filters is None:
        return
    yield from (str(value) for name in _TEXTS if (value := getattr(filters, name)))
    if filters.proxy_id is not None:
        yield str(filters.proxy_id)
    if filters.asn is not None:
        yield filters.asn
    if filters.latitude is not None:
        yield filters.latitude
        yield filters.longitude
        if filters.radius_km is not None:
            yield filters.radius_km
    for child in filters.children():
        yield from _walk(child)


def _parameter(number: int, type_: Any) -> ColumnElement[Any]:
    return parameter(f"f{number}", type_)


def condition(
    filter_shape: FilterShape | None, proxy: FromClause, value: Value = _parameter
) -> ColumnElement[bool]:
    """Return the condition that ``proxy`` (the table's columns) matches filters of this shape.

    ``value`` takes the number and type of a filter value and returns the SQL for it.
    """
    if filter_shape is None:
        return true()
    numbers = count()

    def next_value(type_: Any) -> ColumnElement[Any]:
        return value(next(numbers), type_)

    wished = _wished_number(filter_shape, count())
    country: ColumnElement[Any] = proxy.c.country
    if wished is not None:
        # A template with {country} is in the country that is wished for.
        is_any = func.strpos(proxy.c.placeholders, literal_column(f"'{COUNTRY}'", Text)) > (
            literal_column("0")
        )
        country = case((is_any, value(wished, Text)), else_=country)
    return _condition(filter_shape, _Proxy(proxy, country), next_value, unknown=true())


class _Proxy(NamedTuple):
    """The columns of a proxy, and the country in which it counts as being."""

    table: FromClause
    country: ColumnElement[Any]

    @property
    def c(self) -> Any:
        """The columns of the table."""
        return self.table.c

    def text(self, name: str) -> ColumnElement[Any]:
        """Return a text that a filter compares."""
        column: ColumnElement[Any] = self.table.c[name]
        return self.country if name == "country" else column


def _wished_number(
    filter_shape: FilterShape, numbers: Iterator[int], *, negated: bool = False
) -> int | None:
    """Return the number of the value of :func:`pharox.models.gateway.wished_country`."""
    texts, has_id, has_asn, has_radius, _, *groups = filter_shape
    wished: int | None = None
    for name in texts:
        number = next(numbers)
        if name == "country" and not negated:
            wished = number
    geo = 0 if has_radius is None else 2 + bool(has_radius)
    for _ in range(has_id + has_asn + geo):
        next(numbers)
    for group, is_negated in zip(groups, (False, False, True), strict=True):
        for child in group:
            found = _wished_number(child, numbers, negated=negated or is_negated)
            wished = found if wished is None else wished
    return wished


@lru_cache(maxsize=512)
def condition_text(filter_shape: FilterShape | None) -> str | None:
    """Return the condition in the form that the schema's functions take, or None.

    The values are the items of a JSON array, which is the functions' fifth argument.
    """
    if filter_shape is None:
        return None

    def item(number: int, type_: Any) -> ColumnElement[Any]:
        return cast(literal_column(f"$5 ->> {number}", Text), type_)

    return template(condition(filter_shape, description, item))


def _condition(
    filter_shape: FilterShape,
    proxy: _Proxy,
    value: Callable[[Any], ColumnElement[Any]],
    *,
    unknown: ColumnElement[bool],
) -> ColumnElement[bool]:
    """Return the condition, with ``unknown`` in place of a predicate."""
    texts, has_id, has_asn, has_radius, has_predicate, *groups = filter_shape

    parts = [_equals(proxy.text(name), value(Text)) for name in texts]
    if has_id:
        parts.append(proxy.c.id == value(Uuid))
    if has_asn:
        parts.append(_equals(proxy.c.asn, value(BigInteger)))
    if has_radius is not None:
        latitude, longitude = value(Double), value(Double)
        near = (
            _within(proxy, latitude, longitude, value(Double))
            if has_radius
            else _at(proxy, latitude, longitude)
        )
        known = and_(proxy.c.latitude.is_not(None), proxy.c.longitude.is_not(None))
        parts.append(and_(known, near))
    if has_predicate:
        parts.append(unknown)
    # The children's values are numbered in the order of the groups, so build them in it.
    opposite = false() if unknown is true() else true()
    all_of, any_of, none_of = (
        [
            _condition(child, proxy, value, unknown=opposite if negated else unknown)
            for child in group
        ]
        for group, negated in zip(groups, (False, False, True), strict=True)
    )
    parts += all_of
    if any_of:
        parts.append(or_(false(), *any_of))
    parts += [not_(child) for child in none_of]
    return and_(true(), *parts)


def _equals(column: ColumnElement[Any], value: ColumnElement[Any]) -> ColumnElement[bool]:
    return and_(column.is_not(None), column == value)


def _at(
    proxy: _Proxy, latitude: ColumnElement[Any], longitude: ColumnElement[Any]
) -> ColumnElement[bool]:
    tolerance = literal_column(repr(COORDINATE_TOLERANCE_DEG), Double)
    return and_(
        func.abs(proxy.c.latitude - latitude) <= tolerance,
        func.abs(proxy.c.longitude - longitude) <= tolerance,
    )


def _within(
    proxy: _Proxy,
    latitude: ColumnElement[Any],
    longitude: ColumnElement[Any],
    radius_km: ColumnElement[Any],
) -> ColumnElement[bool]:
    """Return :func:`pharox.models.geo.within_radius` in SQL. It is null without coordinates."""
    two, one = literal_column("2.0::float8", Double), literal_column("1.0::float8", Double)
    lat1, lon1 = func.radians(latitude), func.radians(longitude)
    lat2, lon2 = func.radians(proxy.c.latitude), func.radians(proxy.c.longitude)
    sin_dlat, sin_dlon = func.sin((lat2 - lat1) / two), func.sin((lon2 - lon1) / two)
    a = sin_dlat * sin_dlat + func.cos(lat1) * func.cos(lat2) * sin_dlon * sin_dlon
    diameter = literal_column(f"{2 * EARTH_RADIUS_KM!r}::float8", Double)
    distance = diameter * func.asin(func.sqrt(func.least(one, a)))
    return distance <= radius_km + literal_column(f"{DISTANCE_TOLERANCE_KM!r}::float8", Double)

"""Distances on a sphere. The SQL filters compute the same terms in the same order.

The formula is the haversine with the square clamped to 1: for antipodes, rounding can
push it slightly above, where arcsin is undefined. Distances that differ by less
than a millimetre count as equal, so that a result never depends on the last bit
of a sine.
"""

from __future__ import annotations

from math import asin, cos, radians, sin, sqrt

EARTH_RADIUS_KM = 6371.0
DISTANCE_TOLERANCE_KM = 1e-6
COORDINATE_TOLERANCE_DEG = 1e-6


def haversine_distance_km(lat1: float, lon1: float, lat2: float, lon2: float) -> float:
    """Return the great-circle distance between two points.

    Parameters
    ----------
    lat1, lon1, lat2, lon2:
        Degrees.

    Returns
    -------
    float
        Kilometres, on a sphere of radius 6,371 km.
    """
    lat1_rad, lon1_rad = radians(lat1), radians(lon1)
    lat2_rad, lon2_rad = radians(lat2), radians(lon2)
    sin_dlat = sin((lat2_rad - lat1_rad) / 2)
    sin_dlon = sin((lon2_rad - lon1_rad) / 2)
    a = sin_dlat * sin_dlat + cos(lat1_rad) * cos(lat2_rad) * sin_dlon * sin_dlon
    return 2 * EARTH_RADIUS_KM * asin(sqrt(min(1.0, a)))


def within_radius(lat1: float, lon1: float, lat2: float, lon2: float, radius_km: float) -> bool:
    """Return whether two points are at most ``radius_km`` apart, to the millimetre."""
    return haversine_distance_km(lat1, lon1, lat2, lon2) <= radius_km + DISTANCE_TOLERANCE_KM


def same_coordinate(a: float, b: float) -> bool:
    """Return whether two coordinates in degrees are equal, to about ten centimetres."""
    return abs(a - b) <= COORDINATE_TOLERANCE_DEG

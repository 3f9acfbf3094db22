"""The bootstrap helpers and distances under the module name that 0.11.0 gave them."""

from ..connecting.bootstrap import bootstrap_consumer, bootstrap_pool, bootstrap_proxy
from ..models.geo import EARTH_RADIUS_KM, haversine_distance_km

__all__ = [
    "EARTH_RADIUS_KM",
    "bootstrap_consumer",
    "bootstrap_pool",
    "bootstrap_proxy",
    "haversine_distance_km",
]

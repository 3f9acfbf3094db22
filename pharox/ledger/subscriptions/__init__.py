"""Follow the log durably: each event once and in order, through crashes and restarts.

A :class:`Subscription` describes who reads what and with which handler; its
checkpoint, its reader and what its handler could not take stand in the
database, so that any process can go on where another one ended.
"""

from .administration import (
    ParkedEvent,
    Reset,
    SubscriptionStatus,
    parked,
    remove,
    reset,
    retry,
    subscriptions,
)
from .delivery import Delivery
from .subscription import BoundSubscription, Running, Subscription

__all__ = [
    "BoundSubscription",
    "Delivery",
    "ParkedEvent",
    "Reset",
    "Running",
    "Subscription",
    "SubscriptionStatus",
    "parked",
    "remove",
    "reset",
    "retry",
    "subscriptions",
]

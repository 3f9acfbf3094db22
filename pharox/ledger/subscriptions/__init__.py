"""Follow the log durably: each event once and in order, through crashes and restarts.

A :class:`Subscription` says who reads which events with which handler. Its
checkpoint, its reader and its parked events are in the database, so any process
can continue where another one ended.
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

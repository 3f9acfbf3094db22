"""The options of everything that leases, beside the parameters of 0.11.0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict, cast, get_args

from ..errors import InvalidInputError
from ..models import ProxyFilters, SelectorStrategy, Sticky

OnLost = Literal["cancel", "tell"]
"""What a block does if a lease that is kept alive is lost before it ends.

With "cancel" a task is cancelled, and the block raises :class:`LeaseLostError`. A thread
cannot be interrupted: its block raises at its end, unless its body raised. With "tell" only
``lease.is_lost`` and the lost callbacks tell.
"""


class LeaseOptions(TypedDict, total=False):
    """Options of everything that leases.

    ``keep_alive`` says whether to renew the lease, at a third of its duration, until it is
    released. False unless the method says otherwise.

    ``wait_seconds`` is how long to wait, in turn with others, if nothing is free; not at all
    if None. A pool that does not exist or is empty, and filters that nothing matches, are a
    miss at once.

    ``target`` is the host, or a URL of it, that the lease is for. A proxy that rests for it, as it
    was refused there, is passed over, and what is reported of the lease is of that target.

    ``sticky`` asks for the same proxy each time, as :class:`pharox.Sticky`. A set of leases cannot.

    ``fallback`` are the names of further pools, which are tried in their order if the first has
    nothing, whatever the reason. ``lease.pool_name`` says which pool granted.
    """

    keep_alive: bool
    wait_seconds: float | None
    target: str | None
    sticky: Sticky | None
    fallback: Sequence[str]


def known_options(method: str, options: Mapping[str, Any]) -> LeaseOptions:
    """Return the options of a method that leases, as Python checks parameters.

    Raises
    ------
    TypeError
        If there is no option of a name: it names the method, as its caller wrote it.
    """
    for name in options:
        if name not in LeaseOptions.__annotations__:
            *others, last = LeaseOptions.__annotations__
            known = f"{', '.join(others)} and {last}"
            raise TypeError(
                f"{method}() got an unexpected keyword argument {name!r}; "
                f"beside its named parameters it takes {known}"
            )
    return cast("LeaseOptions", options)


class PoolOptions(LeaseOptions, total=False):
    """Options of a pool's handle, for all of its leases or for one call.

    ``consumer`` is who leases, registered on first use; "default" if None. A lease lasts
    ``duration_seconds``; by default as long as its pool says in ``lease_seconds``, else 60. The
    proxy must match the ``filters``, and ``selector`` says which of several is taken; that of the
    pool if None, else FIRST_AVAILABLE. ``keep_alive`` is True by default,
    and ``wait_seconds`` 30; None does not wait.

    ``on_lost``, which says what a block does if its lease is lost, is a parameter of the methods
    themselves.
    """

    consumer: str | None
    duration_seconds: int
    filters: ProxyFilters | None
    selector: SelectorStrategy | None


WAIT_S = 30.0
"""How long a handle of a pool, or a client, waits for a proxy unless it is told otherwise."""


def check_on_lost(on_lost: OnLost) -> None:
    """Raise InvalidInputError unless it is valid."""
    if on_lost not in get_args(OnLost):
        raise InvalidInputError('on_lost must be "cancel" or "tell"', value=on_lost)

"""The console: a ledger in the browser, for whoever is on call.

:func:`create_app` makes an ASGI application of a storage, to be served by itself (``pharox
console``) or mounted into another. Its pages are HTML from the server and can be read without
script. They read only: projections, and parts of the log by key, within a time-out.

What a request may see or do is decided in one place, :class:`Access`, which ``authorize`` returns.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ..errors import MissingHostError
from .access import Access, Action, Authorize, from_loopback

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from ..api.app import Api
    from ..fleet import Fleet
    from .identity import HeaderAccess, PasswordAccess, TokenAccess

__all__ = [
    "Access",
    "Action",
    "Authorize",
    "HeaderAccess",
    "PasswordAccess",
    "TokenAccess",
    "create_app",
    "create_fleet_app",
    "from_loopback",
]

_IDENTITIES = ("HeaderAccess", "PasswordAccess", "TokenAccess")

_NEEDED = {
    "starlette": "0.40",
    "jinja2": "3.1",
    "sse_starlette": "2.2",
    "itsdangerous": "2.2",
}


def __getattr__(name: str) -> Any:
    """Load the ways to know who asks when one is used: they need the extra."""
    if name not in _IDENTITIES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    _check_extra()
    from . import identity  # noqa: PLC0415 - it comes with the extra

    return getattr(identity, name)


def create_app(
    storage: Any,
    *,
    authorize: Authorize | None = None,
    answer_timeout_s: float = 2.0,
    secret: str | bytes | None = None,
    api: Api | None = None,
) -> Starlette:
    """Return the console of a ledger as an ASGI application.

    Parameters
    ----------
    storage:
        A storage that is not asynchronous, such as :func:`pharox.connect` returns. It is read in
        threads, so it may be shared with leasing. A role that can only read will do for reading.
    authorize:
        Decides what a request may see and do; a function of the request, or a coroutine function.
        By default whoever asks from this machine may read, and nobody may do anything.
    answer_timeout_s:
        How many seconds the database has for each answer to a page.
    secret:
        What forms are signed with; drawn anew if None. Several processes that serve one console
        need the same.
    api:
        What :func:`pharox.api.create_app` returns, to be served below ``/api/v1`` of the console.
        Tokens decide who may use it, and ``authorize`` does not.

    Raises
    ------
    MissingHostError
        If the extra ``console`` is not installed.
    InvalidInputError
        If the storage is asynchronous, or the time-out is not above 0.
    """
    _check_extra()
    from .app import application  # noqa: PLC0415 - it comes with the extra

    return application(storage, authorize or from_loopback, answer_timeout_s, secret, api)


def create_fleet_app(
    fleet: Fleet,
    *,
    authorize: Authorize | None = None,
    answer_timeout_s: float = 2.0,
    secret: str | bytes | None = None,
) -> Starlette:
    """Return the console of a fleet: ``/fleet``, and each ledger's own below ``/ledgers/NAME``.

    Its other pages are those of the home ledger.

    Parameters
    ----------
    fleet:
        The fleet, as :meth:`pharox.Fleet.connect` returns it.
    authorize, answer_timeout_s, secret:
        As for :func:`create_app`, for all ledgers.
    """
    _check_extra()
    from .fleet import fleet_application  # noqa: PLC0415 - it comes with the extra

    return fleet_application(fleet, authorize or from_loopback, answer_timeout_s, secret)


def _check_extra() -> None:
    for module, least in _NEEDED.items():
        if find_spec(module) is None:
            raise MissingHostError(
                f"the console needs {module.replace('_', '-')}, which is not installed: "
                "pip install 'pharox[console]'",
                host=module,
                extra="console",
                least_version=least,
                found_version=None,
            )

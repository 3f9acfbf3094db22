"""Lease over HTTP, from any language: ``/api/v1``, JSON with an OpenAPI description.

    request ──> token: who asks, and what for ──> body checked ──> the ledger ──> answer or problem

:func:`create_app` makes an ASGI application of an asynchronous storage, to be served by itself
(``pharox api``), beside the console (``pharox console --api``), or in another application. Requests
that are under way together share statements and commits, as tasks of one process do.

A token acts as its consumer, for leases of this consumer alone. A proxy's URL with its password is
in the answer to the acquisition, and nowhere else: no other answer, log or error has it.

Not decided here: who gets a token (``pharox tokens``), and how a connection is encrypted: that is
for a reverse proxy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from ..storage.async_interface import IAsyncStorage
    from .app import Api

__all__ = ["create_app"]


def create_app(storage: IAsyncStorage, *, registry: CollectorRegistry | None = None) -> Api:
    """Return the API of a ledger as an ASGI application, which answers below ``/api/v1``.

    Parameters
    ----------
    storage:
        An asynchronous storage, such as :func:`pharox.connect_async` returns. It stays the
        caller's to close, and belongs to the event loop that serves the application.
    registry:
        Where to count requests; nothing is counted if None.

    Raises
    ------
    InvalidInputError
        If it is no storage, or a blocking one.
    """
    from .app import Api  # noqa: PLC0415 - a command line that serves nothing needs none of it

    return Api(storage, registry=registry)

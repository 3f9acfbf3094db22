"""A lease that a client of HTTP goes by: what a right client does, whatever library it is of.

It refuses requests once the lease has ended, reports what became of each in the background, with
the host as target, and gives the lease back once. A request waits for no report, and fails because
of none. What is in flight when the lease is lost says nothing of the proxy, and is not reported.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar
from weakref import WeakMethod

from ..effects import Calls
from ..errors import LeaseEndedError
from ..models import Lease, LeaseStatus, Outcome
from ..models.outcome import target_of
from ..outcomes import outcome_of_error
from .keeper import is_kept, lost_error, notify
from .leasing import Leasing, releasing_after

logger = logging.getLogger("pharox")

C = TypeVar("C")


class Holding:
    """A lease that somebody holds, and how it is reported and given back.

    Parameters
    ----------
    leasing:
        The manager that leased it.
    lease:
        The lease.
    report:
        Whether :meth:`note` has anything recorded.
    """

    def __init__(self, leasing: Leasing[Any], lease: Lease, *, report: bool = True) -> None:
        self.leasing, self.lease, self._reports = leasing, lease, report
        self.is_held = True

    @property
    def is_lost(self) -> bool:
        """Whether the lease was kept alive and is lost: somebody else may hold its proxy."""
        return self.lease.is_lost and is_kept(self.lease)

    def check(self) -> None:
        """Raise an error if the lease was lost, has run out or was released.

        Raises
        ------
        LeaseLostError
            If it was kept alive and is lost.
        LeaseEndedError
            If it has run out, or was released.
        """
        if self.is_lost:
            raise self.lost_error()
        if self.lease.is_lost or self.lease.status is not LeaseStatus.ACTIVE:
            how = "has run out" if self.lease.is_lost else "was released"
            message = f"Lease {self.lease.id} {how}; open another client."
            raise LeaseEndedError(message, lease_id=self.lease.id)

    def lost_error(self) -> LeaseEndedError:
        """Return the error for whoever goes on with a lost lease."""
        return lost_error(self.lease)

    def call_when_lost(self, method: Callable[..., None]) -> None:
        """Call a bound method if the lease is lost; at once if it is lost already.

        It is called in a thread of its own, or in the event loop. Its object is not kept alive.
        """
        notify(self.leasing._storage_of(self.lease), self.lease, WeakCall(method))

    def note(
        self,
        result: Any,
        *,
        target: str | None = None,
        is_connected: bool | None = None,
        body: bytes | None = None,
    ) -> None:
        """Have a response, an exception or an Outcome recorded in the background. It never raises.

        Parameters
        ----------
        result:
            A response of any library, the exception of a request, or an
            :class:`pharox.Outcome`.
        target:
            The host that was asked, or a URL of it; the one of the response if None.
        is_connected:
            Of an exception: whether the connection to the proxy stood by then; None if nobody
            knows.
        body:
            Of a response: how its body begins, as :meth:`needs_body` asks for it; None if nobody
            looked.
        """
        if not self._reports or self.is_lost:
            return
        try:
            outcome = self._outcome_of(result, target, is_connected, body)
        except Exception:
            logger.exception("pharox.report.failed: of lease %s", self.lease.id)
        else:
            if outcome is not None:
                self.leasing.report_later(self.lease, outcome)

    def needs_body(self, target: str | None) -> bool:
        """Return whether a response of a target is judged by its body, too."""
        return self._reports and self.leasing._needs_body(target)

    def _outcome_of(
        self, result: Any, target: str | None, is_connected: bool | None, body: bytes | None
    ) -> Outcome | None:
        if isinstance(result, Outcome):
            known = target if result.target is None else result.target
            return result.model_copy(update={"target": None if known is None else target_of(known)})
        if isinstance(result, BaseException):
            return outcome_of_error(result, target=target, is_connected=is_connected)
        try:
            return self.leasing._judged(self.lease, result, target=target, body=body)
        except Exception:  # The caller's function may raise anything.
            logger.exception("pharox.report.failed: outcome_of, of lease %s", self.lease.id)
            return Outcome.from_response(result, target=target)

    def giving_back(self, error: BaseException | None = None) -> Calls[None]:
        """Release the lease once; the exception of a failing block takes precedence."""
        if not self.is_held:
            return
        release = self.leasing.release_proxy
        try:
            if error is None:
                yield partial(release, self.lease)
            else:
                yield from releasing_after(error, release, self.lease)
        finally:  # A failed release can be repeated; a cancelled one was completed.
            self.is_held = self.lease.status is LeaseStatus.ACTIVE


def making(holding: Holding, make: Callable[[Holding], C]) -> Calls[C]:
    """Return what is made to go by a lease; the lease is given back if it cannot be made."""
    try:
        return make(holding)
    except asyncio.CancelledError:
        yield from holding.leasing._giving_up(holding.lease)
        raise
    except BaseException as error:
        yield from holding.giving_back(error)
        raise


class WeakCall:
    """A call of a method that does not keep its object alive."""

    def __init__(self, method: Callable[..., None]) -> None:
        self._method = WeakMethod(method)

    def __call__(self, *arguments: Any) -> None:
        """Call the method, unless its object is gone."""
        method = self._method()
        if method is not None:
            method(*arguments)

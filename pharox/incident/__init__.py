"""The incident report: a window of the log as a timeline and a picture.

:func:`write_report` reads the window's events once, starting from the state before the
window. The modules follow the path of an event: ``window`` selects events,
``running_state`` folds them, ``picture`` and ``listing`` gather what is shown,
``selection`` and ``thinning`` keep it small, and ``page`` draws it.
"""

from __future__ import annotations

from .report import Report, write_report

__all__ = ["Report", "write_report"]

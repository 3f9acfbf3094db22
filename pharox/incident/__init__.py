"""The incident report: a window of the log as a timeline and a picture.

:func:`write_report` reads the window's events once, from the state before it
on. The modules follow the way of an event: ``window`` says which are meant,
``course`` folds them, ``picture`` and ``listing`` gather what is shown,
``selection`` and ``thinning`` keep that small, and ``page`` draws it with what
it imports.
"""

from __future__ import annotations

from .report import Report, write_report

__all__ = ["Report", "write_report"]

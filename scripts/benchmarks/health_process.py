"""Measure in a new process, whose memory holds nothing of earlier measurements."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def in_new_process(function: Callable[P, R], *arguments: P.args, **named: P.kwargs) -> R:
    """Call a function of a module in a new process, and return its result."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(function, *arguments, **named).result()

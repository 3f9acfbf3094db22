"""Batches of a combiner that take their time."""

from __future__ import annotations

import asyncio
from typing import Any

from pharox.storage.combining import Batch


async def steps(batch: Batch[Any], count: int) -> None:
    """Wait so many times, and note each cancellation, as a driver does."""
    for _ in range(count):
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError as cancelled:
            batch.note(cancelled)

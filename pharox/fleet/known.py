"""What a process has seen of where things are: so much, and then the oldest is forgotten."""

from __future__ import annotations

from typing import Generic, TypeVar

K = TypeVar("K")

MOST = 100_000
"""How many places of one kind a process keeps; then it forgets those that it learnt first."""


class Known(Generic[K]):
    """Names of ledgers by what is in them. Threads may share it: each step is one of a dict."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._ledgers: dict[K, str] = {}

    def get(self, key: K) -> str | None:
        """Return the name of the ledger, or None if it is not known."""
        return self._ledgers.get(key)

    def note(self, key: K, ledger: str) -> None:
        """Know the ledger from now on."""
        if key not in self._ledgers and len(self._ledgers) >= self._most:
            for oldest in [*self._ledgers][: self._most // 10 or 1]:
                self._ledgers.pop(oldest, None)
        self._ledgers[key] = ledger

    def forget(self, key: K) -> None:
        """Know it no longer."""
        self._ledgers.pop(key, None)

    def __len__(self) -> int:
        return len(self._ledgers)

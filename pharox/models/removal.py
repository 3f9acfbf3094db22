"""How many of a list's proxies may be removed at once, so that a broken list empties no pool."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InvalidInputError


@dataclass(frozen=True, slots=True)
class MaxRemoved:
    """How many unlisted proxies may be removed: a number, or a share."""

    count: int | None = None
    share: float | None = None

    def __post_init__(self) -> None:
        if (self.count is None) == (self.share is None):
            raise InvalidInputError("give either a number of proxies or a share of them")
        if self.share is not None and not 0 <= self.share <= 1:
            raise InvalidInputError("a share of proxies must be from 0 to 100 %")
        if self.count is not None and self.count < 0:
            raise InvalidInputError("a number of proxies cannot be negative")

    @classmethod
    def parse(cls, text: str) -> MaxRemoved:
        """Return what a text such as ``100`` or ``50%`` says.

        Raises
        ------
        InvalidInputError
            If it is neither a number nor a share.
        """
        stripped = text.strip()
        number, is_share = stripped.removesuffix("%"), stripped.endswith("%")
        if not (number.isascii() and number.isdecimal() and len(number) < 10):
            raise InvalidInputError(f"a number or a share such as 50% is needed, not {text!r}")
        return cls(share=int(number) / 100) if is_share else cls(count=int(number))

    def allows(self, gone: int, had: int) -> bool:
        """Return whether ``gone`` of ``had`` proxies may be removed."""
        most = self.count if self.count is not None else (self.share or 0) * had
        return gone <= most

    def __str__(self) -> str:
        return f"{self.share:.0%}" if self.share is not None else str(self.count)


HALF = MaxRemoved(share=0.5)

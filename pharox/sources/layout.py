"""Parse lines by a given order of parts: ``--line 'user:pass:host:port'``."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote

from ..errors import InvalidInputError
from .orders import HOST, PORT

_WORD = re.compile(r"password|username|protocol|pass|user|host|port|\*", re.IGNORECASE)
_NAMES = {"pass": "password", "username": "user"}
_FORM = "give the words host, port, user and pass with what stands between them, such as"
_EXAMPLE = "'user:pass:host:port'"


class Layout:
    """A pattern of lines.

    Parameters
    ----------
    text:
        The words ``host``, ``port``, ``user``, ``pass`` and ``protocol``, and ``*`` for
        ignored parts, in the order of the lines, with the separators between them.

    Raises
    ------
    InvalidInputError
        If no line can be read with it.
    """

    def __init__(self, text: str) -> None:
        self.text = text.strip()
        words = list(_WORD.finditer(self.text))
        self._names = [_name(word[0]) for word in words]
        ends = [0, *(word.end() for word in words)]
        starts = [*(word.start() for word in words), len(self.text)]
        gaps = [self.text[end:start] for end, start in zip(ends, starts, strict=True)]
        self._check(gaps)
        parts = [_group(name, after) for name, after in zip(self._names, gaps[1:], strict=True)]
        between = map(_gap, gaps)
        pattern = next(between) + "".join(
            f"{part}{gap}" for part, gap in zip(parts, between, strict=True)
        )
        scheme = "" if "protocol" in self._names else r"(?:(?P<protocol>[^\s:/@]+)://)?"
        self._pattern = re.compile(f"{scheme}{pattern}")
        # As in a URL, user and password before an @ are percent-encoded.
        self._is_quoted = any("@" in gap for gap in gaps)

    def read(self, line: str) -> dict[str, Any] | None:
        """Return the parts of a line, or None if it does not match."""
        match = self._pattern.fullmatch(line)
        if match is None:
            return None
        parts = {name: part for name, part in match.groupdict().items() if part is not None}
        for name in ("user", "password"):
            if self._is_quoted and name in parts:
                parts[name] = unquote(parts[name], errors="strict")
        return parts

    def _check(self, gaps: list[str]) -> None:
        named = [name for name in self._names if name != "*"]
        for name in ("host", "port"):
            if name not in named:
                raise InvalidInputError(f"--line names no {name}: {_FORM} {_EXAMPLE}")
        if len(set(named)) < len(named):
            raise InvalidInputError(f"--line names a part twice: {_FORM} {_EXAMPLE}")
        if "password" in named and "user" not in named:
            raise InvalidInputError(f"--line names a password and no user: {_FORM} {_EXAMPLE}")
        if any(character.isalnum() for gap in gaps for character in gap):
            raise InvalidInputError(f"--line has an unknown word: {_FORM} {_EXAMPLE}")
        if not all(gaps[1:-1]):
            raise InvalidInputError(f"--line has nothing between two parts: {_FORM} {_EXAMPLE}")


def _name(word: str) -> str:
    return _NAMES.get(word.lower(), word.lower())


def _group(name: str, after: str) -> str:
    """Return the pattern of a part; it ends at a blank if the separator is one."""
    match name:
        case "host":
            return HOST
        case "port":
            return PORT
        case "*":
            return ".*"
        case "user" if after and not after[0].isspace():
            return rf"(?P<user>[^{re.escape(after[0])}]+)"
        case "user":
            return r"(?P<user>\S+)" if after else "(?P<user>.+)"
    return rf"(?P<{name}>\S*)" if after[:1].isspace() else rf"(?P<{name}>.*)"


def _gap(text: str) -> str:
    """Return the pattern of a separator; all kinds of blanks are equivalent."""
    return "".join(
        r"\s+" if piece.isspace() else re.escape(piece) for piece in re.split(r"(\s+)", text)
    )

"""A witness as C2SP's tlog-witness describes it, and an object store, on one server."""

from __future__ import annotations

import base64
from http.server import BaseHTTPRequestHandler
from typing import ClassVar

from pharox.log.tree import TreeHead
from pharox.proof import KeyKind, SigningKey, parse_checkpoint, proves_consistency

SIZE = "text/x.tlog.size"


class Server(BaseHTTPRequestHandler):
    """Keeps objects, and cosigns what continues what it saw of a log."""

    witness: ClassVar[SigningKey] = SigningKey.generate("witness.example/w1", KeyKind.WITNESS)
    objects: ClassVar[dict[str, bytes]] = {}
    seen: ClassVar[dict[str, TreeHead]] = {}
    status: ClassVar[int] = 0
    """What it answers instead, unless 0."""

    def do_PUT(self) -> None:
        """Keep an object, unless there is one and it is not to be overwritten."""
        content = self.content()
        if self.status:
            self.answer(self.status)
        elif self.path in self.objects and self.headers["If-None-Match"] == "*":
            self.answer(412)
        else:
            self.objects[self.path] = content
            self.answer(200)

    def do_GET(self) -> None:
        """Return an object."""
        self.answer(200, self.objects[self.path])

    def do_POST(self) -> None:
        """Add a checkpoint, by the rules of the specification."""
        head, _, text = self.content().decode().partition("\n\n")
        old, *lines = head.split("\n")
        checkpoint = parse_checkpoint(text)
        seen = self.seen.get(checkpoint.origin, TreeHead(0, b""))
        if self.status:
            self.answer(self.status)
        elif int(old.removeprefix("old ")) != seen.size or (
            seen.size == checkpoint.head.size and seen != checkpoint.head
        ):
            self.answer(409, f"{seen.size}\n".encode(), SIZE)
        elif seen.size and not proves_consistency(
            seen, checkpoint.head, [base64.b64decode(line) for line in lines]
        ):
            self.answer(422)
        else:
            self.seen[checkpoint.origin] = checkpoint.head
            self.answer(200, self.witness.sign(checkpoint.note.text).line().encode())

    def content(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"]))

    def answer(self, status: int, content: bytes = b"", kind: str = "text/plain") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""

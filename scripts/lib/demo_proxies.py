"""Real proxies on loopback, each in its own process, and a site that names the calling one.

Run as a program, this module is one of the proxies: it prints its port and serves until its
standard input ends, so no proxy outlives the demo.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote

import psutil  # type: ignore[import-untyped]

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Kind:
    """A kind of proxy program, and the credentials that it requires."""

    program: str
    protocol: str
    user: str = ""
    password: str = ""


KINDS = (
    Kind("pproxy", "http"),
    Kind("pproxy", "socks5", "alice", "open-sesame"),
    Kind("proxy.py", "http"),
    Kind("proxy.py", "http", "bob", "p@ss/w%rd"),
)


@dataclass(frozen=True)
class RealProxy:
    """A running proxy."""

    kind: Kind
    port: int
    process: subprocess.Popen[str]

    @property
    def url(self) -> str:
        """The URL as in a list of proxies."""
        kind = self.kind
        login = f"{kind.user}:{quote(kind.password, safe='')}@" if kind.user else ""
        return f"{kind.protocol}://{login}{HOST}:{self.port}"

    def owns(self, port: int) -> bool:
        """Return whether a connection from this local port belongs to the proxy."""
        main = psutil.Process(self.process.pid)
        return any(
            connection.laddr.port == port
            for process in (main, *main.children(recursive=True))
            for connection in process.net_connections("tcp")
            if connection.laddr.port != self.port
        )


@contextmanager
def running_proxies() -> Iterator[list[RealProxy]]:
    """Run one proxy of each kind."""
    with tempfile.TemporaryDirectory(prefix="pharox-demo-", ignore_cleanup_errors=True) as home:
        processes = [_start(kind, home) for kind in KINDS]
        try:
            yield [
                RealProxy(kind, _port_of(kind, process), process)
                for kind, process in zip(KINDS, processes, strict=True)
            ]
        finally:
            for process in processes:
                assert process.stdin is not None
                process.stdin.close()
            for process in processes:
                process.wait(10)


def _start(kind: Kind, home: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", __name__, kind.program, kind.protocol]
    if kind.user:
        command.append(f"{kind.user}:{kind.password}")
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "HOME": home},  # where proxy.py keeps a folder of its own
    )


def _port_of(kind: Kind, process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line.strip().isdigit():
        raise RuntimeError(f"{kind.program} did not start as a proxy for {kind.protocol}")
    return int(line)


@contextmanager
def running_site(proxies: Sequence[RealProxy]) -> Iterator[str]:
    """Serve a page that names the port of the proxy it was fetched through; yields its URL."""

    class Page(_Page):
        def body(self) -> str:
            caller = next((p.port for p in proxies if p.owns(self.client_address[1])), "none")
            return f"Hello through port {caller}.\n"

    with _serving(Page) as port:
        yield f"http://{HOST}:{port}/"


@contextmanager
def running_captive_proxy() -> Iterator[int]:
    """Run a proxy that answers every request with a page of its own; yields its port."""

    class LogIn(_Page):
        served_by = "a hotel"

        def body(self) -> str:
            return "Please log in.\n"

    with _serving(LogIn) as port:
        yield port


@contextmanager
def running_address_page() -> Iterator[str]:
    """Serve a page that tells the address from which it is fetched; yields its URL."""

    class Origin(_Page):
        def body(self) -> str:
            return json.dumps({"origin": self.client_address[0]})

    with _serving(Origin) as port:
        yield f"http://{HOST}:{port}/"


class _Page(BaseHTTPRequestHandler):
    served_by = "the demo"

    def body(self) -> str:
        raise NotImplementedError

    def do_GET(self) -> None:
        body = self.body().encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Served-By", self.served_by)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing: the demo prints the fetched pages."""


@contextmanager
def _serving(page: type[_Page]) -> Iterator[int]:
    with ThreadingHTTPServer((HOST, 0), page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def _serve_with_pproxy(protocol: str, login: str) -> None:
    import pproxy

    async def serve() -> None:
        listener = pproxy.Server(f"{protocol}://{HOST}:0/" + (f"#{login}" if login else ""))
        server = await listener.start_server({"rserver": []})
        print(server.sockets[0].getsockname()[1], flush=True)
        await asyncio.to_thread(sys.stdin.read)

    asyncio.run(serve())


def _serve_with_proxy_py(login: str) -> None:
    import proxy

    options = ["--hostname", HOST, "--port", "0", "--num-acceptors", "1", "--num-workers", "1"]
    options += ["--log-level", "critical", *(["--basic-auth", login] if login else [])]
    with proxy.Proxy(options) as server:
        print(server.flags.port, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    program, protocol, login = (*sys.argv[1:], "")[:3]
    if program == "pproxy":
        _serve_with_pproxy(protocol, login)
    else:
        _serve_with_proxy_py(login)

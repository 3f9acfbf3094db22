"""``pharox run``: lease a proxy for a command, and keep the lease while it runs.

    pharox run residential -- curl https://example.org/

Most programs take a proxy from the environment, so the command needs no change. If the
lease is lost, somebody else may use the proxy, and the command is ended.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from ..effects import call, run
from ..errors import InvalidInputError
from ..models import DefaultSeconds, Lease, LostEventPayload
from .checking import duration_of
from .exits import Exit
from .leasing import (
    Asn,
    City,
    Consumer,
    Country,
    Fallback,
    Host,
    Isp,
    Policy,
    Pool,
    Protocol,
    ProxyNames,
    Selector,
    Source,
    StickyFor,
    StickyKey,
    StickyPolicy,
    Target,
    Wait,
    Wanted,
    missed,
    sticky_of,
)
from .session import ledger

NOT_FOUND, NOT_EXECUTABLE = 127, 126
"""The exit statuses of shells for a command that cannot be started."""

PATIENCE_S = 10.0
"""How long a command has after SIGTERM before it is killed."""

_FORWARDED = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


def run_command(
    context: typer.Context,
    pool: Pool,
    command: Annotated[
        list[str], typer.Argument(metavar="-- COMMAND...", help="The command and its arguments.")
    ],
    *,
    consumer: Consumer = "default",
    duration: Annotated[
        float | None,
        typer.Option(
            metavar="TIME",
            parser=duration_of,
            help="How long the lease lasts each time: 30 (seconds), 5m; the pool's, or 60, if not "
            "given.",
        ),
    ] = None,
    selector: Selector = None,
    proxy: ProxyNames = None,
    host: Host = None,
    protocol: Protocol = None,
    country: Country = None,
    city: City = None,
    source: Source = None,
    isp: Isp = None,
    asn: Asn = None,
    target: Target = None,
    sticky: StickyKey = None,
    sticky_for: StickyFor = 1800,
    sticky_policy: StickyPolicy = Policy.prefer,
    fallback: Fallback = None,
    wait: Wait = 30,
) -> None:
    """Lease a proxy for a command, keep the lease while it runs, and release it.

    The command has HTTP_PROXY, HTTPS_PROXY and ALL_PROXY, PHAROX_LEASE_ID and
    PHAROX_FENCING_TOKEN in its environment. The exit status is the command's, or 75 to try
    again: nothing was free and nothing was started, or the lease was lost and the command ended.
    """
    from ..manager import ProxyManager  # noqa: PLC0415 - SQLAlchemy takes a while to import
    from ..manager.keeper import lost_error  # noqa: PLC0415
    from ..manager.leasing import AcquireArguments  # noqa: PLC0415

    wanted = Wanted(
        proxy=proxy,
        host=host,
        protocol=protocol,
        country=country,
        city=city,
        source=source,
        isp=isp,
        asn=asn,
    )
    if duration is not None and duration < 1:
        raise InvalidInputError("--duration must be at least 1s", value=duration)
    with ledger(context) as storage:
        manager = ProxyManager(storage)
        child = _Child()
        manager.register_lost_callback(child.end_on_loss)
        arguments = AcquireArguments(
            pool,
            consumer,
            DefaultSeconds(60) if duration is None else duration,  # type: ignore[arg-type] # 0.11.0's parameters say int
            wanted.filters(storage, pool),
            selector,
            keep_alive=True,
            wait_seconds=wait,
            target=target,
            sticky=sticky_of(sticky, sticky_for, sticky_policy),
            fallback=fallback or (),
        )
        acquisition = run(manager._acquiring(arguments), call)
        if acquisition.lease is None:
            raise missed(storage, pool, target, acquisition)
        try:
            status = child.run(command, {**os.environ, **_environment(acquisition.lease)})
        finally:
            manager.release_proxy(acquisition.lease)
    if child.is_lost:
        print(f"pharox: {lost_error(acquisition.lease)}", file=sys.stderr)
        status = Exit.TRY_AGAIN
    raise typer.Exit(status)


def _environment(lease: Lease) -> Mapping[str, str]:
    url = lease.proxy.url
    names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    return {
        **dict.fromkeys((*names, *map(str.lower, names)), url),
        "PHAROX_LEASE_ID": str(lease.id),
        "PHAROX_FENCING_TOKEN": str(lease.fencing_token),
    }


class _Child:
    """A command that runs while its lease is held."""

    def __init__(self) -> None:
        self.is_lost = False
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def run(self, command: list[str], environment: Mapping[str, str]) -> int:
        """Run the command to its end, and return its exit status as a shell tells it."""
        with _forwarding(self):
            with self._lock:
                if self.is_lost:
                    return Exit.TRY_AGAIN
                try:
                    self._process = subprocess.Popen(  # noqa: S603 - the user's own command
                        command, env=dict(environment)
                    )
                except OSError as error:
                    print(f"pharox: {command[0]}: {error.strerror}", file=sys.stderr)
                    is_missing = isinstance(error, FileNotFoundError)
                    return NOT_FOUND if is_missing else NOT_EXECUTABLE
            status = self._process.wait()
        return status if status >= 0 else 128 - status

    def send(self, number: int) -> None:
        """Send a signal to the command if it runs."""
        process = self._process
        if process is not None and process.poll() is None:
            process.send_signal(number)

    def end_on_loss(self, _: LostEventPayload) -> None:
        """End the command, as somebody else may use its proxy now."""
        with self._lock:
            self.is_lost = True
            process = self._process
        if process is None:
            return
        self.send(signal.SIGTERM)
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.send(signal.SIGKILL)


@contextmanager
def _forwarding(child: _Child) -> Iterator[None]:
    """Pass signals on to the command. A terminal sends Ctrl-C to it by itself."""

    def pass_on(number: int, _: Any) -> None:
        if number != signal.SIGINT or not sys.stdin.isatty():
            child.send(number)

    before = {number: signal.signal(number, pass_on) for number in _FORWARDED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

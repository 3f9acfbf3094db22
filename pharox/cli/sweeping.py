"""``pharox sweep``: check the proxies that are due, once or repeatedly, and record the results.

A signal stops the checks, not the recording of their results: the summary has everything
that is in the log.
"""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ..errors import InvalidInputError
from ..models import HealthCheckOptions, HealthPolicy, ProxyStatus
from ..settings import check_url
from .checking import checked_options, duration_of
from .session import ledger
from .showing import AsJson

_OPTIONS, _POLICY = HealthCheckOptions(), HealthPolicy()
_SHORTEST = timedelta(seconds=1)
_OTHER_FILES = 100
"""How many other files are open: modules, connections, the terminal."""


_Pool = Annotated[
    str | None,
    typer.Argument(metavar="POOL", help="Only proxies of this pool; of all pools if not given."),
]
_Every = Annotated[
    float | None,
    typer.Option(
        metavar="TIME", parser=duration_of, help="Sweep at this interval until Ctrl-C: 60s, 5m."
    ),
]
_Concurrency = Annotated[
    int, typer.Option(min=1, max=100_000, metavar="N", help="How many checks at once.")
]
_PerHost = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="N", help="How many checks at once per host; any number if not given."
    ),
]
_Target = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="The page to fetch through each proxy; PHAROX_CHECK_URL if not given.",
        show_default=False,
    ),
]
_Timeout = Annotated[
    float,
    typer.Option(metavar="TIME", parser=duration_of, help="How long one attempt may take: 5s."),
]
_Attempts = Annotated[
    int, typer.Option(metavar="N", help="How many attempts before a check fails.")
]
_Expect = Annotated[
    list[int] | None,
    typer.Option(
        min=100,
        max=599,
        metavar="CODE",
        help="The status code of a good answer; may be repeated. 200 if not given.",
    ),
]
_ExpectText = Annotated[
    str | None,
    typer.Option(metavar="TEXT", help="A text that the body of a good answer contains."),
]
_ExpectHeader = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME[: VALUE]", help="A header of a good answer; may be repeated."),
]
_ExitIpFrom = Annotated[
    str | None,
    typer.Option(
        metavar="body|json:FIELD",
        help="Where the answer has the address that it saw: the whole body, or a field of its "
        "JSON, such as json:origin. It is recorded as the proxy's exit.",
    ),
]
_Slow = Annotated[int, typer.Option(metavar="MS", help="A proxy that takes longer is SLOW.")]
_StaleAfter = Annotated[
    float | None,
    typer.Option(
        metavar="TIME",
        parser=duration_of,
        help="Only proxies not checked for so long (10m), or never.",
    ),
]
_Status = Annotated[
    list[ProxyStatus] | None,
    typer.Option(help="Only proxies of this status; may be repeated. All but banned if not given."),
]
_Failures = Annotated[
    int, typer.Option(metavar="N", help="How many failures in a row make a proxy INACTIVE.")
]
_Successes = Annotated[
    int, typer.Option(metavar="N", help="How many successes in a row make it leasable again.")
]
_LatencyWindow = Annotated[
    int, typer.Option(metavar="N", help="How many results lowest_latency averages.")
]
_Ca = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        exists=True,
        dir_okay=False,
        readable=True,
        help="Trust these certificates (PEM) besides the default ones.",
    ),
]


def sweep(
    context: typer.Context,
    pool: _Pool = None,
    *,
    every: _Every = None,
    concurrency: _Concurrency = 100,
    per_host: _PerHost = None,
    target: _Target = None,
    timeout: _Timeout = _OPTIONS.timeout,
    attempts: _Attempts = _OPTIONS.attempts,
    expect: _Expect = None,
    expect_text: _ExpectText = None,
    expect_header: _ExpectHeader = None,
    exit_ip_from: _ExitIpFrom = None,
    slow: _Slow = _OPTIONS.slow_threshold_ms,
    stale_after: _StaleAfter = None,
    status: _Status = None,
    failures: _Failures = _POLICY.failures_before_inactive,
    successes: _Successes = _POLICY.successes_before_active,
    latency_window: _LatencyWindow = _POLICY.latency_window,
    ca: _Ca = None,
    as_json: AsJson = False,
) -> None:
    """Check every proxy that is due, record the results, and print a summary.

    The exit status does not depend on the results. Ctrl-C ends the sweep, and the summary covers
    what was recorded by then.
    """
    policy = HealthPolicy(failures, successes, latency_window)
    options = checked_options(
        target_url=check_url(target, "--target URL"),
        timeout=timeout,
        attempts=attempts,
        expected_status_codes=expect or _OPTIONS.expected_status_codes,
        slow_threshold_ms=slow,
        expected_text=expect_text,
        expected_headers=_headers(expect_header or ()),
        exit_ip_from=exit_ip_from,
    )
    interval = None if every is None else timedelta(seconds=every)
    age = None if stale_after is None else timedelta(seconds=stale_after)
    if interval is not None and interval < _SHORTEST:
        raise InvalidInputError("--every must be at least 1s")
    _make_room_for(concurrency)
    from .sweep_report import print_swept, progress  # noqa: PLC0415 - httpx takes a while
    from .sweep_run import Plan, sweep_until_stopped, trusting  # noqa: PLC0415

    plan = Plan(
        pool,
        options,
        policy,
        stale_after=age,
        statuses=status or None,
        concurrency=concurrency,
        per_host=per_host,
        ssl_context=None if ca is None else trusting(ca),
    )
    report = partial(print_swept, dated=interval is not None, as_json=as_json)
    with ledger(context) as storage:
        ended_by = asyncio.run(sweep_until_stopped(storage, plan, interval, progress, report))
    if ended_by is not None and interval is None:
        raise typer.Exit(128 + ended_by)


def _headers(texts: Sequence[str]) -> dict[str, str]:
    """Parse headers; a text without a colon is a name that may have any value."""
    headers: dict[str, str] = {}
    for text in texts:
        name, _, value = text.partition(":")
        name = name.strip()
        if name.lower() in {known.lower() for known in headers}:
            raise InvalidInputError(f"--expect-header {name} is given twice")
        headers[name] = value.strip()
    return headers


def _make_room_for(checks: int) -> None:
    """Raise the limit of open files for so many checks.

    A check that gets no file would blame its proxy. It briefly has two sockets: a name may
    have two addresses, which are tried at once.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * checks + _OTHER_FILES
    if soft == resource.RLIM_INFINITY or wanted <= soft:
        return
    if hard != resource.RLIM_INFINITY and wanted > hard:
        raise InvalidInputError(
            f"{checks} checks at once need {wanted} open files, and the system allows {hard}: "
            "give a smaller --concurrency, or raise the limit (`ulimit -n`)"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))

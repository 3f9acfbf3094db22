"""The command line: the library for people and shell scripts.

Results go to standard output, everything else to standard error. An error is one
sentence. The exit status is 0 for success, 1 for a failure, 2 for a usage error, 75 if
nothing is free now, 130 after Ctrl-C, and 143 after SIGTERM in commands that handle it.
With ``--json`` a result is one JSON object a line.
"""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Sequence

_COLLECTED_AFTER = 100_000
"""How many objects are made before the garbage collector looks at them; Python's own is 700."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    Parameters
    ----------
    arguments:
        The arguments after ``pharox``; those of this process if None.
    """
    if arguments is None:
        _collect_seldom()
    try:
        from .app import app  # noqa: PLC0415 - the library may be installed without these
        from .failing import run  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        print("pharox: the command line is an extra: pip install 'pharox[cli]'", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # Ctrl-C during the imports
        return 130
    return run(app, sys.argv[1:] if arguments is None else arguments)


def _collect_seldom() -> None:
    """Have the garbage collector of this process look seldom, and not at its end.

    What a command imports stays until it ends. To look through it again and again, and once more
    before the process is gone with all its memory, took a third of the time of a short command.
    """
    gc.set_threshold(_COLLECTED_AFTER)
    atexit.register(_leave_garbage)


def _leave_garbage() -> None:
    """Have nothing collected at the end, unless DuckDB is there: its binding would report leaks."""
    if "duckdb" not in sys.modules:
        gc.freeze()

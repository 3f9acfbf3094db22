"""The command line: the library for people and shell scripts.

Results go to standard output, everything else to standard error. An error is one
sentence. The exit status is 0 for success, 1 for a failure, 2 for a usage error, 75 if
nothing is free now, 130 after Ctrl-C, and 143 after SIGTERM in commands that handle it.
With ``--json`` a result is one JSON object a line.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    Parameters
    ----------
    arguments:
        The arguments after ``pharox``; those of this process if None.
    """
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

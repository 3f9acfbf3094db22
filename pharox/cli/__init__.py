"""The command line: what the library does, for people and shell scripts.

Results go to standard output, everything else to standard error. An error is
one sentence; the exit status is 0, 1 for a failure, 2 for a command that makes
no sense, 130 after Ctrl-C, and 143 where SIGTERM is heard as well. With
``--json`` a result is one JSON object a line.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    Parameters
    ----------
    arguments:
        The words after ``pharox``; those of this process if None.
    """
    try:
        from .app import app  # noqa: PLC0415 - the library may be installed without these
        from .failing import run  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        print("pharox: the command line is an extra: pip install 'pharox[cli]'", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # while these were imported
        return 130
    return run(app, sys.argv[1:] if arguments is None else arguments)

#!/usr/bin/env python3
"""Rebuild read models from the log while leasing continues, then swap them in.

    scripts/rebuild_projections.py [--url URL] [--schema NAME] [PROJECTION...]

The same as ``pharox rebuild``, as an example to copy.
"""

from __future__ import annotations

import argparse
import sys

import pharox
from pharox.cli.verifying import rebuild_in


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("projections", nargs="*", metavar="PROJECTION", help="all if not given")
    parser.add_argument("--url", help="the database; PHAROX_DATABASE_URL if not given")
    parser.add_argument("--schema", default="pharox", help="the ledger's schema in the database")
    asked = parser.parse_args()
    try:
        storage = pharox.connect(asked.url, schema=asked.schema)
        try:
            rebuild_in(storage, asked.projections)
        finally:
            storage.close()
    except pharox.PharoxError as error:
        print(f"pharox: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

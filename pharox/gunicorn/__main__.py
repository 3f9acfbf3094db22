"""Serve a server's metrics: its master starts this (see :mod:`.keeping`)."""

import sys

from .serving import main

if __name__ == "__main__":
    main(*sys.argv[1:])

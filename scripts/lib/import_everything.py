"""Import every module of the installed packages, and check that it is the installed one.

An integration whose host is not installed must say so instead.
"""

import pkgutil
import sys
from importlib import import_module
from pathlib import Path

from pharox.errors import MissingHostError

PACKAGES = ("pharox", "projections")
NOT_TO_BE_IMPORTED = ("pharox.storage.postgres.migrations.env",)  # alembic runs it


def main() -> None:
    """Exit with a message if a module cannot be imported, or is from elsewhere."""
    count = 0
    for package in map(import_module, PACKAGES):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if module.name in NOT_TO_BE_IMPORTED:
                continue
            try:
                file = import_module(module.name).__file__
            except MissingHostError:
                if not module.name.startswith("pharox.integrations."):
                    raise
                continue
            if file is None or not Path(file).is_relative_to(sys.prefix):
                sys.exit(f"{module.name} comes from {file}, not from {sys.prefix}")
            count += 1
    print(f"{count} modules imported")


if __name__ == "__main__":
    main()

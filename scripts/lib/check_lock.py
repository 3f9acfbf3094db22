"""Check that requirements.lock satisfies pyproject.toml, without asking a registry.

Every requirement of the project, all its extras and the dev group must be pinned with hashes, at an
allowed version. The tool that made the lock has checked that the pins fit together. The lock names
no registry and no file: the person who installs decides where packages come from.
"""

import re
import sys
import tomllib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]


def wanted(pyproject: dict[str, Any]) -> Iterator[Requirement]:
    """Yield the requirements in pyproject.toml, except pharox itself."""
    project = pyproject["project"]
    texts = chain(
        project["dependencies"],
        *project["optional-dependencies"].values(),
        pyproject["dependency-groups"]["dev"],
        pyproject["build-system"]["requires"],
    )
    for requirement in map(Requirement, texts):
        if requirement.name != project["name"]:
            yield requirement


def complaints(lock: str, pyproject: dict[str, Any]) -> Iterator[str]:
    """Yield a sentence for each problem."""
    entries = re.split(r"\n(?=\S)", re.sub(r"(?m)^\s*#.*\n", "", lock).rstrip())
    pinned = {}
    for entry in entries:
        name, _, version = entry.split()[0].partition("==")
        pinned[canonicalize_name(name)] = version
        if "--hash=sha256:" not in entry:
            yield f"{entry.split()[0]} has no hash"
    for requirement in wanted(pyproject):
        version = pinned.get(canonicalize_name(requirement.name), "")
        if not version:
            yield f"{requirement} is not pinned"
        elif Version(version) not in requirement.specifier:
            yield f"{requirement} is pinned at {version}"
    for line in lock.splitlines():
        if line.startswith("-") or ("/" in line and not line.startswith("#")):
            yield f"it must not name a source of packages: {line.strip()}"


def main() -> None:
    """Print the problems; exit with 1 if there are any."""
    lock = (ROOT / "requirements.lock").read_text()
    found = list(complaints(lock, tomllib.loads((ROOT / "pyproject.toml").read_text())))
    for complaint in found:
        print(complaint)
    if found:
        sys.exit("Run scripts/lock and commit requirements.lock.")


if __name__ == "__main__":
    main()

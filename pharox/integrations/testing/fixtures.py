"""The fixture of a lab, for a ``conftest.py``.

    pytest_plugins = ["pharox.integrations.testing.fixtures"]

A test then takes ``proxy_lab``, with the five proxies of
:data:`pharox.integrations.testing.FIVE`. A module that defines a fixture ``lab_behaviours`` has
others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest

from .behaviour import FIVE, Behaviour
from .lab import ProxyLab
from .lab import proxy_lab as run_lab


@pytest.fixture
def lab_behaviours() -> Mapping[str, Behaviour]:
    """How each proxy of the lab behaves; override it to have others."""
    return FIVE


@pytest.fixture
def proxy_lab(lab_behaviours: Mapping[str, Behaviour]) -> Iterator[ProxyLab]:
    """A lab for one test."""  # noqa: D401 - a fixture is named for what it is
    with run_lab(lab_behaviours) as lab:
        yield lab

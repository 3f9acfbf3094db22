from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.health.zoo import Zoo, running_zoo


@pytest.fixture(scope="session")
def zoo() -> Iterator[Zoo]:
    """Proxies and sites, good and hostile."""
    with running_zoo() as zoo:
        yield zoo

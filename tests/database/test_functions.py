"""What is written into the schema's functions is what the projections say."""

from __future__ import annotations

from importlib.resources import files

from pharox.storage.postgres import migrations
from pharox.storage.postgres.functions import folding_functions


def test_the_functions_that_fold_are_those_of_the_projections() -> None:
    """Who changes a fold writes it anew: `python -m pharox.storage.postgres.functions`."""
    file = files(migrations) / "sql" / "0001" / "folding.sql"
    assert file.read_text() == folding_functions()

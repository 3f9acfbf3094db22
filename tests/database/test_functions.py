"""What is written into the schema's functions is what the projections say."""

from __future__ import annotations

from pharox.storage.postgres.functions import folding_functions
from scripts.fold_functions import FILE, laid_out


def test_the_functions_that_fold_are_those_of_the_projections() -> None:
    """Who changes a fold writes it anew: `python -m scripts.fold_functions`."""
    assert FILE.read_text() == laid_out(folding_functions())

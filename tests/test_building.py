"""Models and events are built when they are first used, and that is safe and without a trace."""

from __future__ import annotations

import pydantic
import pytest

from .conftest import run_python

pytestmark = pytest.mark.skipif(
    pydantic.VERSION.split(".")[:2] < ["2", "14"], reason="older ones build without a lock"
)

ALL = """
import pharox.events
from pharox.models.model import Model

def below(model):
    for each in model.__subclasses__():
        yield each
        yield from below(each)
"""


def test_imports_build_no_model() -> None:
    """Of the models and events none is built by the imports of a command on a ledger."""
    code = f"""{ALL}
import pharox.storage.postgres
print(len(set(below(Model))) > 80, [each for each in below(Model) if each.__pydantic_complete__])
"""
    assert run_python("-c", code).stdout.split() == ["True", "[]"]


def test_threads_that_meet_at_the_first_use_are_validated_alike() -> None:
    """Each class by its own fields, none by those of its parent, which would refuse them."""
    code = f"""{ALL}
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

sys.setswitchinterval(1e-6)
models = sorted(set(below(Model)), key=lambda model: model.__name__)
barrier = Barrier(8)

def outcomes(_):
    barrier.wait(30)
    found = []
    for model in models:
        try:
            model.model_validate(dict.fromkeys(model.model_fields))
            found.append("valid")
        except pydantic.ValidationError as error:
            found.append((error.title, error.error_count()))
    return found

import pydantic
with ThreadPoolExecutor(8) as threads:
    first, *others = threads.map(outcomes, range(8))
print(len(first) > 80, all(other == first for other in others))
print(all(each == "valid" or each[0] == model.__name__ for each, model in zip(first, models)))
"""
    assert run_python("-c", code).stdout.split() == ["True", "True", "True"]


def test_a_model_that_was_never_validated_is_dumped_and_pickled() -> None:
    """As rows of a ledger are: built from known values, then shown, or sent to another process."""
    code = """
import pickle
from pharox import MissReason, Pace, PoolLimits, PoolMissed
from pharox.models.building import built

missed = built(
    PoolMissed, {"pool_id": None, "pool_name": "pool", "reason": MissReason.EMPTY_POOL}
)
limits = built(PoolLimits, {"paces": (built(Pace, {"per": "proxy", "starts": 1, "seconds": 2}),)})
for model in (missed, limits):
    assert pickle.loads(pickle.dumps(model)) == model
    print(model.model_dump_json(exclude_none=True, warnings=False))
"""
    assert run_python("-c", code).stdout.splitlines() == [
        '{"pool_name":"pool","reason":"empty_pool"}',
        '{"paces":[{"starts":1,"seconds":2.0,"per":"proxy"}]}',
    ]

"""The base of all models and events: each is built when it is first used.

pydantic makes a validator and a serializer for each model. To make all of them takes longer than
most commands of the command line take for everything else, and a process uses a few.
"""

from __future__ import annotations

from pydantic import VERSION, BaseModel, ConfigDict

_HAS_LOCK = tuple(map(int, VERSION.split(".")[:2])) >= (2, 14)
"""Whether pydantic builds a model under a lock. Before 2.14 threads that met at the first use of a
model could be validated by its parent, so with these versions all models are built at once."""


class Model(BaseModel):
    """A pydantic model whose validator and serializer are made at its first use."""

    model_config = ConfigDict(defer_build=_HAS_LOCK)

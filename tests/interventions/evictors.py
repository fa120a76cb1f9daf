"""The methods that evict, and what a request of one alone comes to."""

from typing import Any

import pytest
from intervention_views import MODEL, prompt

from heed_interventions import METHODS, ModelView, Resolution, parse, resolve
from heed_interventions.eviction.budget import EvictionMethod
from heed_kernels.evict import Evict

EVICTORS = [name for name, method in METHODS.items() if issubclass(method, EvictionMethod)]
WINDOWED = [name for name in EVICTORS if "window" in METHODS[name].model_fields]
IN_DECODE = ["h2o", "tova"]
each_method = pytest.mark.parametrize("name", EVICTORS)


def run(
    name: str, length: int = 400, model: ModelView = MODEL, **fields: Any
) -> tuple[Resolution, Evict | None]:
    """The resolution, and its one edit."""
    resolution = resolve(parse([{"method": name, **fields}]), model, prompt(length))
    if not resolution.edits:
        return resolution, None
    (edit,) = resolution.edits
    assert isinstance(edit, Evict)
    return resolution, edit

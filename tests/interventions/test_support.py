"""The support matrix: every method on every path, and the catalogue of a server on one of them."""

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from intervention_views import VISION

from heed_interventions import METHODS, catalogue_entry
from heed_interventions.support import PATHS, eviction_obstacle, observation_obstacle

each_method = pytest.mark.parametrize("name", list(METHODS))


def cells(name: str) -> dict[tuple[str, str, str], dict[str, Any]]:
    entry = catalogue_entry(METHODS[name], VISION)
    return {(cell["device"], cell["runner"], cell["scheduler"]): cell for cell in entry["support"]}


@each_method
def test_every_path_has_a_cell_and_what_is_not_there_a_reason(name: str) -> None:
    found = cells(name)
    assert list(found) == list(product(("cpu", "cuda"), ("v1", "v2"), ("sync", "async")))
    assert len(found) == len(PATHS)
    for cell in found.values():
        assert cell["available"] is (cell["reason"] is None)
        assert cell["reason"] is None or len(cell["reason"]) > 20


@each_method
def test_the_cpu_has_every_method_on_the_one_path_that_it_has(name: str) -> None:
    there = [path for path, cell in cells(name).items() if path[0] == "cpu" and cell["available"]]
    assert there == [("cpu", "v1", "sync")]


@each_method
def test_a_gpu_has_every_method_in_either_runner_under_either_scheduler(name: str) -> None:
    there = [path for path, cell in cells(name).items() if path[0] == "cuda"]
    assert len(there) == 4 and all(cells(name)[path]["available"] for path in there)


@pytest.mark.parametrize("obstacle", [observation_obstacle, eviction_obstacle])
def test_a_device_that_edits_nothing_observes_and_evicts_nothing(obstacle: Any) -> None:
    assert obstacle(None) is not None and obstacle("cpu") is obstacle("cuda") is None


@each_method
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_catalogue_of_a_server_says_the_same_of_its_own_path(name: str, device: str) -> None:
    model = replace(
        VISION,
        observes=observation_obstacle(device) is None,
        eviction_obstacle=eviction_obstacle(device),
    )
    entry = catalogue_entry(METHODS[name], model)
    own = cells(name)[device, "v1", "sync"]
    assert (entry["available"], entry["reason"]) == (own["available"], own["reason"])

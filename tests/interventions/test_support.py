"""The support matrix: every method on every path, and the catalogue of a server on one of them."""

from itertools import product
from typing import Any

import pytest
from intervention_views import VISION

from heed_interventions import METHODS, catalogue_entry
from heed_interventions.support import PATHS

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
def test_only_what_has_run_on_its_device_says_so(name: str) -> None:
    """No GPU has been at hand: whatever a GPU is said to have was simulated."""
    for path, cell in cells(name).items():
        verified = {"cpu": "on_device", "cuda": "simulated"}[path[0]]
        assert cell["verified"] == (verified if cell["available"] else None)


@each_method
def test_the_cpu_has_every_method_on_the_one_path_that_it_has(name: str) -> None:
    there = [path for path, cell in cells(name).items() if path[0] == "cpu" and cell["available"]]
    assert there == [("cpu", "v1", "sync")]


@each_method
def test_a_gpu_has_every_method_in_either_runner_under_either_scheduler(name: str) -> None:
    there = [path for path, cell in cells(name).items() if path[0] == "cuda"]
    assert len(there) == 4 and all(cells(name)[path]["available"] for path in there)


@each_method
def test_the_catalogue_of_a_server_that_edits_has_every_method_as_its_own_path_does(
    name: str,
) -> None:
    """Such a server is on the CPU's one path, or on any of the four with CUDA."""
    entry = catalogue_entry(METHODS[name], VISION)
    assert (entry["available"], entry["reason"]) == (True, None)

"""The definitions of eviction: budgets are met, protected keys stay, and the reference evicts by them."""

from __future__ import annotations

from typing import Any

import eviction_definition
import numpy as np
import pytest
import torch
from eviction_definition import PARAMETERS, Choice, Layer, choose
from eviction_events import adopted
from reference_parameters import with_defaults
from test_reference import distance, tiny_model, tokens
from transformers_reference import Reference

SMALL = {"sinks": 2, "recent": 5}
WINDOWED = {"snapkv", "pyramidkv", "adakv", "task_kv", "tappa"}


def small(method: str, **fields: Any) -> dict[str, Any]:
    """An intervention for prompts of some tens of tokens."""
    window = {"window": 4} if method in WINDOWED else {}
    return {"method": method, **SMALL, **window, **fields}


@pytest.fixture(scope="module")
def reference() -> Reference:
    return tiny_model(layers=4)


@pytest.mark.parametrize("budget", [7, 8, 15, 29, 31])
@pytest.mark.parametrize("method", PARAMETERS)
def test_the_budget_is_met_to_the_token_and_protected_keys_stay(
    reference: Reference, method: str, budget: int
) -> None:
    prompt = 32
    ran = reference.run(tokens(40), prompt, [small(method, budget=budget)], block_size=64)
    (eviction,) = ran.evictions
    sizes = [len(kept) for heads in eviction.kept for kept in heads]
    assert sum(sizes) == budget * len(sizes)
    for heads in eviction.kept:
        for kept in heads:
            assert set(kept) >= {0, 1, *range(prompt - 5, prompt)}
            assert len(set(kept)) == len(kept) and kept[-1] < prompt


@pytest.mark.parametrize("method", PARAMETERS)
def test_rows_of_the_prompt_are_plain_and_later_ones_are_not(
    reference: Reference, method: str
) -> None:
    ids = tokens(40)
    edited = reference.run(ids, 32, [small(method, keep=0.3)], block_size=64)
    plain = reference.run(ids, 32)
    assert torch.equal(edited.logprobs[:32], plain.logprobs[:32])
    assert distance(edited, plain) > 1e-3


@pytest.mark.parametrize("method", PARAMETERS)
@pytest.mark.parametrize("fields", [{"keep": 1}, {"budget": 32, "decode": False}])
def test_what_holds_the_whole_prompt_changes_nothing(
    reference: Reference, method: str, fields: dict[str, Any]
) -> None:
    known = {name: value for name, value in fields.items() if name in PARAMETERS[method]}
    ran = reference.run(tokens(40), 32, [small(method, **known)], block_size=64)
    assert ran.evictions == []


@pytest.mark.parametrize("method", ["h2o", "tova"])
def test_eviction_goes_on_in_decode_at_full_blocks(reference: Reference, method: str) -> None:
    edit = {"method": method, "budget": 12}
    ran = reference.run(tokens(60), 21, [edit], block_size=8)
    assert [eviction.end for eviction in ran.evictions] == [21, 24, 32, 40, 48, 56]
    for eviction in ran.evictions:
        assert all(len(kept) == 12 for heads in eviction.kept for kept in heads)
    longer = reference.run(tokens(60), 21, [{**edit, "budget": 30}], block_size=8)
    assert [eviction.end for eviction in longer.evictions] == [32, 40, 48, 56]


def test_all_heads_of_a_layer_keep_the_same_keys_with_tova(reference: Reference) -> None:
    (eviction,) = reference.run(tokens(40), 32, [small("tova", budget=12, decode=False)]).evictions
    for one, other in eviction.kept:
        assert np.array_equal(one, other)


def test_layers_get_less_and_less_with_pyramidkv_and_the_same_with_beta_1() -> None:
    budget = eviction_definition.Budget(count=100, sinks=0, tail=568, end=600)
    counts = eviction_definition.pyramid(20, 7, budget, 600)
    assert counts == sorted(counts, reverse=True)
    assert sum(counts) == 700
    assert counts[0] == 32 + 2 * 68 - 68 // 20
    assert eviction_definition.pyramid(1, 7, budget, 600) == [100] * 7


def test_far_heads_of_task_kv_are_those_of_the_papers_models() -> None:
    seven_billion = eviction_definition.far_heads({"beta": 0.25, "m": 4}, 32, 32)
    assert (seven_billion[0], seven_billion[-1]) == (8, 4)
    assert seven_billion == sorted(seven_billion, reverse=True)
    assert eviction_definition.far_heads({"beta": 0.25, "m": None}, 6, 2) == [0] * 6


def made_up(key: np.ndarray, weights: np.ndarray, query: np.ndarray | None = None) -> Layer:
    """A layer with one query head per KV head."""
    query = np.zeros((len(key), key.shape[1], 2)) if query is None else query
    return Layer(weights, query, query, key, np.ones_like(key))


def test_ties_go_to_the_earlier_position() -> None:
    layer = made_up(np.ones((1, 10, 2)), np.full((1, 10, 10), 0.1))
    for method in ("knorm", "keydiff", "h2o", "tova"):
        edit = with_defaults({"method": method, "budget": 4, "recent": 1})
        choice = choose(edit, [layer], None, 10, 10, lambda first, count: np.eye(2))
        assert choice is not None
        assert choice.kept[0][0].tolist() == [0, 1, 2, 9]


def test_keydiff_drops_the_keys_that_point_where_most_point() -> None:
    key = np.array([[[1.0, 0.1], [2.0, 0.1], [0.0, 1.0], [3.0, 0.2], [-1.0, 0.0]]])
    edit = with_defaults({"method": "keydiff", "budget": 2})
    layer = made_up(key, np.zeros((1, 5, 5)))
    choice = choose(edit, [layer], None, 5, 5, lambda first, count: np.eye(2))
    assert choice is not None
    assert choice.kept[0][0].tolist() == [2, 4]


def test_a_head_that_looks_everywhere_gets_more_with_adakv() -> None:
    scores = np.array([[0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], [0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 0.0]])
    budget = eviction_definition.Budget(count=3, sinks=0, tail=6, end=7)
    assert budget.free == 2
    assert eviction_definition.adaptive(0.0, scores, budget) == [1 + 1, 1 + 3]
    assert eviction_definition.adaptive(1.0, scores, budget) == [3, 3]


def test_equal_queries_get_the_least_with_tappa() -> None:
    rng = np.random.default_rng(0)
    weights = np.full((1, 20, 20), 0.05)
    same, other = np.ones((1, 20, 2)), rng.normal(size=(1, 20, 2))
    layers = [made_up(np.ones((1, 20, 2)), weights, query) for query in (same, other)]
    edit = with_defaults({"method": "tappa", "window": 4, "budget": 8})
    budget = eviction_definition.Budget(count=8, sinks=0, tail=16, end=20)
    assert eviction_definition.by_similarity(edit, layers, budget) == [4, 12]


def test_what_was_reported_is_taken_over_at_the_cut_or_where_it_is_asked_for_anywhere() -> None:
    choice = Choice([[np.array([0, 3])]], [np.array([[0.9, 0.5, 0.5, 0.5]])])
    near, far, more = ({"0": [keys]} for keys in ([0, 2], [1, 2], [0, 1, 2]))
    assert adopted(4, choice, None).kept is choice.kept
    assert adopted(4, choice, near).differing == 2
    with pytest.raises(AssertionError):
        adopted(4, choice, far)
    assert adopted(4, choice, far, anywhere=True).kept[0][0].tolist() == [1, 2]
    with pytest.raises(AssertionError):
        adopted(4, choice, more, anywhere=True)

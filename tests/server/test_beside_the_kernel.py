"""Flagged tokens, compared heads and layer inputs: the worker's books, and the hooks of a model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from vllm.config import CompilationMode

from heed_kernels.cpu.flags import BlockFlags
from heed_kernels.edits import (
    OPEN,
    Edit,
    FlagKeys,
    FoundKeys,
    Gate,
    HeadChoice,
    HeadRanking,
    HeadSet,
    KeyRanges,
    MassTransfer,
    Rows,
)
from heed_kernels.table import EditTable
from heed_server.engine import layer_inputs
from heed_server.engine.compared_heads import ComparedHeads
from heed_server.engine.edited_requests import EditedRequests
from heed_server.engine.flagged_tokens import FlaggedTokens
from heed_server.engine.layer_inputs import decoder_layers, inputs_obstacle, watch_inputs
from heed_server.engine.payload import Payload, pack, unpack
from heed_server.engine.twins import Twins

LAYERS, HEADS, PROMPT = 2, 4, 12
BLOCKS = [2, 0]
ON = HeadSet((0b1111,) * LAYERS)
VISUAL = KeyRanges(((2, 6),))
VAR: tuple[Edit, ...] = (
    FlagKeys(ON, Rows(0, PROMPT), (1,), 1.5, VISUAL, False, 0),
    MassTransfer(ON, Rows(6, OPEN), FoundKeys(), VISUAL, 0.6, Gate(VISUAL, VISUAL, 0.5, 0.2), 0),
)
VHR: tuple[Edit, ...] = (HeadChoice(ON, Rows(PROMPT - 1), VISUAL, 2, 2.0, True, 0),)


def book() -> EditedRequests:
    table = EditTable(slots=4, layers=LAYERS, query_heads=HEADS, kv_heads=2)
    requests = EditedRequests(table)
    requests.flagging = FlaggedTokens(table, BlockFlags(LAYERS, 4, 8))
    requests.comparing = ComparedHeads(table, lambda local: local, Twins())
    return requests


def payload(edits: tuple[Edit, ...], detailed: tuple[int, ...] = ()) -> Payload:
    return Payload("r", 1, PROMPT, 0, edits, detailed)


def step(requests: EditedRequests, first: int, count: int, flagged: set[int]) -> Any:
    """One step of request a; tokens at `flagged` positions stand out in every layer."""
    edits = requests.plan(["a"], np.array([0, count]), np.array([first]))
    assert edits is not None
    states = torch.ones(count, 8)
    for position in flagged:
        if first <= position < first + count:
            states[position - first, 1] = 9
    for watcher in edits.watchers:
        for layer in range(LAYERS):
            watcher.look(layer, states)
            watcher.settle(layer)
    return edits


def report(requests: EditedRequests) -> dict[str, Any]:
    told: dict[str, Any] = requests.take(["r"])["r"][0]["interventions"][0]
    return told


def test_the_new_edits_survive_the_wire() -> None:
    sent = payload((*VAR, *VHR, HeadRanking(ON, Rows(3), VISUAL, 2, 0.1, 1)))
    assert unpack(pack(sent)) == sent


@pytest.mark.parametrize("chunks", [[12], [5, 7], [1] * 12])
def test_a_report_tells_the_tokens_that_were_flagged_and_the_rows_that_were_edited(
    chunks: list[int],
) -> None:
    requests, first = book(), 0
    requests.enter("a", payload(VAR, detailed=(0,)), 0, blocks=BLOCKS)
    for count in chunks:
        step(requests, first, count, {0, 4, 9, 13})
        first += count
    step(requests, PROMPT, 1, set())
    step(requests, PROMPT + 1, 1, {13})
    requests.leave("a", finished=True)
    told = report(requests)
    assert told["scope"] == [6, OPEN]
    assert told["told"]["sinks"] == {"0": 3, "1": 3}
    assert told["told"]["sink_keys"] == {"0": [0, 4, 9], "1": [0, 4, 9]}


def test_a_preempted_request_flags_its_tokens_again() -> None:
    requests = book()
    requests.enter("a", payload(VAR), 0, blocks=BLOCKS)
    step(requests, 0, 8, {4})
    requests.leave("a", finished=False)
    requests.enter("a", payload(VAR), 0, blocks=BLOCKS)
    step(requests, 0, PROMPT, {0, 4})
    assert report(requests)["told"]["sink_positions"] == {"0": [0, 4], "1": [0, 4]}


def test_a_request_behind_rows_of_the_prefix_cache_has_the_flags_of_their_blocks() -> None:
    requests = book()
    requests.enter("a", payload(VAR), 0, blocks=BLOCKS)
    step(requests, 0, PROMPT, {0, 4, 9})
    requests.leave("a", finished=True)
    requests.enter("a", payload(VAR), 8, blocks=[BLOCKS[0], 3])
    step(requests, 8, 4, {11})
    requests.leave("a", finished=True)
    assert report(requests)["told"]["sink_positions"] == {"0": [0, 4, 11], "1": [0, 4, 11]}


def test_rows_that_do_not_follow_fail_in_the_report_and_not_in_the_worker() -> None:
    requests = book()
    requests.enter("a", payload(VAR), 0, blocks=BLOCKS)
    step(requests, 0, 4, set())
    assert step(requests, 6, 2, set()).watchers == ()
    assert "row 6 came" in requests.take(["r"])["r"][0]["failure"]


def test_chosen_heads_outlive_a_preemption_and_are_forgotten_in_the_end() -> None:
    requests = book()
    assert requests.comparing is not None
    requests.enter("a", payload(VHR), 0)
    (rows,) = step(requests, 0, PROMPT, set()).comparers
    rows.comparer.known[0] = np.array([True, False, False, True])
    requests.leave("a", finished=False)
    requests.enter("a", payload(VHR), 0)
    (again,) = step(requests, 0, PROMPT, set()).comparers
    assert again.comparer.known is rows.comparer.known
    requests.leave("a", finished=True)
    assert report(requests)["told"] == {"chosen_heads": {"0": [0, 3]}}
    requests.enter("a", payload(VHR), 0)
    (fresh,) = step(requests, 0, PROMPT, set()).comparers
    assert fresh.comparer.known == {}


class Layer(nn.Module):
    """A decoder layer as vLLM's are."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.self_attn = nn.ModuleDict({"attn": attention})

    def forward(
        self, positions: torch.Tensor, hidden_states: torch.Tensor, residual: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        return hidden_states, residual


class Attention(nn.Module):
    layer_name = "outer.inner.attn"


class Whole(nn.Module):
    """The other way: the stream in one part."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.attn = attention

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def model_of(kind: type[nn.Module]) -> tuple[nn.Module, dict[int, Any]]:
    attentions: dict[int, Any] = {index: Attention() for index in range(LAYERS)}
    layers = nn.ModuleList([kind(each) for each in attentions.values()])
    language = nn.ModuleDict({"layers": layers})
    return nn.ModuleDict({"tower": nn.Linear(2, 2), "language_model": language}), attentions


def config(mode: CompilationMode = CompilationMode.NONE) -> Any:
    return SimpleNamespace(compilation_config=SimpleNamespace(mode=mode))


def test_decoder_layers_are_found_around_their_attention() -> None:
    model, attentions = model_of(Layer)
    found = decoder_layers(model, attentions)
    assert {index: type(layer) for index, layer in found.items()} == {0: Layer, 1: Layer}
    assert inputs_obstacle(config(), model, attentions) is None


def test_what_cannot_be_watched_says_why() -> None:
    model, attentions = model_of(Layer)
    reason = inputs_obstacle(config(CompilationMode.VLLM_COMPILE), model, attentions)
    assert reason is not None and "--enforce-eager" in reason
    assert "not found" in str(inputs_obstacle(config(), nn.Linear(1, 1), attentions))
    assert "two parts" in str(inputs_obstacle(config(), *model_of(Whole)))


def test_watchers_see_the_sum_of_both_parts_and_nobody_else_pays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, attentions = model_of(Layer)
    watch_inputs(model, attentions)
    seen: list[tuple[int, torch.Tensor]] = []
    settled: list[int] = []
    watcher = SimpleNamespace(
        look=lambda layer, states: seen.append((layer, states)), settle=settled.append
    )
    metadata: dict[str, Any] = {Attention.layer_name: SimpleNamespace()}
    context = SimpleNamespace(attn_metadata=metadata)
    monkeypatch.setattr(layer_inputs, "is_forward_context_available", lambda: True)
    monkeypatch.setattr(layer_inputs, "get_forward_context", lambda: context)
    first, second = (model.get_submodule(f"language_model.layers.{i}") for i in range(LAYERS))
    x = torch.ones(3, 8)
    first(None, x, None)
    assert seen == []
    metadata[Attention.layer_name].edited = SimpleNamespace(watchers=(watcher,))
    first(None, x, None)
    second(None, hidden_states=x, residual=2 * x)
    assert [layer for layer, _ in seen] == settled == [0, 1]
    assert torch.equal(seen[0][1], x) and torch.equal(seen[1][1], 3 * x)

"""Flagged tokens, compared heads and layer inputs: the worker's books, and the hooks of a model."""

from __future__ import annotations

import dataclasses
import inspect
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from vllm.compilation import decorators
from vllm.config import CompilationMode
from vllm.forward_context import ForwardContext

from heed_kernels.beside.flags import BlockFlags
from heed_kernels.cpu.flags import FoundOnCPU
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
from heed_server.engine.books.compared_heads import ComparedHeads
from heed_server.engine.books.edited_requests import EditedRequests
from heed_server.engine.books.flagged_tokens import FlaggedTokens
from heed_server.engine.books.twins import Twins
from heed_server.engine.model import layer_inputs
from heed_server.engine.model.layer_inputs import (
    decoder_layers,
    inputs_obstacle,
    leave_compiled_code,
    watch_inputs,
)
from heed_server.engine.payload import Payload, pack, unpack

LAYERS, HEADS, PROMPT = 2, 4, 12
BLOCKS = [2, 0]
ON = HeadSet((0b1111,) * LAYERS)
VISUAL = KeyRanges(((2, 6),))
VAR: tuple[Edit, ...] = (
    FlagKeys(ON, Rows(0, PROMPT), (1,), 1.5, VISUAL, False, 0),
    MassTransfer(ON, Rows(6, OPEN), FoundKeys(), VISUAL, 0.6, Gate(VISUAL, VISUAL, 0.5, 0.2), 0),
)
VHR: tuple[Edit, ...] = (HeadChoice(ON, Rows(PROMPT - 1), PROMPT - 1, VISUAL, 2, 2.0, True, 0),)


def book() -> EditedRequests:
    table = EditTable(slots=4, layers=LAYERS, query_heads=HEADS, kv_heads=2)
    requests = EditedRequests(table)
    requests.flagging = FlaggedTokens(table, BlockFlags(LAYERS, 4, 8), FoundOnCPU(table))
    requests.comparing = ComparedHeads(table, lambda local: local, Twins())
    return requests


def payload(edits: tuple[Edit, ...], detailed: tuple[int, ...] = ()) -> Payload:
    return Payload("r", 1, PROMPT, 0, edits, detailed)


def step(
    requests: EditedRequests, first: int, count: int, flagged: set[int], blocks: list[int] = BLOCKS
) -> Any:
    """One step of request a; tokens at `flagged` positions stand out in every layer."""
    edits = requests.plan(["a"], np.array([0, count]), np.array([first]))
    assert edits is not None
    states, table = torch.ones(count, 8), torch.tensor([blocks], dtype=torch.int32)
    for position in flagged:
        if first <= position < first + count:
            states[position - first, 1] = 9
    for watcher in edits.watchers:
        for layer in range(LAYERS):
            watcher.look(layer, states[watcher.tokens], table)
            watcher.settle(layer, table)
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
    requests.enter("a", payload(VAR, detailed=(0,)), 0)
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
    requests.enter("a", payload(VAR), 0)
    step(requests, 0, 8, {4})
    requests.leave("a", finished=False)
    requests.enter("a", payload(VAR), 0)
    step(requests, 0, PROMPT, {0, 4})
    assert report(requests)["told"]["sink_positions"] == {"0": [0, 4], "1": [0, 4]}


def test_a_request_behind_rows_of_the_prefix_cache_has_the_flags_of_their_blocks() -> None:
    requests = book()
    requests.enter("a", payload(VAR), 0)
    step(requests, 0, PROMPT, {0, 4, 9})
    requests.leave("a", finished=True)
    requests.enter("a", payload(VAR), 8)
    step(requests, 8, 4, {11}, [BLOCKS[0], 3])
    requests.leave("a", finished=True)
    assert report(requests)["told"]["sink_positions"] == {"0": [0, 4, 11], "1": [0, 4, 11]}


def test_rows_that_do_not_follow_fail_in_the_report_and_not_in_the_worker() -> None:
    requests = book()
    requests.enter("a", payload(VAR), 0)
    step(requests, 0, 4, set())
    assert step(requests, 6, 2, set()).watchers == ()
    assert "row 6 came" in requests.take(["r"])["r"][0]["failure"]


def test_chosen_heads_outlive_a_preemption_and_are_forgotten_in_the_end() -> None:
    requests = book()
    assert requests.comparing is not None
    requests.enter("a", payload(VHR), 0)
    (rows,) = step(requests, 0, PROMPT, set()).comparers
    rows.comparer.known[0] = torch.tensor([True, False, False, True])
    requests.leave("a", finished=False)
    requests.enter("a", payload(VHR), 0)
    (again,) = step(requests, 0, PROMPT, set()).comparers
    assert again.comparer.known is rows.comparer.known
    requests.leave("a", finished=True)
    assert report(requests)["told"] == {"chosen_heads": {"0": [0, 3]}}
    requests.enter("a", payload(VHR), 0)
    (fresh,) = step(requests, 0, PROMPT, set()).comparers
    assert fresh.comparer.known == {}


def test_rows_that_cannot_wait_for_the_one_that_chooses_fail_in_the_report() -> None:
    requests = book()
    every_row = HeadChoice(ON, Rows(), PROMPT - 1, VISUAL, 2, 2.0, True, 0)
    requests.enter("a", payload((every_row,)), 0)
    assert len(step(requests, 0, PROMPT, set()).comparers) == 1
    requests.enter("a", payload((every_row,)), 0)
    assert step(requests, 0, 8, set()).comparers == ()
    assert "in one step" in requests.take(["r"])["r"][0]["failure"]
    assert step(requests, 8, PROMPT - 8, set()).comparers == ()


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


def config(mode: CompilationMode = CompilationMode.NONE, *, images: bool = True) -> Any:
    return SimpleNamespace(
        compilation_config=SimpleNamespace(mode=mode),
        model_config=SimpleNamespace(is_multimodal_model=images),
    )


def test_decoder_layers_are_found_around_their_attention() -> None:
    model, attentions = model_of(Layer)
    found = decoder_layers(model, attentions)
    assert {index: type(layer) for index, layer in found.items()} == {0: Layer, 1: Layer}
    assert inputs_obstacle(config(), model, attentions, uncompiled_steps=False) is None


def test_what_cannot_be_watched_says_why() -> None:
    model, attentions = model_of(Layer)
    compiled = config(CompilationMode.VLLM_COMPILE)
    reason = inputs_obstacle(compiled, model, attentions, uncompiled_steps=False)
    assert reason is not None and "--enforce-eager" in reason
    assert inputs_obstacle(compiled, model, attentions, uncompiled_steps=True) is None
    for uncompiled_steps in (False, True):
        of = {"uncompiled_steps": uncompiled_steps}
        text_only = config(images=False)
        assert "images" in str(inputs_obstacle(text_only, model, attentions, **of))
        assert "not found" in str(inputs_obstacle(config(), nn.Linear(1, 1), attentions, **of))
        assert "two parts" in str(inputs_obstacle(config(), *model_of(Whole), **of))


def test_watchers_see_the_sum_of_both_parts_and_nobody_else_pays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, attentions = model_of(Layer)
    watch_inputs(model, attentions)
    seen: list[tuple[int, torch.Tensor, torch.Tensor]] = []
    settled: list[int] = []
    watcher = SimpleNamespace(
        tokens=slice(1, 3),
        look=lambda layer, states, table: seen.append((layer, states, table)),
        settle=lambda layer, table: settled.append(layer),
    )
    table = torch.zeros(2, 4, dtype=torch.int32)
    metadata: dict[str, Any] = {Attention.layer_name: SimpleNamespace(block_table=table)}
    stand_in(monkeypatch, metadata)
    first, second = (model.get_submodule(f"language_model.layers.{i}") for i in range(LAYERS))
    x = torch.arange(32.0).view(4, 8)
    first(None, x, None)
    assert seen == []
    metadata[Attention.layer_name].edited = SimpleNamespace(watchers=(watcher,))
    first(None, x, None)
    second(None, hidden_states=x, residual=2 * x)
    assert [layer for layer, _, _ in seen] == settled == [0, 1]
    assert torch.equal(seen[0][1], x[1:3]) and torch.equal(seen[1][1], 3 * x[1:3])
    assert all(given is table for _, _, given in seen)


def stand_in(monkeypatch: pytest.MonkeyPatch, metadata: dict[str, Any]) -> Any:
    """A forward of vLLM's with this metadata by layer; returns its context."""
    context = SimpleNamespace(attn_metadata=metadata, skip_compiled=False)
    monkeypatch.setattr(layer_inputs, "is_forward_context_available", lambda: True)
    monkeypatch.setattr(layer_inputs, "get_forward_context", lambda: context)
    return context


class Outer(nn.Module):
    """The outermost module of a model whose inner one is compiled."""

    def forward(self) -> None:
        pass


@pytest.mark.parametrize("watchers", [(), ("some",)])
def test_only_a_step_that_is_watched_leaves_the_compiled_code(
    monkeypatch: pytest.MonkeyPatch, watchers: tuple[str, ...]
) -> None:
    model, attentions = Outer(), model_of(Layer)[1]
    leave_compiled_code(model, attentions)
    metadata: dict[str, Any] = {Attention.layer_name: SimpleNamespace()}
    context = stand_in(monkeypatch, metadata)
    model()
    assert not context.skip_compiled
    metadata[Attention.layer_name].edited = SimpleNamespace(watchers=watchers)
    model()
    assert context.skip_compiled is bool(watchers)


def test_the_flag_that_leaves_compiled_code_is_vllm_s_own() -> None:
    fields = {field.name: field.type for field in dataclasses.fields(ForwardContext)}
    assert fields["skip_compiled"] in (bool, "bool")
    assert "get_forward_context().skip_compiled" in inspect.getsource(decorators)

"""Host work that Heed adds to a step: microseconds per step in the worker, by kind of traffic.

Plain traffic pays for the checks alone. Edited traffic pays for one plan per step, whatever the
number of layers; entering pays once per request.

    python benchmarks/host.py
"""

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from torch import nn
from vllm.forward_context import set_forward_context

from heed_kernels.edits import HeadSet, KeyBias, KeyRanges, Rows
from heed_kernels.table import EditTable
from heed_server.engine.books.edited_requests import EditedRequests
from heed_server.engine.model.layer_inputs import watch_inputs
from heed_server.engine.payload import Payload, pack, unpack

LAYERS, HEADS, KV_HEADS = 24, 14, 2
BATCHES = (1, 16, 64, 256)


def main() -> None:
    print(f"{LAYERS} layers, {HEADS} query heads; median µs")
    print("| batch | step, nobody edited | step, all edited | enter | leave | bytes per row |")
    print("| --- | --- | --- | --- | --- | --- |")
    for batch in BATCHES:
        plain, edited, enter, leave, size = _measure(batch)
        print(f"| {batch} | {plain:.1f} | {edited:.1f} | {enter:.1f} | {leave:.1f} | {size} |")
    without, hooked = _watching()
    print(f"hooks before layers, models that take images alone: {hooked - without:.1f} µs a step")


def _measure(batch: int) -> tuple[float, float, float, float, int]:
    requests = EditedRequests(
        EditTable(slots=256, layers=LAYERS, query_heads=HEADS, kv_heads=KV_HEADS)
    )
    names = [f"cmpl-{uuid4().hex}" for _ in range(batch)]
    starts, positions = np.arange(batch + 1), np.full(batch, 300)

    def step() -> None:
        requests.plan(names, starts, positions)

    plain = _median(step)
    packed = [pack(_payload(index)) for index in range(batch)]
    entering, leaving = [], []
    for name, sent in zip(names, packed, strict=True):
        begin = time.perf_counter()
        requests.enter(name, unpack(sent), 0)
        entering.append(time.perf_counter() - begin)
    edited = _median(step)
    size = requests.table.bytes_of(0)
    for name in names:
        begin = time.perf_counter()
        requests.leave(name, finished=True)
        leaving.append(time.perf_counter() - begin)
    enter, leave = (1e6 * float(np.median(times)) for times in (entering, leaving))
    return plain, edited, enter, leave, size


def _watching() -> tuple[float, float]:
    """µs to call the layers of a step in which nobody looks at hidden states, without hooks and with."""
    layers = nn.ModuleList(_Layer(index) for index in range(LAYERS))
    states = torch.zeros(1, 1)

    def step() -> None:
        for layer in layers:
            layer(states, states)

    without = _median(step)
    watch_inputs(layers, {index: layer.attention for index, layer in enumerate(layers)})
    config: Any = SimpleNamespace(
        parallel_config=SimpleNamespace(
            data_parallel_size=1, is_moe_model=False, use_sequence_parallel_moe=False
        ),
        compilation_config=SimpleNamespace(static_forward_context={}, fast_moe_cold_start=False),
    )
    # Metadata of a step of plain requests.
    plain = {f"{index}": SimpleNamespace(edited=None) for index in range(LAYERS)}
    with set_forward_context(plain, config):
        return without, _median(step)


class _Layer(nn.Module):
    """A decoder layer that does nothing."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.attention: Any = nn.Identity()
        self.attention.layer_name = f"{index}"

    def forward(self, hidden_states: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return hidden_states


def _payload(index: int) -> Payload:
    everywhere = HeadSet((2**HEADS - 1,) * LAYERS)
    edit = KeyBias(everywhere, Rows(), KeyRanges(((0, 1),)), 0.1 + index / 100, source=0)
    return Payload(uuid4().hex, 1, prompt_length=256, publication_limit=None, edits=(edit,))


def _median(call: Callable[[], None], repeats: int = 400) -> float:
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return 1e6 * float(np.median(times))


if __name__ == "__main__":
    main()

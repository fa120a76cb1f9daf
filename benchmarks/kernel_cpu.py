"""Heed's CPU kernel with simple edits against vLLM's stock CPU attention, interleaved in one run.

    python benchmarks/kernel_cpu.py [--repeats 30]

Times are medians in microseconds per layer; ratios are Heed / stock of the same round, their median.
Below them what a mass transfer costs beside a bias, and what observing costs beside attending; then the
host's own costs: making a plan, and putting a request into the edit table.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np
import torch
from vllm import _custom_ops as ops

from heed_kernels.cpu import ColumnSums, attend, observe, probe_layout, warm_up
from heed_kernels.edits import (
    ALL_KEYS,
    Edit,
    Gate,
    HeadSet,
    KeyBias,
    KeyRanges,
    MassTransfer,
    ObserveColumns,
    ObserveMass,
    Rows,
)
from heed_kernels.plan import Plan
from heed_kernels.table import EditTable

SHAPES = {
    "heed-tiny 6/2x32 float32": (6, 2, 32, torch.float32),
    "qwen2-0.5b 14/2x64 float32": (14, 2, 64, torch.float32),
    "qwen2-0.5b 14/2x64 bfloat16": (14, 2, 64, torch.bfloat16),
}
WORK = [("decode", 16, 1, context) for context in (128, 512, 2048)] + [
    ("prefill", 1, rows, rows) for rows in (256, 1024)
]
BLOCK_SIZE = 128


def instruction_set(dtype: torch.dtype) -> str:
    """As vLLM chooses it on x86, for head dimensions that are multiples of 32."""
    return "amx" if dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported() else "vec"


class Batch:
    """Requests of one length, their cache, and both kernels over them."""

    def __init__(self, shape: tuple[int, int, int, torch.dtype], work: tuple[str, int, int, int]):
        query_heads, kv_heads, head_dim, dtype = shape
        _, requests, rows, context = work
        isa = instruction_set(dtype)
        self.scale = head_dim**-0.5
        width = -(-context // BLOCK_SIZE)
        self.pages = torch.zeros(requests * width, kv_heads, BLOCK_SIZE, 2 * head_dim, dtype=dtype)
        self.halves = self.pages.view(-1, kv_heads, 2 * BLOCK_SIZE, head_dim).chunk(2, dim=2)
        self.block_table = torch.randperm(requests * width).int().view(requests, width)

        def write(key, value, key_cache, value_cache, slot_mapping):  # type: ignore[no-untyped-def]
            ops.cpu_attn_reshape_and_cache(key, value, key_cache, value_cache, slot_mapping, isa)

        for blocks in self.block_table.long():
            at = torch.arange(context)
            slots = blocks[at // BLOCK_SIZE] * BLOCK_SIZE + at % BLOCK_SIZE
            key, value = (torch.randn(context, kv_heads, head_dim).to(dtype) for _ in range(2))
            write(key, value, *self.halves, slots)
        self.query = torch.randn(requests * rows, query_heads, head_dim).to(dtype)
        self.heed_output, self.stock_output = (torch.zeros_like(self.query) for _ in range(2))

        self.layout = probe_layout(write, dtype, BLOCK_SIZE, head_dim)
        on = HeadSet(((1 << query_heads) - 1,))
        self.shape, self.work = shape, work
        self.edit(
            [KeyBias(on, Rows(), KeyRanges(((0, 1),)), 1e-6 * (1 + slot), 0)]
            for slot in range(requests)
        )

        self.starts = torch.arange(requests + 1, dtype=torch.int32) * rows
        self.lengths = torch.full((requests,), context, dtype=torch.int32)
        self.metadata = [
            ops.cpu_attn_get_scheduler_metadata(
                requests, query_heads, kv_heads, head_dim, self.lengths, dtype, self.starts,
                True, -1, isa, split,
            )
            for split in (False, True)
        ]  # fmt: skip

    def edit(self, edits: Iterable[Sequence[Edit]]) -> None:
        """Give each request its edits."""
        query_heads, kv_heads, _, _ = self.shape
        _, requests, rows, context = self.work
        self.table = EditTable(requests, 1, query_heads, kv_heads)
        for slot, each in enumerate(edits):
            self.table.insert(each, slot)
        index, ones = np.arange(requests), np.ones(requests, int)
        positions = ones * (context - rows)
        self.plan = self.table.plan(index, index * rows, ones * rows, positions, index)

    def observe(self, columns: Sequence[ColumnSums]) -> None:
        observe(
            self.query, self.pages, self.block_table, self.table, self.plan.items(0), 0, self.scale,
            None, self.layout, columns,
        )  # fmt: skip

    def heed(self) -> None:
        attend(
            self.query, self.heed_output, self.pages, self.block_table, self.table, self.plan, 0,
            self.scale, None, self.layout,
        )  # fmt: skip

    def stock(self, split: bool) -> None:
        ops.cpu_attention_with_kv_cache(
            self.query, *self.halves, self.stock_output, self.starts, self.lengths, self.scale,
            True, None, -1, self.block_table, 0.0, self.metadata[split], None,
        )  # fmt: skip


def timed(call: Callable[..., object], *arguments: object) -> float:
    began = time.perf_counter()
    call(*arguments)
    return (time.perf_counter() - began) * 1e6


def primitive_costs(repeats: int) -> None:
    print("\nmedian of the ratios to attending with a bias, all heads")
    print("| shape | work | transfer to all | transfer to some | masses | masses and columns |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, shape in SHAPES.items():
        on = HeadSet(((1 << shape[0]) - 1,))
        sinks, some = KeyRanges(((0, 4), (100, 101))), KeyRanges(((20, 80), (120, 200)))
        whole = MassTransfer(on, Rows(), sinks, ALL_KEYS, 0.6, Gate(), 0)
        part = MassTransfer(on, Rows(), sinks, some, 0.6, Gate(some, some, 0.5, 0.01), 0)
        columns, probe = ObserveColumns(on, Rows(), 0), ObserveMass(on, Rows(), some, 0)
        gain = KeyBias(on, Rows(), KeyRanges(((0, 1),)), 1e-6, 0)
        for work in (WORK[1], WORK[-1]):
            kinds = ([gain], [whole], [part], [gain, probe], [gain, probe, columns])
            batches = [Batch(shape, work) for _ in kinds]
            for batch, edits in zip(batches, kinds, strict=True):
                batch.edit([edits] * work[1])
            batch = batches[4]
            sums = [ColumnSums(batch.table, i, columns, 0, work[3]) for i in range(work[1])]
            calls: list[Callable[[], None]] = [each.heed for each in batches[:3]]
            calls += [partial(batches[3].observe, ()), partial(batch.observe, sums)]
            for call in calls:
                call()
            times = np.array([[timed(call) for call in calls] for _ in range(repeats)])
            ratios = np.median(times[:, 1:] / times[:, :1], axis=0)
            line = " | ".join(f"{ratio:.2f}" for ratio in ratios)
            print(f"| {name} | {work[0]} {work[1]} x {work[2]} at {work[3]} | {line} |")


def use(plan: Plan, layers: int) -> None:
    for layer in range(layers):
        _ = plan.work(layer).units


def host_costs(repeats: int) -> None:
    layers, query_heads, kv_heads = 24, 14, 2
    print("\nhost, 24 layers, every request with its own edits (microseconds)")
    print("requests  insert each  plan  first use in all layers  patterns")
    for requests in (1, 16, 64, 256):
        table = EditTable(requests, layers, query_heads, kv_heads)
        generator = np.random.default_rng(0)
        inserts = []
        for slot in range(requests):
            masks = generator.integers(0, 1 << query_heads, layers).tolist()
            on = HeadSet(tuple(mask if layer % 4 else 0 for layer, mask in enumerate(masks)))
            edit = KeyBias(on, Rows(5), KeyRanges(((0, 1), (20, 40))), 0.1 + slot, 0)
            inserts.append(timed(table.insert, [edit], slot))
        each = np.arange(requests)
        arguments = (each, each, np.ones_like(each), each + 100, each)
        plans, uses = [], []
        for _ in range(repeats):
            plans.append(timed(table.plan, *arguments))
            plan = table.plan(*arguments)
            uses.append(timed(use, plan, layers))
        print(
            f"{requests:8} {statistics.median(inserts):12.0f} {statistics.median(plans):5.0f}"
            f" {statistics.median(uses):24.0f} {plan.patterns:9}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=30)
    repeats = parser.parse_args().repeats
    print(f"{torch.get_num_threads()} threads, block size {BLOCK_SIZE}")
    print("shape, work: heed us | stock us, ratio | stock with split KV us, ratio")
    for name, shape in SHAPES.items():
        seconds = None
        for work in WORK:
            batch = Batch(shape, work)
            seconds = seconds or warm_up(batch.layout, shape[0], shape[1])
            calls = (batch.heed, lambda b=batch: b.stock(False), lambda b=batch: b.stock(True))
            for call in calls:
                call()
            difference = (batch.heed_output.float() - batch.stock_output.float()).abs().max()
            assert difference < (1e-4 if shape[3] == torch.float32 else 3e-2), difference
            times = np.array([[timed(call) for call in calls] for _ in range(repeats)])
            heed, stock, split = np.median(times, axis=0)
            ratio, split_ratio = np.median(times[:, :1] / times[:, 1:], axis=0)
            print(
                f"{name}, {work[0]} {work[1]} x {work[2]} rows at {work[3]}: {heed:.0f} |"
                f" {stock:.0f}, {ratio:.2f} | {split:.0f}, {split_ratio:.2f}"
            )
        print(f"{name}: warm-up {seconds:.2f} s")
    primitive_costs(repeats)
    host_costs(repeats)


if __name__ == "__main__":
    main()

"""The parts of `kernel_gpu.py`: each yields cells, a label and what measures it."""

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
from device_clock import graphed, peaks, timed
from kernel_batches import KINDS, STATIC, Batch, Shape, edits_of
from plain_attention import flash, yardstick
from tests.kernels.triton import test_observe
from tests.kernels.triton.paged_model import Model, errors
from tests.kernels.triton.test_primitives import (
    PRIMITIVES,
    SHAPES,
    TOLERANCE,
    either_side,
    everything,
    nearest,
)

from heed_kernels.edits import HeadSet, KeyBias, KeyRanges, Rows
from heed_kernels.table import EditTable
from heed_kernels.triton import ColumnWork, DeviceTable, StepWork, warm_up

LAYERS_OF_GRAPH = 8
"""Enough that a graph's own start does not count."""

Cell = tuple[dict[str, Any], Callable[[], dict[str, Any]]]


@dataclass(frozen=True)
class Sizes:
    """How large the cells are. heads: query and KV heads by their ratio."""

    device: torch.device
    dtype: torch.dtype
    requests: tuple[int, ...]
    contexts: tuple[int, ...]
    head_dims: tuple[int, ...]
    heads: dict[int, tuple[int, int]]
    most_keys: int
    repeats: int
    lengths: tuple[int, ...]
    batch: int
    carried: str | None = None

    @property
    def main(self) -> tuple[int, int]:
        """The ratio of heads, and their dimensions, that are measured in all ways."""
        ratio = 4 if 4 in self.heads else min(self.heads)
        return ratio, max(self.head_dims)


def on_gpu(carried: str | None) -> Sizes:
    """Those that are asked for. carried: a folder with vLLM's kernel, see `plain_attention.yardstick`."""
    return Sizes(
        torch.device("cuda"), torch.bfloat16, (1, 16, 64, 256), (512, 2048, 8192, 32768), (64, 128),
        {1: (8, 8), 4: (32, 8), 8: (64, 8)}, 2**21, 15, (1, 63, 100, 129, 513, 1500), 256, carried,
    )  # fmt: skip


def toy(carried: str | None) -> Sizes:
    """A minute in the interpreter, to see that nothing trivial breaks."""
    return Sizes(
        torch.device("cpu"), torch.float32, (1,), (40,), (16,), {1: (2, 2)}, 2**10, 1, (5,), 2, carried,
    )  # fmt: skip


def speed(sizes: Sizes, shape: Shape, kind: str, **options: Any) -> dict[str, Any]:
    """Times of all that Heed does in a layer, and of plain attention over the same batch. options: of `Batch`."""
    batch = Batch(shape, kind, device=sizes.device, dtype=sizes.dtype, **options)
    batch.warm_up()
    name, plain = yardstick(batch, sizes.carried)
    # Both in graphs, so that times are the device's: what the host takes to launch is in `host`.
    calls = {
        "edited": graphed(batch.run, sizes.device),
        "eager": batch.run,
        "plain": graphed(plain, sizes.device),
    }
    other = flash(batch)
    if other is not None:
        calls["flash"] = other
    times = timed(calls, sizes.repeats, sizes.device)
    bandwidth, products = peaks(sizes.device, sizes.dtype)
    reached = batch.key_bytes / times["edited"] / 1e6, batch.operations / times["edited"] / 1e9
    return {
        "yardstick": name, **{f"{call}_ms": value for call, value in times.items()},
        "ratio": times["edited"] / times["plain"],
        "GB_per_s": reached[0], "TFLOP_per_s": reached[1],
        "share_of_copy": reached[0] / bandwidth, "share_of_product": reached[1] / products,
    }  # fmt: skip


def machine(sizes: Sizes) -> Iterator[Cell]:
    """What the device reaches: the shares of the other parts are of these."""

    def measure() -> dict[str, Any]:
        bandwidth, products = peaks(sizes.device, sizes.dtype)
        return {"GB_per_s": bandwidth, "TFLOP_per_s": products}

    yield {"what": "a copy, a product"}, measure


def decode(sizes: Sizes) -> Iterator[Cell]:
    """One generated row per request; the main shape first."""
    shapes = list(product(sizes.heads, sizes.head_dims))
    for ratio, dims in sorted(shapes, key=lambda shape: shape != sizes.main):
        kinds = STATIC if (ratio, dims) == sizes.main else ("bias", "act")
        for requests, context, kind in product(sizes.requests, sizes.contexts, kinds):
            if requests * context > sizes.most_keys:
                continue
            shape = Shape(requests, 1, context, *sizes.heads[ratio], dims)
            label = {
                "requests": requests, "context": context, "head_dim": dims, "group": ratio, "edit": kind,
            }  # fmt: skip
            yield label, partial(speed, sizes, shape, kind)


def prefill(sizes: Sizes) -> Iterator[Cell]:
    """A whole prompt in one step; the main shape first."""
    shapes = list(product(sizes.heads, sizes.head_dims))
    for ratio, dims in sorted(shapes, key=lambda shape: shape != sizes.main):
        kinds = KINDS if (ratio, dims) == sizes.main else ("bias", "act", "statistics")
        for context, kind in product(sizes.contexts, kinds):
            shape = Shape(1, context, context, *sizes.heads[ratio], dims)
            label = {"context": context, "head_dim": dims, "group": ratio, "edit": kind}
            yield label, partial(speed, sizes, shape, kind, generated=False)


def distinct(sizes: Sizes) -> Iterator[Cell]:
    """All requests of a batch are edited, with 1, 16 or as many different edits."""
    for number in sorted({1, min(16, sizes.batch), sizes.batch}):
        label = {"requests": sizes.batch, "distinct": number}
        yield label, partial(speed, sizes, _step(sizes), "bias", distinct=number)


def share(sizes: Sizes) -> Iterator[Cell]:
    """Some requests of a batch are edited: the stock kernel runs over all, and Heed's over these."""
    for edited in sorted({1, min(16, sizes.batch), sizes.batch // 2, sizes.batch}):
        yield {"requests": sizes.batch, "edited": edited}, partial(_both, sizes, edited)


def _both(sizes: Sizes, edited: int) -> dict[str, Any]:
    """step: the time of both kernels over that of the stock one."""
    made = speed(sizes, _step(sizes), "bias", edited=edited, distinct=edited)
    step = (made["plain_ms"] + made["edited_ms"]) / made["plain_ms"]
    return {key: made[key] for key in ("yardstick", "edited_ms", "plain_ms")} | {"step": step}


def _step(sizes: Sizes) -> Shape:
    ratio, dims = sizes.main
    return Shape(sizes.batch, 1, min(2048, max(sizes.contexts)), *sizes.heads[ratio], dims)


def correctness(sizes: Sizes) -> Iterator[Cell]:
    """The matrix of the interpreter tests, and longer contexts, on the device; whole and in two steps."""
    small = SHAPES[:1] if sizes.device.type == "cpu" else SHAPES
    cases = [(name, (3, 1, 32, 16, torch.float32), n) for name in PRIMITIVES for n in (100, 300)]
    cases += [("everything", shape, n) for shape, n in product(small, sizes.lengths)]
    if sizes.device.type == "cpu":
        cases = [(name, shape, 5) for name, shape, _ in (cases[0], cases[-1])]
    for name, shape, length in cases:
        for prompt in sorted({length, max(length - 3, 0), length // 2}):
            label = {
                "edit": name,
                "shape": " ".join(map(str, shape)),
                "length": length,
                "prompt": prompt,
            }
            edits = PRIMITIVES.get(name) or everything(shape[0], shape[2])
            yield label, partial(_checked, sizes, shape, edits, length, prompt)
    if sizes.device.type == "cuda":
        for check in test_observe.CHECKS:
            yield {"edit": check.__name__}, partial(_passes, check, sizes)


def _checked(
    sizes: Sizes, shape: tuple[Any, ...], edits: list[Any], length: int, prompt: int
) -> dict[str, Any]:
    """rows: those that the plan has computed; NaN in one of them, or anything in another, does not pass."""
    model = Model([length], *shape, device=sizes.device.type)
    table = model.table()
    slot = model.slot(table, edits, prompt)
    (output,) = model.run(table, [(0, slot, 0, length)])
    plan, _ = model.plan(table, [(0, slot, 0, length)])
    wanted = torch.zeros(length, dtype=torch.bool)
    for _, first, rows, *_ in plan.items(0).tolist():
        wanted[first : first + rows] = True
    written = ~output.isnan().flatten(1).all(dim=1).cpu()
    expected = nearest(output.cpu()[wanted], [side[wanted] for side in either_side(model, edits)])
    rms, largest, _ = errors(output.cpu()[wanted], expected) if wanted.any() else (0.0, 0.0, ())
    halves = [(0, length // 2), (length // 2, length)] if length > 1 else [(0, 1)]
    parts = [model.run(table, [(0, slot, first, end)])[0] for first, end in halves]
    same = torch.equal(torch.cat(parts).nan_to_num(9), output.nan_to_num(9))
    exact = max(rms, largest) <= TOLERANCE[model.dtype]
    passed = exact and same and torch.equal(written, wanted)
    return {
        "rows": int(wanted.sum()), "rms": rms, "largest": largest, "chunks_equal": same,
        "passed": passed,
    }  # fmt: skip


def _passes(check: Callable[[str], None], sizes: Sizes) -> dict[str, Any]:
    check(sizes.device.type)
    return {"passed": True}


def graphs(sizes: Sizes) -> Iterator[Cell]:
    """A graph captured once, replayed with other edits, equals eager bit for bit."""
    for kind in (*STATIC, "nothing"):
        yield {"edit": kind}, partial(_replayed, sizes, kind)


def _replayed(sizes: Sizes, kind: str) -> dict[str, Any]:
    ratio, dims = sizes.main
    requests, context = min(16, sizes.batch), min(2048, max(sizes.contexts))
    shape = Shape(requests, 1, context, *sizes.heads[ratio], dims)
    batch = Batch(shape, "window", device=sizes.device, dtype=sizes.dtype)
    host = batch.table.table
    warm = batch.warm_up()
    batch.work.fill(None)
    replay = graphed(batch.run, sizes.device)
    for slot in np.flatnonzero(host.occupied):
        host.release(int(slot))
    plan = None
    if kind != "nothing":
        for slot in range(requests):
            prompt = context - 8 if slot % 2 else context
            host.insert(edits_of(kind, shape.query_heads, context), slot=slot, prompt_length=prompt)
        plan = host.plan(*batch.places)
    batch.table.sync()
    batch.work.fill(plan)
    outputs = []
    for call in (replay, batch.run):
        batch.output.zero_()
        call()
        outputs.append(batch.output.clone())
    written = bool(outputs[0].any())
    passed = torch.equal(*outputs) and written == (kind != "nothing")
    return {"passed": passed, "warm_up_s": warm}


def idle(sizes: Sizes) -> Iterator[Cell]:
    """What plain decode steps pay: their graphs hold Heed's launches, which find no work."""
    for requests in sizes.requests:
        yield {"requests": requests}, partial(_idle, sizes, requests)


def _idle(sizes: Sizes, requests: int) -> dict[str, Any]:
    """ratio: of a graph of LAYERS_OF_GRAPH plain calls with idle launches behind each to one without."""
    ratio, dims = sizes.main
    context = min(2048, max(sizes.contexts), sizes.most_keys // requests)
    shape = Shape(requests, 1, context, *sizes.heads[ratio], dims)
    batch = Batch(shape, "act", device=sizes.device, dtype=sizes.dtype)
    batch.warm_up()
    batch.work.fill(None)
    name, plain = yardstick(batch, sizes.carried)

    def alone() -> None:
        for _ in range(LAYERS_OF_GRAPH):
            plain()

    def with_idle_launches() -> None:
        for _ in range(LAYERS_OF_GRAPH):
            plain()
            batch.run()

    calls = {
        "plain": graphed(alone, sizes.device),
        "with_idle": graphed(with_idle_launches, sizes.device),
    }
    times = timed(calls, sizes.repeats, sizes.device)
    added = 1e3 * (times["with_idle"] - times["plain"]) / LAYERS_OF_GRAPH
    return {
        "yardstick": name, "context": context, "waves": batch.work.waves_of(requests),
        "plain_us_a_layer": 1e3 * times["plain"] / LAYERS_OF_GRAPH, "idle_us_a_layer": added,
        "attention_ratio": times["with_idle"] / times["plain"],
    }  # fmt: skip


def compiled(sizes: Sizes) -> Iterator[Cell]:
    """Fills Triton's cache from several processes at once, or each variant would be compiled alone."""
    yield {"what": "all variants"}, partial(_compiled, sizes)


def _compiled(sizes: Sizes) -> dict[str, Any]:
    shapes: list[tuple[Any, ...]] = [
        (*heads, dims, Batch.block_size, sizes.dtype)
        for heads, dims in product(sizes.heads.values(), sizes.head_dims)
    ]
    shapes = list(dict.fromkeys([*shapes, *SHAPES]))
    began = time.perf_counter()
    if sizes.device.type == "cpu":
        compile_shape(sizes.device, shapes[0])
    else:
        # The device has been used by now, so that processes have to be started afresh.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(os.cpu_count(), mp_context=context) as pool:
            for future in [pool.submit(compile_shape, sizes.device, shape) for shape in shapes]:
                future.result()
    return {"shapes": len(shapes), "seconds": time.perf_counter() - began}


def compile_shape(device: torch.device, shape: tuple[Any, ...]) -> None:
    """Compile and load what requests of this shape launch. shape: as `Model` takes it, behind lengths."""
    model = Model([8], *shape, device=device.type)
    table = model.table()
    work, columns = StepWork(table, 8, 1), ColumnWork(table, 8, 1)
    rest: dict[str, Any] = {
        "dtype": model.dtype,
        "scale": model.scale,
        "ropes": [None, model.rope],
    }
    warm_up(table, work, model.key_cache, model.value_cache, **rest)
    columns.warm_up(model.key_cache, **rest)


def host(sizes: Sizes) -> Iterator[Cell]:
    """Microseconds of host work: per step a plan, the copy of what changed, and the units; per entering
    request its lines, and their copy. All edits are different."""
    for number in (1, 64, 256):
        yield {"edited requests": number}, partial(_host, sizes, number)


def _host(sizes: Sizes, number: int) -> dict[str, Any]:
    table = EditTable(number, 32, 32, 8, head_dim=128, mix_capacity=2)
    device = DeviceTable(table, sizes.device)
    on = HeadSet((0x55555555,) * 32)
    began = time.perf_counter()
    for i in range(number):
        table.insert([KeyBias(on, Rows(), KeyRanges(((0, 1 + i),)), 0.5 + i, 0)], prompt_length=512)
    insert = (time.perf_counter() - began) / number
    began = time.perf_counter()
    device.sync()
    entering = (time.perf_counter() - began) / number
    work, each = StepWork(device, 8192, 256), np.arange(number)
    times: dict[str, list[float]] = {"plan": [], "sync": [], "fill": []}
    for step in range(50):
        marks = [time.perf_counter()]
        plan = table.plan(each, each, each * 0 + 1, each * 0 + 1000 + step, each)
        marks.append(time.perf_counter())
        device.sync()
        marks.append(time.perf_counter())
        work.fill(plan)
        marks.append(time.perf_counter())
        for values, took in zip(times.values(), np.diff(marks).tolist(), strict=True):
            values.append(took)
    return {
        **{f"{name}_us": 1e6 * statistics.median(values) for name, values in times.items()},
        "insert_us_each": 1e6 * insert, "copy_us_each": 1e6 * entering,
    }  # fmt: skip


def served(sizes: Sizes) -> Iterator[Cell]:
    """Every kind of request through the server's books, against the CPU's kernels."""
    from served_requests import NAMES, compared

    for name in NAMES if sizes.device.type == "cuda" else NAMES[1:2]:
        yield {"request": name}, partial(compared, name, sizes.device.type)


PARTS = {
    part.__name__: part
    for part in (
        compiled,
        machine,
        graphs,
        idle,
        correctness,
        served,
        decode,
        prefill,
        distinct,
        share,
        host,
    )
}

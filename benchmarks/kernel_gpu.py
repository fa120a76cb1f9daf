"""Heed's Triton kernels on a GPU: right, fast, and the same under CUDA graphs. One script for a lent machine.

    PYTHONPATH=kernels python benchmarks/kernel_gpu.py [--out FOLDER] [--quick] [--part NAME ...]

Parts: correctness (against the float64 reference), served (`served_requests.py`), decode, prefill,
distinct, graphs, host. Only `host` runs without a GPU; `served` needs PYTHONPATH=kernels:server:interventions.
Writes kernel_gpu.json and kernel_gpu.md. The yardstick is vLLM's Triton `unified_attention` where vLLM is
installed, else the plain paged kernel of `plain_attention.py`, with the same launch shapes; the tables say
which. Times are medians of interleaved runs.
"""

import argparse
import itertools
import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from heed_kernels.edits import (
    ALL_KEYS,
    Edit,
    Gate,
    HeadGain,
    HeadSet,
    KeyBias,
    KeyRanges,
    MassTransfer,
    Rows,
    VisibleKeys,
)
from heed_kernels.table import EditTable

GPU = torch.cuda.is_available()
if GPU:
    import triton
    from plain_attention import yardstick
    from tests.kernels.triton.paged_model import Model, errors

    from heed_kernels.triton import DeviceTable, StepWork, attend, warm_up


KINDS = ("gain", "bias", "window", "act", "var")


def edits_of(kind: str, heads: int, number: int = 0) -> list[Edit]:
    """Edits of one layer on every second head; `number` makes them differ."""
    on = HeadSet((sum(1 << h for h in range(0, heads, 2)),))
    more = 0.01 * number
    image = KeyRanges(((32, 256),))
    sinks = KeyRanges(((0, 1), (40, 42)))
    match kind:
        case "gain":
            return [HeadGain(on, Rows(), 1.5 + more, 0)]
        case "bias":
            return [KeyBias(on, Rows(), KeyRanges(((0, 1), (64, 128))), 0.5 + more, 0)]
        case "window":
            return [VisibleKeys(4, 1024 + number, True, 0)]
        case "act":
            return [MassTransfer(on, Rows(), sinks, ALL_KEYS, 0.5 + more / 10, Gate(), 0)]
        case _:
            gate = Gate(image, image, 0.5, 0.1)
            return [MassTransfer(on, Rows(), sinks, image, 0.5 + more / 10, gate, 0)]


class Batch:
    """Requests of one context length in a paged bf16 cache, of which a share is edited."""

    block_size = 16

    def __init__(
        self, requests: int, rows: int, context: int, heads: tuple[int, int], head_dim: int,
        kind: str, share: float = 1.0, distinct: bool = False, generated: bool = True,
    ) -> None:  # fmt: skip
        self.requests, self.rows, self.context, self.head_dim = requests, rows, context, head_dim
        self.query_heads, self.kv_heads = heads
        self.scale = head_dim**-0.5
        width = -(-context // self.block_size)
        total, options = requests * width, {"dtype": torch.bfloat16, "device": "cuda"}
        shape = (total, self.block_size, self.kv_heads, head_dim)
        self.keys, self.values = torch.randn(shape, **options), torch.randn(shape, **options)
        order = torch.randperm(total, device="cuda").int()
        self.block_table = order.view(requests, width)
        self.query = torch.randn(requests * rows, self.query_heads, head_dim, **options)
        self.output, self.plain = torch.zeros_like(self.query), torch.zeros_like(self.query)
        self.lengths = torch.full((requests,), context, dtype=torch.int32, device="cuda")
        self.starts = torch.arange(requests + 1, dtype=torch.int32, device="cuda") * rows
        edited = max(1, round(share * requests))
        host = EditTable(
            edited, 1, self.query_heads, self.kv_heads, head_dim=head_dim, mix_capacity=2,
            vector_capacity=2048, line_capacity=1024,
        )  # fmt: skip
        self.table = DeviceTable(host, "cuda")
        prompt = context - rows if generated else context
        slots = [
            host.insert(
                edits_of(kind, self.query_heads, i if distinct else 0), prompt_length=prompt
            )
            for i in range(edited)
        ]
        self.table.sync()
        self.work = StepWork(self.table, requests * rows, requests)
        self.arguments = (
            np.array(slots), np.arange(edited) * rows, np.full(edited, rows),
            np.full(edited, context - rows), np.arange(edited),
        )  # fmt: skip
        self.work.fill(host.plan(*self.arguments))
        from heed_kernels.rope import Rope

        half = head_dim // 2
        self.rope = Rope(10000.0 ** -(np.arange(half) / half)) if kind == "window" else None

    def edited(self) -> None:
        attend(
            self.query, self.output, self.keys, self.values, self.block_table, self.table,
            self.work, 0, self.scale, self.rope,
        )  # fmt: skip

    @property
    def key_bytes(self) -> int:
        return 4 * self.requests * self.context * self.kv_heads * self.head_dim

    @property
    def operations(self) -> float:
        seen = self.requests * self.rows * (self.context - (self.rows - 1) / 2)
        return 4.0 * seen * self.query_heads * self.head_dim


def timed(calls: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Median milliseconds of each, in turns, with the second-level cache cleared before each."""
    flush = torch.empty(64 * 1024 * 1024, dtype=torch.int32, device="cuda")
    for call in calls.values():
        for _ in range(3):
            call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            flush.zero_()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            end.synchronize()
            times[name].append(begin.elapsed_time(end))
    return {name: statistics.median(values) for name, values in times.items()}


def graphed(call: Callable[[], None]) -> Callable[[], None]:
    """The call as a CUDA graph, so that the host's launches are not what is measured."""
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def speed(batch: Batch, repeats: int) -> dict[str, Any]:
    name, plain = yardstick(batch)
    times = timed(
        {"edited": graphed(batch.edited), "eager": batch.edited, "plain": graphed(plain)}, repeats
    )
    seconds = times["edited"] / 1e3
    return {
        "yardstick": name, "edited_ms": times["edited"], "eager_ms": times["eager"],
        "plain_ms": times["plain"], "ratio": times["edited"] / times["plain"],
        "GB_per_s": batch.key_bytes / seconds / 1e9, "TFLOP_per_s": batch.operations / seconds / 1e12,
    }  # fmt: skip


HEADS = {1: (8, 8), 4: (32, 8), 8: (64, 8)}


def decode(quick: bool) -> list[dict[str, Any]]:
    sizes = itertools.product(
        (1, 16, 64, 256), (512, 2048, 8192, 32768), (64, 128), (1, 4, 8), KINDS
    )
    rows = []
    for requests, context, head_dim, group, kind in sizes:
        if requests * context > 2**21 or (
            quick and (group != 4 or head_dim != 128 or kind == "gain")
        ):
            continue
        if not quick and kind not in ("bias", "act") and (group, head_dim) != (4, 128):
            continue
        batch = Batch(requests, 1, context, HEADS[group], head_dim, kind)
        label = {"requests": requests, "context": context, "head_dim": head_dim, "group": group}
        rows.append({**label, "edit": kind, **speed(batch, 10 if quick else 20)})
    return rows


def prefill(quick: bool) -> list[dict[str, Any]]:
    rows = []
    for context, head_dim, group, kind in itertools.product(
        (512, 2048, 8192, 32768), (64, 128), (1, 4, 8), KINDS
    ):
        if quick and (group != 4 or head_dim != 128):
            continue
        if not quick and kind not in ("bias", "act") and (group, head_dim) != (4, 128):
            continue
        batch = Batch(1, context, context, HEADS[group], head_dim, kind, generated=False)
        label = {"rows": context, "head_dim": head_dim, "group": group, "edit": kind}
        rows.append({**label, **speed(batch, 5 if quick else 10)})
    return rows


def distinct(quick: bool) -> list[dict[str, Any]]:
    """256 requests, of which 1, 16, or all are edited, alike and all differently."""
    rows = []
    for number, different in ((1, False), (16, False), (16, True), (256, False), (256, True)):
        batch = Batch(256, 1, 2048, HEADS[4], 128, "bias", number / 256, different)
        label = {"edited": number, "distinct": different}
        rows.append({**label, **speed(batch, 10 if quick else 30)})
    return rows


def correctness(quick: bool) -> list[dict[str, Any]]:
    """The matrix of the interpreter tests, and longer contexts, on the device."""
    from tests.kernels.triton.test_primitives import PRIMITIVES, SHAPES, TOLERANCE, everything

    cases: list[tuple[str, Any, Any, int, int]] = [
        (name, ((3, 1, 32, 16, torch.float32)), edits, length, prompt)
        for name, edits in PRIMITIVES.items()
        for length, prompt in ((100, 100), (300, 40))
    ]
    for shape, length in itertools.product(SHAPES, (1, 63, 100, 129, 513, 1500)):
        edits = everything(shape[0], shape[2])
        cases.append(("everything", shape, edits, length, max(length - 3, 0)))
        cases.append(("everything", shape, edits, length, length // 2))
    rows = []
    for name, shape, edits, length, prompt in cases:
        model = Model([length], *shape, device="cuda")
        table = model.table()
        slot = model.slot(table, edits, prompt)
        (output,) = model.run(table, [(0, slot, 0, length)])
        written = ~output.isnan().flatten(1).any(dim=1).cpu()
        expected = model.expected(0, edits)
        rms, largest, _ = errors(output.cpu()[written], expected[written])
        halves = [(0, length // 2), (length // 2, length)] if length > 1 else [(0, 1)]
        parts = [model.run(table, [(0, slot, a, b)])[0] for a, b in halves]
        same = torch.equal(torch.cat(parts).nan_to_num(9), output.nan_to_num(9))
        rows.append({
            "edit": name, "shape": " ".join(map(str, shape)), "length": length, "prompt": prompt,
            "rms": rms, "largest": largest, "chunks_equal": same,
            "passed": max(rms, largest) <= TOLERANCE[shape[4]] and same,
        })  # fmt: skip
    return rows


def graphs(quick: bool) -> list[dict[str, Any]]:
    """A graph captured over one batch's edits, replayed with others, equals eager bit for bit."""
    rows = []
    batch = Batch(16, 1, 2048, HEADS[4], 128, "window")
    rope, host = batch.rope, batch.table.table
    warm = warm_up(
        batch.table, batch.work, batch.keys, batch.values, dtype=torch.bfloat16, scale=batch.scale,
        ropes=[rope],
    )  # fmt: skip
    batch.work.fill(None)
    replay = graphed(batch.edited)
    for kind in (*KINDS, "nothing"):
        for slot in np.flatnonzero(host.occupied):
            host.release(int(slot))
        plan = None
        if kind != "nothing":
            for i in range(16):
                host.insert(edits_of(kind, 32, i), slot=i, prompt_length=2000 if i % 2 else 2048)
            plan = host.plan(*batch.arguments)
        batch.table.sync()
        batch.work.fill(plan)
        batch.output.zero_()
        replay()
        torch.cuda.synchronize()
        replayed = batch.output.clone()
        batch.output.zero_()
        batch.edited()
        torch.cuda.synchronize()
        equal = torch.equal(replayed, batch.output)
        rows.append(
            {"edit": kind, "replay_equals_eager": equal, "passed": equal, "warm_up_s": warm}
        )
    return rows


def host(quick: bool) -> list[dict[str, Any]]:
    """Microseconds of host work: per step a plan and the units; per entering request its lines."""
    from heed_kernels.triton import DeviceTable as Table
    from heed_kernels.triton import StepWork as Work

    rows = []
    for number in (1, 64, 256):
        table = EditTable(number, 32, 32, 8, head_dim=128, mix_capacity=2)
        device = Table(table, "cuda" if GPU else "cpu")
        on = HeadSet((0x55555555,) * 32)
        began = time.perf_counter()
        for i in range(number):
            table.insert(
                [KeyBias(on, Rows(), KeyRanges(((0, 1 + i),)), 0.5 + i, 0)], prompt_length=512
            )
        insert = (time.perf_counter() - began) / number
        began = time.perf_counter()
        device.sync()
        sync = (time.perf_counter() - began) / number
        work = Work(device, 8192, 256)
        each = np.arange(number)
        times: dict[str, list[float]] = {"plan": [], "fill": [], "sync": []}
        for step in range(50):
            began = time.perf_counter()
            plan = table.plan(each, each, each * 0 + 1, each * 0 + 1000 + step, each)
            planned = time.perf_counter()
            device.sync()
            synced = time.perf_counter()
            work.fill(plan)
            times["fill"].append(time.perf_counter() - synced)
            times["plan"].append(planned - began)
            times["sync"].append(synced - planned)
        rows.append({
            "edited requests": number,
            **{f"{k}_us": 1e6 * statistics.median(v) for k, v in times.items()},
            "insert_us_each": 1e6 * insert, "copy_us_each": 1e6 * sync,
        })  # fmt: skip
    return rows


def served(quick: bool) -> list[dict[str, Any]]:
    """Every kind of request through the server's books, against the CPU's kernels."""
    from served_requests import compared

    return compared()


PARTS = {f.__name__: f for f in (correctness, served, graphs, host, decode, prefill, distinct)}


def table_of(rows: list[dict[str, Any]]) -> str:
    def cell(value: Any) -> str:
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    names = list(rows[0])
    lines = [" | ".join(names), " | ".join("---" for _ in names)]
    lines += [" | ".join(cell(row[name]) for name in names) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path())
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    options = parser.parse_args()
    made: dict[str, Any] = {"torch": torch.__version__, "device": "none"}
    if GPU:
        made |= {"device": torch.cuda.get_device_name(), "triton": triton.__version__}
    text = [f"# Kernels on {made['device']}", "", f"torch {torch.__version__}"]
    wrong = False
    for name in options.part if GPU else ["host"]:
        try:
            rows = PARTS[name](options.quick)
        except Exception:  # the other parts are still worth the machine's time
            traceback.print_exc()
            made[name], wrong = traceback.format_exc(), True
            continue
        made[name] = rows
        failed = [row for row in rows if row.get("passed") is False]
        wrong |= bool(failed)
        text += ["", f"## {name}", "", table_of(rows)]
        print(f"\n## {name}: {len(failed)} failed\n{table_of(rows)}", flush=True)
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "kernel_gpu.json").write_text(json.dumps(made, indent=1))
        (options.out / "kernel_gpu.md").write_text("\n".join(text) + "\n")
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())

"""Host work that Heed adds to a step: microseconds per step in the worker, by kind of traffic.

Plain traffic pays for the checks alone. Edited traffic pays for one plan per step, whatever the
number of layers; entering pays once per request.

    python benchmarks/host.py
"""

import time
from collections.abc import Callable
from uuid import uuid4

import numpy as np

from heed_kernels.edits import HeadSet, KeyBias, KeyRanges, Rows
from heed_kernels.table import EditTable
from heed_server.engine.books.edited_requests import EditedRequests
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

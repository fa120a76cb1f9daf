"""What ACT adds to a layer's attention over a prompt, on the CPU, against vLLM's stock kernel in the same run.

    taskset --cpu-list 0 python benchmarks/act_cost.py [--repeats 15]

Medians of ratios to the stock kernel of the same round: Heed's kernel with the sinks' mass moved, and
before it the search (column sums of the chosen heads, and the sinks in them), by how many heads of the
layer are chosen. Times are processor times, which a shared machine disturbs least; on one core, because
threads that wait for each other use some too. `act_prefill.py` has what it comes to in a whole prefill.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
from kernel_cpu import SHAPES, Batch

from heed_kernels.cpu import KeySearch, LayerInputs, search_keys
from heed_kernels.edits import (
    ALL_KEYS,
    Edit,
    FindKeys,
    FoundKeys,
    Gate,
    HeadSet,
    KeyRanges,
    MassTransfer,
    Rows,
)
from heed_kernels.plan import SLOT

PROMPTS = (256, 1024)


def act(chosen: int, prompt: int) -> list[Edit]:
    on = HeadSet(((1 << chosen) - 1,))
    return [
        FindKeys(
            on, Rows(0, prompt), 5.0, 1, 64, KeyRanges(()), True, 0,
            relative=True, prompt=prompt, ahead=True,
        ),
        MassTransfer(on, Rows(), FoundKeys(), ALL_KEYS, 0.6, Gate(), 0),
    ]  # fmt: skip


def search(batch: Batch, edits: list[Edit]) -> Callable[[], None]:
    """The search over the batch's one prompt, anew at each call."""
    inputs = LayerInputs(
        batch.query, batch.pages, batch.block_table, batch.scale, None, batch.layout
    )
    item = batch.plan.items(0)[0]
    find = next(edit for edit in edits if isinstance(edit, FindKeys))

    def run() -> None:
        one = KeySearch(batch.table, int(item[SLOT]), find)
        one.advance(item)
        search_keys([one], batch.table, 0, inputs)

    return run


def timed(call: Callable[[], None]) -> float:
    began = time.process_time()
    call()
    return time.process_time() - began


def measured(repeats: int) -> None:
    print("| shape | prompt | heads | edited attention / stock | search / stock |")
    print("| --- | --- | --- | --- | --- |")
    for name, shape in SHAPES.items():
        for prompt in PROMPTS:
            for chosen in sorted({1, shape[0] // 2, shape[0]}):
                batch, edits = Batch(shape, ("prefill", 1, prompt, prompt)), act(chosen, prompt)
                batch.edit([edits])
                calls = [lambda b=batch: b.stock(False), batch.heed, search(batch, edits)]
                for call in reversed(calls):
                    call()
                times = np.array([[timed(call) for call in calls] for _ in range(repeats)])
                attended, searched = np.median(times[:, 1:] / times[:, :1], axis=0)
                heads = f"{chosen} of {shape[0]}"
                print(f"| {name} | {prompt} | {heads} | {attended:.2f} | {searched:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    measured(parser.parse_args().repeats)


if __name__ == "__main__":
    main()

"""What vLLM's KV split is worth on the CPU: stock decode attention without it against with it.

    python benchmarks/split_kv.py

Times are per layer, interleaved; the ratio is without / with (below 1: faster without the split).
"""

import argparse
import statistics

import torch
from kernel_cpu import SHAPES, Batch, timed

WORK = [(1, 512), (1, 2048), (1, 8192), (2, 8192), (16, 512), (16, 2048)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--repeats", type=int, default=100)
    repeats = parser.parse_args().repeats
    print(f"{torch.get_num_threads()} threads")
    print("| shape | requests | context | without, µs | with, µs | ratio |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, shape in SHAPES.items():
        for requests, context in WORK:
            batch = Batch(shape, ("decode", requests, 1, context))
            times: dict[bool, list[float]] = {False: [], True: []}
            for turn in range(repeats + 3):
                for split in (False, True):
                    seconds = timed(batch.stock, split)
                    if turn >= 3:
                        times[split].append(seconds)
            pairs = zip(times[False], times[True], strict=True)
            ratio = statistics.median(one / other for one, other in pairs)
            without, with_split = (statistics.median(times[split]) for split in (False, True))
            print(
                f"| {name} | {requests} | {context} | {without:.0f} | {with_split:.0f} "
                f"| {ratio:.2f} |"
            )


if __name__ == "__main__":
    main()

"""An hour, or as long as is asked for, of moderate load on one server, and whether it grows.

    python tests/live/soak.py --minutes 60

Starts `heed serve` with the bundled model, asks it in waves with pauses, and after each wave, when nothing
runs, writes down memory, file descriptors, KV blocks, rows of the edit table and tasks. Prints one line a
wave and a summary; exits with 1 where something grew or an answer was lost or changed.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from live_server import FLAGS, LiveServer, serving
from load_mix import Got, ask_all, asks

CLIENTS = 40
# Memory of the KV cache counts when a block is first written. With few blocks all are, in the first waves.
FLAGS_OF_SOAK = [*FLAGS, "--num-gpu-blocks-override", "300"]
MOST_GROWTH = 0.03
"""Of resident memory, from the second quarter of the run to the last; allocators settle in the first."""


@dataclass(frozen=True)
class Sample:
    """One moment at which nothing runs. Memory in MiB, over all processes of the server."""

    seconds: float
    requests: int
    memory: float
    descriptors: int
    processes: int
    cache_used: float
    table_rows: float


def sample(server: LiveServer, started: float, requests: int) -> Sample:
    assert server.pid is not None
    main = psutil.Process(server.pid)
    processes = [main, *main.children(recursive=True)]
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (
        server.metric("vllm:num_requests_running") or server.metric("heed_edit_table_rows")
    ):
        time.sleep(0.5)
    return Sample(
        seconds=time.monotonic() - started,
        requests=requests,
        memory=sum(each.memory_info().rss for each in processes) / 2**20,
        descriptors=sum(each.num_fds() for each in processes),
        processes=len(processes),
        cache_used=server.metric("vllm:kv_cache_usage_perc"),
        table_rows=server.metric("heed_edit_table_rows"),
    )


def grown(samples: Sequence[Sample]) -> list[str]:
    """What grew, in words; empty where nothing did."""
    quarter = max(1, len(samples) // 4)
    early, late = samples[quarter : 2 * quarter], samples[-quarter:]
    found = []
    memory = [statistics.median(each.memory for each in part) for part in (early, late)]
    if memory[1] > memory[0] * (1 + MOST_GROWTH):
        found.append(f"memory from {memory[0]:.0f} to {memory[1]:.0f} MiB")
    for name in ("descriptors", "processes"):
        least, most = (max(asdict(each)[name] for each in part) for part in (early, late))
        # A connection that a client keeps open is one descriptor.
        if most > least + 2:
            found.append(f"{name} from {least} to {most}")
    found += [
        f"{name} {value} after the load"
        for name, value in asdict(samples[-1]).items()
        if name in ("cache_used", "table_rows") and value
    ]
    return found


def wrong(answers: Sequence[Got], first: dict[int, Got]) -> list[str]:
    """Answers that failed, or differ from the first to the same body."""
    found = [got.error for got in answers if got.error]
    for got in answers:
        if got.finished and first.setdefault(got.ask.kind, got).tokens != got.tokens:
            found.append(f"kind {got.ask.kind}: another answer than at first")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Load one server for long and see whether it grows."
    )
    parser.add_argument("--minutes", type=float, default=60)
    options = parser.parse_args()
    samples: list[Sample] = []
    first: dict[int, Got] = {}
    errors: Counter[str] = Counter()
    requests = 0
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(Path(folder) / "server.log", FLAGS_OF_SOAK) as server,
    ):
        started = time.monotonic()
        while time.monotonic() - started < 60 * options.minutes or len(samples) < 8:
            waiting = asks(server, CLIENTS * 3, seed=requests)
            answers = asyncio.run(ask_all(server.url, waiting, CLIENTS))
            requests += len(answers)
            errors.update(wrong(answers, first))
            time.sleep(1)
            samples.append(sample(server, started, requests))
            print(" ".join(f"{k}={v:.6g}" for k, v in asdict(samples[-1]).items()), flush=True)
    faults = grown(samples) + [f"{count} times: {what}" for what, count in errors.items()]
    print(
        f"{requests} requests in {samples[-1].seconds / 60:.1f} minutes: "
        + ("; ".join(faults) or "flat")
    )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())

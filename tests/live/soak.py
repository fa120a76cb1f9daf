"""An hour, or as long as is asked for, of moderate load on one server, and whether it grows.

    python tests/live/soak.py --minutes 60

Starts `heed serve` with the bundled model, asks it in waves with pauses, and after each wave, when nothing
runs, writes down memory, file descriptors, KV blocks, rows of the edit table and processes. Prints one line a
wave and a summary; exits with 1 where something grew or stayed, or an answer was lost or changed.
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
MOST_MEMORY = 2.0
"""MiB that 1,000 requests may leave behind, over the second half of the run; allocators settle in the first.

Of requests and not of time or of the whole, so that it means the same however long the run and however large the
model. 2 KiB is less than what is known of one request anywhere (its report, its row of the table, its recording), so
that any of these kept for each request is found; and it is some ten times what an hour's scatter comes to.
"""
REST_SECONDS = 60
"""Within which the last requests of a wave have to end."""


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
    unfinished: float


def sample(server: LiveServer, started: float, requests: int) -> Sample:
    assert server.pid is not None
    main = psutil.Process(server.pid)
    processes = [main, *main.children(recursive=True)]
    deadline = time.monotonic() + REST_SECONDS
    while time.monotonic() < deadline and (
        unfinished(server) or server.metric("heed_edit_table_rows")
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
        unfinished=unfinished(server),
    )


def unfinished(server: LiveServer) -> float:
    """Requests that run or wait."""
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting")
    return sum(server.metric(name) for name in names)


def grown(samples: Sequence[Sample]) -> list[str]:
    """What grew, in words; empty where nothing did."""
    quarter = max(1, len(samples) // 4)
    early, late = samples[quarter : 2 * quarter], samples[-quarter:]
    found = []
    if (growth := memory_growth(samples)) > MOST_MEMORY:
        found.append(f"memory by {growth:.1f} MiB in 1,000 requests")
    for name in ("descriptors", "processes"):
        least, most = (max(asdict(each)[name] for each in part) for part in (early, late))
        # A connection that a client keeps open is one descriptor.
        if most > least + 2:
            found.append(f"{name} from {least} to {most}")
    for name in ("cache_used", "table_rows", "unfinished"):
        left = [value for each in samples if (value := asdict(each)[name])]
        if left:
            found.append(f"{name} up to {max(left):g} at rest, after {len(left)} waves")
    return found


def memory_growth(samples: Sequence[Sample]) -> float:
    """MiB in 1,000 requests: the slope of a straight line through the second half of the run."""
    half = samples[len(samples) // 2 :]
    line = statistics.linear_regression(
        [each.requests for each in half], [each.memory for each in half]
    )
    return 1000 * line.slope


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
        + f" (memory: {memory_growth(samples):+.2f} MiB in 1,000 requests)"
    )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())

"""Times on a GPU for `kernel_gpu.py`; on the CPU as well, where they mean nothing but let the script be tried."""

import statistics
import time
from collections.abc import Callable
from functools import cache

import torch

CACHE_BYTES = 256 * 1024 * 1024
"""More than any second-level cache."""


def timed(
    calls: dict[str, Callable[[], None]], repeats: int, device: torch.device
) -> dict[str, float]:
    """Median milliseconds of each, in turns, with the second-level cache cleared before each."""
    on_gpu = device.type == "cuda"
    flush = torch.empty(CACHE_BYTES if on_gpu else 1, dtype=torch.int8, device=device)
    for call in calls.values():
        for _ in range(3 if on_gpu else 0):
            call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            flush.zero_()
            times[name].append(_on_gpu(call) if on_gpu else _on_host(call))
    return {name: statistics.median(values) for name, values in times.items()}


def _on_gpu(call: Callable[[], None]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end))


def _on_host(call: Callable[[], None]) -> float:
    begin = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - begin)


def graphed(call: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """The call as a CUDA graph, so that the host's launches are not what is measured. On the CPU the call."""
    call()
    if device.type != "cuda":
        return call
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


@cache
def peaks(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """Measured: GB/s of a copy, read and written, and TFLOP/s of a matrix product."""
    on_gpu = device.type == "cuda"
    source = torch.empty((1 << 31) if on_gpu else 1024, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    side = 8192 if on_gpu else 8
    a, b = (torch.randn(side, side, dtype=dtype, device=device) for _ in range(2))
    c = torch.empty_like(a)

    def copy() -> None:
        target.copy_(source)

    def product() -> None:
        torch.mm(a, b, out=c)

    times = timed({"copy": copy, "product": product}, 10, device)
    bandwidth = 2 * source.numel() / times["copy"] / 1e6
    return bandwidth, 2 * side**3 / times["product"] / 1e9

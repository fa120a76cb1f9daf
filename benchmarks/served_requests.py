"""Requests as a worker carries them out on a GPU, against the CPU's kernels: outputs, reports, and whether
anything in a layer waits for the device. A part of `kernel_gpu.py`."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from tests.kernels.triton.test_served import SETS, OnCPU, OnDevice, Tokens, same_on_both

from heed_kernels.edits import FindKeys
from heed_kernels.evict import Evict

NAMES = tuple(SETS)


@contextmanager
def unwaited() -> Iterator[None]:
    """While this is open, a wait for the device is an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def compared(name: str, device: str = "cuda") -> dict[str, Any]:
    """A kind of request as the worker carries it out. waits: whether a layer of it waited for the device, which
    searches that look ahead, evictions and whoever asks for found keys may."""
    tokens, waits = Tokens(), False
    around = unwaited if device == "cuda" else nullcontext
    try:
        largest = same_on_both(name, OnCPU(tokens), OnDevice(tokens, device, around))
    except RuntimeError as error:
        if "synchronizing" not in str(error):
            raise
        waits = True
        largest = same_on_both(name, OnCPU(tokens), OnDevice(tokens, device))
    allowed = any(isinstance(edit, Evict | FindKeys) for edit in SETS[name])
    return {"largest": largest, "waits": waits, "passed": allowed or not waits}

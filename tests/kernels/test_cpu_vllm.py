"""The CPU kernel beside vLLM and torch: the cache that vLLM writes, and the threads of torch."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from tests.kernels.paged_model import Model, assert_close, layout_of
from vllm import _custom_ops as ops

from heed_kernels.edits import (
    HeadGain,
    HeadSet,
    KeyBias,
    KeyRanges,
    KeyScale,
    Rows,
    VisibleKeys,
)


def write_with_vllm(instruction_set, key, value, key_cache, value_cache, slot_mapping):
    ops.cpu_attn_reshape_and_cache(
        key, value, key_cache, value_cache, slot_mapping, instruction_set
    )


WRITERS = {name: partial(write_with_vllm, name) for name in ("vec", "vec16")}


@pytest.mark.parametrize("instruction_set", ["vec", "vec16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cache_that_vllm_writes_is_read_as_it_was_written(instruction_set, dtype):
    write = WRITERS[instruction_set]
    head_dim = 80 if instruction_set == "vec16" else 64
    block_size = 48 if instruction_set == "vec16" else 96
    layout = layout_of(block_size, head_dim, dtype, write)
    assert layout.key_row, "the kernel reads this layout in place"
    assert layout.value_row
    model = Model(layout, 6, 2, [1, 100, 300], write)
    on = HeadSet((0b101101, 0b111111))
    edits = [
        KeyBias(on, Rows(5), KeyRanges(((0, 1), (7, 30))), 0.7, 0),
        KeyScale(on, Rows(), KeyRanges(((20, 150),)), 1.5, -0.3, 0),
        HeadGain(on, Rows(), 0.5, 0),
        VisibleKeys(4, 60, True, 0),
    ]
    table = model.table()
    slot = table.insert(edits)
    work = [(i, slot, 0, n) for i, n in enumerate(model.lengths)]
    for i, output in enumerate(model.run(table, work)):
        # As in test_cpu_attention: rounding of float32 logits, and of a bfloat16 output.
        tolerance = 1e-5 if dtype == torch.float32 else 2**-8
        assert_close(output, model.expected(i, edits), tolerance, f"{model.lengths[i]} rows")


COUNT_THREADS = """
import os
import torch
from tests.kernels.paged_model import layout_of
from heed_kernels.cpu import warm_up

def threads():
    return len(os.listdir("/proc/self/task"))

def use_torch():
    torch.rand(1 << 22).exp().sum()

torch.set_num_threads(2)
layout = layout_of()
for call in (ORDER):
    call()
    print(threads())
"""


@pytest.mark.parametrize(
    "order",
    ["use_torch, lambda: warm_up(layout, 6, 2)", "lambda: warm_up(layout, 6, 2), use_torch"],
    ids=["torch first", "kernel first"],
)
def test_the_kernel_runs_on_the_threads_of_torch(order):
    root = Path(__file__).parents[2]
    (library,) = [  # as a vLLM worker has it
        *Path(torch.__file__).parent.glob("lib/libgomp*.so*"),
        *Path(torch.__file__).parent.parent.glob("torch.libs/libgomp*.so*"),
    ]
    search = os.pathsep.join(path for path in sys.path if path)
    environment = os.environ | {"LD_PRELOAD": str(library), "PYTHONPATH": f"{root}:{search}"}
    found = subprocess.run(
        [sys.executable, "-c", COUNT_THREADS.replace("ORDER", order)],
        env=environment, cwd=root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    first, second = map(int, found.stdout.split())
    assert first == second > 1, f"{first} threads after the first of the two, {second} after both"

"""Heed's Triton kernels on a GPU: right, fast, and the same under CUDA graphs. One script for a lent machine.

    PYTHONPATH=kernels:server:interventions python benchmarks/kernel_gpu.py --out FOLDER [--part NAME ...]
        [--seconds N] [--carried FOLDER] [--toy]

Parts: `kernel_parts.PARTS`; all by default, the most important cells of each first. Every cell is written to
kernel_gpu.json in FOLDER as it comes. A run that was cut off, or that stopped after N seconds (exit code
3), goes on where it was when it is called again with the same FOLDER. At the end of each run: kernel_gpu.md,
and plots where their rows are complete. Exit code 1: something is wrong, see `passed` and `error`.

The yardstick is vLLM's Triton `unified_attention` where vLLM is installed or its two files are in the
carried folder (triton_unified_attention.py and triton_attention_helpers.py of vllm/v1/attention/ops), else
the plain paged kernel of `plain_attention.py`; the tables say which. Times are medians of interleaved runs.
For prompts the FlashAttention of PyTorch stands beside it, over keys that are not paged.

--toy runs all parts at toy sizes in Triton's interpreter, without a GPU: figures mean nothing then.
"""

import argparse
import os
import sys
import time
import traceback
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

CUT_OFF = 3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path())
    parser.add_argument("--part", nargs="+", help="only these")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no cell later")
    parser.add_argument("--carried", help="folder with vLLM's kernel, where vLLM is not installed")
    parser.add_argument("--toy", action="store_true", help="in the interpreter")
    options = parser.parse_args()
    if options.toy:
        # Before Triton is imported, which reads it.
        os.environ["TRITON_INTERPRET"] = "1"
    elif not torch.cuda.is_available():
        parser.error("there is no GPU; --toy tries the script without one")
    began = time.monotonic()
    import triton
    from kernel_parts import PARTS, on_gpu, toy
    from kernel_results import Results

    unknown = {*(options.part or ())} - {*PARTS}
    if unknown:
        parser.error(
            f"no part is called {' or '.join(sorted(unknown))}: there are {', '.join(PARTS)}"
        )
    sizes = (toy if options.toy else on_gpu)(options.carried)
    device = "Triton's interpreter" if options.toy else torch.cuda.get_device_name()
    results = Results(
        options.out,
        {"device": device, "torch": torch.__version__, "triton": triton.__version__},
    )
    done = True
    for name in options.part or PARTS:
        for label, measure in PARTS[name](sizes):
            if results.has(name, label):
                continue
            if time.monotonic() - began > options.seconds:
                done = False
                break
            try:
                measured = measure()
            except Exception as error:  # the other cells are still worth the machine's time
                traceback.print_exc()
                measured = {"error": f"{type(error).__name__}: {error}"[:300]}
            results.add(name, label, measured)
            print(name, label, measured, flush=True)
    results.write()
    print("\n".join(results.summary()))
    if not done:
        print("cut off: call it again with the same --out")
        return CUT_OFF
    return int(bool(results.failed()))


if __name__ == "__main__":
    sys.exit(main())

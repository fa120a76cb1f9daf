"""Compile every variant that can be launched, for GPUs that need not be there, and judge what comes out.

    python tests/kernels/triton/gate.py [--all] [--sample N] [--arch 80 90 100] [--self-test]

Prints registers, spilled bytes and shared memory of each kernel, and how many programs fit on a
multiprocessor. Exits with 1 where spills exceed SPILLS or fewer programs fit than `shapes` states.
ptxas stops at 168 registers with a few spilled bytes where nothing is wrong, hence the small budget.
"""

import argparse
import itertools
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from heed_kernels.triton import shapes
from heed_kernels.triton.move import move_tokens
from heed_kernels.triton.observe import measure_rows, merge_measures, sum_columns
from heed_kernels.triton.score import score_tiles
from heed_kernels.triton.split import attend_splits, merge_splits
from heed_kernels.triton.tile import attend_tiles

SPILLS = 32
OPEN_SPILLS = {
    ("attend_tiles", 80): 96,
    ("attend_tiles", 100): 384,
    ("measure_rows", 80): 80,
    ("measure_rows", 100): 48,
    ("sum_columns", 100): 160,
}
"""Bytes that are allowed where a kernel is known to spill and that is not solved: on sm_80 and sm_100 ptxas
makes two programs of 8 warps fit by spilling, and `attend_tiles` with transfers takes more than there is."""
OPEN_WIDE = 640
"""Likewise with more than 128 dimensions of a head."""
OPEN_FLOAT32 = 1 << 17
"""Likewise in float32, whose products have no tensor cores: right, but slow."""
MEMORY = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
"""Bytes of shared memory that the programs on a multiprocessor have together."""
RESERVED = 1024
REGISTERS, THREADS = 65536, 2048
TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
TYPED = {"query", "output", "key_cache", "value_cache", "scratch", "cache"}
"""Parameters that are pointers to the model's dtype."""
SUMS = torch.int64
"""Of columns, which move with their keys."""
POINTERS = {
    "work": "i32", "records": "i32", "lines": "i32", "vectors": "fp32", "factors": "fp32", "mix_heads": "i32",
    "mixes": "fp32", "found": "i64", "rotation": "i64", "scores": "fp32", "partial": "fp32", "sums": "fp32",
    "block_table": "i32", "log_sum_exp": "fp32", "masses": "fp32", "places": "i64",
    "measures": "fp32", "numbers": "i64",
}  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """A kernel with everything that is fixed when it is compiled."""

    kernel: Any
    dtype: torch.dtype
    arch: int
    shape: shapes.Shape
    constants: dict[str, Any] = field(hash=False)

    @property
    def identity(self) -> tuple[Any, ...]:
        """Equal for variants that are the same to the compiler."""
        names = {parameter.name for parameter in self.kernel.params}
        fixed = sorted((name, value) for name, value in self.constants.items() if name in names)
        dtype = self.dtype if names & TYPED else None
        return self.kernel.__name__, dtype, self.arch, self.shape, *fixed

    @property
    def name(self) -> str:
        c = self.constants
        more = "masses" if self.kernel in (measure_rows, merge_measures) else "transfers"
        turn = " rotary" * c["ROTARY"] + f" {more}" * c["TRANSFERS"] + " split" * c["SPLIT"]
        return (
            f"{self.kernel.__name__} {TYPES.get(self.dtype, 'i64')} {c['HEAD_DIM']}x{c['GROUP']}"
            f" block {c['BLOCK_SIZE']}{turn}"
        )


def variant(
    kernel, dtype, arch, head_dim, group, block_size, rotary, more=True, split=False
) -> Variant:
    """With the constants that its launch gives it. more: with transfers, or with masses; split: observing
    splits of generated rows."""
    rows = max(1, shapes.tile_heads(arch) // group)
    constants = {
        "KV_HEADS": 8, "GROUP": group, "GROUP_PADDED": 1 << (group - 1).bit_length(),
        "HEAD_DIM": head_dim, "DIMS": shapes.padded(head_dim), "BLOCK_SIZE": block_size,
        "TILE_ROWS": rows, "ROWS": max(16, shapes.padded(rows * group)), "ROTARY": rotary,
        "TRANSFERS": more, "MASSES": more, "SPLIT": split, "HEADS": 8 * group,
    }  # fmt: skip
    if kernel is attend_splits or split:
        shape = shapes.split_shape(head_dim, dtype)
        constants["ROWS"] = max(16, 1 << (group - 1).bit_length())
    elif kernel is move_tokens:
        shape = shapes.MOVE
        constants["DIMS"] = min(constants["DIMS"], shapes.MOVED_DIMENSIONS) if head_dim > 1 else 1
        constants["TOKENS"] = shape.tile
    elif kernel in (merge_splits, merge_measures, score_tiles):
        shape = shapes.SCORE if kernel is score_tiles else shapes.MERGE
    else:
        shape = shapes.tile_shape(head_dim, dtype, arch)
    constants["TILE"] = shape.tile
    return Variant(kernel, dtype, arch, shape, constants)


def variants(archs: list[int], everything: bool) -> Iterator[Variant]:
    """All, or for each kernel and architecture the ones with the most to hold."""
    main = attend_tiles, attend_splits
    rest = score_tiles, merge_splits, merge_measures, measure_rows, sum_columns
    if everything:
        sizes = itertools.product((32, 64, 80, 96, 128, 256), (1, 4, 8), (False, True), TYPES)
        few = [(d, g, 128 if d == 64 else 16, r, t) for d, g, r, t in sizes]
        for arch in archs:
            yield variant(move_tokens, SUMS, arch, 1, 4, 16, False, False)
            for d, t in itertools.product((32, 64, 80, 96, 128, 256), TYPES):
                yield variant(move_tokens, t, arch, d, 1, 16, False, False)
        for arch, kernel, (d, g, b, r, t) in itertools.product(archs, (*main, *rest), few):
            for split in (False, True) if kernel in (measure_rows, sum_columns) else (False,):
                yield variant(kernel, t, arch, d, g, b, r, True, split)
                if kernel in (*main, merge_splits, measure_rows):
                    yield variant(kernel, t, arch, d, g, b, r, False, split)
        return
    for arch in archs:
        for kernel in (*main, *rest):
            yield variant(kernel, torch.bfloat16, arch, 128, 4, 16, True)
        for kernel in attend_tiles, measure_rows:
            yield variant(kernel, torch.bfloat16, arch, 128, 4, 16, True, False)
        for kernel in measure_rows, sum_columns:
            yield variant(kernel, torch.bfloat16, arch, 128, 4, 16, True, True, True)
        yield variant(move_tokens, torch.bfloat16, arch, 128, 1, 16, False, False)
        yield variant(move_tokens, SUMS, arch, 1, 4, 16, False, False)


def compiled(made: Variant) -> Any:
    names = [p.name for p in made.kernel.params]
    constants = {(i,): made.constants[n] for i, n in enumerate(names) if n in made.constants}
    signature, attributes = {}, {}
    for index, name in enumerate(names):
        if name in made.constants:
            signature[name] = "constexpr"
        elif name in TYPED:
            signature[name] = "*" + TYPES.get(made.dtype, "i64")
        elif name in POINTERS:
            signature[name] = "*" + POINTERS[name]
        else:
            signature[name] = "fp32" if name in ("scale", "weight") else "i32"
        if signature[name] not in ("constexpr", "fp32") and name not in UNALIGNED:
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(made.kernel, signature, constants, attributes)
    options = {
        "num_warps": made.shape.warps,
        "num_stages": made.shape.stages,
        "maxnreg": made.shape.registers,
    }
    return triton.compile(source, target=GPUTarget("cuda", made.arch, 32), options=options)


UNALIGNED = {
    "block_table", "table_row", "record_words", "layers", "layer", "wave", "blocks", "kv_heads", "count",
}  # fmt: skip


@dataclass(frozen=True)
class Result:
    """registers: of a thread; spills: bytes of a thread, stored and loaded; memory: bytes, shared."""

    name: str
    registers: int
    spills: int
    memory: int
    programs: int


def measure(made: Variant) -> Result:
    kernel = compiled(made)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "kernel.ptx")
        with open(path, "w") as file:
            file.write(kernel.asm["ptx"])
        arch = re.search(r"\.target (sm_\w+)", kernel.asm["ptx"])[1]
        command = [get_ptxas(made.arch).path, "-v", f"--gpu-name={arch}", path, "-o", path + ".o"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers = int(re.search(r"Used (\d+) registers", said)[1])
    spills = max(int(n) for n in re.findall(r"(\d+) bytes spill", said))
    threads = 32 * made.shape.warps
    by_registers = REGISTERS // (-(-registers // 8) * 8 * threads)
    memory = kernel.metadata.shared
    by_memory = MEMORY[made.arch] // (memory + RESERVED)
    return Result(
        made.name, registers, spills, memory, min(by_registers, by_memory, THREADS // threads)
    )


def allowed(made: Variant) -> int:
    """Bytes that a variant may spill."""
    if made.dtype == torch.float32:
        return OPEN_FLOAT32
    known = OPEN_SPILLS.get((made.kernel.__name__, made.arch), SPILLS)
    return max(known, OPEN_WIDE) if made.constants["HEAD_DIM"] > 128 else known


def faults(result: Result, stated: int, spills: int = SPILLS) -> list[str]:
    found = []
    if result.spills > spills:
        found.append(f"{result.spills} bytes spilled, at most {spills} are allowed")
    if result.programs < stated:
        found.append(f"{result.programs} programs fit, {stated} are stated")
    return found


@triton.jit
def known_spiller(key_cache, output, ROTARY: tl.constexpr, ROWS: tl.constexpr):
    """Keeps more alive than there are registers: a whole matrix across a loop, four times."""
    i = tl.arange(0, 128)
    place = i[:, None] * 128 + i[None, :]
    a = tl.load(key_cache + place).to(tl.float32)
    b = tl.load(key_cache + place + 16384).to(tl.float32)
    c = tl.load(key_cache + place + 32768).to(tl.float32)
    for step in range(ROWS):
        x = tl.load(key_cache + place + step * 16384).to(tl.float32)
        a, b, c = b + x, c * x, a - x
    tl.store(output + place, a.to(tl.bfloat16))
    tl.store(output + place + 16384, b.to(tl.bfloat16))
    tl.store(output + place + 32768, c.to(tl.bfloat16))


def self_test() -> list[str]:
    """What the gate says of a kernel that is known to spill."""
    shape = shapes.Shape(0, 4, 1, 2)
    constants = {
        "ROTARY": False,
        "TRANSFERS": False,
        "SPLIT": False,
        "ROWS": 9,
        "HEAD_DIM": 128,
        "GROUP": 1,
        "BLOCK_SIZE": 16,
    }
    made = Variant(known_spiller, torch.bfloat16, 90, shape, constants)
    result = measure(made)
    print(result)
    return faults(result, shape.programs)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true", help="every variant, not only the largest")
    parser.add_argument("--sample", type=int, help="only so many, evenly spread")
    parser.add_argument("--arch", type=int, nargs="+", default=sorted(MEMORY))
    parser.add_argument("--self-test", action="store_true", help="fails if a known spiller passes")
    options = parser.parse_args()
    if options.self_test and not self_test():
        print("the gate lets a kernel pass that is known to spill")
        return 1
    wrong = 0
    chosen = list({made.identity: made for made in variants(options.arch, options.all)}.values())
    if options.sample:
        chosen = chosen[:: max(1, len(chosen) // options.sample)][: options.sample]
    for made in chosen:
        result = measure(made)
        bad = faults(result, made.shape.programs, allowed(made))
        wrong += bool(bad)
        print(
            f"sm_{made.arch:<4}{result.name:44}{result.registers:4} registers {result.spills:5} B"
            f" spilled {result.memory / 1024:6.1f} KiB {result.programs:2} programs  {'; '.join(bad)}",
            flush=True,
        )
    print(f"{len(chosen) - wrong} of {len(chosen)} kernels within their budget")
    return 1 if wrong else 0


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        sys.exit(main())

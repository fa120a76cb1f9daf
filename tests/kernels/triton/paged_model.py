"""A paged cache with one sequence per request, Triton kernels over it, and the reference."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from heed_kernels.edits import Edit
from heed_kernels.reference import attention as reference
from heed_kernels.rope import Rope
from heed_kernels.table import EditTable
from heed_kernels.triton import DeviceTable, StepWork, attend

LAYERS = 2


@dataclass
class Model:
    """Random queries, keys and values of some sequences, in pages; all other memory is NaN."""

    lengths: Sequence[int]
    query_heads: int = 6
    kv_heads: int = 2
    head_dim: int = 32
    block_size: int = 16
    dtype: torch.dtype = torch.float32
    seed: int = 0
    rotary_dim: int | None = None
    interleaved: bool = False
    strength: float = 1.0
    device: str = "cpu"
    rope: Rope = field(init=False)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        size = self.block_size
        self.scale = self.head_dim**-0.5
        half = (self.rotary_dim or self.head_dim) // 2
        self.rope = Rope(10000.0 ** -(np.arange(half) / half), self.interleaved)

        def draw(length: int, heads: int) -> torch.Tensor:
            x = torch.randn(length, heads, self.head_dim, generator=generator)
            return x.to(self.dtype).to(self.device)

        self.query = [draw(n, self.query_heads) * self.strength for n in self.lengths]
        self.key = [draw(n, self.kv_heads) for n in self.lengths]
        self.value = [draw(n, self.kv_heads) for n in self.lengths]
        width = -(-max(self.lengths) // size)
        self.total = width * len(self.lengths) + 3
        order = torch.randperm(self.total, generator=generator)[: width * len(self.lengths)]
        self.block_table = order.to(torch.int32).view(len(self.lengths), width).to(self.device)
        # As vLLM keeps them: keys and values of a head next to each other, heads before tokens.
        pages = torch.full(
            (self.total, self.kv_heads, size, 2 * self.head_dim), torch.nan,
            dtype=self.dtype, device=self.device,
        )  # fmt: skip
        self.key_cache, self.value_cache = pages.transpose(1, 2).chunk(2, dim=-1)
        for i, length in enumerate(self.lengths):
            at = torch.arange(length, device=self.device)
            block = self.block_table[i].long()[at // size]
            self.key_cache[block, at % size] = self.key[i]
            self.value_cache[block, at % size] = self.value[i]

    def table(self, slots: int = 4, **options) -> DeviceTable:
        table = EditTable(
            slots, LAYERS, self.query_heads, self.kv_heads, head_dim=self.head_dim, **options
        )
        return DeviceTable(table, self.device)

    def slot(self, table: DeviceTable, edits: Sequence[Edit], prompt_length: int) -> int:
        slot = table.table.insert(edits, prompt_length=prompt_length)
        table.sync()
        return slot

    def plan(self, table: DeviceTable, work: Sequence[tuple[int, int, int, int]]):
        """work: (request, slot, first row, end row) in batch order."""
        lengths = np.array([end - first for _, _, first, end in work])
        plan = table.table.plan(
            np.array([slot for _, slot, _, _ in work]),
            np.cumsum(lengths) - lengths,
            lengths,
            np.array([first for _, _, first, _ in work]),
            np.array([r for r, _, _, _ in work]),
        )
        return plan, lengths.tolist()

    def run(
        self, table: DeviceTable, work: Sequence[tuple[int, int, int, int]], layer: int = 0,
        rope: bool = True, capacity: int | None = None,
    ) -> list[torch.Tensor]:  # fmt: skip
        """One step. Outputs per entry, NaN where the kernel left a row alone."""
        plan, lengths = self.plan(table, work)
        # NaN around what is asked for: nothing may be read or written there.
        query = torch.full((sum(lengths) + 4, self.query_heads, self.head_dim), torch.nan)
        query = query.to(self.dtype).to(self.device)
        output = torch.full_like(query, torch.nan)
        inside = slice(2, 2 + sum(lengths))
        query[inside] = torch.cat([self.query[r][first:end] for r, _, first, end in work])
        steps = StepWork(table, max(sum(lengths), 1), len(work), capacity)
        steps.fill(plan)
        attend(
            query[inside], output[inside], self.key_cache, self.value_cache, self.block_table,
            table, steps, layer, self.scale, self.rope if rope else None,
        )  # fmt: skip
        assert output[:2].isnan().all() and output[-2:].isnan().all()
        return list(output[inside].split(lengths))

    def expected(
        self, request: int, edits: Sequence[Edit], layer: int = 0, found=None
    ) -> torch.Tensor:
        """[rows, query_heads, head_dim] float64."""
        tensors = (self.query[request], self.key[request], self.value[request])
        return reference.attend(
            *(x.double().cpu() for x in tensors), edits, layer, self.scale, self.rope, found
        )


def errors(actual: torch.Tensor, expected: torch.Tensor) -> tuple[float, float, tuple[int, ...]]:
    """Root mean square and largest difference, relative to those of the expected; the worst place."""
    difference = (actual.double().cpu() - expected).abs().nan_to_num(torch.inf)
    worst = int(difference.argmax())
    place = tuple(int(i) for i in np.unravel_index(worst, difference.shape))
    size = expected.square().mean().sqrt().clamp(min=1e-30)
    rms = float(difference.square().mean().sqrt() / size)
    return rms, float(difference.max() / expected.abs().max().clamp(min=1e-30)), place


def assert_close(actual, expected, tolerance: float, what: str) -> None:
    """Both errors are below `tolerance`. NaN never passes."""
    if not expected.numel():
        return
    rms, largest, place = errors(actual, expected)
    assert max(rms, largest) <= tolerance, (
        f"{what}: relative RMS {rms:.3g}, largest {largest:.3g} > {tolerance:.3g} at"
        f" (row, head, dim) {place}"
    )

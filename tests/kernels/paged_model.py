"""A paged cache with one sequence per request, and the reference to compare with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from heed_kernels.cpu import ColumnSums, Layout, Observed, attend, observe, probe_layout
from heed_kernels.edits import Edit, FoundKeys, KeyRanges, MassTransfer
from heed_kernels.reference import attention as reference
from heed_kernels.rope import Rope
from heed_kernels.table import EditTable


def write_plain(key, value, key_cache, value_cache, slot_mapping):
    """The layout of vLLM's "vec": K [head_dim, block_size], V [block_size, head_dim]."""
    _, heads, block_size, head_dim = key_cache.shape
    for i, slot in enumerate(slot_mapping.tolist()):
        block, token = divmod(slot, block_size)
        by_dimension = key_cache[block].view(heads, head_dim, block_size)
        by_dimension[:, :, token] = key[i]
        value_cache[block, :, token] = value[i]


def write_pairs(key, value, key_cache, value_cache, slot_mapping):
    """A layout with pairs of numbers interleaved, as matrix units of CPUs want bfloat16."""
    _, heads, block_size, head_dim = key_cache.shape
    for i, slot in enumerate(slot_mapping.tolist()):
        block, token = divmod(slot, block_size)
        pairs = key_cache[block].view(heads, head_dim // 2, block_size, 2)
        pairs[:, :, token] = key[i].view(heads, head_dim // 2, 2)
        pairs = value_cache[block].view(heads, block_size // 2, head_dim, 2)
        pairs[:, token // 2, :, token % 2] = value[i]


@dataclass
class Model:
    """Random keys, values and queries of some sequences, in pages; unused memory is NaN."""

    layout: Layout
    query_heads: int
    kv_heads: int
    lengths: Sequence[int]
    write: Callable[..., None] = write_plain
    layers: int = 2
    seed: int = 0
    rope: Rope = field(init=False)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        size, dtype = self.layout.block_size, self.layout.dtype
        head_dim = self.layout.head_dim
        self.scale = head_dim**-0.5
        self.rope = Rope(10000.0 ** -(np.arange(head_dim // 2) / (head_dim // 2)))

        def draw(length: int, heads: int) -> torch.Tensor:
            return torch.randn(length, heads, head_dim, generator=generator).to(dtype)

        self.query = [draw(n, self.query_heads) for n in self.lengths]
        self.key = [draw(n, self.kv_heads) for n in self.lengths]
        self.value = [draw(n, self.kv_heads) for n in self.lengths]
        width = -(-max(self.lengths) // size)
        total = width * len(self.lengths) + 3
        order = torch.randperm(total, generator=generator)[: width * len(self.lengths)]
        self.block_table = order.to(torch.int32).view(len(self.lengths), width)
        self.pages = torch.full((total, self.kv_heads, size, 2 * head_dim), torch.nan, dtype=dtype)
        halves = self.pages.view(total, self.kv_heads, 2 * size, head_dim).chunk(2, dim=2)
        for i, length in enumerate(self.lengths):
            at = torch.arange(length)
            slots = self.block_table[i].long()[at // size] * size + at % size
            self.write(self.key[i], self.value[i], *halves, slots)

    def table(self, slots: int = 8) -> EditTable:
        return EditTable(
            slots, self.layers, self.query_heads, self.kv_heads, head_dim=self.layout.head_dim
        )

    def run(
        self, table: EditTable, work: Sequence[tuple[int, int, int, int]], layer: int = 0
    ) -> list[torch.Tensor]:
        """One step. work: (request, slot, first row, end row) in batch order; outputs per entry,
        NaN where the kernel left a row alone."""
        query = torch.cat([self.query[r][first:end] for r, _, first, end in work])
        output = torch.full_like(query, torch.nan)
        lengths = np.array([end - first for _, _, first, end in work])
        plan = table.plan(
            np.array([slot for _, slot, _, _ in work]),
            np.cumsum(lengths) - lengths,
            lengths,
            np.array([first for _, _, first, _ in work]),
            np.array([r for r, _, _, _ in work]),
        )
        attend(
            query, output, self.pages, self.block_table, table, plan, layer, self.scale,
            self.rope, self.layout,
        )  # fmt: skip
        return list(output.split(lengths.tolist()))

    def observe(
        self, table: EditTable, entry: tuple[int, int, int, int], layer: int = 0,
        columns: Sequence[ColumnSums] = (),
    ) -> Observed:  # fmt: skip
        """entry: (request, slot, first row, end row)."""
        request, slot, first, end = entry
        return observe(
            self.query[request][first:end].contiguous(), self.pages, self.block_table, table,
            (slot, 0, end - first, first, request), layer, self.scale, self.rope, self.layout, columns,
        )  # fmt: skip

    def expected(
        self, request: int, edits: Sequence[Edit], layer: int = 0, first: int = 0,
        found: reference.Found | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """[rows, query_heads, head_dim] float64, of the rows from `first` on."""
        return reference.attend(
            self.query[request][first:].double(),
            self.key[request].double(),
            self.value[request].double(),
            edits, layer, self.scale, self.rope, found,
        )  # fmt: skip

    def weights(
        self, request: int, edits: Sequence[Edit], layer: int = 0, first: int = 0
    ) -> reference.Weights:
        """The reference's weights of the rows from `first` on, but for transfers."""
        plain = [edit for edit in edits if not isinstance(edit, MassTransfer)]
        return reference.attention_weights(
            self.query[request][first:].double(), self.key[request].double(), plain, layer,
            self.scale, self.rope,
        )  # fmt: skip

    def near_gate(
        self, request: int, edits: Sequence[Edit], layer: int = 0, first: int = 0,
        found: reference.Found | None = None, margin: float = 1e-5,
    ) -> torch.Tensor:  # fmt: skip
        """bool [rows, query_heads]: float32 may see the gate of a transfer on its other side, or a
        destination with no mass where float64 has a trace of it."""
        transfers = [edit for edit in edits if isinstance(edit, MassTransfer)]
        length, heads = len(self.key[request]), self.query_heads
        near = torch.zeros(heads, length - first, dtype=torch.bool)
        if not transfers:
            return near.T
        before = self.weights(request, edits, layer, first).before
        for edit in transfers:
            if edit.fraction == 0:
                continue
            sources = torch.zeros(heads, 1, length, dtype=torch.bool)
            if isinstance(edit.sources, FoundKeys):
                assert found is not None
                for head, keys in enumerate(found):
                    sources[head, 0, list(keys)] = True
            else:
                sources |= members(edit.sources, length)
            gate = edit.gate
            denominator = (before * members(gate.denominator, length)).sum(-1)
            numerator = (before * members(gate.numerator, length) * ~sources).sum(-1)
            destination = (before * members(edit.destination, length) * ~sources).sum(-1)
            # Equal sums are equal in float32 too: both are made of the same parts.
            beyond = (numerator - gate.ratio * denominator).abs()
            close = (beyond > 0) & (beyond < margin * denominator) & (gate.ratio > 0)
            if gate.least > 0:
                close |= ((denominator - gate.least).abs() < margin) & (denominator > 0)
            close |= (destination > 0) & (destination < 1e-30)
            q = torch.arange(first, length)
            close &= (q >= edit.rows.start) & (q < edit.rows.end)
            for head in edit.on.heads(layer):
                near[head] |= close[head]
        return near.T


def members(keys: KeyRanges, length: int) -> torch.Tensor:
    """bool [length]: which keys are in the set."""
    inside = torch.zeros(length, dtype=torch.bool)
    for start, end in keys.ranges:
        inside[start:end] = True
    return inside


_layouts: dict[tuple[object, ...], Layout] = {}


def layout_of(block_size=128, head_dim=32, dtype=torch.float32, write=write_plain) -> Layout:
    key = (block_size, head_dim, dtype, write)
    if key not in _layouts:
        _layouts[key] = probe_layout(write, dtype, block_size, head_dim)
    return _layouts[key]


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float, what: str) -> None:
    """Largest difference relative to the largest value, and where it is. NaN never passes."""
    largest = expected.abs().max().clamp(min=torch.finfo(torch.float64).tiny)
    error = (actual.double() - expected).abs() / largest
    worst = error.nan_to_num(torch.inf).argmax()
    place = tuple(int(i) for i in np.unravel_index(int(worst), error.shape))
    assert error.flatten()[worst] <= tolerance, (
        f"{what}: {error.flatten()[worst]:.3g} > {tolerance:.3g} at (row, head, dim) {place}"
    )

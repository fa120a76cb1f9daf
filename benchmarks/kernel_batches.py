"""Batches for `kernel_gpu.py`: requests of one context length in a paged cache, of which some are edited."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from heed_kernels.edits import (
    ALL_KEYS,
    Edit,
    FindKeys,
    FoundKeys,
    Gate,
    HeadGain,
    HeadSet,
    KeyBias,
    KeyRanges,
    MassTransfer,
    Rows,
    VisibleKeys,
)
from heed_kernels.rope import Rope
from heed_kernels.table import EditTable
from heed_kernels.triton import (
    ColumnWork,
    DeviceTable,
    LayerInputs,
    StepWork,
    attend,
    find_keys,
    warm_up,
)

STATIC = ("gain", "bias", "window", "act", "var")
"""Edits that are known before the step; `act` and `var` with given sources."""
KINDS = (*STATIC, "statistics")
"""`statistics`: `act` as it is served, which first sums the weights of all rows, and then finds its sources."""


def edits_of(kind: str, heads: int, rows: int, number: int = 0) -> list[Edit]:
    """Edits of one layer on every second head; `number` makes them differ. rows: of the prompt."""
    on = HeadSet((sum(1 << head for head in range(0, heads, 2)),))
    more = 0.01 * number
    image, sinks = KeyRanges(((32, 256),)), KeyRanges(((0, 1), (40, 42)))
    match kind:
        case "gain":
            return [HeadGain(on, Rows(), 1.5 + more, 0)]
        case "bias":
            return [KeyBias(on, Rows(), KeyRanges(((0, 1), (64, 128))), 0.5 + more, 0)]
        case "window":
            return [VisibleKeys(4, min(1024, rows // 2) + number, True, 0)]
        case "act":
            return [MassTransfer(on, Rows(), sinks, ALL_KEYS, 0.5 + more / 10, Gate(), 0)]
        case "var":
            gate = Gate(image, image, 0.5, 0.1)
            return [MassTransfer(on, Rows(), sinks, image, 0.5 + more / 10, gate, 0)]
        case _:
            find = FindKeys(on, Rows(0, rows), 5.0 / rows, 1, 64, KeyRanges(()), True, 0)
            return [find, MassTransfer(on, Rows(), FoundKeys(), ALL_KEYS, 0.5, Gate(), 0)]


@dataclass(frozen=True)
class Shape:
    """requests, each with `rows` query rows at the end of `context` keys."""

    requests: int
    rows: int
    context: int
    query_heads: int
    kv_heads: int
    head_dim: int


class Batch:
    """One step's attention in one layer.

    edited: so many requests are, with `distinct` different sets of edits in turn. generated: their rows are
    of the answer, else of the prompt. The cache is laid out as vLLM's.
    """

    block_size = 16

    def __init__(
        self,
        shape: Shape,
        kind: str,
        *,
        device: torch.device,
        dtype: torch.dtype,
        edited: int | None = None,
        distinct: int = 1,
        generated: bool = True,
    ) -> None:
        self.shape, self.scale = shape, shape.head_dim**-0.5
        requests, rows, context = shape.requests, shape.rows, shape.context
        count = requests if edited is None else edited
        width = -(-context // self.block_size)
        options: dict[str, Any] = {"dtype": dtype, "device": device}
        size = requests * width, shape.kv_heads, self.block_size, 2 * shape.head_dim
        self.keys, self.values = torch.randn(size, **options).transpose(1, 2).chunk(2, dim=-1)
        order = torch.randperm(requests * width, device=device).int()
        self.block_table = order.view(requests, width)
        self.query = torch.randn(requests * rows, shape.query_heads, shape.head_dim, **options)
        self.output, self.plain = torch.zeros_like(self.query), torch.zeros_like(self.query)
        self.lengths = torch.full((requests,), context, dtype=torch.int32, device=device)
        self.starts = torch.arange(requests + 1, dtype=torch.int32, device=device) * rows
        host = EditTable(
            count, 1, shape.query_heads, shape.kv_heads, head_dim=shape.head_dim, mix_capacity=2,
            vector_capacity=2048, line_capacity=1024,
        )  # fmt: skip
        self.table = DeviceTable(host, device)
        prompt = context - rows if generated else context
        self.edits = [
            edits_of(kind, shape.query_heads, context, i % distinct) for i in range(count)
        ]
        slots = np.array([host.insert(edits, prompt_length=prompt) for edits in self.edits])
        self.table.sync()
        self.work = StepWork(self.table, requests * rows, requests)
        each = np.arange(count)
        self.places = slots, each * rows, each * 0 + rows, each * 0 + context - rows, each
        self.plan = host.plan(*self.places)
        self.work.fill(self.plan)
        half = shape.head_dim // 2
        self.rope = Rope(10000.0 ** -(np.arange(half) / half)) if kind == "window" else None
        self.searches = kind == "statistics"
        """Whether it looks for keys before it attends."""
        self._observe = self._statistics(self.plan, slots) if self.searches else None
        # A graph of decode steps is replayed with other work; prompts are served outside of graphs.
        self._everything = None if generated and not self.searches else False

    def _statistics(self, plan: Any, slots: np.ndarray) -> Callable[[], None]:
        """What a layer does before its attention: sums of weights, and the search in them."""
        shape, device = self.shape, self.table.device
        heads, keys = shape.query_heads, shape.context
        rows = shape.requests * shape.rows
        work = ColumnWork(self.table, rows, shape.requests)
        columns = torch.zeros(len(slots), heads, keys, dtype=torch.int64, device=device)
        addresses = columns.data_ptr() + 8 * keys * np.arange(len(slots) * heads)
        addresses = addresses.reshape(1, len(slots), heads) * (np.arange(heads) % 2 == 0)
        work.load(plan, slots, np.tile([0, keys], (len(slots), 1)))
        work.place(slice(None), slots, addresses)
        lines = torch.arange(0, heads, 2, device=device)
        inputs = LayerInputs(
            self.query, self.keys, self.values, self.block_table, self.scale, self.rope
        )

        def observe() -> None:
            columns.zero_()
            work.add(0, inputs)
            for slot, edits, sums in zip(slots.tolist(), self.edits, columns, strict=True):
                find_keys(self.table, slot, edits[0], lines, sums[::2], keys)  # type: ignore[arg-type]

        return observe

    def run(self) -> None:
        """All that Heed does in the layer."""
        if self._observe is not None:
            self._observe()
        attend(
            self.query, self.output, self.keys, self.values, self.block_table, self.table,
            self.work, 0, self.scale, self.rope, everything=self._everything,
        )  # fmt: skip

    def warm_up(self) -> float:
        """Compile and load all that `run` may launch, which must not happen while a graph is captured.
        Returns the seconds it took."""
        seconds = warm_up(
            self.table, self.work, self.keys, self.values, dtype=self.query.dtype, scale=self.scale,
            ropes=[self.rope],
        )  # fmt: skip
        self.work.fill(self.plan)
        return seconds

    @property
    def key_bytes(self) -> int:
        """Of keys and values that are read."""
        shape = self.shape
        per_key = 2 * self.keys.element_size() * shape.kv_heads * shape.head_dim
        return shape.requests * shape.context * per_key

    @property
    def operations(self) -> float:
        """Of the two products of plain attention."""
        shape = self.shape
        seen = shape.requests * shape.rows * (shape.context - (shape.rows - 1) / 2)
        return 4.0 * seen * shape.query_heads * shape.head_dim

"""A request that evicts: in pages through `Eviction` and the kernel, and densely by definition."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from tests.kernels.paged_model import write_plain

from heed_kernels.cpu import ColumnSums, Layout, add_columns, attend
from heed_kernels.cpu.pages import Pages
from heed_kernels.cpu.summing import Summing
from heed_kernels.edits import Edit
from heed_kernels.evict import Evict
from heed_kernels.eviction import Eviction, Moved
from heed_kernels.reference import attention as reference
from heed_kernels.reference.eviction import Held
from heed_kernels.rope import Rope
from heed_kernels.table import EditTable


@dataclass
class Tokens:
    """Random queries, keys and values of one sequence in some layers, exact in the cache's dtype.

    query: float32 [layers, tokens, query_heads, head_dim]; key, value: [layers, tokens, kv_heads, head_dim].
    """

    count: int
    query_heads: int
    kv_heads: int
    layout: Layout
    layers: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        head_dim = self.layout.head_dim
        self.scale = head_dim**-0.5
        self.rope = Rope(10000.0 ** -(np.arange(head_dim // 2) / (head_dim // 2)))

        # What tokens have in common makes keys and queries alike, as in real models; in later layers more.
        alike = torch.linspace(0.5, 1.5, self.layers)[:, None, None, None]

        def draw(heads: int) -> torch.Tensor:
            shape = (self.layers, self.count, heads, head_dim)
            common = alike * torch.randn(heads, head_dim, generator=generator)
            return (torch.randn(shape, generator=generator) + common).to(self.layout.dtype)

        self.query, self.key, self.value = (
            draw(self.query_heads),
            draw(self.kv_heads),
            draw(self.kv_heads),
        )


@dataclass
class Dense:
    """One layer of the sequence: keys and values by their places, in float64."""

    tokens: Tokens
    layer: int
    edits: Sequence[Edit]

    def __post_init__(self) -> None:
        tokens = self.tokens
        self.query = tokens.query[self.layer].double()
        self.key = tokens.key[self.layer].double()
        self.value = tokens.value[self.layer].double()
        self.position = np.tile(np.arange(tokens.count), (tokens.kv_heads, 1))
        self.evicted = reference.Evicted([0] * tokens.kv_heads, 0)
        self.weights = np.zeros((tokens.query_heads, 0, tokens.count))

    def advance(self, first: int, end: int) -> torch.Tensor:
        """Rows [first, end) come in: their outputs."""
        arguments = (
            self.edits,
            self.layer,
            self.tokens.scale,
            self.tokens.rope,
            None,
            self.evicted,
        )
        query, key, value = self.query[first:end], self.key[:end], self.value[:end]
        before = reference.attention_weights(query, key, *arguments).before.numpy()
        before = np.pad(before, ((0, 0), (0, 0), (0, self.tokens.count - end)))
        self.weights = np.concatenate([self.weights, before], axis=1)
        return reference.attend(query, key, value, *arguments)

    def places(self, head: int) -> np.ndarray:
        """Of the keys that a KV head holds."""
        kept, end = self.evicted.kept[head], self.weights.shape[1]
        return np.concatenate([np.arange(kept), np.arange(self.evicted.end, end)])

    def held(self) -> Held:
        """What all heads hold, each as many keys."""
        end, places = self.weights.shape[1], self.places(0)
        by_head = (slice(None), places)
        return Held(
            self.position[by_head],
            self.key.numpy().transpose(1, 0, 2)[by_head],
            self.value.numpy().transpose(1, 0, 2)[by_head],
            self.weights[:, :, places],
            self.query[:end].numpy(),
        )

    def evict(self, survivors: Sequence[np.ndarray]) -> None:
        """survivors: positions per KV head."""
        group_heads = self.tokens.query_heads // self.tokens.kv_heads
        for head, positions in enumerate(survivors):
            held = {int(self.position[head, place]): place for place in self.places(head)}
            places = [held[int(p)] for p in positions]
            heads = slice(head * group_heads, (head + 1) * group_heads)
            for array in (self.key[:, head], self.value[:, head]):
                array[: len(places)] = array[places].clone()
            self.position[head, : len(places)] = self.position[head, places]
            self.weights[heads, :, : len(places)] = self.weights[heads][:, :, places]
        self.evicted = reference.Evicted([len(s) for s in survivors], self.weights.shape[1])


@dataclass
class Paged:
    """The same sequence in pages, on one rank: [head_start, head_start + local_kv_heads) KV heads.

    Blocks that the request does not own hold NaN.
    """

    tokens: Tokens
    edits: Sequence[Edit]
    prompt: int
    write: Callable[..., None] = write_plain
    kv_heads: tuple[int, int] | None = None
    overlap: bool = False
    seed: int = 0
    gather: Callable[[np.ndarray], np.ndarray] = field(default=lambda array: array)

    def __post_init__(self) -> None:
        tokens, layout = self.tokens, self.tokens.layout
        first, after = self.kv_heads or (0, tokens.kv_heads)
        group_heads = tokens.query_heads // tokens.kv_heads
        self.own_kv = slice(first, after)
        self.own = slice(first * group_heads, after * group_heads)
        self.table = EditTable(
            3, tokens.layers, tokens.query_heads, tokens.kv_heads, head_dim=layout.head_dim,
            head_start=self.own.start, local_query_heads=self.own.stop - self.own.start,
        )  # fmt: skip
        self.slot = self.table.insert(self.edits, 1, self.prompt)
        self.blocks = -(-tokens.count // layout.block_size)
        self.random = np.random.default_rng(self.seed)
        ids = self.random.permutation(2 * self.blocks + 2) + 1
        self.free = ids.tolist()
        self.row = np.zeros(self.blocks, np.int32)
        shape = (2 * self.blocks + 3, after - first, layout.block_size, 2 * layout.head_dim)
        self.caches = {
            layer: torch.full(shape, torch.nan, dtype=layout.dtype)
            for layer in range(tokens.layers)
        }
        self.moved: list[Moved] = []
        self.start()

    def start(self) -> None:
        """From the first token on, as after a preemption."""
        self.free += [block for block in self.row.tolist() if block]
        self.row[:] = 0
        evict = next(edit for edit in self.edits if isinstance(edit, Evict))
        self.eviction = Eviction(
            evict,
            self.table,
            self.slot,
            self.prompt,
            self.tokens.layout.block_size,
            self.summing(),
            positions=True,
        )

    def step(self, first: int, end: int) -> torch.Tensor:
        """Rows [first, end) in one step: outputs [layers, rows, local_query_heads, head_dim], NaN in rows
        that the kernel leaves alone. Evicts after it where that is due."""
        tokens, layout = self.tokens, self.tokens.layout
        size = layout.block_size
        for index in range(first // size, -(-end // size)):
            if not self.row[index]:
                self.row[index] = self.free.pop()
        position = torch.arange(first, end)
        slots = torch.from_numpy(self.row).long()[position // size] * size + position % size
        outputs = []
        for layer, cache in self.caches.items():
            halves = cache.view(len(cache), -1, 2 * size, layout.head_dim).chunk(2, dim=2)
            key = tokens.key[layer, first:end, self.own_kv].contiguous()
            value = tokens.value[layer, first:end, self.own_kv].contiguous()
            self.write(key, value, *halves, slots)
            query = tokens.query[layer, first:end, self.own].contiguous()
            if self.eviction.wants(first, end - first):
                self._score(layer, query, cache, first)
            outputs.append(self._attend(layer, query, cache, first, end))
        if self.eviction.due(end):
            self.evict(end)
        return torch.stack(outputs)

    def evict(self, computed: int) -> Moved:
        """Decide, and move to other blocks; with `overlap` to the request's own, but for some."""
        size = self.tokens.layout.block_size
        self.eviction.decide(computed, self.pages(), self.gather)
        begun = computed // size
        own = self.row[:begun].tolist()
        wanted = min(-(-self.most(computed) // size), begun)
        if self.overlap:
            stays = self.random.random(wanted) < 0.7
            targets = [
                block if block and stay else self.free.pop(0)
                for block, stay in zip(own, stays, strict=False)
            ]
        else:
            targets = [self.free.pop(0) for _ in range(wanted)]
        moved = self.eviction.move(self.pages(), self.row, targets)
        used = -(-moved.most // size)
        self.row[:begun] = 0
        self.row[: min(used, begun)] = targets[:used]
        gone = [block for block in {*own, *targets} if block and block not in self.row]
        for cache in self.caches.values():
            cache[gone] = torch.nan
        self.free += gone
        self.moved.append(moved)
        return moved

    def pages(self) -> list[Any]:
        """By layer."""
        return [Pages.of(cache, self.row, self.tokens.layout) for cache in self.caches.values()]

    def summing(self) -> Any:
        """What sums weights."""
        return Summing(self.table, self.slot)

    def _score(self, layer: int, query: torch.Tensor, cache: torch.Tensor, first: int) -> None:
        tokens, layout = self.tokens, self.tokens.layout
        if self.eviction.sums_columns:
            columns = self.eviction.columns(layer, first, len(query))
            if columns is None:
                return
            assert isinstance(columns, ColumnSums)
            add_columns(
                query, cache, torch.from_numpy(self.row)[None], self.table,
                (self.slot, 0, len(query), first, 0), layer, tokens.scale, tokens.rope, layout, [columns],
            )  # fmt: skip
        if self.eviction.sees_queries:
            pages = Pages.of(cache, self.row, layout)
            self.eviction.observe(layer, query, pages, first, tokens.scale, tokens.rope)

    def most(self, computed: int) -> int:
        return min(self.eviction.edit.most, computed)

    def _attend(
        self, layer: int, query: torch.Tensor, cache: torch.Tensor, first: int, end: int
    ) -> torch.Tensor:
        output = torch.full_like(query, torch.nan)
        one = np.ones(1, np.int64)
        plan = self.table.plan(one * self.slot, one * 0, one * (end - first), one * first, one * 0)
        block_table = torch.from_numpy(self.row)[None]
        attend(
            query, output, cache, block_table, self.table, plan, layer, self.tokens.scale,
            self.tokens.rope, self.tokens.layout,
        )  # fmt: skip
        return output

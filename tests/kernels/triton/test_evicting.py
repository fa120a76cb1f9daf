"""Eviction on a device: the same keys survive as by definition, and later rows read them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from tests.kernels.evicting_model import Paged, Tokens
from tests.kernels.paged_model import layout_of
from tests.kernels.test_eviction import SHARES, evict, run

from heed_kernels.errors import EditError
from heed_kernels.evict import (
    ColumnScore,
    DifferenceScore,
    ExpectedScore,
    NormScore,
    WindowScore,
)
from heed_kernels.triton import (
    BlockRow,
    ColumnWork,
    DeviceEvictions,
    DevicePages,
    DeviceSums,
    DeviceTable,
    EvictedPages,
    LayerInputs,
    Mover,
    Room,
    StepWork,
    attend,
)

PROMPT, TOTAL, SIZE = 44, 49, 16
STEPS = [(0, 12), (12, PROMPT), (PROMPT, 45), (45, 48), (48, TOTAL)]
SCORES = {
    "snapkv": WindowScore(32, 5),
    "tova": WindowScore(1, heads="layer"),
    "column": ColumnScore(),
    "norm": NormScore(),
    "difference": DifferenceScore(),
    "expected": ExpectedScore(64, 4, 0.01, True),
}


def short(score, share=None, **options):
    values = {"counts": (30, 26), "sinks": 4, "recent": 8}
    return evict(PROMPT, score, share, **values | options)


def write_rows(key, value, key_cache, value_cache, slot_mapping):
    """Keys of a head before its values, token by token."""
    block, token = slot_mapping // key_cache.shape[2], slot_mapping % key_cache.shape[2]
    key_cache[block, :, token] = key
    value_cache[block, :, token] = value


@dataclass
class OnDevice(Paged):
    """The same sequence, through the kernels of a device."""

    write: Callable[..., None] = write_rows

    def start(self):
        self.on_device = DeviceTable(self.table, "cpu")
        columns = ColumnWork(self.on_device, self.tokens.count, 1)
        self.device = DeviceEvictions(self.on_device, columns, Room(1 << 24))
        super().start()

    def halves(self, layer):
        """Keys and values [blocks, block_size, kv_heads, head_dim]."""
        cache, layout = self.caches[layer], self.tokens.layout
        both = cache.view(len(cache), -1, 2, layout.block_size, layout.head_dim)
        return tuple(half.transpose(1, 2) for half in both.unbind(2))

    def inputs(self, layer, query):
        blocks = torch.from_numpy(self.row.copy())[None]
        return LayerInputs(
            query, *self.halves(layer), blocks, self.tokens.scale, self.tokens.rope
        )  # fmt: skip

    def pages(self):
        caches = {layer: self.halves(layer) for layer in range(self.tokens.layers)}
        return self.device.pages(caches, self.row.copy())

    def summing(self):
        edit = next(edit for edit in self.edits if hasattr(edit, "counts"))
        return self.device.enter(self.slot, edit, self.tokens.layout.head_dim, self.tokens.count)

    def _plan(self, query, first):
        one = np.ones(1, np.int64)
        return self.table.plan(one * self.slot, one * 0, one * len(query), one * first, one * 0)

    def _score(self, layer, query, cache, first):
        inputs, item = self.inputs(layer, query), np.array([self.slot, 0, len(query), first, 0])
        if self.eviction.sums_columns:
            self.on_device.sync()
            items = item[None].astype(np.int32)
            self.device.load(self._plan(query, first), items)
            self.device.observe(layer, inputs, [self.eviction], items)
        if self.eviction.sees_queries:
            pages, scale, rope = inputs.pages(0), inputs.scale, inputs.rope
            assert isinstance(pages, DevicePages)
            self.eviction.observe(layer, query, pages, first, scale, rope)

    def _attend(self, layer, query, cache, first, end):
        self.on_device.sync()
        work = StepWork(self.on_device, self.tokens.count, 1)
        work.fill(self._plan(query, first))
        output, inputs = torch.full_like(query, torch.nan), self.inputs(layer, query)
        attend(
            query, output, inputs.key_cache, inputs.value_cache, inputs.block_table, self.on_device,
            work, layer, inputs.scale, None,
        )  # fmt: skip
        return output

    def evict(self, computed):
        moved = super().evict(computed)
        self.device.moved(self.slot)
        return moved


def tokens():
    return Tokens(TOTAL, 4, 2, layout_of(SIZE, 32))


@pytest.mark.parametrize("name", SCORES)
def test_survivors_and_later_rows_match_the_definition(name):
    again = name in ("tova", "column")
    paged = run(tokens(), [short(SCORES[name], again=again)], PROMPT, STEPS, kind=OnDevice)
    assert len(paged.moved) == (2 if again else 1)


@pytest.mark.parametrize("share", ["kind", "cake"])
def test_shares_of_layers_and_heads_match_the_definition(share):
    score = WindowScore(32, 5, variance=200.0)
    edit = short(score, SHARES[share])
    run(tokens(), [edit], PROMPT, STEPS[:3], kind=OnDevice, overlap=True)


@pytest.mark.slow
def test_chunks_change_no_sum():
    edits = [short(ColumnScore(), again=True)]
    whole = OnDevice(tokens(), edits, PROMPT)
    cut = OnDevice(tokens(), edits, PROMPT)
    for first, end in [(0, PROMPT), (PROMPT, 48)]:
        whole.step(first, end)
    for first, end in [(0, 7), (7, 40), (40, PROMPT), (PROMPT, 45), (45, 48)]:
        cut.step(first, end)
    for ours, theirs in zip(whole.moved, cut.moved, strict=True):
        for layer in range(2):
            for one, other in zip(ours.survivors[layer], theirs.survivors[layer], strict=True):
                assert np.array_equal(one, other)


@pytest.mark.parametrize("numbers", [4 * 40, 1 << 17])
def test_tokens_move_in_place_and_in_parts_without_memory(numbers):
    """Three heads keep other tokens, of which the first ones stay; in one block they go to its own places."""
    generator = torch.Generator().manual_seed(0)
    cache = torch.randn(12, 3, SIZE, 56, generator=generator).transpose(1, 2)
    row = np.array([5, 2, 9, 4, 11, 1, 3, 8, 0, 6], np.int32)
    into = np.array([5, 7, 9, 4, 10, 1], np.int32)
    random = np.random.default_rng(0)
    kept = [np.sort(random.choice(160, n, replace=False)) for n in (96, 61, 1)]
    kept[2][0] = 128  # the first token of all
    expected = cache.clone()
    for head, places in enumerate(kept):
        to = np.arange(len(places))
        values = cache[row[places // SIZE], places % SIZE, head]
        expected[into[to // SIZE], to % SIZE, head] = values
    row_of = BlockRow(row, torch.device("cpu"))
    mover = Mover(torch.device("cpu"), numbers)
    EvictedPages(*cache.split([48, 8], dim=3), row_of, mover).move(kept, into)
    assert torch.equal(cache, expected)
    assert "on_device" not in vars(row_of)


def test_sums_move_in_place():
    sums = DeviceSums(6, 50, torch.device("cpu"), None, Mover(torch.device("cpu"), 40))
    sums._sums[:] = torch.arange(sums._sums.numel()).view(sums._sums.shape)
    before, places = sums._sums.clone(), np.array([0, 1, 7, 8, 30, 49])
    sums.keep(slice(2, 4), places)
    before[2:4, :6] = before[2:4][:, places]
    assert torch.equal(sums._sums, before)


def test_scores_share_a_bounded_room():
    table = DeviceTable(OnDevice(tokens(), [short(NormScore())], PROMPT).table, "cpu")
    held = 8 * 2 * 4 * PROMPT  # layers, query heads, keys
    device = DeviceEvictions(table, ColumnWork(table, 8, 1), Room(held + held // 2))
    device.enter(0, short(ColumnScore()), 32, TOTAL)
    device.enter(1, short(NormScore()), 32, TOTAL)
    with pytest.raises(EditError, match=f"others hold {held:,}"):
        device.enter(2, short(ColumnScore()), 32, TOTAL)
    device.leave(0)
    device.enter(2, short(ColumnScore()), 32, TOTAL)

"""What is shared by all devices, on one that holds no numbers: whatever mixed devices, or waited for a value on
its way through a step, would fail here."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from heed_kernels.beside.compare import HeadComparer
from heed_kernels.beside.flags import BlockFlags, KeyFlags
from heed_kernels.beside.recording import LayerRows, Recording
from heed_kernels.beside.shift import GazeShifter
from heed_kernels.edits import (
    ALL_KEYS,
    OPEN,
    Edit,
    FlagKeys,
    Gate,
    GazeShift,
    HeadChoice,
    HeadRanking,
    HeadSet,
    KeyBias,
    KeyRanges,
    MassTransfer,
    Rows,
    TrailingKeys,
    VisibleKeys,
)
from heed_kernels.inspection import QUANTITIES, Inspection
from heed_kernels.rope import Rope
from heed_kernels.table import EditTable

META = torch.device("meta")
LAYERS, HEADS, KV_HEADS, HEAD_DIM = 2, 4, 2, 16
PROMPT, LENGTH, WIDTH = 20, 23, 32
ON, SECOND = HeadSet((0b1111, 0b1111)), HeadSet((0, 0b1111))
VISUAL, BESIDE = KeyRanges(((2, 8),)), KeyRanges(((8, PROMPT - 1),))
ANSWER = Rows(PROMPT - 1, OPEN)
BIASES = (
    KeyBias(ON, Rows(3), VISUAL, 0.5, 1),
    KeyBias(ON, Rows(5), TrailingKeys(4, 3), 0.25, 1),
)
STEPS = ((0, 9), (9, PROMPT), (PROMPT, PROMPT + 1), (PROMPT + 1, LENGTH))


class NoPages:
    def read(self, places: np.ndarray, half: str) -> torch.Tensor:
        return torch.empty(KV_HEADS, len(places), HEAD_DIM, device=META)

    def move(self, kept: Any, targets: Any) -> None:
        raise AssertionError


@dataclass(frozen=True)
class NoInputs:
    query: torch.Tensor
    scale: float = 0.25
    rope: None = None

    def pages(self, row: int) -> NoPages:
        return NoPages()


def entered(*edits: Edit) -> tuple[EditTable, int]:
    table = EditTable(2, LAYERS, HEADS, KV_HEADS)
    return table, table.insert(edits, prompt_length=PROMPT)


def gathered(local: torch.Tensor) -> torch.Tensor:
    assert local.device == META
    return local


COMPARED = {
    "ranking": HeadRanking(ON, ANSWER, VISUAL, 2, 0.5, 0),
    "choice": HeadChoice(ON, ANSWER, PROMPT - 1, VISUAL, 2, 2.0, True, 0),
    "choice by a twin": HeadChoice(ON, ANSWER, PROMPT - 1, VISUAL, 2, 2.0, True, 0, twin=True),
    "shift": GazeShift(SECOND, ANSWER, VISUAL, BESIDE, BESIDE, 0, 2, 5.0, 1.0, 0),
}


@pytest.mark.parametrize("name", COMPARED)
def test_heads_are_compared_on_the_device_and_nothing_waits_for_it(name: str) -> None:
    edit = COMPARED[name]
    table, slot = entered(edit, *BIASES)
    twin = {layer: torch.empty(HEADS, HEAD_DIM, device=META) for layer in range(LAYERS)}
    if isinstance(edit, GazeShift):
        comparer: Any = GazeShifter(table, slot, edit, gathered, {}, META)
    else:
        comparer = HeadComparer(table, slot, edit, gathered, {}, twin, META)
    acts = []
    for first, end in STEPS:
        acts.append(comparer.acts(first, end - first))
        rows = torch.empty(end - first + 3, HEADS, HEAD_DIM, device=META)
        item = np.array([slot, 3, end - first, first, 0], np.int32)
        for layer in range(LAYERS):
            comparer.carry_out(item, layer, NoInputs(rows), rows)
    assert acts == [name == "shift", True, True, True]
    known = comparer.known.values()
    assert all(each.device == META for each in known) and bool(known) is (name != "ranking")


class NoTable:
    def __init__(self) -> None:
        self.written: list[tuple[int, int]] = []

    def reserve(self, slot: int) -> None:
        pass

    def write(self, slot: int, layer: int, keys: torch.Tensor, count: torch.Tensor) -> None:
        assert keys.device == count.device == META and not count.shape
        self.written.append((slot, layer))


@pytest.mark.parametrize("only_needed", [False, True])
def test_tokens_are_flagged_on_the_device_and_nothing_waits_for_it(only_needed: bool) -> None:
    edit = FlagKeys(SECOND, Rows(0, PROMPT), (1, 5), 2.0, VISUAL, only_needed, 0)
    table, slot = entered(edit)
    found, flags = NoTable(), BlockFlags(LAYERS, 4, 8, META)
    looking = KeyFlags(table, slot, edit, flags, found, device=META)
    blocks = torch.empty(1, 4, dtype=torch.int32, device=META)
    for first, end in STEPS:
        looking.advance(np.array([slot, 3, end - first, first, 0], np.int32))
        for layer in range(LAYERS):
            states = torch.empty(end - first + 3, WIDTH, device=META)
            looking.look(layer, states[looking.tokens], blocks)
            looking.settle(layer, blocks)
    assert found.written == [(slot, 1), (slot, 1)]


class NoSums:
    device = META

    def summing(self, slot: int, heads: Any) -> Any:
        return None

    def found(self, slot: int, layer: int) -> list[list[int]]:
        return [[]] * HEADS


EDITS = {
    "plain": (),
    "logits": BIASES,
    "transfer": (MassTransfer(ON, Rows(5), KeyRanges(((0, 1),)), ALL_KEYS, 0.6, Gate(), 0),),
    "rolling window": (VisibleKeys(2, 8, True, 0),),
}


@pytest.mark.parametrize("name", EDITS)
def test_attention_is_recorded_on_the_device_and_nothing_waits_for_it(name: str) -> None:
    edits = EDITS[name]
    table, slot = entered(*edits)
    asked = Inspection(
        LENGTH, (0, 1), (0, 3), (0, 5, 21), (((0, 1),), ((2, 4), (6, 9))), PROMPT, QUANTITIES
    )
    recording = Recording(asked, edits, table, slot, NoSums())
    rope = Rope(10000.0 ** -(np.arange(HEAD_DIM // 2) / (HEAD_DIM // 2)))
    for first, end in STEPS:
        query = torch.empty(end - first, HEADS, HEAD_DIM, device=META)
        for layer in range(LAYERS):
            recording.observe(layer, LayerRows(query, NoPages(), first, 0.25, rope))
    assert recording.failure is None

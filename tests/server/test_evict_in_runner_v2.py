"""After an event the V2 runner's block table holds the targets, and slots of later rows are what they were.

The runner's block tables write from Triton kernels: a stand-in with their interface takes the host's place.
"""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.v1.worker.gpu.block_table import BlockTables
from vllm.v1.worker.gpu.buffer_utils import StagedWriteTensor

from heed_server.engine.messages import Event
from heed_server.engine.running.runner_v2 import EditsInRunner

SIZE, END = 16, 40
BLOCKS = {"a": [9, 8, 7], "b": [1, 2, 3, 4, 5]}
TARGETS = [11, 12]


class Staged:
    """`StagedWriteTensor`: writes wait until they are applied, and then have no order."""

    def __init__(self) -> None:
        self.gpu = torch.zeros(4, 8, dtype=torch.int32)
        self.waiting: list[tuple[int, int, list[int]]] = []

    def stage_write(self, index: int, start: int, x: Sequence[int]) -> None:
        self.waiting.append((index, start, list(x)))

    def apply_write(self) -> None:
        for index, start, blocks in reversed(self.waiting):
            self.gpu[index, start : start + len(blocks)] = torch.tensor(blocks, dtype=torch.int32)
        self.waiting = []


class Tables:
    """`BlockTables` of one group of layers."""

    append_block_ids = BlockTables.append_block_ids
    apply_staged_writes = BlockTables.apply_staged_writes
    redirect_writes_to_null_block = False
    num_kv_cache_groups = 1

    def __init__(self) -> None:
        counts = torch.zeros(1, 4, dtype=torch.int32).numpy()
        self.block_tables = [Staged()]
        self.num_blocks = SimpleNamespace(np=counts, copy_to_uva=lambda: None)

    def slots(self, index: int, positions: range) -> list[int]:
        """As `compute_slot_mappings`."""
        row = self.block_tables[0].gpu[index].tolist()
        return [row[position // SIZE] * SIZE + position % SIZE for position in positions]


class Runner(EditsInRunner):
    """As much of vLLM's runner as the seam touches."""

    def __init__(self, kept: dict[str, int | None]) -> None:
        self.seen: list[list[int]] = []
        self.block_tables = Tables()
        self.req_states = SimpleNamespace(req_id_to_index={"a": 2, "b": 0})
        for name, index in self.req_states.req_id_to_index.items():
            self.block_tables.append_block_ids(index, (BLOCKS[name],), overwrite=True)
        self.block_tables.apply_staged_writes()

        def evict(name: str, end: int, row: Any, targets: Sequence[int]) -> int | None:
            self.seen.append([int(block) for block in row[: len(BLOCKS[name])]])
            return kept[name]

        state: Any = SimpleNamespace(edited=SimpleNamespace(evict=evict))
        self.model_state = state

    def blocks(self, index: int, count: int) -> list[int]:
        row: list[int] = self.block_tables.block_tables[0].gpu[index].tolist()
        return row[:count]


def test_the_targets_come_first_and_later_rows_keep_their_slots() -> None:
    runner = Runner({"b": 20})
    later = range(END, 5 * SIZE)
    before = runner.block_tables.slots(0, later)
    assert runner.evict({"b": Event(END, TARGETS)}) == {"b": 20}
    assert runner.seen == [BLOCKS["b"]]
    assert runner.blocks(0, 5) == [*TARGETS, *BLOCKS["b"][2:]]
    assert runner.block_tables.slots(0, later) == before
    assert runner.block_tables.num_blocks.np[0, 0] == 5
    # The request goes on: its next block stands behind the others.
    runner.block_tables.append_block_ids(0, ([6],), overwrite=False)
    runner.block_tables.apply_staged_writes()
    assert runner.blocks(0, 6) == [*TARGETS, 3, 4, 5, 6]


def test_nothing_changes_where_nothing_was_let_go() -> None:
    runner = Runner({"a": None, "b": 18})
    assert runner.evict({"a": Event(END, [13]), "b": Event(END, TARGETS)}) == {"b": 18}
    assert runner.blocks(2, 3) == BLOCKS["a"]


def test_a_row_that_goes_to_another_request_in_the_next_step_is_all_that_requests() -> None:
    runner = Runner({"b": 20})
    runner.evict({"b": Event(END, TARGETS)})
    runner.block_tables.append_block_ids(0, ([13, 14, 15],), overwrite=True)
    runner.block_tables.apply_staged_writes()
    assert runner.blocks(0, 3) == [13, 14, 15]


def test_a_model_that_cannot_be_edited_evicts_nothing() -> None:
    runner = Runner({"b": 20})
    runner.model_state.edited = None
    assert runner.evict({"b": Event(END, TARGETS)}) == {}
    assert runner.blocks(0, 5) == BLOCKS["b"]


@pytest.mark.parametrize("name", ["gpu", "stage_write", "apply_write"])
def test_the_stand_in_has_what_vllms_own_has(name: str) -> None:
    assert hasattr(Staged(), name)
    assert name == "gpu" or hasattr(StagedWriteTensor, name)

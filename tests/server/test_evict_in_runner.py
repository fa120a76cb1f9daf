"""After an event both of vLLM's lists of a request's blocks hold the targets, whatever the batch does next."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from vllm.sampling_params import SamplingParams
from vllm.v1.worker.gpu_input_batch import CachedRequestState, InputBatch

from heed_server.engine.messages import Event
from heed_server.engine.running.runner_v1 import EditsInRunner

BLOCKS = {"a": [9, 8, 7], "b": [1, 2, 3, 4, 5]}
TARGETS = [11, 12]


class Runner(EditsInRunner):
    """As much of vLLM's runner as the seam touches: its own batch and its own record of requests."""

    def __init__(self, kept: int | None) -> None:
        self.input_batch = InputBatch(
            max_num_reqs=4, max_model_len=128, max_num_batched_tokens=64, device=torch.device("cpu"),
            vocab_size=16, block_sizes=[16], max_num_blocks_per_req=[8],
        )  # fmt: skip
        self.requests: dict[str, CachedRequestState] = {}
        for name, blocks in BLOCKS.items():
            self.requests[name] = CachedRequestState(
                name, [1] * 40, [], SamplingParams(), None, (list(blocks),), 40, []
            )
            self.input_batch.add_request(self.requests[name])
        self.input_batch.refresh_metadata()
        book: Any = SimpleNamespace(evict=lambda *event: kept)
        self.edited = book

    def blocks(self, name: str) -> list[int]:
        table: np.ndarray = self.input_batch.block_table[0].get_numpy_array()
        row = table[self.input_batch.req_id_to_index[name]]
        return [int(block) for block in row[: len(BLOCKS[name])]]


@pytest.mark.parametrize("name", ["a", "b"])
def test_the_targets_are_there_when_the_request_has_sat_a_step_out(name: str) -> None:
    runner = Runner(kept=20)
    assert runner.evict({name: Event(40, TARGETS)}) == {name: 20}
    after = [*TARGETS, *BLOCKS[name][2:]]
    assert runner.blocks(name) == after
    runner.input_batch.remove_request(name)
    runner.input_batch.condense()
    runner.input_batch.add_request(runner.requests[name])
    assert runner.blocks(name) == after


def test_they_move_with_the_request_when_the_batch_closes_a_gap() -> None:
    runner = Runner(kept=20)
    runner.evict({"b": Event(40, TARGETS)})
    runner.input_batch.remove_request("a")
    runner.input_batch.condense()
    assert runner.input_batch.req_id_to_index == {"b": 0}
    assert runner.blocks("b") == [*TARGETS, 3, 4, 5]


def test_both_lists_stay_where_nothing_was_let_go() -> None:
    runner = Runner(kept=None)
    assert runner.evict({"b": Event(40, TARGETS)}) == {}
    assert runner.blocks("b") == runner.requests["b"].block_ids[0] == BLOCKS["b"]

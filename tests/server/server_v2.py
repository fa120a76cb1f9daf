"""The real V2 runner's book-keeping and the real model state, without a model."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.server.cuda_standins import BACKENDS, CPU, input_batch, new_table, payload, spec
from tests.server.fake_kernel import HEAD_DIM, FakeKernel
from vllm.config import CUDAGraphMode
from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.output import NewRequestData, SchedulerOutput
from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheGroupSpec
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.model_runner import GPUModelRunner
from vllm.v1.worker.gpu.model_states.default import DefaultModelState
from vllm.v1.worker.gpu.states import RequestState
from vllm.v1.worker.utils import AttentionGroup

from heed_kernels.edits import Edit
from heed_server.engine.books.edited_requests import EditedRequests
from heed_server.engine.books.key_searches import KeySearches
from heed_server.engine.books.searches_cuda import SearchingOnCUDA
from heed_server.engine.payload import RESERVED_KEY, pack
from heed_server.engine.running.backend_triton import HeedTritonAttentionBackend
from heed_server.engine.running.device_edits import DeviceEdits
from heed_server.engine.running.runner_v2 import EditsInRunner, with_edits

SLOTS = 4
LAYER = "layers.0.attn"


class Slots(RequestState):  # type: ignore[misc]
    """The runner's request states without their device buffers."""

    def __init__(self) -> None:
        self.req_id_to_index: dict[str, int] = {}
        self.index_to_req_id: dict[int, str] = {}
        self.free_indices = list(range(SLOTS))

    def add_request(self, req_id: str, **_: Any) -> None:
        index = self.free_indices.pop()
        self.req_id_to_index[req_id], self.index_to_req_id[index] = index, req_id

    def apply_staged_writes(self) -> None:
        pass


class Server:
    """The real V2 runner's book-keeping and the real model state, without a model."""

    kernel: FakeKernel

    def __init__(self, *, editing: bool = True) -> None:
        table = new_table(SLOTS)
        self.on_device = DeviceEdits(
            table, CPU, most_tokens=64, most_requests=SLOTS, head_dim=HEAD_DIM, dtype=torch.float32
        )
        self.book = EditedRequests(table, KeySearches(SearchingOnCUDA(self.on_device.searches)))
        self.state: Any = with_edits(DefaultModelState).__new__(with_edits(DefaultModelState))
        self.state.rope_state = self.state.prompt_embeds_state = None
        self.state.supports_mm_inputs = False
        self.state.model_config = SimpleNamespace(max_model_len=128)

        runner: Any = type("Runner", (EditsInRunner, GPUModelRunner), {})
        self.runner = runner.__new__(runner)
        nothing = SimpleNamespace(
            add_request=lambda *_: None,
            remove_request=lambda *_: None,
            append_block_ids=lambda *_, **__: None,
        )
        for name, value in {
            "model_state": self.state,
            "req_states": Slots(),
            "block_tables": nothing,
            "lora_state": nothing,
            "is_last_pp_rank": False,
            "parallel_config": SimpleNamespace(data_parallel_size=1),
        }.items():
            setattr(self.runner, name, value)
        for name in (
            "sampler", "adaptive_verification", "pooling_runner", "encoder_cache", "pp_handler",
            "prompt_logprobs_worker",
        ):  # fmt: skip
            setattr(self.runner, name, None)
        if editing:
            self.runner.edit_with(self.book, self.on_device)
        group = AttentionGroup(HeedTritonAttentionBackend, [LAYER], spec(), 0)
        group.metadata_builders = [BACKENDS[1].builder(BACKENDS[1].heed("MetadataBuilder"))]
        self.groups = [[group]]
        self.cache = KVCacheConfig(8, [], [KVCacheGroupSpec([LAYER], spec())])

    def step(
        self,
        *batch: tuple[str, int, int],
        new: tuple[NewRequestData, ...] = (),
        finished: tuple[str, ...] = (),
        preempted: tuple[str, ...] = (),
        padded: int = 0,
    ) -> Any:
        """Execute one scheduler output: requests of the batch with their rows and first positions.

        Returns the layer's attention metadata, or None for an empty batch.
        """
        output = SchedulerOutput.make_empty()
        output.scheduled_new_reqs = list(new)
        output.finished_req_ids = set(finished)
        output.preempted_req_ids = set(preempted)
        self.runner.finish_requests(output)
        self.runner.add_requests(output)
        if not batch:
            return None
        names, lengths, positions = (list(column) for column in zip(*batch, strict=True))
        slots = [self.runner.req_states.req_id_to_index[name] for name in names]
        made = input_batch(names, slots, lengths, positions, padded)
        return self.prepare(made, full=padded > 0)

    def prepare(self, batch: InputBatch, *, full: bool = False, for_capture: bool = False) -> Any:
        mode = CUDAGraphMode.FULL if full else CUDAGraphMode.NONE
        rows = batch.num_reqs_after_padding
        metadata = self.state.prepare_attn(
            batch,
            mode,
            (torch.zeros(rows, 4, dtype=torch.int32),),
            torch.zeros(1, batch.num_tokens_after_padding, dtype=torch.int64),
            self.groups,
            self.cache,
            for_capture=for_capture,
        )
        return metadata[LAYER]

    def rows(self, layer: int = 0) -> list[list[int]]:
        """What the device is to compute: slot, first token, rows, first position, batch row."""
        plan = self.on_device._work.plan
        if plan is None:
            return []
        return sorted(item.tolist() for item in plan.items(layer))

    def slot(self, name: str) -> int:
        index: int = self.runner.req_states.req_id_to_index[name]
        return index

    def computed(self, report: str) -> list[list[int]]:
        taken = self.book.take([report])[report][0]["interventions"][0]["computed"]
        return [list(pair) for pair in taken]


def with_stand_ins(monkeypatch: pytest.MonkeyPatch) -> Server:
    """A server whose kernel writes down what it is asked for."""
    kernel = FakeKernel()
    kernel.install(monkeypatch)
    server = Server()
    server.kernel = kernel
    return server


def request(name: str, *edits: Edit, computed: int = 0, tokens: int = 10) -> NewRequestData:
    """A request as the scheduler announces it; `name` is its report's id too."""
    extra = {RESERVED_KEY: pack(payload(name, *edits))} if edits else None
    return NewRequestData(
        req_id=name,
        prompt_token_ids=[1] * 10,
        mm_features=[],
        sampling_params=SamplingParams(extra_args=extra),
        pooling_params=None,
        block_ids=([],),
        num_computed_tokens=computed,
        lora_request=None,
        prefill_token_ids=[1] * tokens,
    )

"""Stand-ins for what needs a GPU beside Heed's own kernel: vLLM's stock kernels, and a batch.

Everything else in the tests of the CUDA seams is vLLM's own: implementations, metadata builders and
metadata, model states, the runner's methods, the scheduler's output.
"""

import importlib
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.server.fake_kernel import BLOCK, HEAD_DIM, HEADS, KV_HEADS, LAYERS
from vllm.config import CUDAGraphMode
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.worker.gpu.input_batch import InputBatch, InputBuffers

from heed_kernels.edits import (
    ALL_KEYS,
    OPEN,
    Edit,
    FindKeys,
    FoundKeys,
    Gate,
    HeadGain,
    HeadSet,
    KeyRanges,
    MassTransfer,
    Rows,
)
from heed_kernels.table import EditTable
from heed_server.engine.payload import Payload
from heed_server.engine.running import backend_cuda
from heed_server.engine.running.attention_times import AttentionTimes, HostLap

CPU = torch.device("cpu")
STOCK, UNTOUCHED = -1.0, -2.0
"""What stands in an output row that is not Heed's: the stock kernel's mark, and nobody's."""


@dataclass(frozen=True)
class Stock:
    """One of vLLM's backends that are wrapped, and where it calls its kernel."""

    name: str
    module: str
    prefix: str
    kernel: str
    wrapped: str

    def stock(self, kind: str) -> Any:
        return getattr(importlib.import_module(self.module), self.prefix + kind)

    def heed(self, kind: str) -> Any:
        return getattr(importlib.import_module(self.wrapped), f"Heed{self.prefix}{kind}")

    def record(self, patch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
        """Replace the kernel by one that marks the rows it is called for; returns its calls."""
        calls: list[dict[str, Any]] = []

        def kernel(**arguments: Any) -> None:
            calls.append(arguments)
            arguments["out"].fill_(STOCK)

        patch.setattr(importlib.import_module(self.module), self.kernel, kernel)
        # Events need a GPU; every step is timed, so that all tests run what is timed.
        patch.setattr(backend_cuda, "TIMES", AttentionTimes(every=1, lap=HostLap))
        return calls

    def impl(self, cls: Any, **more: Any) -> Any:
        made = cls(HEADS, HEAD_DIM, 0.125, KV_HEADS, None, None, "auto", **more)
        if self.name == "FLASH_ATTN":
            made.vllm_flash_attn_version = 3  # there is none without a GPU
        return made

    def builder(self, cls: Any) -> Any:
        return cls(spec(), ["layers.0.attn"], builder_config(), CPU)


BACKENDS = [
    Stock(
        "FLASH_ATTN",
        "vllm.v1.attention.backends.flash_attn",
        "FlashAttention",
        "_FA4_DENSE_ATTENTION_KERNEL",
        "heed_server.engine.running.backend_flash",
    ),
    Stock(
        "TRITON_ATTN",
        "vllm.v1.attention.backends.triton_attn",
        "TritonAttention",
        "unified_attention",
        "heed_server.engine.running.backend_triton",
    ),
]


def spec() -> FullAttentionSpec:
    return FullAttentionSpec(
        block_size=BLOCK, num_kv_heads=KV_HEADS, head_size=HEAD_DIM, dtype=torch.float32
    )


def builder_config() -> Any:
    """As much of a `VllmConfig` as the two stock builders read."""
    return SimpleNamespace(
        model_config=SimpleNamespace(
            get_num_attention_heads=lambda parallel: HEADS,
            get_num_kv_heads=lambda parallel: KV_HEADS,
            get_head_size=lambda: HEAD_DIM,
            rswa_window=None,
            is_mm_prefix_lm=False,
            is_multimodal_model=True,
            hf_config=SimpleNamespace(model_type="llama"),
        ),
        parallel_config=SimpleNamespace(cp_kv_cache_interleave_size=1),
        cache_config=SimpleNamespace(cache_dtype="auto"),
        scheduler_config=SimpleNamespace(
            max_num_seqs=8, max_num_batched_tokens=64, max_num_scheduled_tokens=None
        ),
        attention_config=SimpleNamespace(flash_attn_max_num_splits_for_cuda_graph=32),
        kernel_config=SimpleNamespace(enable_jit_warmup=False),
        compilation_config=SimpleNamespace(
            static_forward_context={},
            cudagraph_mode=CUDAGraphMode.FULL_AND_PIECEWISE,
            cudagraph_capture_sizes=[1, 2, 4, 8],
            max_cudagraph_capture_size=8,
        ),
    )


def layer() -> Any:
    """As much of an attention layer as the stock `forward` reads."""
    one = torch.ones(())
    return SimpleNamespace(_q_scale=one, _k_scale=one, _v_scale=one)


def cache(blocks: int = 8, *, heads_first: bool = True) -> torch.Tensor:
    """[blocks, kv_heads, block_size, 2 * head_dim] in logical order, in either physical order."""
    if heads_first:
        return torch.zeros(blocks, KV_HEADS, BLOCK, 2 * HEAD_DIM)
    return torch.zeros(blocks, BLOCK, KV_HEADS, 2 * HEAD_DIM).transpose(1, 2)


def common_metadata(lengths: list[int], positions: list[int]) -> CommonAttentionMetadata:
    """A batch of requests with `lengths` query rows each, the first at `positions`."""
    starts = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    seq_lens = torch.tensor(np.add(lengths, positions), dtype=torch.int32)
    return CommonAttentionMetadata(
        query_start_loc=starts,
        query_start_loc_cpu=starts,
        seq_lens=seq_lens,
        num_reqs=len(lengths),
        num_actual_tokens=sum(lengths),
        max_query_len=max(lengths),
        max_seq_len=int(seq_lens.max()),
        block_table_tensor=torch.zeros(len(lengths), 4, dtype=torch.int32),
        slot_mapping=torch.zeros(sum(lengths), dtype=torch.int64),
    )


def input_batch(
    names: list[str], slots: list[int], lengths: list[int], positions: list[int], padded: int = 0
) -> InputBatch:
    """A V2 batch as `GPUModelRunner.prepare_inputs` makes it, with `padded` rows more for a graph."""
    requests, tokens = len(names), sum(lengths)
    buffers = InputBuffers(max_num_reqs=8, max_num_tokens=64, device=CPU)
    dummy = InputBatch.make_dummy(requests, tokens, buffers)
    starts = np.full(requests + padded + 1, tokens, np.int32)
    starts[0] = 0
    np.cumsum(lengths, out=starts[1 : requests + 1])
    seq_lens = torch.zeros(requests + padded, dtype=torch.int32)
    seq_lens[:requests] = torch.tensor(np.add(lengths, positions))
    return replace(
        dummy,
        req_ids=names,
        num_reqs_after_padding=requests + padded,
        num_tokens_after_padding=tokens + padded,
        idx_mapping_np=np.array(slots, np.intp),
        num_scheduled_tokens=np.array(lengths, np.int32),
        query_start_loc=torch.from_numpy(starts),
        query_start_loc_np=starts,
        seq_lens=seq_lens,
        seq_lens_cpu_upper_bound=seq_lens,
        num_computed_tokens_np=np.array(positions, np.int32),
    )


def gain(layers: set[int], rows: Rows | None = None) -> Edit:
    masks = tuple((1 << HEADS) - 1 if index in layers else 0 for index in range(LAYERS))
    return HeadGain(HeadSet(masks), rows or Rows(0, OPEN), 2.0, source=0)


def act(layers: set[int], *, ahead: bool, running: bool = False, prompt: int = 10) -> list[Edit]:
    """A search in some layers, and the transfer from what it finds."""
    on = HeadSet(tuple((1 << HEADS) - 1 if index in layers else 0 for index in range(LAYERS)))
    counted = Rows(0, OPEN if running else prompt)
    nothing = KeyRanges(())
    return [
        FindKeys(on, counted, 0.1, 1, 8, nothing, True, 0, prompt=prompt, ahead=ahead),
        MassTransfer(on, Rows(0, OPEN), FoundKeys(), ALL_KEYS, 0.6, Gate(), 0),
    ]


def payload(report: str, *edits: Edit, prompt_length: int = 10) -> Payload:
    return Payload(report, 1, prompt_length, publication_limit=None, edits=edits)


def new_table(slots: int = 8) -> EditTable:
    return EditTable(slots=slots, layers=LAYERS, query_heads=HEADS, kv_heads=KV_HEADS)

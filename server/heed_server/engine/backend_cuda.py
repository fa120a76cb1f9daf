"""CUDA attention seam: the stock backend's kernel, then Heed's over the edited rows of the same step.

`backend_flash.py` and `backend_triton.py` lay these classes over the two backends of vLLM that can be
wrapped, and are registered under their names: which backend runs is decided by vLLM and its flags as
ever. Both keep their cache as [blocks, kv_heads, block_size, 2 * head_dim], write it before
`forward`, and read lengths and block table from the metadata.

What a step runs:

- No edited row: the stock call with the stock metadata, and nothing else.
- Edited rows in an eager step (piecewise graphs run attention eagerly): the stock call over the
  whole batch with its metadata untouched, then the step's observers, then Heed's kernel, which
  overwrites the edited rows, then comparers of heads, which multiply outputs. A layer with no active
  row skips Heed's kernel; a layer in which every row of the batch is active skips the stock one.
- A captured step: both launches are in the graph. Heed's reads its work from buffers that are
  filled before each replay and finds none in a plain step. Observers, watchers and comparers are not
  in a graph: in steps that have some, runners keep attention out of it (`EditedRequests.looks_at`).

Edited requests are not cut out of the stock call, although their part of it is wasted. Plain rows
must keep their bits, and stock kernels decide how to split the keys of one request by what the whole
call looks like: FlashAttention 3 makes its schedule from all lengths of the batch, FlashAttention 2
from the number of requests and the longest one. Cutting the lengths alone would be safe in the
Triton kernel and in FlashAttention 2, but a length cannot go below the number of query rows, so it
would save nothing in a prefill of one chunk, nor in a replayed graph, whose lengths are the runner's
own buffer.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from vllm.config import VllmConfig
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.quantization.utils.quant_utils import kFp8StaticTensorSym

from heed_kernels.rope import Rope
from heed_server.engine import step
from heed_server.engine.attention_times import NOT_TIMED, AttentionTimes, StepTimes
from heed_server.engine.device_edits import DeviceEdits
from heed_server.engine.step import Comparer, Observer, StepEdits, Watcher

HEAD_DIMS = range(32, 257)
"""Head dimensions that Heed's kernel is made for."""


class Edited(Protocol):
    """What the stock metadata carries as its attribute `edited` where a step may have edited rows."""

    observers: Sequence[Observer]
    watchers: Sequence[Watcher]
    comparers: Sequence[Comparer]

    def kernels(self, layer: int) -> tuple[bool, bool]:
        """Whether the stock kernel and Heed's have to run in `layer`."""
        ...


class EditedStep:
    """An eager step with edited rows. alone: no request of its batch is without edits."""

    def __init__(self, edits: StepEdits, *, alone: bool) -> None:
        self._plan, self._alone = edits.plan, alone
        self.observers, self.watchers = edits.observers, edits.watchers
        self.comparers = edits.comparers
        self._known: dict[int, tuple[bool, bool]] = {}

    def kernels(self, layer: int) -> tuple[bool, bool]:
        """See `Edited`; asked once per layer, so decided once per pattern."""
        pattern = self._plan.pattern(layer)
        if pattern not in self._known:
            work = self._plan.work(layer)
            stock = not self._alone or bool(work.stock_needed.any())
            self._known[pattern] = stock, len(work.items) > 0
        return self._known[pattern]


class Captured:
    """A step that is captured in a graph: what a replay will hold is not known yet."""

    observers: Sequence[Observer] = ()
    watchers: Sequence[Watcher] = ()
    comparers: Sequence[Comparer] = ()

    def kernels(self, layer: int) -> tuple[bool, bool]:
        """See `Edited`."""
        return True, True


class EditingBuilder:
    """Put before a stock metadata builder: a step with edited rows carries them along in `edited`.

    CUDA-graph support is the stock builder's: Heed's launch has a fixed grid and reads all else
    from buffers at fixed addresses, so it can be captured wherever the stock one can.
    """

    times: AttentionTimes | None = None
    """Of this worker, from when all graphs are captured on: vLLM makes backends, and hands them nothing of the
    worker's."""

    def build(
        self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False
    ) -> Any:
        """As the stock builder."""
        metadata = super().build(common_prefix_len, common_attn_metadata, fast_build)  # type: ignore[misc]
        if EditingBuilder.times is not None:
            generates = common_attn_metadata.max_query_len == 1
            times = EditingBuilder.times.begin("generation" if generates else "prompt")
            if times is not None:
                metadata.times = times
        edits = step.current()
        if edits is not None:
            alone = common_attn_metadata.num_reqs == len(edits.rows)
            metadata.edited = EditedStep(edits, alone=alone)
        return metadata

    def build_for_cudagraph_capture(self, common_attn_metadata: Any) -> Any:
        """As the stock builder."""
        metadata = super().build_for_cudagraph_capture(common_attn_metadata)  # type: ignore[misc]
        metadata.edited = Captured()
        return metadata


class EditingImpl:
    """Put before a stock implementation: rows that are edited in this layer are Heed's.

    The worker sets the attributes once the model is loaded and the kernel compiled; on a model whose
    requests cannot be edited they stay as they are and `forward` is the stock one.
    """

    edits: DeviceEdits | None = None
    rope: Rope | None = None
    """Rotary embedding of this layer where rolling positions can be had."""
    layer_id: int = -1

    def forward(
        self,
        layer: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: Any,
        output: torch.Tensor,
        output_scale: torch.Tensor | None = None,
        output_block_scale: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As the stock `forward`; shapes [tokens, query_heads, head_dim] for query and output."""
        # vLLM's runs for memory profiling have no metadata.
        edited: Edited | None = getattr(attn_metadata, "edited", None)
        if self.edits is None:
            edited = None
        times: StepTimes = getattr(attn_metadata, "times", NOT_TIMED)
        stock, heed = edited.kernels(self.layer_id) if edited is not None else (True, False)
        if stock:
            with times.stock:
                super().forward(  # type: ignore[misc]
                    layer, query, key, value, kv_cache, attn_metadata, output,
                    output_scale, output_block_scale,
                )  # fmt: skip
        if edited is None or self.edits is None:
            return output
        if heed or edited.observers or edited.comparers:
            with times.edited:
                self._edit(self.edits, edited, heed, query, kv_cache, attn_metadata, output)
        return output

    def _edit(
        self,
        edits: DeviceEdits,
        edited: Edited,
        heed: bool,
        query: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: Any,
        output: torch.Tensor,
    ) -> None:
        """Let observers look, write the edited rows where there are some, and let comparers look."""
        key_cache, value_cache = split_cache(kv_cache)
        tensors = query, key_cache, value_cache, attn_metadata.block_table
        of_layer = {"layer": self.layer_id, "scale": self.scale, "rope": self.rope}  # type: ignore[attr-defined]
        if edited.observers:
            edits.observe(edited.observers, *tensors, **of_layer)
        if heed:
            edits.attend(*tensors, output, **of_layer)
        if edited.comparers:
            edits.compare(edited.comparers, *tensors, output, **of_layer)


def split_cache(kv_cache: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Key and value views [blocks, block_size, kv_heads, head_dim] of one layer's cache.

    kv_cache: [blocks, kv_heads, block_size, 2 * head_dim] in logical order, whatever lies behind it.
    """
    key_cache, value_cache = kv_cache.transpose(1, 2).chunk(2, dim=-1)
    return key_cache, value_cache


def obstacles(config: VllmConfig, layers: dict[int, Attention]) -> Iterable[str]:
    """Why requests cannot be edited on this GPU, beyond what holds on every device."""
    parallel, model = config.parallel_config, config.model_config
    if parallel.prefill_context_parallel_size > 1:
        yield "the server runs with prefill context parallelism"
    if parallel.use_ubatching:
        yield "the server runs with dual batch overlap"
    if model.rswa_window is not None:
        yield "the model keeps its prompt in view of a sliding window (R-SWA)"
    if config.attention_config.use_non_causal:
        yield "the model's decoder attention is not causal"
    for index, layer in sorted(layers.items()):
        impl: Any = layer.impl
        if not isinstance(impl, EditingImpl):
            yield (
                f"vLLM runs attention in {layer.attn_backend.get_name()}, whose rows Heed cannot"
                " edit; start the server with --attention-backend FLASH_ATTN or TRITON_ATTN"
            )
        if layer.head_size not in HEAD_DIMS:
            yield (
                f"the model's heads have {layer.head_size} dimensions, and Heed's kernel takes"
                f" {HEAD_DIMS.start} to {HEAD_DIMS.stop - 1}"
            )
        if layer.kv_cache_torch_dtype != layer.dtype:
            yield f"layer {index} keeps keys and values in another type than the model's"
        if getattr(impl, "chunk_lookback", -1) > -1:
            yield f"layer {index} attends to chunks of its context"
        # The stock kernel then writes rows in the quantised type of the next layer's input.
        fused = config.compilation_config.pass_config.fuse_attn_quant
        if fused and impl.fused_output_quant_supported(kFp8StaticTensorSym):
            yield "vLLM fuses quantisation into the attention (fuse_attn_quant)"

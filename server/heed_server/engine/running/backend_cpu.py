"""CPU attention seam: stock attention for plain rows, Heed's kernel for edited rows of the same step.

Registered in place of `CPU_ATTN`. A step without edited rows goes straight to the stock class. In a
step with some, each layer runs the stock kernel over the requests that have at least one row without
an edit there, untouched when that is all of them; then the step's observers look at the weights, Heed's
kernel writes the edited rows, and comparers of heads multiply outputs.
"""

from typing import Any

import torch
from vllm import _custom_ops as ops
from vllm import envs
from vllm.model_executor.models.utils import extract_layer_index
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadata,
    CPUAttentionMetadataBuilder,
)

from heed_kernels.cpu.attention import attend
from heed_kernels.cpu.layout import Layout
from heed_kernels.cpu.search import LayerInputs
from heed_kernels.rope import Rope
from heed_server.engine.running import step
from heed_server.engine.running.attention_times import NOT_TIMED, AttentionTimes, StepTimes
from heed_server.engine.running.step import StepEdits

TIMES = AttentionTimes()
"""Of this worker: vLLM makes backends, and hands them nothing of the worker's."""


class EditedStep:
    """One step's edited rows beside the stock metadata, and the stock metadata of the other rows."""

    def __init__(
        self,
        edits: StepEdits,
        stock: CPUAttentionMetadata,
        builder: "HeedCPUMetadataBuilder",
    ) -> None:
        self.table, self.plan, self.observers = edits.table, edits.plan, edits.observers
        self.watchers, self.comparers = edits.watchers, edits.comparers
        self._rows = torch.from_numpy(edits.rows).long()
        self._stock = stock
        self._builder = builder
        self._subsets: dict[int, tuple[CPUAttentionMetadata, torch.Tensor] | None] = {}

    def stock_everywhere(self, layer: int) -> bool:
        """Whether the stock kernel has to run every request of the batch in `layer`."""
        return bool(self.plan.stock_needed(layer).all())

    def stock_subset(self, layer: int) -> tuple[CPUAttentionMetadata, torch.Tensor] | None:
        """Stock metadata over the requests it has to run in `layer`, and their tokens' flat indices.

        None when there is none. Layers with equal activity share one result.
        """
        pattern = self.plan.pattern(layer)
        if pattern not in self._subsets:
            self._subsets[pattern] = self._build_subset(layer)
        return self._subsets[pattern]

    def _build_subset(self, layer: int) -> tuple[CPUAttentionMetadata, torch.Tensor] | None:
        stock = self._stock
        keep = torch.ones(len(stock.seq_lens), dtype=torch.bool)
        keep[self._rows] = torch.from_numpy(self.plan.stock_needed(layer))
        rows = keep.nonzero().squeeze(1)
        if len(rows) == 0:
            return None
        lengths = stock.query_start_loc.diff()
        tokens = torch.repeat_interleave(keep, lengths.long()).nonzero().squeeze(1)
        starts = torch.zeros(len(rows) + 1, dtype=stock.query_start_loc.dtype)
        torch.cumsum(lengths[rows], 0, out=starts[1:])
        seq_lens = stock.seq_lens[rows]
        builder = self._builder
        return CPUAttentionMetadata(
            num_actual_tokens=len(tokens),
            max_query_len=int(lengths[rows].max()),
            query_start_loc=starts,
            max_seq_len=int(seq_lens.max()),
            seq_lens=seq_lens,
            block_table=stock.block_table[rows],
            slot_mapping=stock.slot_mapping,
            scheduler_metadata=ops.cpu_attn_get_scheduler_metadata(
                num_reqs=len(rows),
                num_heads=builder.num_heads,
                num_kv_heads=builder.num_kv_heads,
                head_dim=builder.head_dim,
                seq_lens=seq_lens,
                dtype=builder.dtype,
                query_start_loc=starts,
                causal=stock.causal,
                sliding_window_size=builder.window_size,
                isa=builder.isa,
                enable_kv_split=envs.VLLM_CPU_ATTN_SPLIT_KV,
                dynamic_causal=None,
                kv_cache_dtype=builder.kv_cache_dtype,
            ),
            causal=stock.causal,
        ), tokens


class HeedCPUMetadataBuilder(CPUAttentionMetadataBuilder):  # type: ignore[misc]
    """The stock builder; a step with edited rows carries them along in `edited`, and one that is timed
    its laps in `times`."""

    def build(
        self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False
    ) -> CPUAttentionMetadata:
        metadata = super().build(common_prefix_len, common_attn_metadata, fast_build)
        times = TIMES.begin("generation" if metadata.max_query_len == 1 else "prompt")
        if times is not None:
            metadata.times = times
        edits = step.current()
        if edits is not None:
            metadata.edited = EditedStep(edits, metadata, self)
        return metadata


class HeedCPUImpl(CPUAttentionBackendImpl):  # type: ignore[misc]
    """The stock implementation, with edited rows written by Heed's kernel."""

    rope: Rope | None = None
    """Rotary embedding of this layer where rolling positions can be had; set once the model is loaded."""
    layout: Layout | None = None
    """How keys and values lie in a cache page of this layer; set with `rope`."""

    _layer: int | None = None

    def forward(
        self,
        layer: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: CPUAttentionMetadata | None,
        output: torch.Tensor,
        output_scale: torch.Tensor | None = None,
        output_block_scale: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As the stock `forward`; shapes [tokens, query_heads, head_dim] for query and output."""
        edited: EditedStep | None = getattr(attn_metadata, "edited", None)
        times: StepTimes = getattr(attn_metadata, "times", NOT_TIMED)
        if edited is None:
            with times.stock:
                super().forward(
                    layer, query, key, value, kv_cache, attn_metadata, output,
                    output_scale, output_block_scale,
                )  # fmt: skip
            return output
        assert attn_metadata is not None
        if self._layer is None:
            self._layer = extract_layer_index(layer.layer_name)
        with times.stock:
            if edited.stock_everywhere(self._layer):
                super().forward(layer, query, key, value, kv_cache, attn_metadata, output)
            elif (subset := edited.stock_subset(self._layer)) is not None:
                metadata, tokens = subset
                rows = torch.empty((len(tokens), *output.shape[1:]), dtype=output.dtype)
                super().forward(layer, query[tokens], key, value, kv_cache, metadata, rows)
                output.index_copy_(0, tokens, rows)
        with times.edited:
            self._edit(self._layer, edited, query, kv_cache, attn_metadata, output)
        return output

    def _edit(
        self,
        layer: int,
        edited: EditedStep,
        query: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: CPUAttentionMetadata,
        output: torch.Tensor,
    ) -> None:
        """Let the observers look, and write the edited rows; the step's keys are in the cache."""
        assert self.layout is not None
        inputs = LayerInputs(
            query, kv_cache, attn_metadata.block_table, self.scale, self.rope, self.layout
        )
        for observer in edited.observers:
            observer.before_edits(layer, inputs)
        attend(
            query=query,
            output=output,
            kv_cache=kv_cache,
            block_table=attn_metadata.block_table,
            table=edited.table,
            plan=edited.plan,
            layer=layer,
            scale=self.scale,
            rope=self.rope,
            layout=self.layout,
        )
        for comparer in edited.comparers:
            comparer.after_edits(layer, inputs, output)


class HeedCPUBackend(CPUAttentionBackend):  # type: ignore[misc]
    """Takes the place of `CPU_ATTN` and keeps its name."""

    @staticmethod
    def get_impl_cls() -> type[HeedCPUImpl]:
        return HeedCPUImpl

    @staticmethod
    def get_builder_cls() -> type[HeedCPUMetadataBuilder]:
        return HeedCPUMetadataBuilder

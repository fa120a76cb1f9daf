"""What a GPU holds of edited requests: its copy of the edit table, and the edited rows of the step at hand.

No vLLM here: a runner tells it what a step holds, the attention layers call the kernel through it.
"""

import torch

from heed_kernels.plan import Plan
from heed_kernels.rope import Rope
from heed_kernels.table import EditTable


class DeviceEdits:
    """Buffers at fixed addresses, so that a CUDA graph which was captured once meets each step's edits.

    most_tokens, most_requests: upper bounds of a step.
    """

    def __init__(
        self, table: EditTable, device: torch.device, most_tokens: int, most_requests: int
    ) -> None:
        # Triton is not on every machine that serves.
        import heed_kernels.triton as triton

        # No method finds keys on the device as yet, and room for them would come out of the KV cache.
        self._table = triton.DeviceTable(table, device, find=False)
        self._work = triton.StepWork(self._table, most_tokens, most_requests)
        self._attend, self._warm_up = triton.attend, triton.warm_up
        self._work.fill(None)
        self._empty = True

    def load(self, plan: Plan | None) -> None:
        """Put a step's edited rows on the device (None: it has none). Call before its forward.

        Everything is copied on the current stream, on which the forward follows and the one before
        it has been put. After the first step without edits further ones cost nothing, and the
        launches in a replayed graph find no work.
        """
        if plan is not None:
            self._table.sync()
            self._work.fill(plan)
        elif not self._empty:
            self._work.fill(None)
        self._empty = plan is None

    def attend(
        self,
        query: torch.Tensor,
        output: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        block_table: torch.Tensor,
        *,
        layer: int,
        scale: float,
        rope: Rope | None,
    ) -> None:
        """Compute the rows that are edited in `layer` into `output`; the others are left alone.

        query, output: [tokens, local_query_heads, head_dim]; key_cache, value_cache: [blocks,
        block_size, local_kv_heads, head_dim] with any strides but the last, which is 1;
        block_table: int32 [requests, blocks].
        """
        self._attend(
            query=query,
            output=output,
            key_cache=key_cache,
            value_cache=value_cache,
            block_table=block_table,
            table=self._table,
            work=self._work,
            layer=layer,
            scale=scale,
            rope=rope,
        )

    def warm_up(
        self,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        *,
        dtype: torch.dtype,
        scale: float,
        ropes: list[Rope | None],
    ) -> None:
        """Compile what `attend` may launch on these caches, for queries and outputs of `dtype`.

        ropes: the rotary embedding of each layer. Neither compiling nor copying one to the device
        may happen while a graph is captured, or while a request waits.
        """
        self._warm_up(
            self._table, self._work, key_cache, value_cache, dtype=dtype, scale=scale, ropes=ropes
        )

"""Worker seam, the part that all devices share: answers for the API process, and the book of edited requests."""

from dataclasses import asdict
from typing import Any

import torch
from numpy.typing import NDArray
from vllm.config import VllmConfig
from vllm.distributed import get_tp_group
from vllm.v1.outputs import AsyncModelRunnerOutput

from heed_kernels.table import EditTable
from heed_server.engine.books.edited_requests import EditedRequests
from heed_server.engine.messages import (
    EVICTED,
    EVICTING,
    FAILED,
    NOT_KEPT,
    ORDERS,
    RELEASED,
    Orders,
)
from heed_server.engine.model.model_support import ModelSupport
from heed_server.engine.running.attention_times import Sample


class EditsInWorker:
    """Put before a worker class."""

    vllm_config: VllmConfig
    model_runner: Any
    edited: EditedRequests | None = None
    """None until the model is loaded, and on a model whose requests cannot be edited."""

    _support: ModelSupport
    _told: dict[str, Any]
    """What the scheduler is told with the last step's answer, by attribute; empty ones are left out."""

    @torch.inference_mode()
    def execute_model(self, scheduler_output: Any) -> Any:
        """As in vLLM's workers; what the scheduler says of kept counts and of freed memory is carried out, and
        keys are let go when the step has run."""
        if self.edited is not None and self.edited.searches is not None:
            self.edited.searches.order(getattr(scheduler_output, ORDERS, Orders()))
        released = getattr(scheduler_output, RELEASED, {})
        # Before: requests that have ended leave the book in this step.
        if self.edited is not None:
            self.edited.released(released)
        result = super().execute_model(scheduler_output)  # type: ignore[misc]
        # Afterwards: a request that is new in this step has been entered by now.
        if self.edited is not None:
            self.edited.released(released)
        self._told = self._answers(scheduler_output)
        return result

    def sample_tokens(self, grammar_output: Any) -> Any:
        """As in vLLM's workers; tells the scheduler what evictions have kept, searches have not, and which
        requests were not edited as they should be."""
        output = super().sample_tokens(grammar_output)  # type: ignore[misc]
        told = {name: value for name, value in self._told.items() if value}
        if told and isinstance(output, AsyncModelRunnerOutput):
            # The answer is made when it is asked for.
            stock = output.get_output
            output.get_output = lambda: with_attributes(stock(), told)
            return output
        return with_attributes(output, told)

    def _answers(self, scheduler_output: Any) -> dict[str, Any]:
        if self.edited is None:
            return {}
        events = getattr(scheduler_output, EVICTING, None)
        searches = self.edited.searches
        return {
            EVICTED: self.model_runner.evict(events) if events else {},
            NOT_KEPT: searches.not_kept() if searches is not None else [],
            FAILED: self.edited.take_failed(),
        }

    def heed_describe(self) -> dict[str, Any]:
        """The model's shape and whether its requests can be edited, as plain values."""
        # vLLM may have fitted the length to the memory since the model was loaded.
        max_length = self.vllm_config.model_config.max_model_len
        scheduling = self.vllm_config.scheduler_config
        step = scheduling.max_num_scheduled_tokens or scheduling.max_num_batched_tokens
        known: dict[str, Any] = {"max_length": max_length, "longest_step": step}
        group = self._cache_group()
        if group is not None:
            # One block is vLLM's own, for what is not there.
            blocks = self.model_runner.kv_cache_config.num_blocks - 1
            known |= {"kv_blocks": blocks, "block_size": group.kv_cache_spec.block_size}
        return asdict(self._support) | known

    def heed_reports(self, report_ids: list[str]) -> dict[str, dict[int, dict[str, Any]]]:
        """What ran for these engine requests, by report id and choice (`EditedRequests.take`)."""
        if self.edited is None:
            return {}
        return self.edited.take(report_ids, self._block_bytes())

    def heed_inspection(self, report_id: str) -> dict[str, Any] | None:
        """What was measured for this engine request (`InspectedRequests.take`)."""
        if self.edited is None or self.edited.inspected is None:
            return None
        return self.edited.inspected.take(report_id)

    def heed_gauges(self) -> dict[str, Any]:
        """Rows of the edit table in use, and what was sampled since the last call, as plain values."""
        sinks = self.edited.sinks if self.edited is not None else None
        return {
            "edit_table_rows": self.edited.rows_in_use if self.edited is not None else 0,
            "attention_seconds": self._attention_times(),
            "sink_mass": sinks.take() if sinks is not None else [],
        }

    def _attention_times(self) -> list[Sample]:
        """Samples of how long attention takes, on devices where it can be timed without waiting."""
        return []

    def _cache_group(self) -> Any:
        """The one group of layers that share block tables; None where there are several, or no cache yet."""
        cache: Any = getattr(self.model_runner, "kv_cache_config", None)
        groups = cache.kv_cache_groups if cache is not None else []
        return groups[0] if len(groups) == 1 else None

    def _block_bytes(self) -> int:
        """Bytes of one KV block over all layers and ranks."""
        group = self._cache_group()
        if group is None:
            return 0
        ranks: int = self.vllm_config.parallel_config.tensor_parallel_size
        return int(group.kv_cache_spec.page_size_bytes) * len(group.layer_names) * ranks

    def _new_table(self, *, multiplies: bool = False) -> EditTable:
        """multiplies: see `EditTable`."""
        support = self._support
        return EditTable(
            slots=self.vllm_config.scheduler_config.max_num_seqs,
            layers=support.layers,
            query_heads=support.query_heads,
            kv_heads=support.kv_heads,
            head_start=support.head_start,
            local_query_heads=support.local_query_heads,
            multiplies=multiplies,
        )


def with_attributes(output: Any, told: dict[str, Any]) -> Any:
    """`output` with further attributes."""
    for name, value in told.items():
        setattr(output, name, value)
    return output


def gathered(local: NDArray[Any]) -> NDArray[Any]:
    """[local heads, ...] of every tensor-parallel rank, put together in the order of the ranks."""
    return gathered_heads(torch.from_numpy(local)).numpy()


def gathered_heads(local: torch.Tensor) -> torch.Tensor:
    """As `gathered`, of a tensor wherever it is. On a GPU nothing waits for it."""
    group = get_tp_group()
    if group.world_size == 1:
        return local
    mine = local.contiguous()
    parts = [torch.empty_like(mine) for _ in range(group.world_size)]
    # Not the group's own method: the one for shared memory takes no float64.
    among = group.device_group if mine.is_cuda else group.cpu_group
    torch.distributed.all_gather(parts, mine, group=among)
    return torch.cat(parts)

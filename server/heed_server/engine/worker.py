"""Worker seam, the part that all devices share: answers for the API process, and the book of edited requests."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from vllm.config import VllmConfig

from heed_kernels.table import EditTable
from heed_server.engine.attention_times import Sample
from heed_server.engine.edited_requests import EditedRequests
from heed_server.engine.kept_counts import ORDERS, Orders
from heed_server.engine.kv_release import RELEASED
from heed_server.engine.model_support import ModelSupport

if TYPE_CHECKING:
    from heed_server.engine.key_searches import KeySearches


class EditsInWorker:
    """Put before a worker class."""

    vllm_config: VllmConfig
    model_runner: Any
    edited: EditedRequests | None = None
    """None until the model is loaded, and on a model whose requests cannot be edited."""

    _support: ModelSupport
    _failed: list[str]
    """Requests that the last step could not edit (`publication.FAILED`)."""

    def execute_model(self, scheduler_output: Any) -> Any:
        """As in vLLM's workers; what the scheduler says of kept counts and of freed memory is carried out."""
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
        self._failed = self.edited.take_failed() if self.edited is not None else []
        return result

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

    def _new_book(self) -> EditedRequests:
        support = self._support
        table = EditTable(
            slots=self.vllm_config.scheduler_config.max_num_seqs,
            layers=support.layers,
            query_heads=support.query_heads,
            kv_heads=support.kv_heads,
            head_start=support.head_start,
            local_query_heads=support.local_query_heads,
        )
        return EditedRequests(table, self._searches(table))

    def _searches(self, table: EditTable) -> "KeySearches | None":
        """The book of searches for keys, on devices that can observe weights."""
        return None

"""CPU worker seam: loads the runner that knows edits, prepares the kernel, and answers the API process."""

from dataclasses import asdict
from typing import Any

from vllm.logger import init_logger
from vllm.v1.worker import cpu_worker
from vllm.v1.worker.cpu_model_runner import CPUModelRunner

from heed_kernels.table import EditTable
from heed_server.engine import warm_up
from heed_server.engine.backend_cpu import HeedCPUImpl
from heed_server.engine.edited_requests import EditedRequests
from heed_server.engine.model_support import (
    ModelSupport,
    attention_layers,
    model_support,
    rope_by_layer,
)
from heed_server.engine.runner_v1 import EditsInRunner

logger = init_logger("vllm.heed.worker")


class HeedCPUModelRunner(EditsInRunner, CPUModelRunner):  # type: ignore[misc]
    """vLLM's CPU runner with edits."""


class HeedCPUWorker(cpu_worker.CPUWorker):  # type: ignore[misc]
    """vLLM's CPU worker with edits."""

    _support: ModelSupport

    def init_device(self) -> None:
        # The stock method makes the runner by name.
        stock = cpu_worker.CPUModelRunner
        cpu_worker.CPUModelRunner = HeedCPUModelRunner
        try:
            super().init_device()
        finally:
            cpu_worker.CPUModelRunner = stock

    def compile_or_warm_up_model(self) -> Any:
        times = super().compile_or_warm_up_model()
        self._support = model_support(
            self.vllm_config, self.model_runner.get_model(), self._backend()
        )
        layers = attention_layers(self.vllm_config)
        seconds = warm_up.stock_attention(self.vllm_config, layers)
        if self._support.unsupported is None:
            seconds += self._prepare_edits(layers)
            logger.info("Heed: worker warmed up in %.1f s", seconds)
        else:
            logger.info("Heed: edited requests are refused: %s", self._support.unsupported)
        return times

    def heed_describe(self) -> dict[str, Any]:
        """The model's shape and whether its requests can be edited, as plain values."""
        return asdict(self._support)

    def heed_reports(self, report_ids: list[str]) -> dict[str, dict[int, dict[str, Any]]]:
        """What ran for these engine requests, by report id and choice (`EditedRequests.take`)."""
        edited = self._edited()
        return edited.take(report_ids) if edited is not None else {}

    def heed_gauges(self) -> dict[str, int]:
        """Rows of the edit table in use."""
        edited = self._edited()
        return {"edit_table_rows": edited.rows_in_use if edited is not None else 0}

    def _backend(self) -> str | None:
        if isinstance(self.model_runner, EditsInRunner):
            return "cpu"
        return None

    def _edited(self) -> EditedRequests | None:
        return getattr(self.model_runner, "edited", None)

    def _prepare_edits(self, layers: dict[int, Any]) -> float:
        support = self._support
        ropes = rope_by_layer(self.model_runner.get_model())
        layout, seconds = warm_up.edited_attention(self.vllm_config, layers)
        for index, layer in layers.items():
            impl = layer.impl
            assert isinstance(impl, HeedCPUImpl)
            impl.rope, impl.layout = ropes.get(index), layout
        self.model_runner.edited = EditedRequests(
            EditTable(
                slots=self.vllm_config.scheduler_config.max_num_seqs,
                layers=support.layers,
                query_heads=support.query_heads,
                kv_heads=support.kv_heads,
                head_start=support.head_start,
                local_query_heads=support.local_query_heads,
            )
        )
        return seconds

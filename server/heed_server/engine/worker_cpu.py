"""CPU worker seam: loads the runner that knows edits, and prepares the kernel."""

from typing import Any

from vllm.logger import init_logger
from vllm.v1.worker import cpu_worker
from vllm.v1.worker.cpu_model_runner import CPUModelRunner

from heed_kernels.beside.flags import BlockFlags
from heed_kernels.cpu.flags import FoundOnCPU
from heed_server.engine.books.compared_heads import ComparedHeads
from heed_server.engine.books.edited_requests import EditedRequests
from heed_server.engine.books.evicting_requests import EvictingRequests
from heed_server.engine.books.evictions_cpu import EvictingOnCPU
from heed_server.engine.books.flagged_tokens import FlaggedTokens
from heed_server.engine.books.inspected_requests import InspectedRequests
from heed_server.engine.books.inspections_cpu import InspectingOnCPU
from heed_server.engine.books.key_searches import KeySearches
from heed_server.engine.books.searches_cpu import SearchingOnCPU
from heed_server.engine.books.sink_samples import SinkSamples
from heed_server.engine.books.twins import Twins
from heed_server.engine.model.image_tower import ClassToken
from heed_server.engine.model.layer_inputs import watch_inputs
from heed_server.engine.model.longer_streams import (
    lengthen_rotary_tables,
    room_for_streams,
    streaming_length,
)
from heed_server.engine.model.model_support import attention_layers, model_support, rope_by_layer
from heed_server.engine.running import warm_up
from heed_server.engine.running.attention_times import Sample
from heed_server.engine.running.backend_cpu import TIMES, HeedCPUImpl
from heed_server.engine.running.heap import Heap
from heed_server.engine.running.runner_v1 import EditsInRunner
from heed_server.engine.running.seeded_chunks import SeededChunks
from heed_server.engine.worker import EditsInWorker, gathered, gathered_heads

logger = init_logger("vllm.heed.worker")


class HeedCPUModelRunner(EditsInRunner, SeededChunks, CPUModelRunner):  # type: ignore[misc]
    """vLLM's CPU runner with edits."""


class HeedCPUWorker(EditsInWorker, cpu_worker.CPUWorker):  # type: ignore[misc]
    """vLLM's CPU worker with edits."""

    _heap = Heap()

    def init_device(self) -> None:
        # The stock method makes the runner by name.
        stock = cpu_worker.CPUModelRunner
        cpu_worker.CPUModelRunner = HeedCPUModelRunner
        try:
            with room_for_streams(self.vllm_config.model_config):
                super().init_device()
        finally:
            cpu_worker.CPUModelRunner = stock

    def load_model(self, *args: Any, **kwargs: Any) -> Any:
        loaded = super().load_model(*args, **kwargs)
        length = streaming_length()
        if length is not None:
            lengthen_rotary_tables(self.model_runner.get_model(), length)
        return loaded

    def update_max_model_len(self, max_model_len: int) -> None:
        super().update_max_model_len(max_model_len)
        # The runner's own length is that of its arrays.
        self.model_runner.max_model_len = max(max_model_len, streaming_length() or 0)

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

    def heed_gauges(self) -> dict[str, Any]:
        """As in `EditsInWorker`; where nothing runs, free memory goes back to the system besides."""
        if not self.model_runner.requests:
            self._heap.give_back()
        return super().heed_gauges()

    def _backend(self) -> str | None:
        if isinstance(self.model_runner, EditsInRunner):
            return "cpu"
        return None

    def _attention_times(self) -> list[Sample]:
        return TIMES.take()

    def _prepare_edits(self, layers: dict[int, Any]) -> float:
        ropes = rope_by_layer(self.model_runner.get_model())
        layout, seconds = warm_up.edited_attention(self.vllm_config, layers)
        for index, layer in layers.items():
            impl = layer.impl
            assert isinstance(impl, HeedCPUImpl)
            impl.rope, impl.layout = ropes.get(index), layout
        table = self._new_table()
        self.edited = EditedRequests(table, KeySearches(SearchingOnCPU(table)))
        twins = Twins()
        self.edited.inspected = InspectedRequests(table, InspectingOnCPU(table), twins)
        self.edited.sinks = SinkSamples(table)
        if self._support.eviction_obstacle is None:
            caches = {index: layer.kv_cache for index, layer in layers.items()}
            size = self.vllm_config.cache_config.block_size
            device = EvictingOnCPU(table, caches, layout, size)
            self.edited.evicting = EvictingRequests(table, device, gathered)
        self.edited.comparing = ComparedHeads(table, gathered_heads, twins)
        if self._support.inputs_obstacle is None:
            self.edited.flagging = FlaggedTokens(
                table, self._block_flags(layers), FoundOnCPU(table)
            )
            watch_inputs(self.model_runner.get_model(), layers)
        if self._support.tower_obstacle is None:
            token = ClassToken(self.model_runner.get_model(), gathered)
            self.edited.class_attention = token.attention
        self.model_runner.edit_with(self.edited)
        return seconds

    def _block_flags(self, layers: dict[int, Any]) -> BlockFlags:
        cache = layers[0].kv_cache
        return BlockFlags(len(layers), len(cache), cache.shape[2])

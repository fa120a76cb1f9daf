"""CUDA worker seam: loads the runner that knows edits, and prepares tables, buffers and the kernel."""

import time
from dataclasses import replace
from typing import Any

from vllm.logger import init_logger
from vllm.v1.worker import gpu_worker

from heed_kernels.beside.flags import BlockFlags
from heed_server.engine.books.compared_heads import ComparedHeads
from heed_server.engine.books.edited_requests import EditedRequests
from heed_server.engine.books.evicting_requests import EvictingRequests
from heed_server.engine.books.evictions_cuda import EvictingOnCUDA, Halves
from heed_server.engine.books.flagged_tokens import FlaggedTokens
from heed_server.engine.books.inspected_requests import InspectedRequests
from heed_server.engine.books.inspections_cuda import InspectingOnCUDA
from heed_server.engine.books.key_searches import KeySearches
from heed_server.engine.books.searches_cuda import SearchingOnCUDA
from heed_server.engine.books.sink_samples import SinkSamples
from heed_server.engine.books.twins import Twins
from heed_server.engine.model.image_tower import ClassToken
from heed_server.engine.model.layer_inputs import leave_compiled_code, watch_inputs
from heed_server.engine.model.model_support import attention_layers, model_support, rope_by_layer
from heed_server.engine.running import backend_cuda, runner_v1, runner_v2
from heed_server.engine.running.attention_times import Sample
from heed_server.engine.running.backend_cuda import EditingImpl, split_cache
from heed_server.engine.running.device_edits import DeviceEdits
from heed_server.engine.worker import EditsInWorker, gathered, gathered_heads

logger = init_logger("vllm.heed.worker")


class HeedCUDAWorker(EditsInWorker, gpu_worker.Worker):  # type: ignore[misc]
    """vLLM's GPU worker with edits."""

    def _make_model_runner(self) -> Any:
        if not self.use_v2_model_runner:
            from vllm.v1.worker.gpu_model_runner import GPUModelRunner

            runner = type("GPUModelRunner", (runner_v1.EditsInRunner, GPUModelRunner), {})
        elif not self.vllm_config.is_mm_encoder_only:
            from vllm.v1.worker.gpu.model_runner import GPUModelRunner

            runner = type("GPUModelRunner", (runner_v2.EditsInRunner, GPUModelRunner), {})
        else:
            return super()._make_model_runner()
        return runner(self.vllm_config, self.device)

    def load_model(self, **kwargs: Any) -> None:
        """Tables and buffers are made here, so that vLLM's memory profile counts them."""
        super().load_model(**kwargs)
        layers = attention_layers(self.vllm_config)
        self._support = model_support(
            self.vllm_config,
            self.get_model(),
            self._backend(),
            backend_cuda.obstacles(self.vllm_config, layers),
        )
        if self._support.unsupported is None:
            scheduling = self.vllm_config.scheduler_config
            table = self._new_table(multiplies=True)
            self._on_device = DeviceEdits(
                table,
                self.device,
                most_tokens=scheduling.max_num_batched_tokens,
                most_requests=scheduling.max_num_seqs,
                head_dim=layers[0].head_size,
                dtype=layers[0].dtype,
            )
            searching = SearchingOnCUDA(self._on_device.searches)
            self.edited = EditedRequests(table, KeySearches(searching))

    def compile_or_warm_up_model(self) -> Any:
        """Heed's kernel is compiled before the stock method captures it in graphs."""
        if self.edited is not None:
            self._start_editing()
        if self._support.unsupported is not None:
            logger.info("Heed: edited requests are refused: %s", self._support.unsupported)
        times = super().compile_or_warm_up_model()
        if self.edited is not None and self.edited.flagging is not None:
            # Hooks that are there while vLLM compiles would be compiled along.
            layers = attention_layers(self.vllm_config)
            watch_inputs(self.get_model(), layers)
            leave_compiled_code(self.get_model(), layers)
        return times

    def _backend(self) -> str | None:
        editing = (runner_v1.EditsInRunner, runner_v2.EditsInRunner)
        return "cuda" if isinstance(self.model_runner, editing) else None

    def _attention_times(self) -> list[Sample]:
        return backend_cuda.TIMES.take()

    def _start_editing(self) -> None:
        start = time.perf_counter()
        layers = attention_layers(self.vllm_config)
        ropes = rope_by_layer(self.get_model())
        first: Any = layers[0]
        try:
            # The caches are in place by now: the kernel is compiled for their real strides.
            self._on_device.warm_up(
                *split_cache(first.kv_cache),
                dtype=first.dtype,
                scale=first.impl.scale,
                ropes=[ropes.get(index) for index in range(len(layers))],
            )
        except Exception as error:
            # Plain requests must be served whatever becomes of edited ones.
            logger.exception("Heed: the kernel for edited attention cannot be used")
            reason = f"Heed's kernel does not run on this device ({error})"
            self._support = replace(self._support, unsupported=reason)
            self.edited = None
            del self._on_device
            return
        for index, layer in layers.items():
            impl: Any = layer.impl
            assert isinstance(impl, EditingImpl)
            impl.rope, impl.layer_id, impl.edits = ropes.get(index), index, self._on_device
        assert self.edited is not None
        caches = {index: split_cache(layer.kv_cache) for index, layer in layers.items()}
        self._open_books(self.edited, caches)
        self.model_runner.edit_with(self.edited, self._on_device)
        logger.info("Heed: worker warmed up in %.1f s", time.perf_counter() - start)

    def _open_books(self, edited: EditedRequests, caches: dict[int, Halves]) -> None:
        """What requests may do here beside editing rows. caches: keys and values by layer."""
        table, shared = edited.table, self._on_device
        twins = Twins()
        edited.sinks = SinkSamples(table)
        edited.inspected = InspectedRequests(table, InspectingOnCUDA(shared.recordings), twins)
        edited.comparing = ComparedHeads(table, gathered_heads, twins, self.device, shared.multiply)
        if self._support.eviction_obstacle is None:
            device = EvictingOnCUDA(shared.evictions, caches)
            edited.evicting = EvictingRequests(table, device, gathered)
        if self._support.inputs_obstacle is None:
            blocks, block_size = caches[0][0].shape[:2]
            flags = BlockFlags(len(caches), blocks, block_size, self.device)
            edited.flagging = FlaggedTokens(table, flags, shared.found, self.device)
        if self._support.tower_obstacle is None:
            edited.class_attention = ClassToken(self.get_model(), gathered).attention

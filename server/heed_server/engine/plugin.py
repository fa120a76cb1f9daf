"""General plug-in seam (`vllm.general_plugins`): runs in every vLLM process and puts Heed's classes in place."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any

from heed_server.engine.model.image_processors import do_without_torchvision
from heed_server.engine.orphans import end_with_parent
from heed_server.engine.versions import installed_vllm, require_supported_vllm

PLUGIN_NAME = "heed"
RUST_VARIABLE = "VLLM_USE_RUST_FRONTEND"


class FrontEndError(RuntimeError):
    """A server of vLLM's that would take requests without Heed's part of the API."""


@dataclass(frozen=True)
class Pieces:
    """Heed's classes for one kind of device.

    worker, backends: Heed's by what they take the place of: vLLM's worker class, its names of
    attention backends.
    """

    worker: Mapping[str, str]
    backends: Mapping[str, str]


CPU = Pieces(
    worker={
        "vllm.v1.worker.cpu_worker.CPUWorker": "heed_server.engine.worker_cpu.HeedCPUWorker",
    },
    backends={"CPU_ATTN": "heed_server.engine.running.backend_cpu.HeedCPUBackend"},
)
CUDA = Pieces(
    worker={"vllm.v1.worker.gpu_worker.Worker": "heed_server.engine.worker_cuda.HeedCUDAWorker"},
    # One module each: where vLLM cannot import one of the two, it must still find the other.
    backends={
        "FLASH_ATTN": "heed_server.engine.running.backend_flash.HeedFlashAttentionBackend",
        "TRITON_ATTN": "heed_server.engine.running.backend_triton.HeedTritonAttentionBackend",
    },
)
_SCHEDULERS = {
    "vllm.v1.core.sched.scheduler.Scheduler": "heed_server.engine.scheduling.scheduler.HeedScheduler",
    "vllm.v1.core.sched.async_scheduler.AsyncScheduler": (
        "heed_server.engine.scheduling.scheduler.HeedAsyncScheduler"
    ),
}


def named_in_environment() -> bool:
    """Whether VLLM_PLUGINS names Heed: an installed Heed that nobody asked for changes nothing."""
    return PLUGIN_NAME in os.environ.get("VLLM_PLUGINS", "").split(",")


def pieces_for(platform: Any) -> Pieces | None:
    """Heed's pieces for one of vLLM's platforms; None where it has none.

    ROCm runs the same worker class as CUDA, on other attention backends.
    """
    if platform.is_cpu():
        return CPU
    return CUDA if platform.is_cuda() else None


def register() -> None:
    """Entry point; safe to call again.

    Raises:
        UnsupportedVllmError: on any vLLM but the supported one.
    """
    if not named_in_environment():
        return
    require_supported_vllm(installed_vllm())
    # Stock attention on the CPU gives a request the same bits in any batch only without KV splits;
    # docs/decisions/0004 has what that costs.
    os.environ.setdefault("VLLM_CPU_ATTN_SPLIT_KV", "0")
    do_without_torchvision()
    end_with_parent()

    from vllm.engine.arg_utils import EngineArgs
    from vllm.platforms import current_platform
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    from heed_server.engine import coordinator
    from heed_server.engine.model.longer_streams import check_streaming_length

    coordinator.put_in_place()
    pieces = pieces_for(current_platform)
    if pieces is None:
        return
    for name, path in pieces.backends.items():
        register_backend(AttentionBackendEnum[name], path)
    stock = EngineArgs.create_engine_config
    if getattr(stock, "heed", False):
        return

    @wraps(stock)
    def create_engine_config(self: EngineArgs, *args: Any, **kwargs: Any) -> Any:
        require_python_front_end()
        config = stock(self, *args, **kwargs)
        placed = put_in_place(config, pieces)
        check_streaming_length(config, on_cpu=placed and pieces is CPU)
        return config

    create_engine_config.heed = True  # type: ignore[attr-defined]
    EngineArgs.create_engine_config = create_engine_config


def require_python_front_end(environment: Mapping[str, str] = os.environ) -> None:
    """Raise `FrontEndError` where vLLM would answer requests with its server in Rust."""
    if environment.get(RUST_VARIABLE, "0") not in ("", "0"):
        raise FrontEndError(
            f"{RUST_VARIABLE} is set: vLLM's server in Rust loads no plug-in, and would ignore interventions"
        )


def put_in_place(config: Any, pieces: Pieces) -> bool:
    """Replace the worker and scheduler that vLLM chose by Heed's subclasses of the same. Returns whether.

    config: a finished `VllmConfig`. Classes that Heed has no subclass of stay; requests with edits
    are then refused (`model_support.py`, `heed_server.api.door`).
    """
    parallel, scheduling = config.parallel_config, config.scheduler_config
    stock_scheduler = scheduling.get_scheduler_cls()
    scheduler = _SCHEDULERS.get(f"{stock_scheduler.__module__}.{stock_scheduler.__qualname__}")
    worker = pieces.worker.get(parallel.worker_cls)
    if worker is None or scheduler is None:
        return False
    parallel.worker_cls = worker
    scheduling.scheduler_cls = scheduler
    return True

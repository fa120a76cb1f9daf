"""General plug-in seam (`vllm.general_plugins`): runs in every vLLM process and puts Heed's classes in place."""

import os
from functools import wraps
from typing import Any

from heed_server.engine.versions import installed_vllm, require_supported_vllm

PLUGIN_NAME = "heed"
_WORKERS = {
    "vllm.v1.worker.cpu_worker.CPUWorker": "heed_server.engine.worker_cpu.HeedCPUWorker",
}
_SCHEDULERS = {
    "vllm.v1.core.sched.scheduler.Scheduler": "heed_server.engine.scheduler.HeedScheduler",
    "vllm.v1.core.sched.async_scheduler.AsyncScheduler": (
        "heed_server.engine.scheduler.HeedAsyncScheduler"
    ),
}


def named_in_environment() -> bool:
    """Whether VLLM_PLUGINS names Heed: an installed Heed that nobody asked for changes nothing."""
    return PLUGIN_NAME in os.environ.get("VLLM_PLUGINS", "").split(",")


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

    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    register_backend(AttentionBackendEnum.CPU_ATTN, "heed_server.engine.backend_cpu.HeedCPUBackend")
    stock = EngineArgs.create_engine_config
    if getattr(stock, "heed", False):
        return

    @wraps(stock)
    def create_engine_config(self: EngineArgs, *args: Any, **kwargs: Any) -> Any:
        config = stock(self, *args, **kwargs)
        put_in_place(config)
        return config

    create_engine_config.heed = True  # type: ignore[attr-defined]
    EngineArgs.create_engine_config = create_engine_config


def put_in_place(config: Any) -> None:
    """Replace the worker and scheduler that vLLM chose by Heed's subclasses of the same.

    config: a finished `VllmConfig`. Classes that Heed has no subclass of stay; requests with edits
    are then refused (`model_support.py`, `heed_server.api.door`).
    """
    parallel, scheduling = config.parallel_config, config.scheduler_config
    stock_scheduler = scheduling.get_scheduler_cls()
    scheduler = _SCHEDULERS.get(f"{stock_scheduler.__module__}.{stock_scheduler.__qualname__}")
    worker = _WORKERS.get(parallel.worker_cls)
    if worker is None or scheduler is None:
        return
    parallel.worker_cls = worker
    scheduling.scheduler_cls = scheduler

"""Coordinator seam (`vllm.v1.engine.coordinator`): the one process of vLLM's that loads no plug-ins."""

from typing import Any

from vllm.v1.engine.coordinator import DPCoordinatorProc

from heed_server.engine.orphans import end_with_parent

_stock = DPCoordinatorProc.run_coordinator


def run_coordinator(*args: Any, **rest: Any) -> None:
    """vLLM's, in a process that ends with its parent. At the module's top, where the new process finds it."""
    end_with_parent()
    _stock(*args, **rest)


def put_in_place() -> None:
    """Let vLLM start coordinators by it."""
    DPCoordinatorProc.run_coordinator = staticmethod(run_coordinator)

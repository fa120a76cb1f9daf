"""The end of a process of vLLM's whose parent is gone: its engines, API processes and coordinator do not notice, and
would keep their memory, and their port, for nobody."""

import multiprocessing
import os
import signal
import threading
import time
from multiprocessing.connection import wait

CHILDREN = ("EngineCore", "ApiServer_", "VLLM_DP_Coordinator")
"""What the names of processes begin with that vLLM's first process starts."""
PATIENCE_SECONDS = 15.0
"""From SIGTERM, on which vLLM's engine ends its workers, to SIGKILL."""
_THREAD = "HeedParent"


def end_with_parent() -> None:
    """Let this process end when the one that started it does, if it is one of `CHILDREN`; safe to call again."""
    parent = multiprocessing.parent_process()
    if parent is None or not multiprocessing.current_process().name.startswith(CHILDREN):
        return
    if any(thread.name == _THREAD for thread in threading.enumerate()):
        return
    threading.Thread(target=_end_after, args=(parent.sentinel,), name=_THREAD, daemon=True).start()


def _end_after(sentinel: int) -> None:
    wait([sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(PATIENCE_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)

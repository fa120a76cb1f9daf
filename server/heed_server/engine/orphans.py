"""The end of an engine whose API process is gone: vLLM's engine core does not notice, and would keep its
memory, and go on generating, for nobody."""

import multiprocessing
import os
import signal
import time
from functools import cache
from multiprocessing.connection import wait
from threading import Thread

PATIENCE_SECONDS = 15.0
"""From SIGTERM, on which vLLM's engine ends its workers, to SIGKILL."""


@cache
def end_with_parent() -> None:
    """Let this process end when the one that started it does, if it is one of vLLM's engines."""
    parent = multiprocessing.parent_process()
    if parent is None or not multiprocessing.current_process().name.startswith("EngineCore"):
        return
    Thread(target=_end_after, args=(parent.sentinel,), name="HeedParent", daemon=True).start()


def _end_after(sentinel: int) -> None:
    wait([sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(PATIENCE_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)

"""SIGHUP to `heed serve`: where vLLM runs several API processes, the one that started them passes it on.

A single API process reads its profiles again itself, from when it serves (`api/plugin.py`).
"""

import multiprocessing
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

API_PROCESS = "ApiServer_"
"""What vLLM's names of its API processes begin with."""


def pass_hangups_on() -> None:
    """Outlive SIGHUP from now on, and tell the API processes. Where it is ignored, as under nohup, it stays so."""
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
        signal.signal(signal.SIGHUP, _tell)


def _tell(*_: Any) -> None:
    for process in multiprocessing.active_children():
        # One that is starting has no handler yet: the signal would end it, and it has read no profiles.
        if process.name.startswith(API_PROCESS) and process.pid and _handles_hangups(process.pid):
            os.kill(process.pid, signal.SIGHUP)


def _handles_hangups(pid: int) -> bool:
    """Whether a process has a handler of its own for SIGHUP, as Linux tells it."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            name, _, mask = line.partition(":")
            if name == "SigCgt":
                return bool(int(mask, 16) >> signal.SIGHUP - 1 & 1)
    return False

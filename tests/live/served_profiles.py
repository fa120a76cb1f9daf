"""The directory of profiles of a running server, which it reads again on a signal."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from live_server import LiveServer

from heed_server.models import bundled_model

PATIENCE = 30
"""Seconds that a reload may take on a busy machine."""


@contextmanager
def profile_of(server: LiveServer, name: str) -> Iterator[Path]:
    """Where a profile of that name is to be written; `reload` then serves it. It is gone afterwards."""
    if server.pid is None:
        pytest.skip("the running server is somebody else's")
    root = Path(server.flags[server.flags.index("--profiles") + 1])
    try:
        yield root
    finally:
        shutil.rmtree(root / name, ignore_errors=True)
        reload(server, name, there=False)


@contextmanager
def bundled_profile(server: LiveServer, name: str) -> Iterator[None]:
    """A profile that comes with heed-tiny, served while the context lasts."""
    bundled = bundled_model("heed-tiny")
    assert bundled is not None
    with profile_of(server, name) as root:
        shutil.copytree(bundled.profiles / name, root / name)
        reload(server, name, there=True)
        yield


def reload(server: LiveServer, name: str, *, there: bool) -> None:
    """Have the profiles read again, until one of that name is there, or is not."""
    assert server.pid is not None
    os.kill(server.pid, signal.SIGHUP)
    deadline = time.monotonic() + PATIENCE
    while (name in loaded(server)) is not there:
        assert time.monotonic() < deadline, f"the profiles are {loaded(server)}"
        time.sleep(0.1)


def loaded(server: LiveServer) -> list[str]:
    """Names of the profiles that are served."""
    listed = server.client.get("/v1/intervention-profiles").json()["data"]
    return [entry["name"] for entry in listed]

"""One server for the whole run, started when the first live test asks for it.

`HEED_TEST_SERVER_URL` names a running server to use instead, `HEED_TEST_MODEL` a model directory
for the one that is started here. Without either it is the bundled model.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from live_server import FLAGS, LiveServer, serving

# Small blocks and chunks, and a cache in which four long requests do not fit: every prompt is
# computed in pieces, and running requests are preempted and computed again.
CRAMPED = [
    *("--dtype", "float32", "--enforce-eager", "--enable-prompt-tokens-details"),
    *("--block-size", "32", "--max-num-batched-tokens", "128", "--max-model-len", "768"),
    *("--num-gpu-blocks-override", "32", "--allow-privileged-interventions"),
]
BFLOAT16 = ["--dtype", "bfloat16", "--enforce-eager", "--allow-privileged-interventions"]
MODEL = os.environ.get("HEED_TEST_MODEL")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """The server that nearly all live tests share."""
    if url := os.environ.get("HEED_TEST_SERVER_URL"):
        yield LiveServer(url.rstrip("/"))
        return
    flags = [*FLAGS, "--profiles", str(tmp_path_factory.mktemp("profiles"))]
    with serving(tmp_path_factory.mktemp("live") / "server.log", flags, MODEL) as started:
        yield started


@pytest.fixture(scope="session")
def cramped_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """Chunks of 128 tokens, blocks of 32, room for little, privileged methods allowed."""
    with serving(tmp_path_factory.mktemp("cramped") / "server.log", CRAMPED, MODEL) as started:
        yield started


@pytest.fixture(scope="session")
def bfloat16_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with serving(tmp_path_factory.mktemp("bfloat16") / "server.log", BFLOAT16, MODEL) as started:
        yield started

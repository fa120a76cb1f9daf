"""One server for the whole run, started when the first live test asks for it.

`HEED_TEST_SERVER_URL` names a running server to use instead, `HEED_TEST_MODEL` a model directory
for the one that is started here. Without either it is the bundled model. Tests with images have a second
server, or HEED_TEST_VISION_URL; `vision_server.vision_model` says of which model.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from live_server import FLAGS, LiveServer, serving
from vision_server import VISION, vision_model

# Small blocks and chunks, and a cache in which four long requests do not fit: every prompt is
# computed in pieces, and running requests are preempted and computed again.
CRAMPED = [
    *("--dtype", "float32", "--enforce-eager", "--enable-prompt-tokens-details"),
    *("--block-size", "32", "--max-num-batched-tokens", "128", "--max-model-len", "768"),
    *("--num-gpu-blocks-override", "32", "--allow-privileged-interventions"),
]
# An image does not fit into a chunk beside much text.
CRAMPED_VISION = [
    *VISION,
    *("--max-num-batched-tokens", "80", "--max-model-len", "512"),
    *("--num-gpu-blocks-override", "18"),
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
def vision_directory(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The model directory of the tests with images."""
    return str(vision_model(tmp_path_factory.mktemp("vision-model")))


@pytest.fixture(scope="session")
def vision_server(
    vision_directory: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    """The server of a vision-language model that the tests with images share."""
    if url := os.environ.get("HEED_TEST_VISION_URL"):
        yield LiveServer(url.rstrip("/"))
        return
    log = tmp_path_factory.mktemp("vision") / "server.log"
    with serving(log, VISION, vision_directory) as started:
        yield started


@pytest.fixture(scope="session")
def cramped_vision_server(
    vision_directory: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    """The same in chunks of 80 tokens, with room for little."""
    log = tmp_path_factory.mktemp("cramped-vision") / "server.log"
    with serving(log, CRAMPED_VISION, vision_directory) as started:
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

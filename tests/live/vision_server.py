"""Chats with pictures: what the live tests ask of a server of a vision-language model."""

from __future__ import annotations

import base64
import io
import os
import secrets
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from live_server import Body, Completion, LiveServer
from PIL import Image

from heed_server.models import bundled_model

ROOT = Path(__file__).parents[2]
VISION = [
    *("--dtype", "float32", "--enforce-eager", "--enable-prompt-tokens-details"),
    *("--block-size", "32", "--limit-mm-per-prompt", '{"image": 3}'),
    "--allow-privileged-interventions",
]
QUESTIONS = (
    "Describe the picture.",
    "What colour is the circle?",
    "Is there a star in the picture? Look at it again before you answer, and say only what is there.",
)


def picture(number: int, size: tuple[int, int] = (64, 64)) -> bytes:
    """A PNG of three coloured boxes on a ground of one colour; each number gives another one.

    size: width and height in pixels.
    """
    choose = np.random.default_rng(number)
    canvas = np.empty((size[1], size[0], 3), np.uint8)
    canvas[:] = choose.integers(0, 256, 3)
    for _ in range(3):
        left, top = choose.integers(0, [size[0] - 20, size[1] - 20])
        canvas[top : top + 20, left : left + 20] = choose.integers(0, 256, 3)
    file = io.BytesIO()
    Image.fromarray(canvas).save(file, "PNG")
    return file.getvalue()


def message(question: str, pictures: Sequence[bytes]) -> Body:
    """A user's turn, the pictures first."""
    parts: list[Body] = [
        {"type": "image_url", "image_url": {"url": data_uri(each)}} for each in pictures
    ]
    return {"role": "user", "content": [*parts, {"type": "text", "text": question}]}


def data_uri(file: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(file).decode()


@dataclass(frozen=True)
class Asked:
    """One chat: its rendered prompt, its pictures and the answer."""

    prompt: list[int]
    pictures: Sequence[bytes]
    completion: Completion


def ask_raw(
    server: LiveServer, question: str, pictures: Sequence[bytes], **fields: Any
) -> httpx.Response:
    """The plain answer, whatever it is."""
    body: Body = {"model": server.model, "max_tokens": 12, "temperature": 0, **fields}
    body["messages"] = [message(question, pictures)]
    return server.post("/v1/chat/completions", body)


def ask(
    server: LiveServer,
    question: str,
    pictures: Sequence[bytes],
    interventions: Sequence[Body] | None = None,
    *,
    fresh: bool = True,
    prompt_logprobs: bool = False,
    **fields: Any,
) -> Asked:
    """Greedy, past every end token; fresh: nothing comes out of the prefix cache."""
    body: Body = {
        "logprobs": True,
        "top_logprobs": 1,
        "ignore_eos": True,
        "return_token_ids": True,
        **fields,
    }
    if interventions is not None:
        body["interventions"] = list(interventions)
    if prompt_logprobs:
        body["prompt_logprobs"] = 0
    if fresh:
        body["cache_salt"] = secrets.token_hex(8)
    response = ask_raw(server, question, pictures, **body)
    assert response.status_code == 200, response.text
    answer = response.json()
    choice, prompt = answer["choices"][0], answer["prompt_token_ids"]
    details = answer["usage"]["prompt_tokens_details"] or {}
    completion = Completion(
        tokens=choice["token_ids"],
        logprobs=[each["logprob"] for each in choice["logprobs"]["content"]],
        prompt_logprobs=[
            row[str(token)]["logprob"] if row else None
            for token, row in zip(prompt, answer.get("prompt_logprobs") or [], strict=False)
        ],
        text=choice["message"]["content"],
        report=answer.get("interventions"),
        cached_tokens=details.get("cached_tokens"),
    )
    return Asked(prompt, pictures, completion)


def vision_model(scratch: Path) -> Path:
    """The directory of HEED_TEST_VISION_MODEL, or the bundled model, or one of random weights."""
    return trained_model() or random_llava(scratch)


def trained_model() -> Path | None:
    """The first two of these; None where there is neither."""
    if named := os.environ.get("HEED_TEST_VISION_MODEL"):
        return Path(named)
    bundled = bundled_model("heed-tiny-vision")
    return bundled.directory if bundled is not None else None


def random_llava(directory: Path) -> Path:
    """heed-tiny-vision's architecture around heed-tiny's own weights, its tower and projector random."""
    sys.path.insert(0, str(ROOT / "training"))
    from safetensors.torch import load_file

    from heed_tiny_vision.export import export
    from heed_tiny_vision.model import Llava, VisionShape

    text = bundled_model("heed-tiny")
    assert text is not None
    torch.manual_seed(0)
    model = Llava()
    model.language_model.load_state_dict(load_file(text.directory / "model.safetensors"))
    # Random features are five times as long as embeddings of tokens, and float32 is as much less exact.
    with torch.no_grad():
        for parameter in model.multi_modal_projector.linear_2.parameters():
            parameter.mul_(0.2)
    export(model.state_dict(), VisionShape(), text.directory, directory)
    return directory

"""Worker seam: room for sequences beyond the model's context, in the runner and in its rotary tables.

`heed serve --max-streaming-length N`. The configuration keeps the model's own length, which all other
requests are held to; only what has to hold N positions is made larger.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbeddingBase

from heed_server.engine.model.model_support import frequencies_of
from heed_server.settings import STREAMING_VARIABLE


class StreamingLengthError(ValueError):
    """`--max-streaming-length` cannot be had; the message says why."""


def streaming_length() -> int | None:
    """What the launcher was given; None where streaming requests have the model's context like all."""
    value = os.environ.get(STREAMING_VARIABLE)
    return int(value) if value else None


def check_streaming_length(config: Any, on_cpu: bool) -> None:
    """config: a finished `VllmConfig`; on_cpu: whether Heed's CPU worker is going to run.

    Raises:
        StreamingLengthError: the length is none, or nothing here can carry it out.
    """
    length, trained = streaming_length(), config.model_config.max_model_len
    if length is None:
        return
    if length <= trained:
        raise StreamingLengthError(
            f"--max-streaming-length {length} must be more than the context of all requests, {trained}"
        )
    if not on_cpu:
        raise StreamingLengthError("--max-streaming-length is carried out on the CPU only as yet")


@contextmanager
def room_for_streams(model_config: Any) -> Iterator[None]:
    """While this is open, a runner that is made from `model_config` gets room for the longest stream."""
    length, trained = streaming_length(), model_config.max_model_len
    if length is not None:
        model_config.max_model_len = length
    try:
        yield
    finally:
        model_config.max_model_len = trained


def lengthen_rotary_tables(model: nn.Module, positions: int) -> None:
    """Give every rotary embedding of `model` at least so many positions.

    Raises:
        StreamingLengthError: the model has none, or one whose frequencies change with the length.
    """
    modules = {id(m): m for m in model.modules() if isinstance(m, RotaryEmbeddingBase)}
    if not modules:
        raise StreamingLengthError(
            "--max-streaming-length needs a model with rotary embeddings, and this one has none"
        )
    for module in modules.values():
        lengthen(module, positions)


def lengthen(module: RotaryEmbeddingBase, positions: int) -> None:
    """Replace the module's table by the longer one that its own class computes.

    Raises:
        StreamingLengthError: its frequencies change with the length, or the rows that it had would
            not be what they were.
    """
    frequencies = frequencies_of(module)
    if frequencies is None:
        raise StreamingLengthError(
            "--max-streaming-length needs rotary frequencies that do not depend on the length, and "
            f"those of {type(module).__name__} do, or are not known not to"
        )
    table: torch.Tensor = module.cos_sin_cache
    if len(table) >= positions:
        return
    trained = module.max_position_embeddings
    # Some classes make more rows than positions (YaRN), and some derive their frequencies from the
    # number of positions: both stay as they were.
    module.max_position_embeddings = -(-positions * trained // len(table))
    module._compute_inv_freq = lambda *_: frequencies
    try:
        longer = module._compute_cos_sin_cache().to(device=table.device, dtype=table.dtype)
    finally:
        module.max_position_embeddings = trained
        del module._compute_inv_freq
    if len(longer) < positions or not torch.equal(longer[: len(table)], table):
        raise StreamingLengthError(
            f"the rotary table of {type(module).__name__} cannot be made longer without a change"
        )
    module.register_buffer("cos_sin_cache", longer, persistent=False)

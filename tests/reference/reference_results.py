"""What the reference gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from act_reference import Disagreement
from eviction_events import Eviction
from torch import Tensor


@dataclass(frozen=True)
class Result:
    """One request. `tokens` are greedy, or the forced ones; `best_tokens` are always greedy.

    With forced tokens, `best_logprobs[i] - token_logprobs[i]` says how far a forced token is from
    the one that greedy decoding would have taken after the same prefix. `disagreements` are on sinks.
    """

    tokens: list[int]
    token_logprobs: list[float]
    best_tokens: list[int]
    best_logprobs: list[float]
    prompt_logprobs: list[float | None]
    top: list[list[tuple[int, float]]]
    disagreements: list[Disagreement]
    evictions: Sequence[Eviction] = ()


@dataclass(frozen=True)
class Pass:
    """One forward pass: log-probabilities `[rows, vocabulary]`, weights `[heads, rows, keys]`."""

    logprobs: Tensor
    weights: list[Tensor]
    disagreements: list[Disagreement]
    evictions: Sequence[Eviction] = ()

"""The kernels keep the keys that the definitions keep: requests as users write them, random tokens."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from eviction_definition import Kept, Layer, choose, differing
from reference_parameters import with_defaults
from tests.kernels.evicting_model import Paged, Tokens
from tests.kernels.paged_model import layout_of

from heed_interventions import ModelView, PromptView, parse, resolve
from heed_kernels.rope import Rope

QUERY_HEADS, KV_HEADS, LAYERS, BLOCK, HEAD_DIM = 8, 4, 3, 16, 16
MODEL = ModelView(LAYERS, QUERY_HEADS, KV_HEADS, HEAD_DIM, max_length=512)

CASES: dict[str, dict[str, Any]] = {
    "snapkv": {"keep": 0.3, "window": 12},
    "snapkv, maxima": {"keep": 0.3, "window": 5, "pooling": "max", "sinks": 3, "recent": 9},
    "h2o": {"keep": 0.3},
    "h2o, a budget": {"budget": 21, "sinks": 2},
    "h2o, the prompt only": {"keep": 0.4, "decode": False},
    "tova": {"keep": 0.25},
    "tova, a budget": {"budget": 95, "recent": 3},
    "knorm": {"keep": 0.3, "sinks": 1},
    "keydiff": {"keep": 0.3},
    "pyramidkv": {"keep": 0.3, "window": 9},
    "pyramidkv, steep": {"keep": 0.5, "window": 4, "beta": 100},
    "adakv": {"keep": 0.4, "window": 8},
    "adakv, without a floor": {"keep": 0.2, "window": 8, "floor": 0},
    "expected_attention": {"keep": 0.3},
    "expected_attention, the mean": {"keep": 0.3, "use_covariance": False, "epsilon": 0},
    "task_kv": {"keep": 0.8, "window": 8, "sinks": 3, "recent": 10, "t": 40, "beta": 0.5},
    "task_kv, too little": {"keep": 0.3, "window": 8, "sinks": 3, "recent": 10, "m": 2},
    "tappa": {"keep": 0.3, "window": 8},
    "tappa, entropy": {"keep": 0.3, "window": 8, "alpha": 3.0, "tau1": 2.0, "tau2": 1.5},
}


class Dense:
    """The tokens' attention row by row, each row seeing what it still has."""

    def __init__(self, tokens: Tokens) -> None:
        self.tokens = tokens
        count, group = tokens.count, tokens.query_heads // tokens.kv_heads
        self.group = group
        self.weights = np.zeros((tokens.layers, tokens.query_heads, count, count))
        self.has: Kept | None = None
        self.end = 0

    def advance(self, first: int, end: int) -> None:
        """Rows [first, end) come in."""
        row, key_place = np.arange(first, end)[:, None], np.arange(end)
        for layer in range(self.tokens.layers):
            query = self.tokens.query[layer].double().numpy()
            key = self.tokens.key[layer].double().numpy()
            for head in range(self.tokens.query_heads):
                seen = key_place <= row
                if self.has is not None:
                    kept = self.has[layer][head // self.group]
                    seen &= (key_place >= self.end) | np.isin(key_place, kept)
                logits = query[first:end, head] @ key[:end, head // self.group].T
                logits = np.where(seen, logits * self.tokens.scale, -np.inf)
                powers = np.exp(logits - logits.max(axis=1, keepdims=True))
                weights = powers / powers.sum(axis=1, keepdims=True)
                self.weights[layer, head, first:end, :end] = weights

    def layers(self, rope: Rope) -> list[Layer]:
        found = []
        for layer in range(self.tokens.layers):
            query, key, value = (
                array[layer].double()
                for array in (self.tokens.query, self.tokens.key, self.tokens.value)
            )
            back = rope.rotate(query, -torch.arange(len(query))[:, None])
            arrays = (query, back, key, value)
            found.append(Layer(self.weights[layer], *(a.transpose(0, 1).numpy() for a in arrays)))
        return found

    def held(self, end: int) -> Kept | None:
        if self.has is None:
            return None
        new = np.arange(self.end, end)
        return [[np.concatenate((kept, new)) for kept in heads] for heads in self.has]


def mean_rotation(rope: Rope, head_dim: int) -> Any:
    def mean(first: int, count: int) -> np.ndarray:
        positions = np.arange(first, first + count)
        angles = positions[:, None] * rope.inv_freq
        cosine, sine = np.cos(angles).mean(axis=0), np.sin(angles).mean(axis=0)
        half, turn = head_dim // 2, np.zeros((head_dim, head_dim))
        for i in range(half):
            turn[i, i], turn[i, i + half] = cosine[i], -sine[i]
            turn[i + half, i], turn[i + half, i + half] = sine[i], cosine[i]
        return turn

    return mean


@pytest.mark.parametrize("prompt", [61, 128])
@pytest.mark.parametrize("case", CASES)
def test_the_kernels_keep_what_the_definition_keeps(case: str, prompt: int) -> None:
    raw = {"method": case.split(",")[0], **CASES[case]}
    seed = list(CASES).index(case) + prompt
    decode = 52 if raw["method"] in ("h2o", "tova") else 0
    tokens = Tokens(
        prompt + decode, QUERY_HEADS, KV_HEADS, layout_of(BLOCK, HEAD_DIM), LAYERS, seed
    )
    (edit,) = resolve(parse([raw]), MODEL, PromptView(prompt)).edits
    paged, dense = Paged(tokens, [edit], prompt), Dense(tokens)
    first, window, evictions, near = 0, raw.get("window", 1), 0, 0
    cuts = [*range(37, prompt - window, 37), prompt - window, *range(prompt, prompt + decode + 1)]
    for end in cuts:
        before = len(paged.moved)
        paged.step(first, end)
        dense.advance(first, end)
        first = end
        due = end == prompt or (edit.again and end > prompt and end % BLOCK == 0)
        choice = None
        if due:
            layers, turn = dense.layers(tokens.rope), mean_rotation(tokens.rope, HEAD_DIM)
            choice = choose(with_defaults(raw), layers, dense.held(end), prompt, end, turn)
        assert (len(paged.moved) > before) == (choice is not None), end
        if choice is not None:
            evictions += 1
            survivors = paged.moved[-1].survivors
            near += differing(choice, survivors)
            dense.has, dense.end = survivors, end
            assert math.isclose(
                paged.moved[-1].kept_tokens,
                np.mean([len(kept) for heads in choice.kept for kept in heads]),
            )
            assert paged.moved[-1].most <= edit.most
    assert evictions >= (2 if edit.again else 1)
    if near:
        print(f"{case}: {near} keys near the cut differ")

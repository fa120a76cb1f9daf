"""Do five methods keep the keys that NVIDIA's kvpress keeps? Not part of the test suite.

    python -m venv ENV && ENV/bin/pip install -r tests/kvpress/requirements.txt
    PYTHONPATH=tests/reference:server ENV/bin/python tests/kvpress/compare.py

Both sides run heed-tiny in float32 over the same prompts. kvpress scores inside of its hooks; the
scores are taken from there and its rule applied, the highest n of each head. Heed's side are the
definitions that its kernels and server are compared with. The exit status is 1 where a key differs
that does not lie at the cut.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import eviction_definition
import numpy as np
import torch
from kvpress import (
    ExpectedAttentionPress,
    KeyDiffPress,
    KnormPress,
    SnapKVPress,
    TOVAPress,
)
from reference_parameters import with_defaults
from transformers import AutoTokenizer
from transformers_reference import Reference, load

from heed_server.models import bundled_model

LENGTHS = (150, 400, 700)
SHARES = (0.2, 0.5)
NEAR = 1e-5


@dataclass(frozen=True)
class Pair:
    """A press and the intervention that is to do the same; deviation: what had to be set for that."""

    press: Callable[[float], Any]
    method: str
    fields: dict[str, Any]
    deviation: str


PAIRS = [
    Pair(
        lambda ratio: SnapKVPress(ratio, window_size=32, kernel_size=5),
        "snapkv",
        {"window": 32},
        "window_size 32 instead of 64",
    ),
    Pair(TOVAPress, "tova", {"recent": 1, "decode": False}, "`recent` 1 instead of 0; no decode"),
    Pair(KnormPress, "knorm", {}, "none"),
    Pair(KeyDiffPress, "keydiff", {}, "none"),
    Pair(
        lambda ratio: ExpectedAttentionPress(ratio, epsilon=0.0),
        "expected_attention",
        {"epsilon": 0},
        "`epsilon` 0 instead of 0.02",
    ),
    Pair(
        lambda ratio: ExpectedAttentionPress(
            ratio, n_future_positions=64, use_covariance=False, epsilon=0.02
        ),
        "expected_attention",
        {"n_future_positions": 64, "use_covariance": False},
        "other constants, on both sides",
    ),
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.parse_args()
    bundled = bundled_model("heed-tiny")
    if bundled is None:
        raise SystemExit("heed-tiny is not installed")
    reference = load(str(bundled.directory))
    prompts = list(_prompts(bundled))
    far = 0
    print("| press | keys compared | differ at the cut | differ elsewhere | set |")
    print("| --- | --- | --- | --- | --- |")
    for pair in PAIRS:
        compared = near = elsewhere = 0
        for prompt in prompts:
            for share in SHARES:
                counts = _compare(pair, reference, prompt, share)
                compared, near, elsewhere = (
                    one + other
                    for one, other in zip((compared, near, elsewhere), counts, strict=True)
                )
        name = type(pair.press(0.5)).__name__
        print(f"| {name} | {compared:,} | {near} | {elsewhere} | {pair.deviation} |")
        far += elsewhere
    return int(far > 0)


def _prompts(bundled: Any) -> Iterator[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(str(bundled.directory))
    lines = (bundled.evaluation / "long_text.jsonl").read_text().splitlines()
    for line, length in zip(lines, LENGTHS, strict=False):
        ids: list[int] = tokenizer(json.loads(line)["text"]).input_ids
        yield [tokenizer.bos_token_id, *ids][:length]


def _compare(
    pair: Pair, reference: Reference, prompt: Sequence[int], share: float
) -> tuple[int, int, int]:
    """Keys kept by kvpress in all heads; of these, how many Heed drops at the cut, and elsewhere."""
    press = pair.press(1 - share)
    with _recorded(press) as scores, torch.no_grad(), press(reference.model):
        reference.model(torch.tensor([list(prompt)]))
    count = int(len(prompt) * (1 - press.compression_ratio))
    edit = with_defaults({"method": pair.method, "budget": count, **pair.fields})
    seen = reference.observe(prompt)
    length = len(prompt)
    choice = eviction_definition.choose(edit, seen.layers, None, length, length, seen.mean_rotation)
    assert choice is not None
    compared = near = elsewhere = 0
    for layer, heads in enumerate(choice.kept):
        for head, kept in enumerate(heads):
            theirs = scores[layer][head].topk(count).indices.numpy()
            apart = np.setdiff1d(theirs, kept)
            ours = choice.scores[layer][head]
            cut = ours[np.setdiff1d(kept, theirs)]
            close = (
                np.abs(ours[apart][:, None] - cut[None]) <= NEAR * np.abs(cut).max(initial=0)
            ).any(axis=1)
            compared += count
            near += int(close.sum())
            elsewhere += int((~close).sum())
    return compared, near, elsewhere


@contextmanager
def _recorded(press: Any) -> Iterator[list[torch.Tensor]]:
    """The scores of every layer, [kv_heads, keys] each, as the press computes them."""
    scores: list[torch.Tensor] = []
    original = press.score

    def score(*arguments: Any, **named: Any) -> torch.Tensor:
        found = original(*arguments, **named)
        scores.append(found[0].float())
        return found

    press.score = score
    try:
        yield scores
    finally:
        del press.score


if __name__ == "__main__":
    sys.exit(main())

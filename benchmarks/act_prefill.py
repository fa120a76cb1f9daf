"""What ACT adds to a whole prefill: counted by multiplications, and measured on a server.

    python benchmarks/act_prefill.py --model heed-tiny --rounds 20 --prompts 10
    python benchmarks/act_prefill.py --model qwen2-0.5b --dtype bfloat16 --rounds 8

The paper's sets have 25, 74 and 184 of 1,024 heads; the same shares of the model's heads are edited, spread
over ACT's default layers. Each round sends the same prompts, for one token each and one after the other,
plain (vLLM's stock kernel) and with each set, in an order drawn anew. Ratios are to the plain ones of the
round, and of the processor time of all of the server's processes, which a shared machine disturbs least.
ZeroTuning on the largest set is the edited attention without a search.
"""

import argparse
import json
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import shapes

from heed_server.measuring import load, servers

SETS = (25, 74, 184)
OF = 1024
LLAMA_2_7B = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
}


def share_added(config: dict[str, Any], heads: int, tokens: int) -> float:
    """Multiplications of the search in `heads` heads over those of a stock prefill of `tokens`.

    Per token, a row sees half of the keys: stock attention multiplies it with them and their values, and
    the search twice with the keys (once for the normaliser, once for the sums).
    """
    hidden, query_heads = config["hidden_size"], config["num_attention_heads"]
    head_dim = config.get("head_dim", hidden // query_heads)
    layers = config["num_hidden_layers"]
    projections = 2 * hidden * head_dim * (query_heads + config["num_key_value_heads"])
    matrices = layers * (projections + 3 * hidden * config["intermediate_size"])
    attention = head_dim * tokens * layers * query_heads
    return head_dim * tokens * heads / (matrices + attention)


def spread(config: dict[str, Any], count: int) -> dict[str, list[int]]:
    """So many heads, evenly over the layers that ACT takes by default."""
    per_layer, layers = config["num_attention_heads"], config["num_hidden_layers"]
    every = [(layer, head) for layer in range(2, layers - 1) for head in range(per_layer)]
    chosen: dict[str, list[int]] = {}
    for place in np.linspace(0, len(every) - 1, count).round().astype(int):
        layer, head = every[place]
        chosen.setdefault(str(layer), []).append(head)
    return chosen


def counted() -> None:
    print("| heads | of all attention | of the prefill, 2,048 tokens | 16,384 tokens |")
    print("| --- | --- | --- | --- |")
    for heads in SETS:
        short, long = (share_added(LLAMA_2_7B, heads, tokens) for tokens in (2048, 16384))
        print(f"| {heads} of {OF} | {heads / OF:.1%} | {short:.2%} | {long:.1%} |")


def measured(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        model, flags, _ = shapes.chosen(options.model, options.dtype, Path(scratch))
        flags += ["--no-enable-prefix-caching", "--enforce-eager"]
        flags += ["--max-model-len", str(options.tokens + 64), "--max-num-seqs", "4"]
        flags += ["--max-num-batched-tokens", "2048", "--kv-cache-memory-bytes", str(1 << 28)]
        config = json.loads((model / "config.json").read_text())
        arms = _arms(config)
        with servers.heed(model, flags, Path(scratch) / "heed.log") as server:
            seconds = _rounds(options, server, config["vocab_size"], list(arms.values()))
    _table(options, config, list(arms), seconds)


def _arms(config: dict[str, Any]) -> dict[str, list[dict[str, Any]] | None]:
    """Interventions by name; the first is none."""
    total = config["num_hidden_layers"] * config["num_attention_heads"]
    arms: dict[str, list[dict[str, Any]] | None] = {"plain": None}
    for heads in SETS:
        count = max(1, round(heads / OF * total))
        edit = {"method": "act", "heads": spread(config, count)}
        arms[f"act, {count} of {total} heads"] = [edit]
    arms[f"zerotuning, {count} of {total} heads"] = [
        {"method": "zerotuning", "gamma": 1.5, "heads": spread(config, count)}
    ]
    return arms


def _rounds(
    options: argparse.Namespace,
    server: servers.Server,
    vocabulary: int,
    arms: Sequence[list[dict[str, Any]] | None],
) -> np.ndarray:
    """Processor time in seconds, float64 [rounds, arms]."""
    order, seconds = random.Random(0), np.zeros((options.rounds, len(arms)))
    for number in range(-1, options.rounds):
        prompts = load.random_prompts(options.prompts, options.tokens, vocabulary, number + 7)
        for arm in order.sample(range(len(arms)), len(arms)):
            began = server.processor_seconds()
            for prompt in prompts:
                load.run(server.url, load.Burst([prompt], 1, [arms[arm]]))
            if number >= 0:  # the first round warms up
                seconds[number, arm] = server.processor_seconds() - began
    return seconds


def _table(
    options: argparse.Namespace, config: dict[str, Any], names: list[str], seconds: np.ndarray
) -> None:
    ratios = seconds[:, 1:] / seconds[:, :1]
    drawn = np.random.default_rng(0).integers(0, len(ratios), (4000, len(ratios)))
    low, high = np.quantile(np.median(ratios[drawn], axis=1), (0.025, 0.975), axis=0)
    plain = np.median(seconds[:, 0]) / options.prompts
    print(
        f"\n{options.model}, {options.dtype}, {options.tokens} tokens: {plain:.3f} s of processor time plain, "
        f"{options.rounds} rounds of {options.prompts}"
    )
    print("| edit | prefill / plain | search by multiplications |")
    print("| --- | --- | --- |")
    for index, name in enumerate(names[1:]):
        share = "0"
        if name.startswith("act"):
            heads = int(name.split()[1])
            share = f"{share_added(config, heads, options.tokens):.2%}"
        median = np.median(ratios[:, index])
        print(f"| {name} | {median:.3f} [{low[index]:.3f}, {high[index]:.3f}] | {share} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", choices=shapes.MODELS)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--tokens", type=int, default=1024, help="of a prompt [1024]")
    parser.add_argument("--prompts", type=int, default=1, help="of an arm in a round [1]")
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    counted()
    if options.model is not None:
        measured(options)


if __name__ == "__main__":
    main()

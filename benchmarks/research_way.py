"""Heed against the research way: transformers, eager attention patched in Python, one request at a time.

Both generate greedily for the same prompts with the same edit (ZeroTuning, all layers and heads) on
weights of the same shape and dtype; the number printed is the ratio of tokens per second. The patched
side keeps its KV cache and runs without any server around it.

    python benchmarks/research_way.py --model qwen2-0.5b --dtype bfloat16 --rounds 3
"""

import argparse
import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import shapes
import torch
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM
from transformers.models.llama.modeling_llama import repeat_kv

from heed_server.measuring import load, servers

GAMMA = 1.5
REQUESTS = 16


def zerotuning_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Eager attention with ln(gamma) added to the logit of key 0 (arXiv 2505.11739, Eq. 3)."""
    key = repeat_kv(key, module.num_key_value_groups)
    value = repeat_kv(value, module.num_key_value_groups)
    logits = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        logits = logits + attention_mask[..., : key.shape[-2]]
    logits[..., 0] += math.log(GAMMA)
    weights = torch.softmax(logits, dim=-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2).contiguous(), weights


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory() as scratch:
        directory, flags, vocabulary = _model(options, Path(scratch))
        model = _patched(directory, options)
        server = servers.heed(directory, flags, (options.logs or Path(scratch)) / "heed.log")
        research: list[float] = []
        served: list[float] = []
        with server:
            for number in range(-1, options.rounds):
                prompts = load.random_prompts(REQUESTS, options.prompt, vocabulary, number + 7)
                edits = [[{"method": "zerotuning", "gamma": GAMMA}]] * REQUESTS
                seen = load.run(server.url, load.Burst(prompts, options.output, edits))
                seconds = _one_at_a_time(model, prompts[: options.sequential], options.output)
                if number >= 0:
                    served.append(REQUESTS * options.output / seen.total)
                    research.append(options.sequential * options.output / seconds)
    ratios = np.asarray(served) / np.asarray(research)
    result = {
        "model": options.model,
        "dtype": options.dtype,
        "prompt_tokens": options.prompt,
        "output_tokens": options.output,
        "rounds": options.rounds,
        "machine": options.machine,
        "tokens_per_second": {
            "heed": float(np.median(served)),
            "research way": float(np.median(research)),
        },
        "ratio": {"median": float(np.median(ratios)), "all": ratios.tolist()},
    }
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


@torch.no_grad()
def _one_at_a_time(model: Any, prompts: list[list[int]], tokens: int) -> float:
    start = time.perf_counter()
    for prompt in prompts:
        model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
        )
    return time.perf_counter() - start


def _patched(directory: Path, options: argparse.Namespace) -> Any:
    AttentionInterface.register("zerotuning", zerotuning_attention)
    dtype = getattr(torch, options.dtype)
    if options.model == "heed-tiny":
        return AutoModelForCausalLM.from_pretrained(
            directory, dtype=dtype, attn_implementation="zerotuning"
        )
    config = AutoConfig.from_pretrained(directory)
    return AutoModelForCausalLM.from_config(
        config, dtype=dtype, attn_implementation="zerotuning"
    ).eval()


def _model(options: argparse.Namespace, scratch: Path) -> tuple[Path, list[str], int]:
    flags = ["--no-enable-prefix-caching", "--max-num-seqs", "32", "--enforce-eager"]
    flags += ["--max-model-len", str(options.prompt + options.output + 64)]
    flags += ["--kv-cache-memory-bytes", str(1 << 30)]
    directory, chosen, vocabulary = shapes.chosen(options.model, options.dtype, scratch)
    return directory, flags + chosen, vocabulary


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", choices=shapes.MODELS, default="qwen2-0.5b")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--output", type=int, default=32)
    parser.add_argument(
        "--sequential", type=int, default=4, help="prompts that the research way runs per round"
    )
    parser.add_argument("--machine", default="unnamed machine")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--logs", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()

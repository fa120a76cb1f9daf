"""What eviction costs in time, and what the memory that it frees gives back.

    python benchmarks/eviction_speed.py --rounds 5
    python benchmarks/eviction_speed.py --model qwen2-0.5b --dtype bfloat16 --loads compute-bound --steps 0

Heed with blocks of 32 and no prefix caching. Loads of a burst each: *cache-bound*, long requests in a
pool that holds three of them, and *compute-bound*, shorter ones in a pool that holds them all. Each
round sends the burst once plain and once with each method, in an order that rotates; ratios are taken
within a round. Then, with heed-tiny in an engine in this process, the step that ends with the prompt,
with and without an eviction.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import shapes

from heed_server.measuring import load, servers

BLOCK = 32
PAUSE_SECONDS = 1.5
KEEP = 0.125
METHODS = (
    *("snapkv", "adakv", "pyramidkv", "task_kv", "tappa"),
    *("tova", "h2o", "knorm", "keydiff", "expected_attention"),
)
STEP_PROMPT = 1024


@dataclass(frozen=True)
class Load:
    """A burst of equal requests, and the blocks of the pool that it meets."""

    requests: int
    prompt: int
    output: int
    blocks: int


LOADS = {
    "cache-bound": Load(requests=24, prompt=800, output=200, blocks=3 * 32 + 1),
    "cache-bound, long answers": Load(requests=12, prompt=800, output=600, blocks=3 * 44 + 1),
    "compute-bound": Load(requests=16, prompt=256, output=64, blocks=1024),
}


@dataclass(frozen=True)
class Ratio:
    """Tokens per second with the method over those of plain requests: median and range over rounds."""

    median: float
    least: float
    most: float


def main() -> None:
    options = _options()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.loads if options.rounds else ():
            burst = replace(LOADS[name], requests=options.requests or LOADS[name].requests)
            ratios = _ratios(burst, options, Path(scratch))
            print(_ratio_table(f"{name}, {options.model} in {options.dtype}", burst, ratios))
            found[name] = {method: asdict(ratio) for method, ratio in ratios.items()}
    if options.steps:
        found["step"] = _step_times(options.methods, options.steps)
        print(_step_table(found["step"]))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=shapes.MODELS, default="heed-tiny")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--loads", nargs="+", choices=LOADS, default=LOADS)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--rounds", type=int, default=5, help="of each load; 0: the step alone")
    parser.add_argument("--requests", type=int, help="of a burst, instead of the load's own number")
    parser.add_argument(
        "--steps", type=int, default=15, help="prompts per method for the step itself; 0: none"
    )
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def _edit(method: str) -> dict[str, Any]:
    return {"method": method, "keep": KEEP}


def _ratios(burst: Load, options: argparse.Namespace, scratch: Path) -> dict[str, Ratio]:
    model, flags, vocabulary = shapes.chosen(options.model, options.dtype, scratch)
    flags += [
        *("--enforce-eager", "--no-enable-prefix-caching"),
        *("--block-size", str(BLOCK), "--num-gpu-blocks-override", str(burst.blocks)),
        *("--max-model-len", str(burst.prompt + burst.output + 8), "--max-num-seqs", "32"),
        *("--kv-cache-memory-bytes", str(1 << 28)),
    ]
    arms: dict[str, list[dict[str, Any]] | None] = {"plain": None}
    arms |= {name: [_edit(name)] for name in options.methods}
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    names = list(arms)
    with servers.heed(model, flags, scratch / "heed.log") as server:
        for number in range(-1, options.rounds):
            prompts = load.random_prompts(burst.requests, burst.prompt, vocabulary, number + 7)
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                time.sleep(PAUSE_SECONDS)
                sent = load.Burst(prompts, burst.output, [arms[name]] * burst.requests)
                seen = load.run(server.url, sent)
                if number >= 0:  # the first round warms every arm up
                    seconds[name].append(seen.total)
    ratios = {
        name: np.divide(seconds["plain"], took) for name, took in seconds.items() if name != "plain"
    }
    return {
        name: Ratio(float(np.median(each)), float(each.min()), float(each.max()))
        for name, each in ratios.items()
    }


def _ratio_table(name: str, burst: Load, ratios: dict[str, Ratio]) -> str:
    lines = [
        f"{name}: {burst.requests} requests of {burst.prompt} + {burst.output} tokens, "
        f"{burst.blocks - 1} blocks of {BLOCK}, keep {KEEP}\n",
        "| method | tokens per second, over plain | range |",
        "| --- | --- | --- |",
    ]
    lines += [
        f"| `{method}` | {ratio.median:.2f} | {ratio.least:.2f} to {ratio.most:.2f} |"
        for method, ratio in ratios.items()
    ]
    return "\n".join(lines) + "\n"


def _step_times(methods: Sequence[str], prompts: int) -> dict[str, dict[str, float]]:
    """Milliseconds of the step that computes a whole prompt, by method."""
    os.environ |= {"VLLM_PLUGINS": "heed", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    from vllm import EngineArgs, SamplingParams
    from vllm.v1.engine.llm_engine import LLMEngine

    from heed_interventions import ModelView, PromptView, parse, resolve
    from heed_server.engine.payload import RESERVED_KEY, Payload, pack

    arguments = EngineArgs(
        model=str(shapes.bundled_directory()), dtype="float32", enforce_eager=True, block_size=BLOCK,
        max_num_batched_tokens=STEP_PROMPT, max_num_seqs=4, kv_cache_memory_bytes=1 << 28,
        enable_prefix_caching=False,
    )  # fmt: skip
    engine = LLMEngine.from_engine_args(arguments)
    model = ModelView(layers=6, query_heads=6, kv_heads=2, head_dim=32, max_length=2048)
    seconds: dict[str, list[float]] = {name: [] for name in ("plain", *methods)}
    for number in range(-2, prompts):
        (prompt,) = load.random_prompts(1, STEP_PROMPT, 2048, number + 7)
        for name, took in seconds.items():
            params = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)
            if name != "plain":
                edits = resolve(parse([_edit(name)]), model, PromptView(STEP_PROMPT)).edits
                payload = Payload(f"{name}{number}", 1, STEP_PROMPT, STEP_PROMPT, edits)
                params.extra_args = {RESERVED_KEY: pack(payload)}
            engine.add_request(f"{name}{number}", {"prompt_token_ids": prompt}, params)
            begin = time.perf_counter()
            engine.step()
            if number >= 0:
                took.append(time.perf_counter() - begin)
            while engine.has_unfinished_requests():
                engine.step()
    return {name: _summary(took, seconds["plain"]) for name, took in seconds.items()}


def _summary(took: Sequence[float], plain: Sequence[float]) -> dict[str, float]:
    milliseconds = 1e3 * np.array(took)
    added = milliseconds - 1e3 * np.array(plain)
    return {"median": float(np.median(milliseconds)), "added": float(np.median(added))}


def _step_table(times: dict[str, dict[str, float]]) -> str:
    lines = [
        f"The step that computes a prompt of {STEP_PROMPT} tokens, all of it, in ms\n",
        "| method | step | added by the eviction |",
        "| --- | --- | --- |",
    ]
    lines += [
        f"| `{name}` | {each['median']:.1f} | {each['added']:.1f} |" for name, each in times.items()
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

"""Serving speed: plain traffic with Heed against stock vLLM, and edited traffic against plain.

Two servers stand side by side, stock vLLM and Heed, with the same model and flags and without prefix
caching. Each round sends the same burst of 16 concurrent requests once per arm, in an order that
rotates; ratios are taken within a round and their median and 95 % interval (bootstrap) are printed.

    python benchmarks/serving.py --model heed-tiny --rounds 30
    python benchmarks/serving.py --model qwen2-0.5b --rounds 8 --prompt 64 --output 16
"""

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import load
import numpy as np
import servers
import shapes

REQUESTS = 16
PAUSE_SECONDS = 1.5
"""vLLM's workers spin for a second after their last step: on few cores the one would slow the other."""

RATIOS = (
    ("plain: heed / stock", "heed plain", "stock plain"),
    ("edited / plain", "heed equal edits", "heed plain"),
    ("different / equal edits", "heed different edits", "heed equal edits"),
)


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory() as scratch:
        model, flags, vocabulary = _model(options, Path(scratch))
        logs = options.logs or Path(scratch)
        stock = servers.stock(model, flags, logs / "stock.log", split_kv=options.stock_split_kv)
        heed = servers.heed(model, flags, logs / "heed.log")
        with stock, heed:
            measured = _rounds(options, stock.url, heed.url, vocabulary)
    result = {
        "model": options.model,
        "machine": f"{platform.machine()}, {options.machine}",
        "requests": REQUESTS,
        "prompt_tokens": options.prompt,
        "output_tokens": options.output,
        "rounds": options.rounds,
        "stock_split_kv": options.stock_split_kv,
        "start_seconds": {"stock": stock.start_seconds, "heed": heed.start_seconds},
        "ratios": {
            name: {phase: _ratio(measured, above, below, phase) for phase in _PHASES}
            for name, above, below in RATIOS
        },
        "medians": {
            arm: {phase: float(np.median(values[phase])) for phase in values}
            for arm, values in measured.items()
        },
    }
    print(_table(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


_PHASES = ("prefill", "decode", "total", "first")


def _rounds(
    options: argparse.Namespace, stock: str, heed: str, vocabulary: int
) -> dict[str, dict[str, list[float]]]:
    arms: dict[str, tuple[str, Sequence[list[dict[str, Any]] | None]]] = {
        "stock plain": (stock, [None] * REQUESTS),
        "heed plain": (heed, [None] * REQUESTS),
        "heed equal edits": (heed, [_edit(0)] * REQUESTS),
        "heed different edits": (heed, [_edit(index) for index in range(REQUESTS)]),
    }
    names = list(arms)
    measured = {name: {phase: list[float]() for phase in _PHASES} for name in names}
    for round_number in range(-1, options.rounds):
        prompts = load.random_prompts(REQUESTS, options.prompt, vocabulary, round_number + 7)
        turn = round_number % len(names)
        for name in names[turn:] + names[:turn]:
            url, edits = arms[name]
            time.sleep(PAUSE_SECONDS)
            seen = load.run(url, load.Burst(prompts, options.output, edits))
            if round_number < 0:
                continue  # warms every arm up
            values = (seen.prefill, seen.decode, seen.total, float(np.median(seen.first)))
            for phase, value in zip(_PHASES, values, strict=True):
                measured[name][phase].append(value)
    return measured


def _edit(index: int) -> list[dict[str, Any]]:
    return [{"method": "zerotuning", "gamma": 1.5 + index / 16}]


def _ratio(
    measured: Mapping[str, Mapping[str, Sequence[float]]], above: str, below: str, phase: str
) -> dict[str, float]:
    """Speed of `above` relative to `below` (above 1: faster), from rounds paired with each other."""
    ratios = np.asarray(measured[below][phase]) / np.asarray(measured[above][phase])
    draws = np.random.default_rng(0).choice(ratios, size=(4000, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), (0.025, 0.975))
    return {"median": float(np.median(ratios)), "low": float(low), "high": float(high)}


def _table(result: Mapping[str, Any]) -> str:
    lines = [
        f"{result['model']}: {REQUESTS} concurrent requests of {result['prompt_tokens']} + "
        f"{result['output_tokens']} tokens, {result['rounds']} rounds; {result['machine']}",
        "",
        "| speed ratio | prefill | decode | whole burst | time to first token |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, phases in result["ratios"].items():
        cells = [f"{p['median']:.3f} [{p['low']:.3f}, {p['high']:.3f}]" for p in phases.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines.append("")
    for arm, phases in result["medians"].items():
        seconds = ", ".join(f"{phase} {value:.3f} s" for phase, value in phases.items())
        lines.append(f"{arm}: {seconds}")
    starts = result["start_seconds"]
    lines.append(f"start to healthy: stock {starts['stock']:.1f} s, heed {starts['heed']:.1f} s")
    return "\n".join(lines)


def _model(options: argparse.Namespace, scratch: Path) -> tuple[Path, list[str], int]:
    context = str(options.prompt + options.output + 64)
    flags = ["--no-enable-prefix-caching", "--max-model-len", context, "--max-num-seqs", "32"]
    flags += ["--kv-cache-memory-bytes", str(1 << 30), "--enforce-eager"]
    if options.model == "heed-tiny":
        return shapes.bundled_directory(), [*flags, "--dtype", options.dtype], 2048
    directory = shapes.write_qwen2_shape(scratch / "qwen2", options.dtype)
    return directory, [*flags, "--load-format", "dummy", "--dtype", options.dtype], 151936


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", choices=("heed-tiny", "qwen2-0.5b"), default="heed-tiny")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--prompt", type=int, default=256, help="prompt tokens per request")
    parser.add_argument("--output", type=int, default=64, help="tokens sampled per request")
    parser.add_argument(
        "--stock-split-kv",
        action="store_true",
        help="leave vLLM's default KV split on in the stock server (Heed turns it off)",
    )
    parser.add_argument("--machine", default="unnamed machine", help="printed with the table")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    parser.add_argument("--logs", type=Path, help="keep the servers' logs in this directory")
    return parser.parse_args()


if __name__ == "__main__":
    main()

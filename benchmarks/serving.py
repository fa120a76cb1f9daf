"""Serving speed: plain traffic with Heed against stock vLLM, and edited traffic against plain.

Three servers stand side by side with the same model and flags and without prefix caching: stock vLLM,
Heed, and stock vLLM once more as the control, which says how far two servers differ that are the same.
Each round sends the same burst of 16 concurrent requests once per arm, in an order drawn anew (an arm
that always followed the same other one would inherit its caches and pages), and ratios are taken
within a round. Where its memory happens to lie makes a process some per cent faster
or slower for its whole life, so the servers are started afresh several times: the 95 % intervals
(bootstrap) draw starts first and rounds within them.

    python benchmarks/serving.py --model heed-tiny --starts 6 --rounds 6
    python benchmarks/serving.py --model qwen2-0.5b --starts 3 --rounds 4 --prompt 64 --output 16
"""

import argparse
import json
import platform
import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
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
    ("control: stock / stock", "control plain", "stock plain"),
    ("plain: heed / stock", "heed plain", "stock plain"),
    ("plain: heed / control", "heed plain", "control plain"),
    ("edited / plain", "heed equal edits", "heed plain"),
    ("different / equal edits", "heed different edits", "heed equal edits"),
)


def main() -> None:
    options = _options()
    measured: list[Measured] = []
    seconds: dict[str, list[float]] = {"stock": [], "heed": [], "control": []}
    with tempfile.TemporaryDirectory() as scratch:
        model, flags, vocabulary = _model(options, Path(scratch))
        logs = options.logs or Path(scratch)
        for start in range(options.starts):
            stood = _stand(options, model, flags, logs, start)
            with ExitStack() as running:
                # The first one started is not always the same one.
                names = list(stood)
                for name in names[start % 3 :] + names[: start % 3]:
                    running.enter_context(stood[name])
                measured.append(_rounds(options, stood, vocabulary, start))
            for name, server in stood.items():
                seconds[name].append(server.start_seconds)
    result = {
        "model": options.model,
        "machine": f"{platform.machine()}, {options.machine}",
        "requests": REQUESTS,
        "prompt_tokens": options.prompt,
        "output_tokens": options.output,
        "starts": options.starts,
        "rounds": options.rounds,
        "stock_split_kv": options.stock_split_kv,
        "start_seconds": {name: float(np.median(took)) for name, took in seconds.items()},
        "ratios": {
            name: {phase: _ratio(measured, above, below, phase) for phase in _PHASES}
            for name, above, below in RATIOS
        },
        "medians": {
            arm: {
                phase: float(np.median([value for one in measured for value in one[arm][phase]]))
                for phase in _PHASES
            }
            # Its clock ticks are too coarse for a median.
            | {API: float(np.mean([value for one in measured for value in one[arm][API]]))}
            for arm in measured[0]
        },
    }
    print(_table(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


_PHASES = ("prefill", "decode", "total", "first")
API = "processor time of the API process"


Measured = dict[str, dict[str, list[float]]]
"""Seconds of one start: by arm and phase, one number per round."""


def _stand(
    options: argparse.Namespace, model: Path, flags: list[str], logs: Path, start: int
) -> dict[str, servers.Server]:
    split_kv = options.stock_split_kv
    return {
        "stock": servers.stock(model, flags, logs / f"stock-{start}.log", split_kv=split_kv),
        "heed": servers.heed(model, flags, logs / f"heed-{start}.log"),
        "control": servers.stock(model, flags, logs / f"control-{start}.log", split_kv=split_kv),
    }


def _rounds(
    options: argparse.Namespace, stood: Mapping[str, servers.Server], vocabulary: int, start: int
) -> Measured:
    stock, heed, control = (stood[name] for name in ("stock", "heed", "control"))
    arms: dict[str, tuple[servers.Server, Sequence[list[dict[str, Any]] | None]]] = {
        "stock plain": (stock, [None] * REQUESTS),
        "control plain": (control, [None] * REQUESTS),
        "heed plain": (heed, [None] * REQUESTS),
        "heed equal edits": (heed, [_edit(0)] * REQUESTS),
        "heed different edits": (heed, [_edit(index) for index in range(REQUESTS)]),
    }
    names = list(arms)
    order = random.Random(start)
    measured = {name: {phase: list[float]() for phase in (*_PHASES, API)} for name in names}
    for round_number in range(-1, options.rounds):
        prompts = load.random_prompts(
            REQUESTS, options.prompt, vocabulary, 1000 * start + round_number + 7
        )
        for name in order.sample(names, len(names)):
            server, edits = arms[name]
            time.sleep(PAUSE_SECONDS)
            before = server.api_seconds()
            seen = load.run(server.url, load.Burst(prompts, options.output, edits))
            api = server.api_seconds() - before
            if round_number < 0:
                continue  # warms every arm up
            values = (seen.prefill, seen.decode, seen.total, float(np.median(seen.first)), api)
            for phase, value in zip((*_PHASES, API), values, strict=True):
                measured[name][phase].append(value)
    return measured


def _edit(index: int) -> list[dict[str, Any]]:
    return [{"method": "zerotuning", "gamma": 1.5 + index / 16}]


def _ratio(measured: Sequence[Measured], above: str, below: str, phase: str) -> dict[str, float]:
    """Speed of `above` relative to `below` (above 1: faster), from rounds paired with each other."""
    ratios = np.array(
        [np.divide(one[below][phase], one[above][phase]) for one in measured]
    )  # [starts, rounds]
    starts, rounds = ratios.shape
    generator = np.random.default_rng(0)
    drawn = ratios[generator.integers(0, starts, (4000, starts))]
    within = generator.integers(0, rounds, drawn.shape)
    medians = np.median(np.take_along_axis(drawn, within, axis=2), axis=(1, 2))
    low, high = np.quantile(medians, (0.025, 0.975))
    return {"median": float(np.median(ratios)), "low": float(low), "high": float(high)}


def _table(result: Mapping[str, Any]) -> str:
    lines = [
        f"{result['model']}: {REQUESTS} concurrent requests of {result['prompt_tokens']} + "
        f"{result['output_tokens']} tokens, {result['starts']} starts of {result['rounds']} rounds; "
        f"{result['machine']}",
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
    parser.add_argument("--starts", type=int, default=6, help="times to start the servers afresh")
    parser.add_argument("--rounds", type=int, default=6, help="rounds per start")
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

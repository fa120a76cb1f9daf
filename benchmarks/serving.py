"""Serving speed: plain traffic with Heed against stock vLLM, and edited traffic against plain.

Three servers stand side by side with the same model and flags and without prefix caching: stock vLLM,
Heed, and stock vLLM once more as the control, which says how far two servers differ that are the same.
Each round sends the same burst of 16 concurrent requests once per arm; `heed_server.measuring.rounds` says
how rounds and starts are paired. `heed bench` does the same on a model of your own.

    python benchmarks/serving.py --model heed-tiny --starts 6 --rounds 6
    python benchmarks/serving.py --model heed-tiny --starts 20 --rounds 3 --plain
    python benchmarks/serving.py --model qwen2-0.5b --starts 3 --rounds 4 --prompt 64 --output 16
"""

import argparse
import json
import platform
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import shapes

from heed_server.measuring import rounds, servers
from heed_server.measuring.rounds import Arm, Traffic

REQUESTS = 16
RATIOS = (
    ("control: stock / stock", "control plain", "stock plain"),
    ("plain: heed / stock", "heed plain", "stock plain"),
    ("plain: heed / control", "heed plain", "control plain"),
    ("plain: heed / both", "heed plain", "stock plain", "control plain"),
    ("edited / plain", "heed equal edits", "heed plain"),
    ("different / equal edits", "heed different edits", "heed equal edits"),
)


def main() -> None:
    options = _options()
    measured: list[rounds.Measured] = []
    seconds: dict[str, list[float]] = {"stock": [], "heed": [], "control": []}
    with tempfile.TemporaryDirectory() as scratch:
        model, flags, vocabulary = _model(options, Path(scratch))
        logs = options.logs or Path(scratch)
        traffic = Traffic(options.prompt, options.output, vocabulary)
        for start in range(options.starts):
            stood = _stand(options, model, flags, logs, start)
            with ExitStack() as running:
                rounds.start_in_turn(stood, start, running)
                arms = _arms(options.plain)
                measured.append(rounds.measure_start(stood, arms, traffic, start, options.rounds))
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
        **rounds.summary(measured, RATIOS),
        "measured": measured,
    }
    heading = (
        f"{options.model}: {REQUESTS} concurrent requests of {options.prompt} + {options.output} "
        f"tokens, {options.starts} starts of {options.rounds} rounds; {result['machine']}"
    )
    print(rounds.table(heading, result))
    took = result["start_seconds"]
    print(f"start to healthy: stock {took['stock']:.1f} s, heed {took['heed']:.1f} s")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def _stand(
    options: argparse.Namespace, model: Path, flags: list[str], logs: Path, start: int
) -> dict[str, servers.Server]:
    split_kv = options.stock_split_kv
    return {
        "stock": servers.stock(model, flags, logs / f"stock-{start}.log", split_kv=split_kv),
        "heed": servers.heed(model, flags, logs / f"heed-{start}.log"),
        "control": servers.stock(model, flags, logs / f"control-{start}.log", split_kv=split_kv),
    }


def _arms(plain_only: bool) -> dict[str, Arm]:
    plain = [None] * REQUESTS
    arms = {
        "stock plain": Arm("stock", plain),
        "control plain": Arm("control", plain),
        "heed plain": Arm("heed", plain),
    }
    if plain_only:
        return arms
    return arms | {
        "heed equal edits": Arm("heed", [_edit(0)] * REQUESTS),
        "heed different edits": Arm("heed", [_edit(index) for index in range(REQUESTS)]),
    }


def _edit(index: int) -> list[dict[str, Any]]:
    return [{"method": "zerotuning", "gamma": 1.5 + index / 16}]


def _model(options: argparse.Namespace, scratch: Path) -> tuple[Path, list[str], int]:
    context = str(options.prompt + options.output + 64)
    flags = ["--no-enable-prefix-caching", "--max-model-len", context, "--max-num-seqs", "32"]
    flags += ["--kv-cache-memory-bytes", str(1 << 30), "--enforce-eager"]
    directory, chosen, vocabulary = shapes.chosen(options.model, options.dtype, scratch)
    return directory, flags + chosen, vocabulary


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", choices=shapes.MODELS, default="heed-tiny")
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
    parser.add_argument("--plain", action="store_true", help="leave out the edited arms")
    parser.add_argument("--machine", default="unnamed machine", help="printed with the table")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    parser.add_argument("--logs", type=Path, help="keep the servers' logs in this directory")
    return parser.parse_args()


if __name__ == "__main__":
    main()

"""How far VHR's two modes choose the same heads, and what they cost.

    python benchmarks/vhr_modes.py [--most 100]       # starts a server; --url uses a running one

The same question about pictures of heed-tiny-vision's evaluation sets, once in each mode and in all layers; the
reports name the heads. Overlap is the share of the heads of mode "companion" that mode "masked" chooses
too; two halves that have nothing to do with each other would overlap by a half. Each mode measures a layer
with its own choices in the layers before it reinforced, as it is served. Times are those of answers of
one token, one request at a time, modes in turn.
"""

import argparse
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from heed_server.measuring import servers
from heed_server.models import bundled_model
from heed_server.scoring.images import question_about

QUESTION = "Describe the picture."
MODES = ("companion", "masked")
WARM_UP = 3


def ask(client: httpx.Client, turn: dict[str, Any], edits: list[dict[str, Any]]) -> dict[str, Any]:
    """The answer to the question, one token of it, with nothing out of the prefix cache."""
    body = {
        "messages": [turn],
        "max_tokens": 1,
        "temperature": 0,
        "interventions": edits,
        "cache_salt": str(time.perf_counter_ns()),
    }
    response = client.post("/v1/chat/completions", json=body)
    response.raise_for_status()
    answer: dict[str, Any] = response.json()
    return answer


def overlap(one: dict[str, list[int]], other: dict[str, list[int]]) -> list[float]:
    """By layer, the share of the heads of `one` that are among those of `other`."""
    layers = sorted(one, key=int)
    return [len({*one[layer]} & {*other[layer]}) / max(len(one[layer]), 1) for layer in layers]


def measure(url: str, evaluation: Path, most: int) -> tuple[NDArray[np.float64], dict[str, float]]:
    """[pictures, layers] of overlaps, and the median seconds of an answer by mode."""
    overlaps, seconds = [], defaultdict(list)
    with httpx.Client(base_url=url, timeout=600) as client:
        for number in range(most + WARM_UP):
            turn = question_about(f"pictures.zip/{number}.png", QUESTION, evaluation)
            chosen = {}
            for mode in ("none", *MODES):
                edits = [{"method": "vhr", "mode": mode, "layers": "all"}] if mode in MODES else []
                began = time.perf_counter()
                answer = ask(client, turn, edits)
                seconds[mode].append(time.perf_counter() - began)
                if edits:
                    chosen[mode] = answer["interventions"][0]["chosen_heads"]
            overlaps.append(overlap(*(chosen[mode] for mode in MODES)))
    medians = {mode: float(np.median(took[WARM_UP:])) for mode, took in seconds.items()}
    return np.array(overlaps[WARM_UP:]), medians


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--url", help="a running server instead of one for the run")
    parser.add_argument("--most", type=int, default=100, help="pictures")
    options = parser.parse_args()
    bundled = bundled_model("heed-tiny-vision")
    if bundled is None:
        raise SystemExit("heed-tiny-vision is not installed")
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        if options.url is None:
            flags = ["--dtype", "float32", "--kv-cache-memory-bytes", str(1 << 30)]
            server = servers.heed(
                bundled.directory, [*flags, "--enforce-eager"], Path(scratch) / "heed.log"
            )
            options.url = stack.enter_context(server).url
        found, medians = measure(options.url, bundled.evaluation, options.most)
    print(f"{len(found)} pictures; share of the chosen heads that both modes choose")
    print("| layer | " + " | ".join(map(str, range(found.shape[1]))) + " | all |")
    print("|" + " --- |" * (found.shape[1] + 2))
    means = [*found.mean(axis=0), found.mean()]
    print("| share | " + " | ".join(f"{mean:.2f}" for mean in means) + " |")
    print("; ".join(f"{mode}: {1000 * took:.1f} ms" for mode, took in medians.items()))


if __name__ == "__main__":
    main()

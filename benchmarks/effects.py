"""What the methods do to the bundled model: task accuracies and long-text perplexity, with intervals.

    python benchmarks/effects.py            # starts a server for the run; --url uses a running one

Accuracy is exact match of the greedy answer. Intervals are 95 %: Wilson's for an accuracy, paired
bootstrap for its difference from the same items without interventions. Perplexity is over fixed
held-out texts within the trained length, from `prompt_logprobs`, by quarter of the positions; its
interval, and that of its ratio to the same texts without interventions, are bootstrapped over pieces of
64 tokens, because the texts are few.
"""

import argparse
import asyncio
import json
import math
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from heed_server.measuring import servers
from heed_server.models import bundled_model

Interventions = list[dict[str, Any]]
AT_ONCE = 16
GAMMAS = (0.3, 0.6, 1.5, 2.0, 3.0, 5.0)
ALPHAS = (0.5, 0.1, 0.01)
RESAMPLES = 4000
PIECE = 64


@dataclass(frozen=True)
class Accuracy:
    """Shares of items; `difference` is against no interventions, on the same items."""

    setting: str
    items: int
    correct: float
    low: float
    high: float
    difference: float
    difference_low: float
    difference_high: float


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean negative log-likelihood of the tokens, overall and by quarter of positions.

    `ratio` is to no interventions, on the same texts.
    """

    setting: str
    texts: int
    tokens: int
    overall: float
    low: float
    high: float
    ratio: float
    ratio_low: float
    ratio_high: float
    quarters: Sequence[float]


def main() -> None:
    options = _options()
    model = bundled_model("heed-tiny")
    if model is None:
        raise SystemExit("heed-tiny is not installed")
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        if options.url is None:
            flags = [
                "--dtype",
                "float32",
                "--kv-cache-memory-bytes",
                str(1 << 30),
                "--enforce-eager",
            ]
            server = servers.heed(model.directory, flags, Path(scratch) / "heed.log")
            options.url = stack.enter_context(server).url
        result = asyncio.run(_measure(options, model.evaluation))
    print(_report(result))
    if options.json:
        serialised = {
            kind: {task: [asdict(row) for row in rows] for task, rows in tables.items()}
            for kind, tables in result.items()
        }
        options.json.write_text(json.dumps(serialised, indent=1) + "\n")


async def _measure(options: argparse.Namespace, sets: Path) -> dict[str, dict[str, list[Any]]]:
    async with httpx.AsyncClient(base_url=options.url, timeout=600) as client:
        zerotuning = [("none", None)] + [
            (f"zerotuning gamma {gamma}", _always({"method": "zerotuning", "gamma": gamma}))
            for gamma in GAMMAS
        ]
        emphasis = [("none", None)] + [
            (f"emphasis alpha {alpha}, {where}", _emphasise(alpha, layers))
            for where, layers in (("all layers", None), ("last half", [3, 4, 5]))
            for alpha in ALPHAS
        ]
        accuracies = {
            "sentiment": await _accuracies(client, sets, "sentiment", zerotuning, options.limit),
            "topic": await _accuracies(client, sets, "topic", zerotuning, options.limit),
            "emphasis": await _accuracies(client, sets, "emphasis", emphasis, options.limit),
        }
        perplexities = {"long text": await _perplexities(client, sets, options.length)}
    return {"accuracy": accuracies, "perplexity": perplexities}


Setting = tuple[str, Callable[[dict[str, Any]], Interventions] | None]


def _always(intervention: dict[str, Any]) -> Callable[[dict[str, Any]], Interventions]:
    return lambda item: [intervention]


def _emphasise(alpha: float, layers: list[int] | None) -> Callable[[dict[str, Any]], Interventions]:
    chosen: dict[str, Any] = {} if layers is None else {"layers": layers}

    def edits(item: dict[str, Any]) -> Interventions:
        span = {"text": item["emphasise"]}
        return [{"method": "emphasis", "alpha": alpha, "spans": [span], **chosen}]

    return edits


async def _accuracies(
    client: httpx.AsyncClient, sets: Path, task: str, settings: Sequence[Setting], limit: int
) -> list[Accuracy]:
    items = [json.loads(line) for line in (sets / f"{task}.jsonl").read_text().splitlines()]
    items = items[:limit]
    gate = asyncio.Semaphore(AT_ONCE)
    base: np.ndarray | None = None
    rows = []
    for name, edits in settings:
        answered = [_answers(client, gate, item, edits) for item in items]
        correct = np.array(await asyncio.gather(*answered), dtype=float)
        base = correct if base is None else base
        low, high = wilson(correct)
        share, difference = float(correct.mean()), float((correct - base).mean())
        rows.append(
            Accuracy(name, len(items), share, low, high, difference, *bootstrap(correct - base))
        )
    return rows


async def _answers(
    client: httpx.AsyncClient,
    gate: asyncio.Semaphore,
    item: dict[str, Any],
    edits: Callable[[dict[str, Any]], Interventions] | None,
) -> bool:
    body: dict[str, Any] = {"messages": item["messages"], "temperature": 0, "max_tokens": 24}
    if edits is not None:
        body["interventions"] = edits(item)
    async with gate:
        response = await client.post("/v1/chat/completions", json=body)
    response.raise_for_status()
    text: str = response.json()["choices"][0]["message"]["content"] or ""
    return text.strip() == str(item["answer"]).strip()


async def _perplexities(client: httpx.AsyncClient, sets: Path, length: int) -> list[Perplexity]:
    texts = [json.loads(line)["text"] for line in (sets / "long_text.jsonl").open()]
    window = length // 8
    streaming = {"method": "streaming_llm", "window": window - 4, "sinks": 4}
    settings: list[tuple[str, Interventions]] = [
        ("dense", []),
        (f"window of {window}, no sinks", [streaming | {"window": window, "sinks": 0}]),
        (f"4 sinks + {window - 4}, rolling", [streaming]),
        (f"4 sinks + {window - 4}, original positions", [streaming | {"positions": "original"}]),
    ]
    rows = []
    base: np.ndarray | None = None
    for name, interventions in settings:
        losses = [await _losses(client, text, length, interventions) for text in texts]
        kept = np.array([values for values in losses if len(values) == length - 1])
        pieces = np.array(
            [part.mean(axis=1) for part in np.array_split(kept, length // PIECE, axis=1)]
        )
        pieces = pieces.ravel()
        base = pieces if base is None else base
        low, high = np.exp(bootstrap(pieces))
        ratio_low, ratio_high = np.exp(bootstrap(pieces - base))
        quarters = [float(np.exp(part.mean())) for part in np.array_split(kept, 4, axis=1)]
        rows.append(
            Perplexity(
                setting=name,
                texts=len(kept),
                tokens=kept.size,
                overall=float(np.exp(kept.mean())),
                low=float(low),
                high=float(high),
                ratio=float(np.exp((pieces - base).mean())),
                ratio_low=float(ratio_low),
                ratio_high=float(ratio_high),
                quarters=quarters,
            )
        )
    return rows


async def _losses(
    client: httpx.AsyncClient, text: str, length: int, interventions: Interventions
) -> list[float]:
    """Negative log-likelihoods of tokens 1 … length − 1 of a text, in nats."""
    body = {
        "prompt": text,
        "truncate_prompt_tokens": length,
        "truncation_side": "right",
        "max_tokens": 1,
        "prompt_logprobs": 0,
        "return_token_ids": True,
        "interventions": interventions,
    }
    response = await client.post("/v1/completions", json=body)
    response.raise_for_status()
    choice = response.json()["choices"][0]
    rows = zip(choice["prompt_token_ids"], choice["prompt_logprobs"], strict=True)
    return [-row[str(token)]["logprob"] for token, row in rows if row is not None]


def bootstrap(values: np.ndarray) -> tuple[float, float]:
    """95 % interval of a mean by percentiles of resampled means (Efron 1979). values: one per unit drawn."""
    drawn = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(values[drawn].mean(axis=1), (0.025, 0.975))
    return float(low), float(high)


def wilson(correct: np.ndarray) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927)."""
    n, p, z = len(correct), float(correct.mean()), 1.96
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def _report(result: dict[str, dict[str, list[Any]]]) -> str:
    lines = []
    for task, rows in result["accuracy"].items():
        lines += [
            f"### {task} ({rows[0].items} items)",
            "",
            "| setting | accuracy [95 %] | difference [95 %] |",
            "| --- | --- | --- |",
        ]
        lines += [
            f"| {row.setting} | {row.correct:.3f} [{row.low:.3f}, {row.high:.3f}] "
            f"| {row.difference:+.3f} [{row.difference_low:+.3f}, {row.difference_high:+.3f}] |"
            for row in rows
        ]
        lines.append("")
    for task, rows in result["perplexity"].items():
        lines += [
            f"### {task}: perplexity ({rows[0].tokens} tokens of {rows[0].texts} texts)",
            "",
            "| setting | overall [95 %] | ratio [95 %] | by quarter of the positions |",
            "| --- | --- | --- | --- |",
        ]
        lines += [
            f"| {row.setting} | {row.overall:.2f} [{row.low:.2f}, {row.high:.2f}] "
            f"| {row.ratio:.3f} [{row.ratio_low:.3f}, {row.ratio_high:.3f}] "
            f"| {', '.join(f'{q:.2f}' for q in row.quarters)} |"
            for row in rows
        ]
        lines.append("")
    return "\n".join(lines)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--url", help="a running server of the bundled model")
    parser.add_argument("--limit", type=int, default=1000, help="items per task at most")
    parser.add_argument("--length", type=int, default=1024, help="tokens of each long text")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    return parser.parse_args()


if __name__ == "__main__":
    main()

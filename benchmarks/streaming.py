"""StreamingLLM far past the context: memory, time per token, and how well a long text is predicted.

    python benchmarks/streaming.py [--tokens 20000] [--json FILE]

One engine in this process, the bundled model, its held-out long text. Memory is what the scheduler's
pool says after each step; quality is the negative log-likelihood of the same text in nats per token.
Dense attention ends at the trained length, so the text is cut into pieces of that length for it: each
begins without a past. Without sinks nothing is kept but the window.
"""

import argparse
import json
import os
import resource
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from heed_kernels.edits import VisibleKeys
from heed_server.models import bundled_model

BLOCK, CHUNK, SPAN = 32, 256, 256
EDGES = (0, 512, 1024, 2048, 4096, 8192, 12288, 16384, 20000)
ROUNDS = 8


@dataclass
class Steps:
    """One request: blocks held after each step, and its tokens' log-probabilities."""

    blocks: Sequence[int]
    logprobs: Sequence[float]


@dataclass(frozen=True)
class Spell:
    """Generation over a stretch of positions: milliseconds per token, most blocks, process memory."""

    start: int
    end: int
    median_ms: float
    p90_ms: float
    most_blocks: int
    resident_mib: int


def main() -> None:
    options = _options()
    length = options.tokens
    os.environ |= {
        "VLLM_PLUGINS": "heed",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "HEED_MAX_STREAMING_LENGTH": str(length + 512),
    }
    engine = Engine()
    text = engine.text(length)
    sinks = VisibleKeys(4, SPAN - 4, True, 0)
    bare = VisibleKeys(0, SPAN, True, 0)
    prefill = engine.run(text, 1, sinks)
    quality = {
        f"{sinks.sinks} + {sinks.window}": prefill.logprobs,
        f"0 + {bare.window}": engine.run(text, 1, bare).logprobs,
        "dense": engine.dense(text),
    }
    losses = {name: _by_position(values, length) for name, values in quality.items()}
    print(f"Negative log-likelihood, nats per token, {length:,} tokens:\n")
    _print_losses(losses)
    print(f"\nPrompt of {length:,} tokens in chunks of {CHUNK}: most blocks {max(prefill.blocks)}")
    spells = engine.generate(text[:SPAN], length - SPAN, sinks)
    print(f"\nGeneration of {length - SPAN:,} tokens, alone:\n")
    print("| positions | ms per token | 90th percentile | most blocks | resident MiB |")
    print("| --- | --- | --- | --- | --- |")
    for s in spells:
        print(
            f"| {s.start:,}–{s.end:,} | {s.median_ms:.2f} | {s.p90_ms:.2f} | {s.most_blocks} "
            f"| {s.resident_mib} |"
        )
    if options.json:
        found = {
            "block_size": BLOCK,
            "chunk": CHUNK,
            "tokens": length,
            "losses": losses,
            "prefill_most_blocks": max(prefill.blocks),
            "generation": [asdict(spell) for spell in spells],
        }
        options.json.write_text(json.dumps(found, indent=2) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


class Engine:
    """vLLM's engine with Heed, a step at a time."""

    def __init__(self) -> None:
        from vllm import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        model = bundled_model("heed-tiny")
        assert model is not None
        self.model = model
        arguments = EngineArgs(
            model=str(model.directory), dtype="float32", enforce_eager=True, block_size=BLOCK,
            max_num_batched_tokens=CHUNK, max_num_seqs=4, kv_cache_memory_bytes=1 << 28,
            enable_prefix_caching=False,
        )  # fmt: skip
        self.engine = LLMEngine.from_engine_args(arguments)
        core = self.engine.engine_core.engine_core
        self.pool = core.scheduler.kv_cache_manager.block_pool
        self.context = core.vllm_config.model_config.max_model_len
        # Offline there is no door in front of the engine, so its own check is widened instead.
        from heed_server.api.context_length import let_requests_differ

        self.config = self.engine.input_processor.model_config
        let_requests_differ(self.config)

    def text(self, length: int) -> list[int]:
        from transformers import AutoTokenizer

        lines = (self.model.evaluation / "long_text.jsonl").read_text().splitlines()
        text = "\n\n".join(json.loads(line)["text"] for line in lines)
        ids: list[int] = AutoTokenizer.from_pretrained(str(self.model.directory))(text).input_ids
        if len(ids) < length:
            raise SystemExit(f"the held-out text has {len(ids)} tokens")
        return ids[:length]

    def dense(self, text: list[int]) -> list[float]:
        found: list[float] = []
        for start in range(0, len(text), self.context - 1):
            piece = text[start : start + self.context - 1]
            found += [float("nan"), *self.run(piece, 1, None).logprobs[1:]]
        return found

    def run(self, prompt: list[int], tokens: int, edit: VisibleKeys | None) -> Steps:
        """One request, its prompt's log-probabilities included."""
        self._add(prompt, tokens, edit, prompt_logprobs=0)
        blocks: list[int] = []
        logprobs: list[float] = []
        total = self.pool.num_gpu_blocks - 1
        while self.engine.has_unfinished_requests():
            outputs = self.engine.step()
            blocks.append(total - self.pool.get_num_free_blocks())
            for output in outputs:
                if output.finished:
                    logprobs = [
                        row[token].logprob if row else float("nan")
                        for token, row in zip(prompt, output.prompt_logprobs, strict=True)
                    ]
        return Steps(blocks, logprobs)

    def generate(self, prompt: list[int], tokens: int, edit: VisibleKeys) -> list[Spell]:
        """One request that writes on; positions are cut into equal stretches."""
        self._add(prompt, tokens, edit)
        total = self.pool.num_gpu_blocks - 1
        seconds, blocks, memory = [], [], []
        while self.engine.has_unfinished_requests():
            begin = time.perf_counter()
            self.engine.step()
            seconds.append(time.perf_counter() - begin)
            blocks.append(total - self.pool.get_num_free_blocks())
            memory.append(_resident_mib())
        spells = []
        edges = np.linspace(0, len(seconds), ROUNDS + 1).astype(int)
        for first, last in pairwise(edges):
            part = 1e3 * np.array(seconds[first:last])
            spells.append(
                Spell(
                    len(prompt) + int(first),
                    len(prompt) + int(last),
                    float(np.median(part)),
                    float(np.quantile(part, 0.9)),
                    max(blocks[first:last]),
                    max(memory[first:last]),
                )
            )
        return spells

    def _add(
        self, prompt: list[int], tokens: int, edit: VisibleKeys | None, **parameters: Any
    ) -> None:
        from vllm import SamplingParams

        from heed_server.api.context_length import context_length
        from heed_server.engine.payload import RESERVED_KEY, Payload, pack

        sampling = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, **parameters)
        if edit is not None:
            payload = Payload("bench", 1, len(prompt), None, (edit,))
            sampling.extra_args = {RESERVED_KEY: pack(payload)}
        with context_length(len(prompt) + tokens if edit is not None else None):
            self.engine.add_request("bench", {"prompt_token_ids": prompt}, sampling)


def _resident_mib() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() >> 20


def _by_position(logprobs: Sequence[float], length: int) -> dict[str, float]:
    """Mean negative log-likelihood per stretch of positions; the first token of a text has none."""
    values = -np.array(logprobs)
    edges = [*(edge for edge in EDGES if edge < length), length]
    return {
        f"{first:,}–{last:,}": float(np.nanmean(values[first:last]))
        for first, last in pairwise(edges)
    }


def _print_losses(losses: dict[str, dict[str, float]]) -> None:
    print("| positions | " + " | ".join(losses) + " |")
    print("| --- |" + " --- |" * len(losses))
    for where in next(iter(losses.values())):
        print(f"| {where} | " + " | ".join(f"{by[where]:.3f}" for by in losses.values()) + " |")


if __name__ == "__main__":
    main()

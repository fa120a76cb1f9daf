"""A burst of concurrent completions with fixed prompts and lengths, and what a client sees of it."""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np


@dataclass(frozen=True)
class Burst:
    """Requests that are all sent at once: prompt token ids, tokens to sample, interventions each."""

    prompts: Sequence[Sequence[int]]
    output_tokens: int
    interventions: Sequence[list[dict[str, Any]] | None]


@dataclass(frozen=True)
class Seen:
    """Seconds. first: per request, to its first token. prefill: until all have one. decode: from then
    to the end of the last. total: the whole burst."""

    first: Sequence[float]
    prefill: float
    decode: float
    total: float


def random_prompts(count: int, tokens: int, vocabulary: int, seed: int) -> list[list[int]]:
    """`count` prompts of `tokens` random ids below `vocabulary`, the same for the same seed."""
    drawn = np.random.default_rng(seed).integers(16, vocabulary, size=(count, tokens))
    return [[int(token) for token in row] for row in drawn]


def run(url: str, burst: Burst) -> Seen:
    """Send the burst and wait for its end.

    Raises:
        RuntimeError: an answer that is not the full number of tokens.
    """
    return asyncio.run(_run(url, burst))


async def _run(url: str, burst: Burst) -> Seen:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
        start = time.perf_counter()
        pairs = zip(burst.prompts, burst.interventions, strict=True)
        times = await asyncio.gather(
            *(_one(client, prompt, edits, burst.output_tokens) for prompt, edits in pairs)
        )
    first = [begin - start for begin, _ in times]
    end = max(end for _, end in times)
    begun = max(begin for begin, _ in times)
    return Seen(first, begun - start, end - begun, end - start)


async def _one(
    client: httpx.AsyncClient,
    prompt: Sequence[int],
    interventions: list[dict[str, Any]] | None,
    tokens: int,
) -> tuple[float, float]:
    body: dict[str, Any] = {
        "prompt": list(prompt),
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if interventions is not None:
        body["interventions"] = interventions
    begin = None
    usage: dict[str, Any] = {}
    async with client.stream("POST", "/v1/completions", json=body) as response:
        if response.status_code != 200:
            raise RuntimeError((await response.aread()).decode())
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            if begin is None:
                begin = time.perf_counter()
            if '"usage":{' in line:
                usage = json.loads(line[6:])["usage"]
    if begin is None or usage.get("completion_tokens") != tokens:
        raise RuntimeError(f"expected {tokens} tokens, got {usage}")
    return begin, time.perf_counter()

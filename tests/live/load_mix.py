"""Many clients at once, not all of them patient: what each asks for, how it reads, and what it got.

Run as a script against a running server, it prints one JSON object, and ends with 1 where a client got an error:

    python tests/live/load_mix.py --url http://127.0.0.1:8000 --clients 200
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import httpx
from live_server import LiveServer

Body = dict[str, Any]
Manner = Literal["whole", "streamed", "slow", "leaves", "hurries"]

KEEP_ALIVE_SECONDS = 1.0
"""vLLM closes a connection that has been idle for five, which is when httpx would stop using it too: a request that
is sent at that moment is lost, and its client reads an error."""

MANNERS: tuple[Manner, ...] = (
    "whole",
    "whole",
    "streamed",
    "streamed",
    "slow",
    "leaves",
    "hurries",
)
"""How clients read, in turn: two of seven stay for neither the whole answer nor its report."""

EDITS: list[list[Body]] = [
    [],
    [{"method": "zerotuning", "gamma": 3}],
    [{"method": "head_gain", "gain": 1.5, "layers": [1, 2], "rows": "generated"}],
    [{"method": "emphasis", "spans": [{"start": 5, "end": 15}], "alpha": 0.2}],
    [{"method": "streaming_llm", "window": 48}],
    [],
    [{"method": "locore", "beta": 0.8, "window": 6}],
    [{"method": "act", "beta": 0.2}],
    [{"method": "snapkv", "budget": 32, "window": 8}],
    [{"method": "attention_scale", "q_scale": 1.4, "heads": [0, 3]}, {"method": "locore"}],
    [{"method": "knorm", "keep": 0.5}],
]


@dataclass(frozen=True)
class Ask:
    """One client: `kind` numbers the bodies that are alike, and so have one answer."""

    kind: int
    manner: Manner
    body: Body


@dataclass(frozen=True)
class Got:
    """What a client got. finished: False for one that did not stay. error: what went wrong, else empty."""

    ask: Ask
    finished: bool
    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    methods: tuple[str, ...] = ()
    error: str = ""


def asks(server: LiveServer, count: int, seed: int = 0, kinds: int = 33) -> list[Ask]:
    """`count` clients with `kinds` different bodies, in an order of chance."""
    found = []
    for number in range(count):
        kind = number % kinds
        edits = EDITS[kind % len(EDITS)]
        body: Body = {
            "model": server.model,
            "prompt": server.prompt(40 + 7 * kind, start=kind),
            "max_tokens": 12 + kind % 20,
            "temperature": 0,
            "logprobs": 1,
            "ignore_eos": True,
            "return_token_ids": True,
            "interventions": edits,
        }
        if kind % 5 == 0:
            body |= {"temperature": 0.8, "seed": kind}
        found.append(Ask(kind, MANNERS[number // kinds % len(MANNERS)], body))
    random.Random(seed).shuffle(found)
    return found


async def ask_all(url: str, waiting: Sequence[Ask], at_once: int) -> list[Got]:
    """All clients, `at_once` of them at a time; results in the order of `waiting`."""
    limits = httpx.Limits(max_connections=at_once, keepalive_expiry=KEEP_ALIVE_SECONDS)
    gate = asyncio.Semaphore(at_once)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=300) as client:

        async def one(ask: Ask) -> Got:
            async with gate:
                try:
                    return await _ask(client, ask)
                except Exception as error:
                    return Got(ask, False, error=f"{type(error).__name__}: {error}")

        return list(await asyncio.gather(*(one(ask) for ask in waiting)))


async def _ask(client: httpx.AsyncClient, ask: Ask) -> Got:
    if ask.manner == "hurries":
        try:
            response = await client.post("/v1/completions", json=ask.body, timeout=0.2)
        except httpx.TimeoutException:
            return Got(ask, False)
        return _whole(ask, response)
    if ask.manner == "whole":
        return _whole(ask, await client.post("/v1/completions", json=ask.body))
    return await _stream(client, ask)


def _whole(ask: Ask, response: httpx.Response) -> Got:
    if response.status_code != 200:
        return Got(ask, False, error=f"{response.status_code}: {response.text[:300]}")
    answer = response.json()
    choice = answer["choices"][0]
    return Got(
        ask,
        True,
        tuple(choice["token_ids"]),
        tuple(choice["logprobs"]["token_logprobs"]),
        _methods(answer),
    )


async def _stream(client: httpx.AsyncClient, ask: Ask) -> Got:
    tokens: list[int] = []
    logprobs: list[float] = []
    methods: tuple[str, ...] = ()
    done = False
    async with client.stream(
        "POST", "/v1/completions", json=ask.body | {"stream": True}
    ) as response:
        if response.status_code != 200:
            return Got(ask, False, error=f"{response.status_code}")
        async for line in response.aiter_lines():
            if line == "data: [DONE]":
                done = True
            elif line.startswith("data: "):
                chunk = json.loads(line.removeprefix("data: "))
                if "error" in chunk:
                    return Got(ask, False, error=line[:300])
                methods = _methods(chunk) or methods
                for choice in chunk["choices"]:
                    tokens += choice["token_ids"] or []
                    logprobs += (choice["logprobs"] or {}).get("token_logprobs", [])
            if ask.manner == "leaves" and len(tokens) > 3:
                return Got(ask, False)
            if ask.manner == "slow":
                await asyncio.sleep(0.03)
    error = "" if done else "the stream ended without [DONE]"
    return Got(ask, done, tuple(tokens), tuple(logprobs), methods, error)


def _methods(answer: Body) -> tuple[str, ...]:
    return tuple(report["method"] for report in answer.get("interventions") or [])


def tally(answers: Sequence[Got]) -> dict[str, int]:
    """How many finished, left before the end and failed."""
    return dict(
        Counter(
            "failed" if got.error else "finished" if got.finished else "left" for got in answers
        )
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Ask a running server as many clients at once do.")
    parser.add_argument("--url", required=True)
    parser.add_argument("--clients", type=int, default=200)
    options = parser.parse_args()
    server = LiveServer(options.url.rstrip("/"))
    waiting = asks(server, options.clients)
    answers = asyncio.run(ask_all(server.url, waiting, options.clients))
    errors = Counter(got.error for got in answers if got.error)
    print(json.dumps(tally(answers) | {"errors": errors}, indent=2))
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())

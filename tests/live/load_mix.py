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
Manner = Literal["whole", "streamed", "slow", "stops", "leaves", "hurries"]

KEEP_ALIVE_SECONDS = 1.0
"""vLLM closes a connection that has been idle for five, which is when httpx would stop using it too: a request that
is sent at that moment is lost, and its client reads an error."""

MANNERS: tuple[Manner, ...] = (
    "whole",
    "whole",
    "streamed",
    "streamed",
    "slow",
    "stops",
    "leaves",
    "hurries",
)
"""How clients read, in turn."""
IMPATIENT = ("leaves", "hurries")
"""Those that stay for neither the whole answer nor its report."""

SLOW_SECONDS = 0.03
"""After each line."""
STOP_SECONDS = 4.0
"""Once, after a few tokens: nothing is taken from the connection."""

COUNTED = (
    "method",
    "status",
    "layer_count",
    "head_count",
    "prompt_rows",
    "generated_rows",
    "kept_tokens",
    "evicted_tokens",
)
"""What a report says whoever else asks. `cached_rows` depends on what the cache holds."""
FREED = "freed_blocks"
"""Says the same only where nobody shares the prompt's blocks, and nothing was preempted."""

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

    @property
    def route(self) -> str:
        return "/v1/chat/completions" if "messages" in self.body else "/v1/completions"

    @property
    def shares(self) -> bool:
        """Whether others may hold its blocks."""
        return "cache_salt" not in self.body


@dataclass(frozen=True)
class Got:
    """What a client got.

    finished: False for one that did not stay; its tokens are those that it saw. reports: what is `COUNTED` of
        each intervention, and the blocks that it freed. error: what went wrong, else empty.
    """

    ask: Ask
    finished: bool
    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    reports: tuple[Body, ...] = ()
    error: str = ""


def asks(server: LiveServer, count: int, seed: int = 0, kinds: int = 33) -> list[Ask]:
    """`count` clients with `kinds` different bodies, in an order of chance.

    A quarter of the bodies are of chats. Half of the clients share blocks with those who ask the same; the others
    have a salt of their own.
    """
    found = []
    for number in range(count):
        kind = number % kinds
        edits = EDITS[kind % len(EDITS)]
        prompt = server.prompt(40 + 7 * kind, start=kind)
        body: Body = {
            "model": server.model,
            "max_tokens": 12 + kind % 20,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
            "interventions": edits,
        }
        if kind % 4 == 3:
            messages = [{"role": "user", "content": server.tokenizer.decode(prompt)}]
            body |= {"messages": messages, "logprobs": True}
        else:
            body |= {"prompt": prompt, "logprobs": 1}
        if kind % 5 == 0:
            body |= {"temperature": 0.8, "seed": kind}
        turn = number // kinds
        if turn % 2:
            body["cache_salt"] = f"client {number}"
        found.append(Ask(kind, MANNERS[(turn + number) % len(MANNERS)], body))
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
            response = await client.post(ask.route, json=ask.body, timeout=0.2)
        except httpx.TimeoutException:
            return Got(ask, False)
        return _whole(ask, response)
    if ask.manner == "whole":
        return _whole(ask, await client.post(ask.route, json=ask.body))
    return await _stream(client, ask)


def _whole(ask: Ask, response: httpx.Response) -> Got:
    if response.status_code != 200:
        return Got(ask, False, error=f"{response.status_code}: {response.text[:300]}")
    answer = response.json()
    choice = answer["choices"][0]
    logprobs = tuple(_logprobs(choice))
    return Got(ask, True, tuple(choice["token_ids"]), logprobs, _reports(answer))


async def _stream(client: httpx.AsyncClient, ask: Ask) -> Got:
    tokens: list[int] = []
    logprobs: list[float] = []
    reports: tuple[Body, ...] = ()
    done = stopped = False
    async with client.stream("POST", ask.route, json=ask.body | {"stream": True}) as response:
        if response.status_code != 200:
            return Got(ask, False, error=f"{response.status_code}")
        async for line in response.aiter_lines():
            if line == "data: [DONE]":
                done = True
            elif line.startswith("data: "):
                chunk = json.loads(line.removeprefix("data: "))
                if "error" in chunk:
                    return Got(ask, False, error=line[:300])
                reports = _reports(chunk) or reports
                for choice in chunk["choices"]:
                    tokens += choice.get("token_ids") or []
                    logprobs += _logprobs(choice)
            if ask.manner == "leaves" and len(tokens) > 3:
                return Got(ask, False, tuple(tokens), tuple(logprobs))
            if ask.manner == "stops" and len(tokens) > 3 and not stopped:
                stopped = True
                await asyncio.sleep(STOP_SECONDS)
            if ask.manner == "slow":
                await asyncio.sleep(SLOW_SECONDS)
    error = "" if done else "the stream ended without [DONE]"
    return Got(ask, done, tuple(tokens), tuple(logprobs), reports, error)


def _logprobs(choice: Body) -> list[float]:
    """Of the tokens of a choice, or of a part of it, in a completion or in a chat."""
    found = choice.get("logprobs") or {}
    of_chat = [token["logprob"] for token in found.get("content") or []]
    return of_chat or found.get("token_logprobs") or []


def _reports(answer: Body) -> tuple[Body, ...]:
    return tuple(
        {name: report[name] for name in (*COUNTED, FREED) if name in report}
        for report in answer.get("interventions") or []
    )


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

"""A server that answers out of a rule instead of a model."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from heed_server.scoring.client import Client

Rule = Callable[[list[int], list[dict[str, Any]]], dict[int, float]]
"""Log-probabilities of the next token, by id, for a prompt under interventions."""


class StandIn(Client):
    """Tokens are characters. A text is one token long; a prompt's own tokens follow the same rule."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.requests: list[dict[str, Any]] = []
        self.prompts = 0

    async def tokens(self, body: Any) -> tuple[int, ...]:
        if "prompt" in body:
            return tuple(map(ord, body["prompt"]))
        text = "".join(f"[{message['content']}]" for message in body["messages"])
        return tuple(map(ord, text[:-1] if body.get("continue_final_message") else text + "["))

    async def complete(self, body: Any) -> list[dict[str, Any]]:
        self.requests.append(body)
        self.prompts += len(body["prompt"])
        return [self._choice(prompt, body) for prompt in body["prompt"]]

    async def chat(self, body: Any) -> dict[str, Any]:
        self.requests.append(body)
        self.prompts += 1
        choice = self._choice(list(await self.tokens(body)), body)
        (top,) = choice.get("logprobs", {}).get("top_logprobs", [{}])
        listed = [{"token": token, "logprob": value} for token, value in top.items()]
        return {
            "choices": [
                {
                    "message": {"content": choice["text"]},
                    "logprobs": {"content": [{"top_logprobs": listed}]},
                }
            ],
            "prompt_logprobs": choice.get("prompt_logprobs"),
        }

    def _choice(self, prompt: list[int], body: Any) -> dict[str, Any]:
        edits = body["interventions"]
        after = self.rule(prompt, edits)
        likeliest = max(after, key=lambda token: after[token])
        if "prompt_logprobs" in body:
            rows: list[Any] = [None]
            for index in range(1, len(prompt)):
                value = self.rule(prompt[:index], edits).get(prompt[index], -99.0)
                rows.append({str(prompt[index]): {"logprob": value}})
            return {"text": "", "prompt_logprobs": rows}
        top = {f"token_id:{token}": value for token, value in after.items()}
        return {"text": chr(likeliest), "logprobs": {"top_logprobs": [top]}}


def two_way(probability: float, first: str = "p", second: str = "n") -> dict[int, float]:
    """Two tokens that share all probability."""
    return {ord(first): math.log(probability), ord(second): math.log(1 - probability)}

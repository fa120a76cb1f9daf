"""Calls put to a server, and what it says in return: log-probabilities or texts."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from heed_server.scoring.calls import Call
from heed_server.scoring.client import Client
from heed_server.scoring.prompts import Tokens

TOP = 20
"""Log-probabilities of the next token that are asked for: as many as vLLM gives by default."""


async def answer(client: Client, calls: Sequence[Call], most_tokens: int) -> list[Any]:
    """What the server says to calls that share `interventions`, `kind` and `messages`.

    "next": log-probabilities by token id; "prompt": of the prompt's tokens, None for the first;
    "text": the greedy text, of at most `most_tokens`.
    """
    first = calls[0]
    body: dict[str, Any] = {
        "interventions": json.loads(first.interventions),
        "max_tokens": most_tokens if first.kind == "text" else 1,
    }
    if first.kind == "next":
        body["return_tokens_as_token_ids"] = True
    elif first.kind == "prompt":
        body["prompt_logprobs"] = 0
    if first.messages is not None:
        # Equal calls are sent once, so that there is one.
        return [await _answer_to_chat(client, first, body)]
    body["prompt"] = [list(call.prompt) for call in calls]
    if first.kind == "next":
        body["logprobs"] = TOP
    choices = await client.complete(body)
    if first.kind == "next":
        return [_by_token(choice["logprobs"]["top_logprobs"][0]) for choice in choices]
    if first.kind == "prompt":
        return [
            _of_prompt(call.prompt, choice["prompt_logprobs"])
            for call, choice in zip(calls, choices, strict=True)
        ]
    return [choice["text"] for choice in choices]


async def _answer_to_chat(client: Client, call: Call, body: dict[str, Any]) -> Any:
    body["messages"] = json.loads(call.messages or "")
    if call.kind == "next":
        body |= {"logprobs": True, "top_logprobs": TOP}
    elif call.kind == "prompt":
        body |= {"add_generation_prompt": False, "continue_final_message": True}
    answer = await client.chat(body)
    if call.kind == "prompt":
        return _of_prompt(call.prompt, answer["prompt_logprobs"])
    (choice,) = answer["choices"]
    if call.kind == "next":
        (first,) = choice["logprobs"]["content"]
        return _by_token({each["token"]: each["logprob"] for each in first["top_logprobs"]})
    return choice["message"]["content"] or ""


def _by_token(top: Mapping[str, float]) -> dict[int, float]:
    return {int(name.removeprefix("token_id:")): value for name, value in top.items()}


def _of_prompt(
    prompt: Tokens, rows: Sequence[Mapping[str, Mapping[str, float]] | None]
) -> list[float | None]:
    return [
        row[str(token)]["logprob"] if row else None for token, row in zip(prompt, rows, strict=True)
    ]

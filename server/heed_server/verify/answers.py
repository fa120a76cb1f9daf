"""Greedy answers of a server, with their log-probabilities digit for digit."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import httpx

from heed_server.measuring.rounds import Interventions
from heed_server.measuring.servers import ServerError

TOKENS = 12
"""Sampled in each answer."""


@dataclass(frozen=True)
class Answer:
    """tokens: sampled ids; logprobs: theirs; report: what the server says that it did."""

    tokens: list[int]
    logprobs: list[float]
    report: list[dict[str, Any]]

    @property
    def bits(self) -> tuple[list[int], list[float]]:
        """What is equal where nothing has changed."""
        return self.tokens, self.logprobs


@dataclass(frozen=True)
class Question:
    """A prompt in token ids, and what to do to it."""

    prompt: Sequence[int]
    interventions: Interventions | None = None


def ask(url: str, question: Question) -> Answer:
    """One answer; nothing comes out of the prefix cache.

    Raises:
        ServerError: the server did not answer, or refused.
    """
    body: dict[str, Any] = {
        "prompt": list(question.prompt),
        "max_tokens": TOKENS,
        "temperature": 0,
        "logprobs": 1,
        "ignore_eos": True,
        "return_token_ids": True,
        "cache_salt": uuid4().hex,
    }
    if question.interventions is not None:
        body["interventions"] = question.interventions
    try:
        response = httpx.post(f"{url}/v1/completions", json=body, timeout=600)
    except httpx.HTTPError as error:
        raise ServerError(f"{url}: {error!r}") from error
    if response.status_code != 200:
        raise ServerError(f"a completion was answered with {response.status_code}: {response.text}")
    answer = response.json()
    (choice,) = answer["choices"]
    return Answer(
        choice["token_ids"], choice["logprobs"]["token_logprobs"], answer.get("interventions") or []
    )


def ask_together(url: str, questions: Sequence[Question]) -> list[Answer]:
    """The same for several at once, in their order."""
    with ThreadPoolExecutor(len(questions)) as pool:
        return list(pool.map(lambda question: ask(url, question), questions))

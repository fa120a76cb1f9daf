"""What a setting makes of an item: calls to the server, and a score out of their answers."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np

from heed_interventions.errors import quote
from heed_server.calibrate.client import Client
from heed_server.calibrate.errors import CalibrationError
from heed_server.calibrate.prompts import Prepared, Tokens

Kind = Literal["choices", "text", "entropy"]
"""By log-probability of the choices, by the greedy text, or by the next token's entropy."""

Intervention = dict[str, Any]

TOP = 20
"""Log-probabilities of the next token that are asked for: as many as vLLM gives by default."""


@dataclass(frozen=True)
class Score:
    """One item under one setting; None where it says nothing.

    right: 1 when the right answer won, else 0.
    likelihood: log of the right choice's share of the choices' probability, in nats.
    entropy: of the next token in nats, with everything beyond the `TOP` likeliest tokens as one
        outcome, so that it is a lower bound.
    """

    right: float | None = None
    likelihood: float | None = None
    entropy: float | None = None


def recorded(value: Any) -> Score:
    """A score out of a journal. Raises `CalibrationError` where it is none."""
    names = {field.name for field in fields(Score)}
    if (
        not isinstance(value, dict)
        or set(value) != names
        or not all(found is None or type(found) is float for found in value.values())
    ):
        raise CalibrationError(
            f"the journal holds {quote(value)} where a score should stand: delete the journal, or "
            "name another with --journal"
        )
    return Score(**value)


@dataclass(frozen=True)
class Call:
    """One prompt to be sent; calls with equal `interventions` and `kind` can share a request.

    interventions: JSON. kind: the next token's log-probabilities, the prompt's own, or a text.
    """

    prompt: Tokens
    interventions: str
    kind: Literal["next", "prompt", "text"]


def calls_for(item: Prepared, kind: Kind, intervention: Intervention | None) -> list[Call]:
    """The calls whose answers `score` needs, in that order."""
    if kind == "text":
        return [Call(item.prompt, _interventions(item, intervention), "text")]
    if kind == "entropy" or all(len(choice) == 1 for choice in item.choices):
        return [Call(item.prompt, _interventions(item, intervention), "next")]
    return calls_for_choices(item, intervention)


def calls_for_choices(item: Prepared, intervention: Intervention | None) -> list[Call]:
    """One call for each choice, as the end of a prompt."""
    return [
        Call(item.prompt + choice, _interventions(item, intervention, len(choice)), "prompt")
        for choice in item.choices
    ]


async def answer(client: Client, calls: Sequence[Call], most_tokens: int) -> list[Any]:
    """What the server says to calls that share `interventions` and `kind`.

    "next": log-probabilities by token id; "prompt": of the prompt's tokens, None for the first;
    "text": the greedy text, of at most `most_tokens`.
    """
    first = calls[0]
    body: dict[str, Any] = {
        "prompt": [list(call.prompt) for call in calls],
        "interventions": json.loads(first.interventions),
        "max_tokens": most_tokens if first.kind == "text" else 1,
    }
    if first.kind == "next":
        body |= {"logprobs": TOP, "return_tokens_as_token_ids": True}
    elif first.kind == "prompt":
        body["prompt_logprobs"] = 0
    choices = await client.complete(body)
    if first.kind == "next":
        return [_by_token(choice["logprobs"]["top_logprobs"][0]) for choice in choices]
    if first.kind == "prompt":
        return [
            _of_prompt(call.prompt, choice["prompt_logprobs"])
            for call, choice in zip(calls, choices, strict=True)
        ]
    return [choice["text"] for choice in choices]


def score(item: Prepared, kind: Kind, answers: Sequence[Any]) -> Score | None:
    """The score out of the answers to `calls_for`, or to `calls_for_choices`.

    None where a choice is not among the likeliest tokens: `calls_for_choices` finds its probability.
    """
    if kind == "text":
        said = str(answers[0]).strip()
        return Score(right=float(said == (item.item.answer or "").strip()))
    if kind == "entropy":
        return Score(entropy=_entropy(answers[0]))
    if not isinstance(answers[0], dict):
        sums = [sum(row[-len(choice) :]) for row, choice in zip(answers, item.choices, strict=True)]
        return _of_choices(np.array(sums), item.right)
    if not all(choice[0] in answers[0] for choice in item.choices):
        return None
    chosen = np.array([answers[0][choice[0]] for choice in item.choices])
    found = _of_choices(chosen, item.right)
    return Score(found.right, found.likelihood, _entropy(answers[0]))


def _interventions(item: Prepared, intervention: Intervention | None, added: int = 0) -> str:
    """The field of a request; `emphasis` gets the item's span.

    added: tokens of a choice after the prompt. They stand for generated ones, which keep their
        weight, so they are a span as well.
    """
    if intervention is None:
        return "[]"
    if intervention["method"] == "emphasis":
        spans: list[dict[str, Any]] = [{"text": item.item.emphasise}]
        if added:
            spans.append({"start": len(item.prompt), "end": len(item.prompt) + added})
        intervention = intervention | {"spans": spans}
    return json.dumps([intervention])


def _of_choices(sums: np.ndarray, right: int | None) -> Score:
    if right is None:
        return Score()
    shares = sums - np.logaddexp.reduce(sums)
    return Score(right=float(np.argmax(sums) == right), likelihood=float(shares[right]))


def _entropy(logprobs: dict[int, float]) -> float:
    """In nats; what the listed tokens leave over counts as one more."""
    listed = np.array(list(logprobs.values()))
    rest = max(0.0, 1.0 - float(np.exp(listed).sum()))
    entropy = -float((np.exp(listed) * listed).sum())
    return entropy - rest * float(np.log(rest)) if rest > 0 else entropy


def _by_token(top: dict[str, float]) -> dict[int, float]:
    return {int(name.removeprefix("token_id:")): value for name, value in top.items()}


def _of_prompt(
    prompt: Tokens, rows: Sequence[dict[str, dict[str, float]] | None]
) -> list[float | None]:
    return [
        row[str(token)]["logprob"] if row else None for token, row in zip(prompt, rows, strict=True)
    ]
